"""One pass at a time: requests queue, and a page's newest request replaces its older ones."""

import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import numpy as np

MOST_SECONDS = 300.0  # for one request, waiting included
MOST_REQUESTS = 16  # running or waiting
PROGRESS_AFTER = 0.3  # seconds until the first progress report
PROGRESS_EVERY = 0.2  # seconds between progress reports


class Refusal(Exception):
    """A request that gets an HTTP error status and one sentence."""

    def __init__(self, status: int, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.line = {"error": sentence, **more}


class Turns:
    """The queue of jobs, the first of which is running. Shared by the server's threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.queue: list[Job] = []
        self.newest: dict[str, Job] = {}  # by page


class Job:
    """One request: its turns, its deadline and its progress.

    It is also a tap, which counts each block of a pass as a step.
    """

    globs = ("h.*.resid_pre",)

    def __init__(self, turns: Turns, page: str, send: Callable[[dict[str, Any]], None]) -> None:
        """page: the page's id; its newer requests replace older ones. send: sends a line to the page."""
        self.turns, self.page, self.send = turns, page, send
        self.deadline = time.monotonic() + MOST_SECONDS
        self.next_progress = time.monotonic() + PROGRESS_AFTER
        self.n_steps, self.n_done = 1, 0

    def __enter__(self) -> "Job":
        with self.turns.changed:
            if len(self.turns.newest) >= MOST_REQUESTS and self.page not in self.turns.newest:
                raise Refusal(503, f"{MOST_REQUESTS} pages are waiting for this model: close some, then try again.")
            self.turns.newest[self.page] = self
            self.turns.changed.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self.turns.changed:
            if self.turns.newest.get(self.page) is self:
                del self.turns.newest[self.page]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the turn: no other request computes meanwhile. Raises Refusal if replaced or timed out."""
        changed, queue = self.turns.changed, self.turns.queue
        with changed:
            queue.append(self)
            is_time = changed.wait_for(lambda: queue[0] is self or self.is_replaced(),
                                       self.deadline - time.monotonic())
        try:
            if self.is_replaced():
                raise Refusal(409, "a newer request from the same page has replaced this one.", replaced=True)
            if not is_time:
                raise overdue()
            yield
        finally:
            with changed:
                queue.remove(self)
                changed.notify_all()

    def is_replaced(self) -> bool:
        return self.turns.newest.get(self.page) is not self

    def expect(self, n_steps: int) -> None:
        """Set the total number of steps, for progress reports."""
        self.n_steps = n_steps

    def advance(self) -> None:
        """Count one step, and report progress now and then. Raises Refusal if timed out."""
        if time.monotonic() > self.deadline:
            raise overdue()
        self.n_done += 1
        if time.monotonic() > self.next_progress:
            self.next_progress = time.monotonic() + PROGRESS_EVERY
            self.send({"progress": round(min(self.n_done / self.n_steps, 1), 3)})

    def __call__(self, name: str, value: np.ndarray) -> None:
        if name.endswith(".resid_pre"):
            self.advance()


def overdue() -> Refusal:
    return Refusal(503, f"this took longer than {MOST_SECONDS:g} s and was stopped: shorten the prompt, or use a "
                   "smaller model.")
