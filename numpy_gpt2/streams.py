"""The iterators that generation returns: streams of tokens or of text, with a finish reason."""

import threading
from copy import copy
from typing import Any, Generator, Iterable, Iterator, Sequence, TypeVar

import numpy as np

from .prompt_lookup import LookupStatistics
from .scoring import Drawn
from .tokenizer import Tokenizer

T = TypeVar("T")


class Stream(Iterator[T]):
    """An iterator that records its tokens. Its four lists are parallel: element i describes the i-th token.

    ids: the tokens so far: ints, or for a batch arrays [*rows].
    log_probs: the natural logarithm of each token's probability in the model's own distribution, before the repetition
        penalty, logits processors, temperature and the rest: floats, or arrays [*rows]. `score_tokens` gives the same
        for the prompt and `ids`. (The end token that an ended row repeats has 0, and meaningless top_ids.)
    top_ids, top_log_probs: the `top_log_probs=n` most likely tokens at each step, in descending order: arrays
        [*rows, n]. The token drawn need not be among them.
    finish_reason: None until the end, then "eos" (an end-of-text token), "stop" (a stop string) or "length"
        (max_new_tokens or the context was reached). For a batch a list with a reason per row.
    lookup: the statistics of prompt lookup, or None without it.
    """

    def __init__(self, steps: Generator[Any, None, Any], lookup: LookupStatistics | None = None) -> None:
        self.ids: list[Any] = []
        self.log_probs: list[Any] = []
        self.top_ids: list[np.ndarray] = []
        self.top_log_probs: list[np.ndarray] = []
        self.finish_reason: Any = None
        self.lookup = lookup
        self._steps = steps
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.ids)} tokens, finish_reason={self.finish_reason!r})"

    def __next__(self) -> T:
        if self._error is not None:
            raise self._error  # a failed generator would only raise StopIteration
        try:
            return self._taken(next(self._steps))
        except StopIteration as end:
            self.finish_reason = self.finish_reason or end.value
            raise
        except Exception as error:
            self._error = error
            raise

    def _taken(self, step: Any) -> T:
        """Record a step and return its token."""
        self._remember(step)
        return copy(step.ids)  # a copy: the caller may write to it

    def _remember(self, step: Drawn) -> None:
        for known, new in zip((self.ids, self.log_probs, self.top_ids, self.top_log_probs), step):
            known.append(new)


def side_by_side(streams: Sequence[Stream[Any]], groups: Sequence[np.ndarray]) -> Generator[Drawn, None, Any]:
    """Merge the steps of several batches into one; stream i has the rows groups[i] [n]. A stream that has ended
    repeats its last tokens until all have. Returns the finish reasons.
    """
    place = np.argsort(np.concatenate(groups))  # [n_rows]: where each row is among those of all streams

    def joined(parts: list[Any], axis: int = -1) -> np.ndarray:
        return np.take(np.concatenate(parts, axis), place, axis)

    while any([next(stream, None) is not None for stream in streams]):
        yield Drawn(joined([stream.ids[-1] for stream in streams]),
                    joined([stream.log_probs[-1] * (stream.finish_reason is None) for stream in streams]),
                    joined([stream.top_ids[-1] for stream in streams], axis=-2),
                    joined([stream.top_log_probs[-1] for stream in streams], axis=-2))
    return joined([stream.finish_reason for stream in streams]).tolist()


class SharedSteps:
    """The steps of one generation, each computed once, shared by several readers, possibly in different threads."""

    def __init__(self, stream: Stream[Any]) -> None:
        self.stream = stream
        self.lock = threading.Lock()

    def of_row(self, row: int) -> Iterator[Drawn]:
        """The steps of one row."""
        i = 0
        while True:
            with self.lock:
                if i == len(self.stream.ids) and next(self.stream, None) is None:
                    return
            yield Drawn(self.stream.ids[i], self.stream.log_probs[i], self.stream.top_ids[i],
                        self.stream.top_log_probs[i]).of_row(row)
            i += 1


class TextStream(Stream[str]):
    """Pieces of one row's text. `ids` and the other lists also include tokens whose text is held back or left out."""

    ids: list[int]
    log_probs: list[float]

    def __init__(self, steps: SharedSteps, row: int, tokenizer: Tokenizer, eos_ids: Sequence[int],
                 stop_strings: Sequence[str]) -> None:
        super().__init__(self._pieces(steps, row, tokenizer, eos_ids, stop_strings), steps.stream.lookup)

    def _taken(self, step: str) -> str:
        return step

    def _pieces(self, steps: SharedSteps, row: int, tokenizer: Tokenizer, eos_ids: Sequence[int],
                stop_strings: Sequence[str]) -> Generator[str, None, str]:
        """The pieces of the text. Returns the finish reason."""
        def ids_until_end() -> Iterator[int]:
            for step in steps.of_row(row):
                self._remember(step)
                if step.ids in eos_ids:
                    return
                yield step.ids

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
