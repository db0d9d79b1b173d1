"""The loss that training makes small: the cross-entropy of what came, and its gradient at the logits."""

from typing import Any

import numpy as np

from .weights import GPT2

LEFT_OUT = -100  # the target of a position that does not count, as in transformers
STRIP = 16  # positions at a time: the probabilities of a whole vocabulary for each stay in the processor's cache


@np.errstate(under="ignore")  # tiny probabilities become 0
def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """-log(softmax(logits)[target]), the mean over the targets that count; and its gradient d_logits.

    logits [n_tokens, vocab_size], targets [n_tokens] -> a float, and (softmax(logits) - one_hot(target)) / n_targets.
    Source: Goodfellow, Bengio and Courville, "Deep Learning", section 6.2.2.3.
    """
    logit_rows = logits.reshape(-1, logits.shape[-1])  # [n_rows, vocab_size]
    d_rows = np.zeros_like(logit_rows)  # stays 0 where the target does not count
    targets = targets.reshape(-1)  # [n_rows]
    counted = np.flatnonzero(targets != LEFT_OUT)  # [n_targets]
    total = 0.0
    for start in range(0, len(counted), STRIP):
        rows = counted[start:start + STRIP]  # [STRIP]
        at_targets = np.arange(len(rows)), targets[rows]
        shifted = logit_rows[rows]  # [STRIP, vocab_size]
        shifted -= shifted.max(axis=-1, keepdims=True)  # at most 0, as in softmax
        of_targets = shifted[at_targets]  # [STRIP]
        exponentials = np.exp(shifted, out=shifted)
        sums = exponentials.sum(axis=-1)  # [STRIP]
        total += float(np.sum(np.log(sums) - of_targets, dtype=np.float64))  # never log(0), as log(softmax) can be
        exponentials /= sums[:, np.newaxis]
        exponentials[at_targets] -= 1
        d_rows[rows] = exponentials / len(counted)
    return total / len(counted), d_rows.reshape(logits.shape)


def check_targets(model: GPT2, ids: np.ndarray, targets: Any) -> np.ndarray:
    """The targets as an integer array of the shape of ids. Raises ValueError for what is none."""
    if targets is None:
        targets = np.full_like(ids, LEFT_OUT)
        targets[..., :-1] = ids[..., 1:]
    targets = np.asarray(targets)
    if targets.shape != ids.shape or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets must be integers of the shape of ids, {ids.shape}. "
                         f"Got {targets.dtype}, {targets.shape}.")
    counted = targets[targets != LEFT_OUT]
    if counted.size == 0:
        raise ValueError(f"targets must have an id to predict; ids of one token have no next one. Got only {LEFT_OUT}.")
    for wrong in counted[(counted < 0) | (counted >= model.config.vocab_size)][:1]:
        raise ValueError(f"targets must be from 0 to {model.config.vocab_size - 1}, or {LEFT_OUT}. Got {wrong}.")
    return targets
