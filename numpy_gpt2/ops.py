"""The four operations that GPT-2 is made of, each on the last axis of an array with any leading axes.

float32 in, float32 out: scalars are Python floats, which take the type of the array they meet. A NumPy scalar of type
float64 (what np.sqrt gives) would turn the rest of the pass into float64, unseen and many times slower.
"""

import math

import numpy as np

from .matmul import matmul

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)): numbers of any size become probabilities. -inf becomes exactly 0.

    [..., n] -> [..., n]. Source: Vaswani et al., "Attention Is All You Need", section 3.2.1.
    """
    largest = x.max(axis=-1, keepdims=True)  # [..., 1]
    exponentials = np.exp(x - largest)  # at most 1, where exp(x) could overflow; the quotient is the same
    total = exponentials.sum(axis=-1, keepdims=True)  # [..., 1]
    return exponentials / total


def gelu(x: np.ndarray) -> np.ndarray:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), close to x times the normal distribution's share below x.

    [..., n] -> [..., n]. The hub calls this form `gelu_new`.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2.
    """
    cube = x * x * x  # x**3 would call pow, which is many times slower
    inner = SQRT_2_OVER_PI * (x + 0.044715 * cube)
    return 0.5 * x * (1.0 + np.tanh(inner))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over the last axis.

    x [..., n_embd], weight [n_embd] (the gain), bias [n_embd] -> [..., n_embd].
    Source: Ba et al., "Layer Normalization", equation 4; epsilon as in OpenAI's GPT-2.
    """
    n_embd = x.shape[-1]
    ones = np.ones((n_embd, 1), x.dtype)  # x @ ones is the sum of each row, a quicker one than np.sum's
    mean = x @ ones / n_embd  # [..., 1]
    centred = x - mean
    variance = (centred * centred) @ ones / n_embd  # [..., 1], divided by n (not n - 1)
    normalised = centred / np.sqrt(variance + epsilon)
    normalised *= weight  # in place: it is new, and nobody else has it yet
    normalised += bias
    return normalised


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x @ weight + bias.

    x [..., n_in], weight [n_in, n_out] as the checkpoint stores it, bias [n_out] -> [..., n_out].
    """
    y = matmul(x, weight)  # [..., n_out]
    y += bias  # in place, as above
    return y
