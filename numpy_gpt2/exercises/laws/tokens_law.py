"""Laws of chapter 1: text to tokens and back."""

import functools
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Callable, Iterator

import numpy as np

from ... import bpe
from ...tokenizer import END_OF_TEXT, Tokenizer
from .law import Args, Law

# In the order in which they were learned: a rank for each pair. The last ones would join pieces that are not split.
MERGES = ["e|r", "o|w", "l|ow", "t|h", "th|e", "a|a", "l|l", "h|e", "ow|er", "c|h", "á|i", "'|s",
          "a| ", "o|!", "low|1", "t|'"]
TEXTS = ["low", "a lower tower", "the hello!", "aaaa bower", "a a", "Xin chào các bạn", "thế giới 🌍", "", "low1",
         "it's", "a  low"]

RANKS = {(first.encode(), second.encode()): MERGES.index(text)
         for text in sorted(MERGES) for first, second in [text.split("|")]}  # not in the order of the ranks


@functools.cache
def small_tokenizer() -> Tokenizer:
    """All bytes, and a token for each merge whose parts are tokens."""
    ids = {bytes([i]): i for i in range(256)}
    for first, second in RANKS:
        ids[first + second] = len(ids)
    return Tokenizer(ids, RANKS, {END_OF_TEXT: len(ids)}, ids_are_ranks=False)


def ids_of(text: str) -> list[int]:
    """The ids of a text whose merges never cross a character, so that some tokens are parts of one."""
    return small_tokenizer().encode(text)


def merge_cases(rng: np.random.Generator) -> Iterator[Args]:
    for piece in [b"er", b"low", b"ther", b" lower", b"lowlower", b"aaa", b"aaaaa", "chào".encode(), b"x"]:
        yield piece, RANKS
    for _ in range(4):
        yield bytes(rng.choice(list(b"lowerthea"), 12).tolist()), RANKS


def encode_cases(rng: np.random.Generator) -> Iterator[Args]:
    for text in TEXTS:
        yield text, RANKS


def decode_cases(rng: np.random.Generator) -> Iterator[Args]:
    for text in TEXTS:
        yield (ids_of(text),)
    yield (ids_of("chào")[:-2],)  # ends inside a character
    yield ([*b"lo\xa0wer"],)  # a byte that no character has there, which later ids cannot finish


def call_as_method(function: Callable[..., Any], args: Args) -> Any:
    """The method of a small tokenizer."""
    return function(small_tokenizer(), *args)


@dataclass
class Generator:
    """What a generator has yielded, and how many ids it had taken each time."""

    pieces: list[Any]
    ids_taken: list[int]


def call_stream(function: Callable[..., Any], args: Args) -> Any:
    """Give the ids one by one, as a model makes them."""
    ids, = args
    source = iter(ids)
    result = function(small_tokenizer(), (token_id for token_id in source))
    if not isinstance(result, Iterator):
        return result
    events = [(piece, len(ids) - length_hint(source)) for piece in result]
    return Generator([piece for piece, _ in events], [n for _, n in events])


LAWS = {
    "decode": Law(Tokenizer.decode, decode_cases, call_as_method, without_self=True),
    "merge": Law(bpe.merge, merge_cases),
    "encode": Law(bpe.encode, encode_cases),
    "decode_stream": Law(Tokenizer.decode_stream, decode_cases, call_stream, without_self=True),
}
