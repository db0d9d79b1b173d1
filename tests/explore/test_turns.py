"""Laws of the turns: one pass at a time, in the order of asking, a page's newest request instead of its older ones."""

import threading
import time
from types import SimpleNamespace

import pytest

from numpy_gpt2.explore import turns
from numpy_gpt2.explore.turns import Job, Refusal, Turns


@pytest.fixture
def clock(monkeypatch):
    """What a `Job` takes for the time, set by a test."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Asking(threading.Thread):
    """A request in a thread of its own, which keeps its turn until it is told to go on."""

    def __init__(self, shared, page):
        super().__init__(daemon=True)
        self.shared, self.page = shared, page
        self.computes, self.may_end = threading.Event(), threading.Event()
        self.refusal = None
        self.start()

    def run(self):
        try:
            with Job(self.shared, self.page, print) as job, job.turn():
                self.computes.set()
                self.may_end.wait(20)
        except Refusal as refusal:
            self.refusal = refusal

    def end(self):
        assert self.computes.wait(10)
        self.may_end.set()
        self.join(10)
        assert not self.is_alive()


def queued(shared, n):
    """Wait until so many requests work or wait."""
    end = time.monotonic() + 10
    while len(shared.queue) != n and time.monotonic() < end:
        time.sleep(0.002)
    assert len(shared.queue) == n


def test_one_request_computes_at_a_time_in_the_order_of_asking():
    shared = Turns()
    asking = []
    for page in "abcd":
        asking.append(Asking(shared, page))
        queued(shared, len(asking))
    for i, each in enumerate(asking):
        assert each.computes.wait(10)
        assert not any(later.computes.is_set() for later in asking[i + 1:])
        each.end()
        assert each.refusal is None
    assert (shared.queue, shared.newest) == ([], {})


def test_a_newer_request_of_the_same_page_replaces_the_waiting_one_at_once():
    shared = Turns()
    working = Asking(shared, "a")
    queued(shared, 1)
    waiting, other = Asking(shared, "b"), Asking(shared, "c")
    queued(shared, 3)
    newer = Asking(shared, "b")
    waiting.join(10)
    assert (waiting.refusal.status, waiting.refusal.line["replaced"]) == (409, True)
    assert not newer.computes.is_set() and not other.computes.is_set()
    for each in (working, other, newer):
        each.end()
        assert each.refusal is None
    assert (shared.queue, shared.newest) == ([], {})


def test_a_request_at_work_ends_its_turn_and_gives_way_at_the_next():
    shared = Turns()
    with Job(shared, "a", print) as older:
        with older.turn():
            newer = Asking(shared, "a")
            queued(shared, 2)
        with pytest.raises(Refusal, match="a newer request from the same page has replaced this one"):
            with older.turn():
                pytest.fail("it should have given way")
    newer.end()
    assert newer.refusal is None


def test_an_error_in_a_turn_gives_the_turn_to_the_next():
    shared = Turns()
    with pytest.raises(ValueError), Job(shared, "a", print) as job, job.turn():
        raise ValueError
    Asking(shared, "b").end()


def test_a_request_that_waits_for_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(turns, "MOST_SECONDS", 0.05)
    shared = Turns()
    working = Asking(shared, "a")
    queued(shared, 1)
    waiting = Asking(shared, "b")
    waiting.join(10)
    assert (waiting.refusal.status, str(waiting.refusal)) == (
        503, "this took longer than 0.05 s and was stopped: shorten the prompt, or use a smaller model.")
    working.end()


def test_a_pass_that_takes_too_long_ends_at_the_next_block(clock):
    with Job(Turns(), "a", print) as job, job.turn():
        clock.now = 300
        job("h.0.resid_pre", None)
        clock.now = 300.1
        job("h.1.attn.z", None)
        with pytest.raises(Refusal, match="this took longer than 300 s"):
            job("h.1.resid_pre", None)


def test_more_pages_than_anyone_has_open_are_refused():
    shared = Turns()
    jobs = [Job(shared, str(i), print) for i in range(turns.MOST_REQUESTS)]
    for job in jobs:
        job.__enter__()
    with pytest.raises(Refusal, match="16 pages are waiting for this model"):
        Job(shared, "one more", print).__enter__()
    Job(shared, "3", print).__enter__()  # replaces another
    jobs[0].__exit__()
    Job(shared, "one more", print).__enter__()


def test_the_page_is_told_how_far_it_is_only_where_it_has_to_wait_and_not_too_often(clock):
    lines = []
    job = Job(Turns(), "a", lines.append)
    job.expect(8)
    for now, told in [(0.1, []), (0.29, []), (0.31, [0.375]), (0.4, [0.375]), (0.52, [0.375, 0.625])]:
        clock.now = now
        job("h.0.resid_pre", None)
        job("h.0.attn.z", None)
        assert [line["progress"] for line in lines] == told
    clock.now = 1
    job.n_done = 30
    job.advance()
    assert lines[-1] == {"progress": 1}
