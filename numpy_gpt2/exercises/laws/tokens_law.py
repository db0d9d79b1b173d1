"""Laws of chapter 1: text to tokens and back."""

import functools
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Callable, Iterator

import numpy as np

from ... import bpe
from ...bpe import Ranks
from ...tokenizer import END_OF_TEXT, Tokenizer
from .law import Args, Law

# Pairs in the order in which they were learned. Some would join pieces that are not split; one makes an "à" whole.
MERGES = [(left, right) for left, right in (text.split(b"|") for text in [
    b"e|r", b"o|w", b"l|ow", b"t|h", b"th|e", b"a|a", b"l|l", b"h|e", b"ow|er", b"c|h", b"\xc3\xa1|i", b"'|s",
    b"a| ", b"o|!", b"low|1", b"t|'", b"r|s", b"\xc3|\xa0"])]
TEXTS = ["low", "a lower tower", "the hello!", "aaaa bower", "a a", "Xin chào các bạn", "thế giới 🌍", "", "low1",
         "it's", "a  low", " low "]


def ranks_in(text: bytes) -> Ranks:
    """The ranks that matter to a text: of the pairs whose join occurs in it, counted from 0."""
    pairs = [pair for pair in MERGES if b"".join(pair) in text]
    return {pair: pairs.index(pair) for pair in sorted(pairs)}  # not in the order of the ranks


@functools.cache
def small_tokenizer() -> Tokenizer:
    """All bytes, and a token for each merge."""
    tokens = [*(bytes([i]) for i in range(256)), *map(b"".join, MERGES)]
    ids = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(ids, ranks_in(b" ".join(tokens)), {END_OF_TEXT: len(ids)}, ids_are_ranks=False)


def ids_of(text: str) -> list[int]:
    """The ids of a text whose merges never cross a character, so that some tokens are parts of one."""
    return small_tokenizer().encode(text)


def merge_cases(rng: np.random.Generator) -> Iterator[Args]:
    pieces = [b"er", b"low", b"ther", b" lower", b"eers", b"lowlower", b"aaa", b"aaaaa", "chào".encode(), b"x"]
    for piece in [*pieces, *(bytes(rng.choice(list(b"lowerthea"), 12).tolist()) for _ in range(4))]:
        yield piece, ranks_in(piece)


def encode_cases(rng: np.random.Generator) -> Iterator[Args]:
    for text in TEXTS:
        without_spaces = text.replace(" ", "")  # as some will write it
        yield text, ranks_in(f"{text} {without_spaces}".encode("utf-8"))


def decode_cases(rng: np.random.Generator) -> Iterator[Args]:
    for text in TEXTS:
        yield (ids_of(text),)
    yield (ids_of("bạn")[:-2],)  # ends inside a character
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
