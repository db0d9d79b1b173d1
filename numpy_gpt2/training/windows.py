"""From a text to the windows of a batch, as a function of the step number alone, so that a run can resume anywhere."""

from functools import lru_cache

import numpy as np


def split_tail(ids: np.ndarray, fraction: float, largest: int = 16_384) -> tuple[np.ndarray, np.ndarray]:
    """Split ids into the training part and the held-out tail, at most `largest` tokens.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"--held-out must be from 0 to less than 1. Got {fraction}.")
    n_held_out = min(int(fraction * len(ids)), largest)
    return ids[:len(ids) - n_held_out], ids[len(ids) - n_held_out:]


def windows_of_step(ids: np.ndarray, step: int, n_windows: int, context: int, seed: int) -> np.ndarray:
    """The windows of one step, [n_windows, context + 1]: inputs [:, :-1] and targets [:, 1:].

    Each epoch splits the text anew, at a random offset, and uses each window once, in random order.
    Raises ValueError for a text shorter than one window.
    """
    if len(ids) < context + 1:
        raise ValueError(f"the training text must have context + 1 tokens, {context + 1:,}, or more. "
                         f"Got {len(ids):,}.")
    per_epoch = max(1, (len(ids) - 1) // context - 1)  # one less than fit, which leaves room for the offset
    first = step * n_windows
    starts = [window_starts(seed, i // per_epoch, len(ids), context)[i % per_epoch]
              for i in range(first, first + n_windows)]
    return np.stack([ids[start:start + context + 1] for start in starts])


@lru_cache(maxsize=4)
def window_starts(seed: int, epoch: int, n_tokens: int, context: int) -> np.ndarray:
    """The start of each window of one epoch, in the order of use: [n_windows]."""
    rng = np.random.default_rng([seed, epoch])
    n_windows = max(1, (n_tokens - 1) // context - 1)
    offset = rng.integers(n_tokens - n_windows * context)
    return offset + context * rng.permutation(n_windows)
