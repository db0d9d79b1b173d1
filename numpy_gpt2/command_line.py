"""What every `python -m numpy_gpt2.NAME` shares: how it ends, and how it reads its prompt.

Exit 0: done, or the reader closed the pipe. 1: the world refused (a corrupt file, the network, no memory, no disk).
2: bad input. 130: Ctrl-C. In each case but the first, one line on standard error; a traceback only for our own bugs.
"""

import argparse
import os
import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator, NoReturn

import numpy as np

from .config import CheckpointError
from .hub import HubError
from .weights import GPT2, named_parameters


class BadInput(Exception):
    """What the user gave cannot be used; the message is the whole line that says so."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Where arguments are checked: a ValueError raised inside is the user's mistake, anywhere else it is ours."""
    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one line for a mistake; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see python -m {self.prog} --help)")


def whole_number(smallest: int, largest: int = 10**18 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number from `smallest` to `largest`."""
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or not smallest <= int(text) <= largest:
            limits = f"{smallest} or more" if largest == 10**18 - 1 else f"from {smallest} to {largest:,}"
            raise argparse.ArgumentTypeError(f"must be a whole number, {limits}. Got {text[:40]!r}.")
        return int(text)

    return parse


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """`--model NAME`, as every command line takes it."""
    parser.add_argument("--model", default="fairytale", metavar="NAME",
                        help="fairytale (bundled, the default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, "
                             "an owner/repo on the hub, or a folder")


def announce_model(name: str, model: GPT2) -> None:
    """Say on standard error which model is at work, and, by default, how to get another."""
    line = f"model: {name}, {sum(array.size for _, array in named_parameters(model)):,} parameters"
    if name == "fairytale":
        line += " (bundled; for OpenAI's GPT-2: --model gpt2)"
    say(line)


def say(line: str) -> None:
    """One line on standard error, where all goes that is not the result."""
    print(line, file=sys.stderr, flush=True)


def read_prompt(prompt: str | None, prompt_file: str | None = None) -> str:
    """The prompt from the command line, a file, or `-` (standard input). Raises BadInput.

    Line ends are read as in any text file, and the last one is not part of the prompt: editors and `echo` put it there.
    """
    if prompt_file is None:
        return utf8_text(os.fsencode(prompt or ""), "the prompt")
    return utf8_text(*read_bytes(prompt_file)).replace("\r\n", "\n").removesuffix("\n")


def read_bytes(file: str) -> tuple[bytes, str]:
    """What a file, or standard input (-), holds, and what errors call it. Raises BadInput."""
    source = "standard input" if file == "-" else file
    try:
        if file == "-":
            return sys.stdin.buffer.read(), source
        with open(file, "rb") as opened:
            return opened.read(), source
    except OSError as error:
        raise BadInput(f"{source}: {error.strerror}") from error


def read_text(file: str) -> str:
    """The text of a file, or of standard input (-), to the last byte: for what is measured, not continued.

    Raises BadInput."""
    data, source = read_bytes(file)
    if not data:
        raise BadInput(f"{source} is empty: expected a text")
    return utf8_text(data, source)


def utf8_text(data: bytes, source: str) -> str:
    """The bytes as text. Raises BadInput, naming the source and the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source} is not UTF-8 text: byte {data[error.start]:#04x} at offset {error.start}") from error


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a command line's main function and exit as this module's docstring says."""
    sys.exit(exit_status(main))


def exit_status(main: Callable[[], Any]) -> int:
    """Run a main function; the exit status that it ends with, everything said that is to be said."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are reported once, as an error
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
        say(f"error: not enough memory: {str(error) or 'ask for less, or take a smaller model'}")
        return 1
    except OSError as error:
        say(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}")
        abandon_stdout()
        return 1


def abandon_stdout() -> None:
    """Nobody reads, or nothing can be written: keep Python from trying once more, with a traceback, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
