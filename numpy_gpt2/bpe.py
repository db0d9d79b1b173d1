r"""Byte pair encoding, the algorithm: how GPT-2 cuts a text into tokens. No files and no ids, only bytes and merges.

    "a lower tower"  ->  "a", " lower", " tower"    split into pieces, so that no token spans two words
    " lower"         ->  " " "l" "o" "w" "e" "r"    at first the tokens of a piece are its bytes
                     ->  " " "l" "o" "w" "er"       then the adjacent pair that comes first in the list of merges
                     ->  " l" "o" "w" "er"          becomes one token,
                     ->  " l" "ow" "er"             again and again,
                     ->  " l" "ower"                until no adjacent pair is in the list
                     ->  " lower"

The list of merges was learned once, before the model: join the pair that is most frequent in a large text, write it
down, and begin again with the text so joined. A pair's place in that list is its rank; encoding replays the list.

tokenizer.py leaves all this to tiktoken where the ids come out the same, which is nearly always, and calls this module
elsewhere. To watch it: `python -m numpy_gpt2.tokens " lower" --merges --model gpt2`, or a breakpoint in `merge_steps`.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", section 3.2; on bytes:
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository.
"""

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import regex

# At each place the first alternative that fits is taken. \p{L} is any letter, \p{N} any digit or other number.
SPLIT_PATTERN = "|".join([
    r"'(?:s|t|re|ve|m|ll|d)",  # English contractions: it's, don't, we're, I've, I'm, she'll, he'd
    r" ?\p{L}+",  # letters, with the space before them if there is one
    r" ?\p{N}+",  # digits, likewise
    r" ?[^\s\p{L}\p{N}]+",  # punctuation and all other signs, likewise
    r"\s++$",  # white space at the end. OpenAI's pattern leaves it to the next line, which matches the same
    r"\s+(?!\S)",  # white space without its last character, which goes with the word that follows
    r"\s+",  # that last character, where it is no space
])

Ranks = Mapping[tuple[bytes, bytes], int]  # a pair of tokens -> its place in the list of merges


class Merge(NamedTuple):
    """Two adjacent tokens of a piece become one: piece[start:middle] and piece[middle:end]."""

    rank: int
    start: int
    middle: int
    end: int


def split(text: str) -> list[str]:
    """The pieces of a text, which are encoded one by one. They join to the text."""
    return regex.findall(SPLIT_PATTERN, text)


def merge_steps(piece: bytes, ranks: Ranks) -> Iterator[Merge]:
    """Every merge in a piece, in the order in which they happen: the lowest rank first, of equal ranks the leftmost.

    To look at every pair anew after each merge would take a time that grows with the square of the piece. But a merge
    only makes two new pairs, one on each side, so all pairs wait in a heap, which gives the first of them at once.
    """
    after = [*range(1, len(piece) + 1), -1]  # a cut between two tokens -> the next cut; at first between all bytes
    before = list(range(-1, len(piece)))  # and the one before
    waiting: list[Merge] = []  # a heap

    def add_pair(start: int, middle: int, end: int) -> None:
        rank = ranks.get((piece[start:middle], piece[middle:end]))
        if rank is not None:
            heappush(waiting, Merge(rank, start, middle, end))

    for middle in range(1, len(piece)):
        add_pair(middle - 1, middle, middle + 1)
    while waiting:
        rank, start, middle, end = heappop(waiting)
        if after[start] != middle or after[middle] != end:
            continue  # one of the two tokens has since become part of another
        after[start], before[end] = end, start
        after[middle] = -1  # no longer a cut
        yield Merge(rank, start, middle, end)
        if start > 0:
            add_pair(before[start], start, end)
        if end < len(piece):
            add_pair(start, end, after[end])


def merge(piece: bytes, ranks: Ranks) -> list[bytes]:
    """The tokens of a piece. They join to the piece."""
    cuts = set(range(len(piece) + 1))
    for step in merge_steps(piece, ranks):
        cuts.remove(step.middle)
    return [piece[start:end] for start, end in pairwise(sorted(cuts))]


def encode(text: str, ranks: Ranks) -> list[bytes]:
    """The tokens of a text. They join to its UTF-8 bytes."""
    return [token for piece in split(text) for token in merge(piece.encode(), ranks)]
