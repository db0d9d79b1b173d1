"""A progress bar on standard error, where that is a terminal."""

from typing import Iterable, Iterator

from ..scoring import Scores


def with_progress_bar(pieces: Iterable[Scores], n_tokens: int | None = None) -> Iterator[Scores]:
    """The same pieces; on a terminal, a bar on standard error tells how many tokens they hold so far, of how many."""
    from tqdm import tqdm  # huggingface_hub brings it
    with tqdm(total=n_tokens, unit=" tokens", leave=False, disable=None) as bar:  # None: only on a terminal
        for piece in pieces:
            bar.update(len(piece.log_probs))
            yield piece
        bar.refresh()  # tqdm leaves out what comes within a tenth of a second of the last drawing: here the end
