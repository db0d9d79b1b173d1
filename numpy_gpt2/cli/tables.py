"""Text for a terminal of any width: aligned columns, or one line per cell where columns do not fit; wrapped prose."""

import math
import re
import shutil
import sys
import textwrap
import unicodedata
from typing import Iterator, Sequence


def terminal_width() -> int:
    """The terminal's columns, at least 10; 120 where there is no terminal."""
    return max(shutil.get_terminal_size(fallback=(120, 24)).columns, 10)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int) -> Iterator[str]:
    """Aligned columns, no line longer than `width`. align: < (left) or > (right) for each column.

    A left-aligned last column is prose and wraps. If the columns do not fit, each cell gets a line of its own.
    """
    cells = [header, *rows]
    columns = [max(display_width(row[i]) for row in cells) for i in range(len(header))]
    for gap in ("  ", " "):
        room = width - sum(columns[:-1]) - len(gap) * (len(columns) - 1)
        if room >= (min(columns[-1], 30) if align[-1] == "<" else columns[-1]):
            break
    else:
        yield from records(header, rows, width)
        return
    for row in cells:
        start = gap.join(map(padded, row, columns[:-1], align))
        last = textwrap.wrap(row[-1], room) if len(row[-1]) > room else [f"{row[-1]:{align[-1]}{columns[-1]}}"]
        for line in last or [""]:
            yield f"{start}{gap}{line}".rstrip()
            start = " " * len(start)


def display_width(text: str) -> int:
    """The columns of a terminal that a text takes: two for a Chinese character or an emoji, none for an accent."""
    return sum(map(character_width, text))


def character_width(character: str) -> int:
    """The columns that a terminal gives it: 0 for a combining mark, 2 for East Asian wide characters, else 1."""
    if unicodedata.category(character) in ("Mn", "Me"):  # a combining mark
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, side: str = "<") -> str:
    """The text in `width` columns, left-aligned (<) or right-aligned (>)."""
    return f"{text:{side}{width + len(text) - display_width(text)}}"


def records(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A table that is too wide, as records: the first cell of each row, then a line for each other cell."""
    yield from wrapped(header[0], width)
    for row in rows:
        yield from wrapped(row[0], width)
        for title, cell in zip(header[1:], row[1:]):
            if cell:
                yield from wrapped(f"  {title} {cell}", width, hang=2)


def wrapped(text: str, width: int, hang: int = 0) -> list[str]:
    """The text wrapped to `width` columns. Its indent is kept; later lines are indented by `hang` more."""
    indent = min(len(text) - len(text.lstrip()), width // 3)
    return textwrap.wrap(text.lstrip(), width, initial_indent=" " * indent, subsequent_indent=" " * (indent + hang))


def bars(histogram: Sequence[int]) -> str:
    """A histogram as a line of bars, scaled to the largest bin. Only an empty bin is blank."""
    levels = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    try:
        levels.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        levels = " .:-=+*#@"
    most = max(histogram)
    return "".join(levels[math.ceil(n / most * (len(levels) - 1))] for n in histogram)


# Characters that a terminal acts on: C0 (except line feed and tab), DEL, C1, and those that change text direction.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with control characters escaped, so that an escape sequence becomes a harmless \x1b."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
