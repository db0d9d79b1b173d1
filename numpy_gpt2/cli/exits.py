"""How every `python -m numpy_gpt2.NAME` exits, and its messages on standard error.

Exit 0: done, or the reader closed the pipe. 1: a failure at run time (a corrupt file, the network, no memory, no disk).
2: bad input. 130: Ctrl-C. All but the first print one line to standard error; only our own bugs give a traceback.
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
    """An error in the user's input; the message is the line to print."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn a ValueError into BadInput, where arguments are checked. Anywhere else a ValueError is our bug."""
    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error


def say(line: str, end: str = "\n") -> None:
    """Print a line to standard error, for everything but results. A closed standard error does no harm."""
    try:
        print(line, end=end, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # otherwise Python tries again at exit


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a command line's main function and exit with its status (see the module's docstring)."""
    sys.exit(exit_status(main))


def exit_status(main: Callable[[], Any]) -> int:
    """Run a main function, print its error if any, and return the exit status."""
    obey_interrupts()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, mode))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may be unable to show some characters
    try:
        with np.errstate(all="ignore"), notes_on_stderr():  # non-finite numbers are reported once, as an error
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
        say(f"error: not enough memory: {str(error) or 'shorten the input, or use a smaller model'}")
        return 1
    except OSError as error:
        say(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}")
        abandon_stdout()
        return 1


@contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Print warnings about a checkpoint as one line each; leave all others as they are."""
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
    """Redirect a broken standard output, so that Python does not try again, with a traceback, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
