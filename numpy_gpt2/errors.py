"""What can go wrong outside the program: the exceptions, and how an error, or a value in one, becomes a single line."""

import reprlib


class CheckpointError(Exception):
    """A checkpoint's file is not what it should be. One line: the file, the tensor or key, what was seen, expected."""


class HubError(Exception):
    """The hub could not be reached, or refused. One line: what happened, and the ways out."""


SHORTENED = reprlib.Repr()
SHORTENED.maxlevel = 2
SHORTENED.maxstring = SHORTENED.maxother = 100
shown = SHORTENED.repr  # a value from a file, for an error's one line: its writer may have made it long, or deep


def one_line(error: BaseException) -> str:
    """An error's message, cut where it is very long, without line breaks and whatever else a terminal would obey."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(error)[:1000])
    return " ".join(printable.split())
