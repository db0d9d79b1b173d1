"""Chapter 5: sampling. From a logit for every token to one token.

Each step takes logits [..., vocab_size] and returns logits of the same shape, with -inf (a probability of 0) for
excluded tokens. Then come softmax and one draw.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import numpy as np

from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import mask_logits


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits by the temperature: below 1 favours likely tokens, above 1 unlikely ones.

    [..., vocab_size] -> [..., vocab_size]. temperature > 0. (The checks subtract each row's largest logit from your
    result and from the engine's before they compare: that changes no probability.)
    Source: Ackley, Hinton and Sejnowski, "A Learning Algorithm for Boltzmann Machines".

    >>> apply_temperature(np.array([0, -1, -2], np.float32), 0.5)
    array([ 0., -2., -4.], dtype=float32)
    """
    return logits / temperature


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep only the k most likely tokens, and ties with the k-th; -inf for the rest.

    [..., vocab_size] -> [..., vocab_size]. k >= 1, and may exceed vocab_size: then nothing is excluded.
    mask_logits(logits, excluded) puts -inf where `excluded` is true.
    Source: Fan et al., "Hierarchical Neural Story Generation", section 5.4.

    >>> keep_top_k(np.array([1, 3, 2, 0], np.float32), 2)
    array([-inf,   3.,   2., -inf], dtype=float32)
    """
    k = min(k, logits.shape[-1])
    kth_largest = np.sort(logits, axis=-1)[..., -k, np.newaxis]  # [..., 1]
    return mask_logits(logits, logits < kth_largest)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the smallest set of most likely tokens with a total probability of at least p; -inf for the rest.

    [..., vocab_size] -> [..., vocab_size]. 0 < p < 1. The token that crosses p is kept, and the most likely one always.
    np.argsort gives the order, np.take_along_axis sorts by it, np.put_along_axis undoes it.
    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.

    >>> keep_top_p(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.6).round(2)
    array([ -inf, -0.69, -1.2 ], dtype=float32)
    """
    order = np.argsort(-logits, axis=-1)  # the likeliest first
    probabilities = softmax(np.take_along_axis(logits, order, axis=-1))
    before = np.cumsum(probabilities, axis=-1) - probabilities  # of all likelier tokens together
    excluded = np.empty(logits.shape, dtype=bool)
    np.put_along_axis(excluded, order, before >= p, axis=-1)
    return mask_logits(logits, excluded)


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One token for each row: the first whose cumulative probability exceeds the draw.

    logits [..., vocab_size], draws [...], a uniform random number for each row, 0 <= draw < 1 -> ids [...].
    Of the probabilities 0.2, 0.5, 0.3, a draw below 0.2 takes token 0, one below 0.7 token 1, any other token 2.
    Source: Devroye, "Non-Uniform Random Variate Generation", section III.2.1.

    >>> sample(np.log(np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]], np.float32)), np.array([0.6, 0.9]))
    array([1, 2])
    """
    cumulative = np.cumsum(softmax(logits), axis=-1, dtype=np.float64)
    cumulative /= cumulative[..., -1:]  # roundings may have left its end below 1
    return np.argmax(cumulative > draws[..., np.newaxis], axis=-1)  # the first that is true
