"""How every `python -m numpy_gpt2.NAME` ends, and what it says on standard error.

Exit 0: done, or the reader closed the pipe. 1: a failure at run time (a corrupt file, the network, no memory, no disk).
2: bad input. 130: Ctrl-C. In each case but the first, one line on standard error; a traceback only for our own bugs.
"""

import os
import sys
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NoReturn

import numpy as np

from ..errors import CheckpointError, CheckpointWarning, HubError
from .interrupts import obey_interrupts


class BadInput(Exception):
    """What the user gave cannot be used; the message is the whole line that says so."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Where arguments are checked: a ValueError raised inside is the user's mistake, anywhere else it is ours."""
    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error


def say(line: str, end: str = "\n") -> None:
    """One line on standard error, where all goes that is not the result, and which may be closed without harm to it."""
    try:
        print(line, end=end, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # Python would try once more when it exits


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a command line's main function and exit as this module's docstring says."""
    sys.exit(exit_status(main))


def exit_status(main: Callable[[], Any]) -> int:
    """Run a main function; the exit status that it ends with, everything said that is to be said."""
    obey_interrupts()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        with np.errstate(all="ignore"), notes_on_stderr():  # numbers that are not finite are reported once, as an error
            main()
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        abandon_stdout()
        return 0
    except KeyboardInterrupt:
        say("")
        return 130
    except BadInput as error:
        say(f"error: {error}")
        return 2
    except (CheckpointError, HubError, FloatingPointError) as error:
        say(f"error: {error}")
        return 1
    except MemoryError as error:
        say(f"error: not enough memory: {str(error) or 'ask for less, or use a smaller model'}")
        return 1
    except OSError as error:
        say(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}")
        abandon_stdout()
        return 1


@contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Warnings about a checkpoint as one line each; all others as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        show = warnings.showwarning

        def showwarning(message: Any, category: Any, *place: Any) -> None:
            if issubclass(category, CheckpointWarning):
                say(f"note: {message}")
            else:
                show(message, category, *place)

        warnings.showwarning = showwarning  # type: ignore[assignment]
        yield


def abandon_stdout() -> None:
    """Nobody reads, or nothing can be written: keep Python from trying once more, with a traceback, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
