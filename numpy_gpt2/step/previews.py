"""Previews of the arrays of a forward pass as a few lines of text, which say what is left out."""

from dataclasses import dataclass
from functools import cache
from typing import Callable, Sequence

import numpy as np

from ..lens import TopToken, residual_logits, top_tokens
from ..ops import softmax
from ..tap import stage_of
from ..tokenizer import Tokenizer, quoted
from ..weights import GPT2
from .grids import GAP, fitted, grid, middle_left_out

N_LIKELIEST = 10  # tokens shown for logits
SHADES = ".:-=+*#%@"


@dataclass(frozen=True)
class Screen:
    """The context of a preview: the tokens, the selected head, the available width and height."""

    tokenizer: Tokenizer
    ids: Sequence[int]  # of all tokens so far
    n_cached: int  # how many of them are in the cache; the others are new in this pass
    head: int
    width: int
    height: int

    def all_tokens(self) -> list[str]:
        """Position and text of each token so far: `3 " time"`."""
        return [f"{position} {quoted(self.tokenizer, token_id)}" for position, token_id in enumerate(self.ids)]

    def new_tokens(self) -> list[str]:
        return self.all_tokens()[self.n_cached:]

    def grid(self, title: str, rows: Sequence[str], columns: Sequence[str], cell: Callable[[int, int], str],
             largest: tuple[str, np.ndarray] | None = None) -> list[str]:
        return grid(title, rows, columns, cell, self.width, self.height, largest)


def preview(name: str, value: np.ndarray, screen: Screen) -> list[str]:
    """The lines that show the array of stage `name`; the kind of preview depends on its axes."""
    return PREVIEWS[stage_of(name).shape](value, screen)


def statistics(value: np.ndarray) -> str:
    """Mean, standard deviation and extremes of the finite numbers, and how many are not finite."""
    finite = value[np.isfinite(value)]
    if finite.size == 0:
        return "nothing finite"
    text = f"mean {finite.mean():.4g}, std {finite.std():.4g}, min {finite.min():.4g}, max {finite.max():.4g}"
    if finite.size < value.size:
        kinds = " and ".join(str(kind) for kind in np.unique(value[~np.isfinite(value)]))
        text += f" ({kinds} left out: {value.size - finite.size} of {value.size})"
    return text


# A preview for each kind of array -------------------------------------------------------------------------------------


def token_norms(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_new, n_embd]: the norm of each token's vector."""
    norms = np.linalg.norm(value, axis=-1)  # [n_new]
    return screen.grid("norm of each token's vector", screen.new_tokens(), ["norm"], lambda i, j: f"{norms[i]:.2f}")


def qkv_norms(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_new, 3*n_embd]: the norms of each token's query, key and value."""
    norms = [np.linalg.norm(part, axis=-1) for part in np.split(value, 3, axis=-1)]  # three of [n_new]
    return screen.grid("norm of each token's query, key and value, all heads together", screen.new_tokens(),
                       ["q", "k", "v"], lambda i, j: f"{norms[j][i]:.2f}")


def head_norms(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_head, n_new or n_all, d_head]: the norm of each token's vector in each head."""
    norms = np.linalg.norm(value, axis=-1)  # [n_head, n_tokens]
    n_head, n_tokens = norms.shape
    return screen.grid("norm of each token's vector, by head", screen.all_tokens()[-n_tokens:],
                       [f"head {head}" for head in range(n_head)], lambda i, j: f"{norms[j, i]:.2f}",
                       ("heads with the largest norms", norms.max(axis=-1)))


def query_by_key(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_head, n_new, n_all]: one head, a row for each query, a column for each key."""
    head = value[screen.head]  # [n_new, n_all]
    weights = head if np.allclose(head.sum(axis=-1), 1) else softmax(head)  # the same keys for scores and pattern

    def cell(i: int, j: int) -> str:
        number = head[i, j]
        return f"{number:.2f}" if np.isfinite(number) and number != 0 else f"{number:.0f}"  # -inf, and a weight of 0

    return screen.grid(f"head {screen.head} of {len(value)}: a row for each query, a column for each key",
                       screen.new_tokens(), screen.all_tokens(), cell,
                       ("keys with the largest weights", weights.sum(axis=0)))


def neurons(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_new, n_inner]: the fraction of active neurons at each token, and the strongest ones."""
    fractions = np.mean(value > 0, axis=-1)  # [n_new]
    strongest = np.argsort(-value, axis=-1)[:, :3]  # [n_new, 3]

    def cell(i: int, j: int) -> str:
        if j == 0:
            return f"{fractions[i]:.1%}"
        neuron = strongest[i, j - 1]
        return f"#{neuron} {value[i, neuron]:.2f}"

    return screen.grid(f"of {value.shape[-1]} neurons, the fraction that is active (above 0), and the strongest",
                       screen.new_tokens(), ["active", "1st", "2nd", "3rd"][:1 + strongest.shape[-1]], cell)


def likeliest(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_unembedded, vocab_size]: the most likely tokens after the last position."""
    best = top_tokens(value[-1], screen.tokenizer, N_LIKELIEST)

    def cell(i: int, j: int) -> str:
        return f"{best[i].probability:.3f}" if j == 0 else f"{value[-1, best[i].id]:.2f}"

    return screen.grid(f"the likeliest tokens after {screen.all_tokens()[-1]}",
                       [quoted(screen.tokenizer, token.id) for token in best], ["probability", "logit"], cell)


PREVIEWS: dict[tuple[str, ...], Callable[[np.ndarray, Screen], list[str]]] = {
    ("n_new", "n_embd"): token_norms,
    ("n_new", "3*n_embd"): qkv_norms,
    ("n_head", "n_new", "d_head"): head_norms,
    ("n_head", "n_all", "d_head"): head_norms,
    ("n_head", "n_new", "n_all"): query_by_key,
    ("n_new", "n_inner"): neurons,
    ("n_unembedded", "vocab_size"): likeliest,
}


def lens_predictions(model: GPT2, name: str, residual: np.ndarray, screen: Screen) -> list[str]:
    """The three most likely tokens after each new one, by the logit lens on a residual stream [n_new, n_embd]."""
    @cache
    def best(i: int) -> list[TopToken]:  # only for the rows that are shown: the unembedding is expensive
        return top_tokens(residual_logits(model, residual[i]), screen.tokenizer, 3)

    def cell(i: int, j: int) -> str:
        return f"{quoted(screen.tokenizer, best(i)[j].id)} {best(i)[j].probability:.3f}"

    return screen.grid(f"what the model would predict if it stopped at {name}", screen.new_tokens(),
                       ["1st", "2nd", "3rd"], cell)


def thumbnails(value: np.ndarray, screen: Screen) -> list[str]:
    """[n_head, n_new, n_all]: all heads side by side, a character for each query and key, a blank where key > query."""
    n_head, n_new, n_all = value.shape
    columns = middle_left_out(n_all, screen.width)
    tile = max(len(columns), len(f"head {n_head - 1}"))
    per_line = max((screen.width + 2) // (tile + 2), 1)
    bands = [range(first, min(first + per_line, n_head)) for first in range(0, n_head, per_line)]
    rows = middle_left_out(n_new, (screen.height - 2) // len(bands) - 1)
    left_out = f", {GAP} where some are left out" if None in rows + columns else ""
    lines = fitted(f"a row for each query, a column for each key, from {SHADES[0]} (the head's smallest number) to "
                   f"{SHADES[-1]} (its largest){left_out}", screen.width)
    for heads in bands:
        lines.append("  ".join(f"{f'head {head}':{tile}}" for head in heads))
        for i in rows:
            lines.append("  ".join(f"{shaded(value[head], i, columns, screen.n_cached):{tile}}" for head in heads))
    return [line.rstrip() for line in lines]


def shaded(head: np.ndarray, i: int | None, columns: list[int | None], n_cached: int) -> str:
    """One row of a head [n_new, n_all] in a thumbnail."""
    if i is None:
        return GAP * len(columns)
    n_new, n_all = head.shape
    visible = head[np.arange(n_all) <= n_cached + np.arange(n_new)[:, np.newaxis]]
    least, most = visible.min(), visible.max()
    spread = most - least or 1.0
    levels = np.nan_to_num((head[i, :n_cached + i + 1] - least) / spread * (len(SHADES) - 1)).round()  # [n_visible]
    return "".join(GAP if j is None else SHADES[int(levels[j])] if j < len(levels) else " " for j in columns)
