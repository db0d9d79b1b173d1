"""Texts from outside, in whatever locale the tests run."""

import os


def as_typed(text: object) -> str:
    """A text as Python gets it from a command line, and as it names files: in an ASCII locale its bytes, escaped."""
    return os.fsdecode(str(text).encode("utf-8", "surrogateescape"))
