"""Ctrl-C while `python -m numpy_gpt2.NAME` is still importing: exit at once, with status 130 and no traceback."""

import os
import re
import signal
import sys
from typing import Any


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


leave_on_interrupt()
