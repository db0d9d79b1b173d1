"""Aligned text for a terminal of any width: columns where they fit, wrapped prose, lines where columns do not fit."""

import math
import re
import sys
import textwrap
import unicodedata
from typing import Iterator, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int) -> Iterator[str]:
    """Aligned columns, no line longer than `width`. align: for each column < (left) or > (right).

    A last column on the left is prose: it wraps. Where columns do not fit side by side, a row becomes some lines.
    """
    cells = [header, *rows]
    columns = [max(n_columns(row[i]) for row in cells) for i in range(len(header))]
    for gap in ("  ", " "):
        room = width - sum(columns[:-1]) - len(gap) * (len(columns) - 1)
        if room >= (min(columns[-1], 30) if align[-1] == "<" else columns[-1]):
            break
    else:
        yield from records(header, rows, width)
        return
    for row in cells:
        start = gap.join(f"{cell:{side}{size + len(cell) - n_columns(cell)}}"
                         for cell, side, size in zip(row, align, columns[:-1]))
        last = textwrap.wrap(row[-1], room) if len(row[-1]) > room else [f"{row[-1]:{align[-1]}{columns[-1]}}"]
        for line in last or [""]:
            yield f"{start}{gap}{line}".rstrip()
            start = " " * len(start)


def n_columns(text: str) -> int:
    """The columns that a terminal gives a text: two for a wide character (日), none for one that only marks another."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.category(character) in ("Mn", "Me") for character in text)
    return len(text) + wide - marks


def records(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The rows of a table too wide for the terminal, each below the other: its first cell, then a line for each."""
    yield from wrapped(header[0], width)
    for row in rows:
        yield from wrapped(row[0], width)
        for title, cell in zip(header[1:], row[1:]):
            if cell:
                yield from wrapped(f"  {title} {cell}", width, hang=2)


def wrapped(text: str, width: int, hang: int = 0) -> list[str]:
    """The text in lines of `width` columns at most. Its own indent stays; later lines have `hang` columns more."""
    indent = min(len(text) - len(text.lstrip()), width // 3)
    return textwrap.wrap(text.lstrip(), width, initial_indent=" " * indent, subsequent_indent=" " * (indent + hang))


def bars(histogram: Sequence[int]) -> str:
    """A histogram in a line of text, the fullest bin the highest. Nothing but an empty bin is a blank."""
    levels = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    try:
        levels.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        levels = " .:-=+*#@"
    most = max(histogram)
    return "".join(levels[math.ceil(n / most * (len(levels) - 1))] for n in histogram)


# What a terminal obeys rather than shows: C0 (but for line feeds and tabs), DEL, C1, and what turns the direction.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with its control characters written out: a checkpoint's escape sequence becomes a harmless \x1b."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
