"""Names that users type: stages by full name, short name or glob; blocks and heads by number."""

import difflib
import re
from fnmatch import fnmatchcase
from typing import Iterable, Sequence


class Refused(ValueError):
    """A command that cannot be executed; the message is the line to print."""


def part_of(name: str) -> str:
    """The block of a stage, `h.3` for `h.3.attn.q`; outside the blocks the stage itself."""
    block = re.match(r"h\.\d+", name)
    return block.group() if block else name


def forms_of(name: str) -> tuple[str, ...]:
    """All names of a stage: q, attn.q, h.3.q, h.3.attn.q."""
    part, last = part_of(name), name.rpartition(".")[2]
    return (last,) if part == name else (last, name.removeprefix(f"{part}."), f"{part}.{last}", name)


def short_names(names: Sequence[str], block: str) -> dict[str, str]:
    """{name that may be typed: stage} within a block; stages of other blocks need the block in the name.

    Of two with the same ending, the later one wins.
    """
    near = [name for name in names if part_of(name) in (block, name)]
    whole = {form: name for name in names for form in forms_of(name)[-2:]}  # h.3.q, h.3.attn.q
    return {**{form: name for name in near for form in forms_of(name)}, **whole}


def is_meant(name: str, glob: str) -> bool:
    """Whether a glob matches a stage's name in full or in one of its short forms."""
    return any(fnmatchcase(form, glob) for form in forms_of(name))


def fitting_stages(glob: str, names: Sequence[str]) -> list[str]:
    """The stages that match a glob by any of their names. Raises Refused, with similar names, if there is none."""
    fitting = [name for name in names if is_meant(name, glob)]
    if not fitting:
        raise Refused(f"no stage here is called {glob!r}; {nearest(glob, names)}")
    return fitting


def chosen(argument: str, n: int, what: str) -> int:
    """The user's argument as a number from 0 to n - 1. Raises Refused."""
    if not argument.isdecimal() or len(argument) > len(str(n)) or int(argument) >= n:
        raise Refused(f"{what} must be a number from 0 to {n - 1}. Got {argument[:40]!r}.")
    return int(argument)


def nearest(name: str, names: Iterable[str]) -> str:
    return "the nearest are " + ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0))
