"""Labels for attention heads, by their attention patterns in one pass."""

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

MIN_SCORE = 0.4  # the least mean attention weight on a kind's keys for a head to be labelled
MIN_ROWS = 6  # with fewer queries the score is noise
FIRST_QUERY = 8  # earlier queries have so few keys that every head attends strongly to each


class NamedHead(NamedTuple):
    """A labelled head. score: its mean attention weight on the keys of its kind, over n_rows queries."""

    layer: int
    head: int
    kind: str
    score: float
    n_rows: int


def named_heads(patterns: Sequence[np.ndarray], ids: Sequence[int]) -> list[NamedHead]:
    """The heads that score at least MIN_SCORE over at least MIN_ROWS queries, each with its highest-scoring kind.

    patterns: one array [n_head, n_tokens, n_tokens] per layer.
    """
    masks = {kind: mask for kind, mask in kinds_of_keys(ids).items() if mask.any(-1).sum() >= MIN_ROWS}
    found = []
    for layer, pattern in enumerate(patterns):
        scores = {kind: head_scores(pattern, mask) for kind, mask in masks.items()}
        for head in range(len(pattern)):
            score, kind = max(((float(scores[kind][head]), kind) for kind in scores), default=(0.0, ""))
            if score >= MIN_SCORE:
                found.append(NamedHead(layer, head, kind, score, int(masks[kind].any(-1).sum())))
    return found


def head_scores(pattern: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each head's attention weight [n_head] on the mask [n_tokens, n_tokens], averaged over its non-empty rows."""
    on_mask = np.sum(pattern * mask, axis=-1)  # [n_head, n_tokens]
    return np.mean(on_mask[:, mask.any(-1)], axis=-1)  # [n_head]


def kinds_of_keys(ids: Sequence[int]) -> Mapping[str, np.ndarray]:
    """For each kind of head, the keys it attends to from FIRST_QUERY on: boolean [n_tokens, n_tokens], query by key.

    previous token: the position before. first token: position 0. duplicate token: earlier occurrences of the query's
    token. induction: the position after an earlier occurrence. A query where two kinds attend to the same key counts
    for neither.
    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021; Olsson et al., "In-context
    Learning and Induction Heads", 2022; Wang et al., "Interpretability in the Wild", 2022 (duplicate token heads).
    """
    tokens = np.asarray(ids)
    n_tokens = len(tokens)
    earlier = np.tri(n_tokens, k=-1, dtype=bool)
    same = earlier & (tokens[:, np.newaxis] == tokens)
    after_same = np.zeros_like(same)
    after_same[:, 1:] = same[:, :-1]
    first = earlier & (np.arange(n_tokens) == 0)
    kinds: dict[str, Any] = {"previous token": np.eye(n_tokens, k=-1, dtype=bool), "first token": first,
                             "duplicate token": same, "induction": earlier & after_same}
    n_kinds = np.sum(list(kinds.values()), axis=0)  # [n_tokens, n_tokens]
    shared = {kind: np.any(mask & (n_kinds > 1), axis=-1) for kind, mask in kinds.items()}
    is_late = np.arange(n_tokens) >= FIRST_QUERY
    return {kind: mask & (is_late & ~shared[kind])[:, np.newaxis] for kind, mask in kinds.items()}
