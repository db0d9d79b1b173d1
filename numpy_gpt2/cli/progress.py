"""A progress bar on standard error, where that is a terminal."""

import os
import sys
from typing import Iterable, Iterator

from ..scoring import Scores


def with_progress_bar(pieces: Iterable[Scores], n_tokens: int) -> Iterator[Scores]:
    """The same pieces; on a terminal, a bar on standard error tells how many of the tokens they hold so far."""
    if not sys.stderr.isatty():
        yield from pieces
        return
    n_done = 0
    try:
        draw("\r" + progress_bar(0.0, terminal_width()))
        for piece in pieces:
            n_done += len(piece.log_probs)
            draw("\r" + progress_bar(n_done / n_tokens, terminal_width()))
            yield piece
    finally:
        draw("\r" + " " * (terminal_width() - 1) + "\r")


def progress_bar(share: float, width: int) -> str:
    """" 40% [####......]", at most 60 characters and less than the width: a full line would begin another."""
    room = max(min(60, width - 1) - len("100% []"), 0)
    bar = "#" * int(share * room)
    return f"{share:4.0%} [{bar:.<{room}}]"[:width - 1]


def terminal_width() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals do not know, and say 0


def draw(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
