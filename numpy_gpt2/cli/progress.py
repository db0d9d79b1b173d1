"""A progress bar on standard error, if it is a terminal."""

from typing import Iterable, Iterator

from ..scoring import Scores


def with_progress_bar(pieces: Iterable[Scores], n_tokens: int | None = None) -> Iterator[Scores]:
    """Yield the same pieces; on a terminal, show a progress bar of their tokens, out of n_tokens."""
    from tqdm import tqdm  # a dependency of huggingface_hub
    with tqdm(total=n_tokens, unit=" tokens", leave=False, disable=None) as bar:  # None: only on a terminal
        for piece in pieces:
            bar.update(len(piece.log_probs))
            yield piece
        bar.refresh()  # tqdm skips updates within 0.1 s of the last one: here the final one
