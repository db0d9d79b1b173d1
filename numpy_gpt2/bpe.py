r"""Byte pair encoding, the algorithm: how GPT-2 splits a text into tokens. No files and no ids, only bytes and merges.

    "a lower tower"  ->  "a", " lower", " tower"    split into pieces, so that no token spans two words
    " lower"         ->  " " "l" "o" "w" "e" "r"    at first the tokens of a piece are its bytes
                     ->  " " "l" "o" "w" "er"       then the adjacent pair that comes first in the list of merges
                     ->  " l" "o" "w" "er"          becomes one token,
                     ->  " l" "ow" "er"             again and again,
                     ->  " l" "ower"                until no adjacent pair is in the list
                     ->  " lower"

The list of merges was learned once, before the model: merge the most frequent pair in a large text, append it to the
list, and repeat with the merged text. A pair's index in that list is its rank; encoding replays the list.

tokenizer.py uses tiktoken if it gives the same ids, as it nearly always does, and this module otherwise. To watch it
work: `python -m numpy_gpt2.tokens " lower" --merges --model gpt2`, or a breakpoint in `merge_steps`.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", section 3.2; on bytes:
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository.
"""

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import regex

# At each position the first matching alternative is used. \p{L} is any letter, \p{N} any digit or other number.
SPLIT_PATTERN = "|".join([
    r"'(?:s|t|re|ve|m|ll|d)",  # English contractions: it's, don't, we're, I've, I'm, she'll, he'd
    r" ?\p{L}+",  # letters, with one space before them if there is one
    r" ?\p{N}+",  # digits, likewise
    r" ?[^\s\p{L}\p{N}]+",  # punctuation and all other characters, likewise
    r"\s++$",  # white space at the end. OpenAI's pattern leaves it to the next line, with the same matches
    r"\s+(?!\S)",  # white space without its last character, which joins the next word
    r"\s+",  # that last character, if it is not a space
])

Ranks = Mapping[tuple[bytes, bytes], int]  # a pair of tokens -> its index in the list of merges


class Merge(NamedTuple):
    """Two adjacent tokens of a piece become one: piece[start:middle] and piece[middle:end]."""

    rank: int
    start: int
    middle: int
    end: int


def split(text: str) -> list[str]:
    """Split a text into pieces, which are encoded independently. Joined, they give the text."""
    return regex.findall(SPLIT_PATTERN, text)


def merge_steps(piece: bytes, ranks: Ranks) -> Iterator[Merge]:
    """Yield every merge in a piece in order: the lowest rank first, and the leftmost on ties.

    Checking all pairs after each merge would take quadratic time. But a merge only creates two new pairs, one on each
    side, so all pairs are kept in a heap, which gives the next one quickly.
    """
    after = [*range(1, len(piece) + 1), -1]  # a boundary between two tokens -> the next; at first between all bytes
    before = list(range(-1, len(piece)))  # a boundary -> the previous one
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
            continue  # one of the two tokens has already been merged
        after[start], before[end] = end, start
        after[middle] = -1  # no longer a boundary
        yield Merge(rank, start, middle, end)
        if start > 0:
            add_pair(before[start], start, end)
        if end < len(piece):
            add_pair(start, end, after[end])


def merge(piece: bytes, ranks: Ranks) -> list[bytes]:
    """The tokens of a piece. Joined, they give the piece."""
    cuts = set(range(len(piece) + 1))
    for step in merge_steps(piece, ranks):
        cuts.remove(step.middle)
    return [piece[start:end] for start, end in pairwise(sorted(cuts))]


def encode(text: str, ranks: Ranks) -> list[bytes]:
    """The tokens of a text. Joined, they give its UTF-8 bytes."""
    return [token for piece in split(text) for token in merge(piece.encode(), ranks)]
