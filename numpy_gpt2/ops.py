"""The four operations that GPT-2 is made of, each on the last axis of an array with any leading axes.

float32 in, float32 out: scalars are Python floats, which take the type of the array they meet. A NumPy scalar of type
float64 (what np.sqrt gives) would turn the rest of the pass into float64, unseen and many times slower.
"""

import math

import numpy as np

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)): numbers of any size become probabilities. -inf becomes exactly 0.

    [..., n] -> [..., n]. Source: Vaswani et al., "Attention Is All You Need", section 3.2.1.
    """
    largest = np.max(x, axis=-1, keepdims=True)  # [..., 1]
    exponentials = np.exp(x - largest)  # at most 1, where exp(x) could overflow; the quotient is the same
    total = np.sum(exponentials, axis=-1, keepdims=True)  # [..., 1]
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
    mean = np.mean(x, axis=-1, keepdims=True)  # [..., 1]
    centred = x - mean
    variance = np.mean(centred * centred, axis=-1, keepdims=True)  # [..., 1], divided by n (not n - 1)
    normalised = centred / np.sqrt(variance + epsilon)
    return normalised * weight + bias


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x @ weight + bias.

    x [..., n_in], weight [n_in, n_out] as the checkpoint stores it, bias [n_out] -> [..., n_out].
    """
    rows = x.reshape(-1, x.shape[-1])  # [n_rows, n_in]: one product for the whole batch reads each weight once
    y = rows @ weight + bias  # [n_rows, n_out]
    return y.reshape(*x.shape[:-1], weight.shape[-1])  # [..., n_out]
