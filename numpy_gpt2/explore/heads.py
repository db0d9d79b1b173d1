"""Names for attention heads, where the pattern of a pass bears them out."""

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

MIN_SCORE = 0.4  # mean attention weight on a kind's keys, from which a head bears its name
MIN_ROWS = 6  # fewer would be chance
FIRST_QUERY = 8  # before it there are so few keys that any head gives each much


class NamedHead(NamedTuple):
    """A head and what it does: `score` is its mean attention weight on the keys of its kind, over n_rows queries."""

    layer: int
    head: int
    kind: str
    score: float
    n_rows: int


def named_heads(patterns: Sequence[np.ndarray], ids: Sequence[int]) -> list[NamedHead]:
    """The heads with a score of at least MIN_SCORE over MIN_ROWS queries, each under the kind of its highest score.

    patterns: of every layer, [n_head, n_tokens, n_tokens].
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
    """Each head's attention weight on the keys of the mask [n_tokens, n_tokens], mean over the rows that have any."""
    on_mask = np.sum(pattern * mask, axis=-1)  # [n_head, n_tokens]
    return np.mean(on_mask[:, mask.any(-1)], axis=-1)  # [n_head]


def kinds_of_keys(ids: Sequence[int]) -> Mapping[str, np.ndarray]:
    """For each kind of head, the keys that it looks at from FIRST_QUERY on: query by key, boolean [n_tokens, n_tokens].

    previous token: the one before. first token: position 0. duplicate token: where the query's token occurred before.
    induction: what came after it there. A query for which two kinds look at the same key cannot tell them apart, and
    counts for neither.
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
