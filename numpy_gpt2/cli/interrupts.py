"""Ctrl-C while `python -m numpy_gpt2.NAME` is still importing (exit at once, with status 130), and at a prompt."""

import os
import re
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Iterator


def leave(*_: Any) -> None:
    os._exit(130)  # nothing has been opened or written yet


def leave_on_interrupt() -> None:
    """Exit on Ctrl-C until `obey_interrupts`; not in a library, nor if the parent process ignores Ctrl-C."""
    is_command = sys.argv[:1] == ["-m"] and re.search("(^| )-m ?numpy_gpt2", " ".join(sys.orig_argv))
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def obey_interrupts() -> None:
    """Make Ctrl-C a KeyboardInterrupt again, which `exits.py` turns into a status."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible_prompt() -> Iterator[None]:
    """While input() waits at a terminal: notice Ctrl-C even between the prompt and the wait for a key.

    readline asks whether there was a signal only when one ends its wait. An earlier one would be noticed at the end of
    the line, which would then be lost; so a timer ends the wait every 0.1 s.
    """
    if not hasattr(signal, "setitimer"):  # Windows, which has no readline either
        yield
        return
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_REAL)):
        yield  # no signal can be handled here; or the timer is the caller's, who uses this as a library
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


leave_on_interrupt()
