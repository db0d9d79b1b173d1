"""Iterators that generation returns: a stream of tokens, or of text up to a stop string, with a finish reason."""

import threading
from typing import Any, Generator, Iterable, Iterator, Sequence, TypeVar

import numpy as np

from .prompt_lookup import LookupStatistics
from .tokenizer import Tokenizer

T = TypeVar("T")


class Stream(Iterator[T]):
    """An iterator with a `finish_reason`, which is None until it ends, and for a batch a list with a reason per row.

    "eos": an end-of-text token; "stop": a stop string; "length": max_new_tokens or the context was reached.
    `lookup` has the statistics of prompt lookup, or None without it.
    """

    def __init__(self, steps: Generator[T, None, Any], lookup: LookupStatistics | None = None) -> None:
        self._steps = steps
        self.lookup = lookup
        self._error: Exception | None = None
        self.finish_reason: Any = None

    def __next__(self) -> T:
        if self._error is not None:
            raise self._error  # a generator that has failed would only raise StopIteration
        try:
            return next(self._steps)
        except StopIteration as end:
            self.finish_reason = self.finish_reason or end.value
            raise
        except Exception as error:
            self._error = error
            raise


class SharedSteps:
    """The steps of one generation, each computed once, for several readers, which may be in different threads."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps = steps
        self.taken: list[Any] = []
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        i = 0
        while True:
            with self.lock:
                if i == len(self.taken):
                    try:
                        self.taken.append(next(self.steps))
                    except StopIteration:
                        return
            yield self.taken[i]
            i += 1


class TextStream(Stream[str]):
    """Pieces of one row's text; `ids` are all tokens sampled so far, including those whose text is held back."""

    def __init__(self, steps: SharedSteps, row: int, tokenizer: Tokenizer, eos_ids: list[int],
                 stop_strings: Sequence[str], lookup: LookupStatistics | None) -> None:
        super().__init__(self._pieces(steps, row, tokenizer, eos_ids, stop_strings), lookup)
        self.ids: list[int] = []

    def _pieces(self, steps: SharedSteps, row: int, tokenizer: Tokenizer, eos_ids: list[int],
                stop_strings: Sequence[str]) -> Generator[str, None, str]:
        """The pieces of the text. Returns the finish reason."""
        def ids_until_end() -> Iterator[int]:
            for tokens in steps:
                self.ids.append(int(np.ravel(tokens)[row]))
                if self.ids[-1] in eos_ids:
                    return
                yield self.ids[-1]

        stopped = yield from until_stop(tokenizer.decode_stream(ids_until_end()), stop_strings)
        if stopped:
            return "stop"
        return "eos" if self.ids and self.ids[-1] in eos_ids else "length"


# Stop strings ---------------------------------------------------------------------------------------------------------


def until_stop(pieces: Iterable[str], stop_strings: Sequence[str]) -> Generator[str, None, bool]:
    """The pieces of a text up to the first stop string. Returns whether there was one.

    The text does not depend on where the pieces were cut.
    """
    held_back = ""
    for piece in pieces:
        held_back += piece
        start = find_stop(held_back, stop_strings)
        if start is not None:
            if start > 0:
                yield held_back[:start]
            return True
        decided = len(held_back) - longest_beginning(held_back, stop_strings)
        if decided > 0:
            yield held_back[:decided]
            held_back = held_back[decided:]
    if held_back:
        yield held_back
    return False


def find_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """The start of the stop string that ends first, or None."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stop_strings if stop in text]
    return min(found)[1] if found else None


def longest_beginning(text: str, stop_strings: Sequence[str]) -> int:
    """The length of the longest suffix of the text that is the start of a stop string."""
    longest = max(map(len, stop_strings), default=0) - 1
    for length in range(min(len(text), longest), 0, -1):
        if any(len(stop) > length and text.endswith(stop[:length]) for stop in stop_strings):
            return length
    return 0
