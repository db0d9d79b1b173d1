"""How a user names what there is: a stage by its whole name, a part of it or a glob; a block or head by its number."""

import difflib
import re
from typing import Iterable, Sequence

from ..tap import fits


class Refused(ValueError):
    """A command that cannot be carried out; the message is the line that says why."""


def part_of(name: str) -> str:
    """The part of the model in which a stage is: `h.3` for `h.3.attn.q`; outside the blocks the stage itself."""
    block = re.match(r"h\.\d+", name)
    return block.group() if block else name


def forms_of(name: str) -> tuple[str, ...]:
    """How a stage may be called: q, attn.q, h.3.q, h.3.attn.q."""
    part, last = part_of(name), name.rpartition(".")[2]
    return (last,) if part == name else (last, name.removeprefix(f"{part}."), f"{part}.{last}", name)


def short_names(names: Sequence[str], block: str) -> dict[str, str]:
    """What each of these stages may be called from within a block; in another one, its name must have the block.

    Of two that end alike, the later one is meant.
    """
    near = [name for name in names if part_of(name) in (block, name)]
    whole = {form: name for name in names for form in forms_of(name)[-2:]}  # h.3.q, h.3.attn.q
    return {**{form: name for name in near for form in forms_of(name)}, **whole}


def is_meant(name: str, glob: str) -> bool:
    return any(fits(form, glob) for form in forms_of(name))


def fitting_stages(glob: str, names: Sequence[str]) -> list[str]:
    """The stages that a glob fits, by any of their forms. Raises Refused, with the nearest names, if there is none."""
    fitting = [name for name in names if is_meant(name, glob)]
    if not fitting:
        raise Refused(f"no stage here is called {glob!r}; {nearest(glob, names)}")
    return fitting


def chosen(argument: str, n: int, what: str) -> int:
    """A number from 0 up to n, as the user gave it. Raises Refused."""
    if not argument.isdecimal() or len(argument) > len(str(n)) or int(argument) >= n:
        raise Refused(f"{what} must be a number from 0 to {n - 1}. Got {argument[:40]!r}.")
    return int(argument)


def nearest(name: str, names: Iterable[str]) -> str:
    return "the nearest are " + ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0))
