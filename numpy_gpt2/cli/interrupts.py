"""Ctrl-C while `python -m numpy_gpt2.NAME` still imports: it ends at once, with status 130 and without a traceback."""

import os
import re
import signal
import sys
from typing import Any


def leave(*_: Any) -> None:
    os._exit(130)  # nothing has been opened or written yet


def leave_on_interrupt() -> None:
    """Until `obey_interrupts`. Not where the package is a library, nor where whoever started us ignores Ctrl-C."""
    is_command = sys.argv[:1] == ["-m"] and re.search("(^| )-m ?numpy_gpt2", " ".join(sys.orig_argv))
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def obey_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, which `exits.py` turns into a status."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


leave_on_interrupt()
