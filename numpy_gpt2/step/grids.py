"""Text that fits a terminal: tables of numbers, with only the largest columns if necessary, and lines of any script."""

from itertools import accumulate
from typing import Callable, Sequence

import numpy as np

from ..cli.tables import character_width, display_width, padded, wrapped

HEADING = 8  # the least width of a heading, even if its column's numbers are narrower
GAP = "~"  # marks what is left out


def grid(title: str, rows: Sequence[str], columns: Sequence[str], cell: Callable[[int, int], str], width: int,
         height: int, largest: tuple[str, np.ndarray] | None = None) -> list[str]:
    """A title, the columns' headings, and a line for each row: its name and its cells.

    largest: a description, "keys with the largest weights", and a number for each column: if not all columns fit, those
    with the largest numbers are shown. If not all rows fit, the first and the last are shown.
    """
    lines = fitted(title, width)
    shown_rows = middle_left_out(len(rows), height - len(lines) - (2 if largest else 1))
    names = {i: shortened(rows[i], max(width // 3, 1)) for i in shown_rows if i is not None}
    cells = {i: [cell(i, j) for j in range(len(columns))] for i in names}
    margin = max(map(display_width, names.values()))
    needed = max(display_width(text) for row in cells.values() for text in row)
    size, n_shown = fitting_columns(columns, needed, width - margin)
    matters = largest[1] if largest else -np.arange(len(columns))
    shown_columns = np.sort(np.argsort(-matters, kind="stable")[:n_shown])
    if largest and n_shown < len(columns):
        lines += fitted(f"the {n_shown} {largest[0]}; {len(columns) - n_shown} left out", width)

    def line(name: str, texts: Sequence[str]) -> str:
        aligned = [padded(shortened(texts[j], size), size, ">") for j in shown_columns]
        return beginning("  ".join([padded(name, margin), *aligned]), width)

    lines.append(line("", columns))
    for i in shown_rows:
        lines.append(f"... {len(rows) - len(names)} more" if i is None else line(names[i], cells[i]))
    return lines


def fitting_columns(headings: Sequence[str], needed: int, room: int) -> tuple[int, int]:
    """The width of a column, and how many fit: headings are shortened before columns are left out."""
    for size in (max(needed, *map(display_width, headings)), max(needed, HEADING)):
        n_fitting = room // (size + 2)
        if n_fitting >= len(headings):
            return size, len(headings)
    return (size, n_fitting) if n_fitting else (max(room - 2, 1), 1)


def middle_left_out(n: int, room: int) -> list[int | None]:
    """range(n) as a list or, if there is no room for it, the first and last numbers with a None between."""
    if n <= max(room, 1):
        return list(range(n))
    n_last = max(room // 2, 1)
    n_first = max(room - 1 - n_last, 0)
    return [*range(n_first), None, *range(n - n_last, n)]


def elided(lines: Sequence[str], room: int) -> list[str]:
    """The lines or, if too many, the first and last ones, with one between that says how many are left out."""
    shown = middle_left_out(len(lines), room)
    return [f"... {len(lines) - len(shown) + 1} more" if i is None else lines[i] for i in shown]


def fitted(line: str, width: int) -> list[str]:
    """A line split into lines that fit: between words, or anywhere if it has characters of two columns."""
    if display_width(line) <= width:
        return [line]
    if display_width(line) == len(line):
        return wrapped(line, width, 2)
    first = beginning(line, width)
    return [first, *fitted(line[len(first):], width)]


def beginning(text: str, width: int) -> str:
    """The longest prefix of a text that fits."""
    return text[:sum(end <= width for end in accumulate(map(character_width, text)))]


def shortened(text: str, width: int) -> str:
    return text if display_width(text) <= width else beginning(text, width - 1) + GAP
