"""The operations that GPT-2 is made of: softmax, the activation function, layer_norm, linear.

Each works on the last axis of an array with any leading axes. float32 in, float32 out, and float64 likewise: scalars
are Python floats, which do not change an array's type. (np.sqrt of a Python number returns a float64 scalar, which
under NumPy 2 silently turns the array into float64, many times slower. np.sqrt of an array keeps the array's type.)
"""

import math
from typing import Callable

import numpy as np

from .matmul import matrix_product

SQRT_2 = math.sqrt(2)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
STRIP = 16  # rows that an elementwise formula processes at a time, so that they stay in the processor's cache


def softmax(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """exp(x) / sum(exp(x)): numbers of any magnitude become probabilities, -inf exactly 0.

    [..., n] -> [..., n]. out: the array to write the result to, which may be x, as in NumPy; None makes a new array.
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.1.
    """
    largest = x.max(axis=-1, keepdims=True)  # [..., 1]
    shifted = np.subtract(x, largest, out=out)  # now at most 0, so that exp cannot overflow; the quotient is unchanged
    exponentials = np.exp(shifted, out=shifted)  # in place: shifted is not used again
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def activation(name: str, x: np.ndarray) -> np.ndarray:
    """The MLP's nonlinearity, by its name in the config: [..., n] -> [..., n]. GPT-2's own is `gelu_new`."""
    if name == "relu":
        return np.maximum(x, 0.0)
    if name == "gelu":
        return gelu_erf(x)
    return gelu(x)  # gelu_new: the config allows no other names


def gelu(x: np.ndarray) -> np.ndarray:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), close to x P(Z <= x) for a standard normal Z.

    [..., n] -> [..., n]. The hub calls this form `gelu_new`.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2.
    """
    if x[..., 0].size > STRIP:  # more rows than one strip
        return in_strips(gelu, x)
    cube = x * x * x  # x**3 would call pow, which is many times slower
    inner = SQRT_2_OVER_PI * (x + 0.044715 * cube)
    return 0.5 * x * (1.0 + np.tanh(inner))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    """0.5 x (1 + erf(x / sqrt(2))), x P(Z <= x) for a standard normal Z. [..., n] -> [..., n]. `gelu` on the hub."""
    if x[..., 0].size > STRIP:
        return in_strips(gelu_erf, x)
    return 0.5 * x * (1.0 + erf(x / SQRT_2))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function: exact in float64, where it is slow, and within 1e-6 in float32. [..., n] -> [..., n].

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26.
    """
    if x.dtype == np.float64:
        return np.vectorize(math.erf, otypes=[np.float64])(x)
    magnitude = np.minimum(np.abs(x), 6.0)  # erf is 1 beyond 6, where squaring could overflow
    t = 1.0 / (1.0 + 0.3275911 * magnitude)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.copysign(1.0 - series * np.exp(-magnitude * magnitude), x)


def in_strips(formula: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Apply an elementwise formula a few rows at a time: to one array or several [..., n] -> [..., n]."""
    rows = [x.reshape(-1, x.shape[-1]) for x in arrays]  # each [n_rows, n]
    y = np.empty_like(rows[0])
    for i in range(0, len(y), STRIP):
        y[i:i + STRIP] = formula(*[x[i:i + STRIP] for x in rows])
    return y.reshape(arrays[0].shape)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, with mean and variance over the last axis.

    x [..., n_embd], weight [n_embd] (the gain), bias [n_embd] -> [..., n_embd].
    Source: Ba et al., "Layer Normalization", equation 4; epsilon as in OpenAI's GPT-2.
    """
    centered = x - row_mean(x)
    variance = row_mean(centered * centered)  # [..., 1], divided by n, not n - 1
    return centered / np.sqrt(variance + epsilon) * weight + bias


def row_mean(x: np.ndarray) -> np.ndarray:
    """The mean over the last axis: [..., n] -> [..., 1]. A product with ones sums rows faster than np.sum."""
    n = x.shape[-1]
    return x @ np.ones((n, 1), x.dtype) / n


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x @ weight + bias.

    x [..., n_in], weight [n_in, n_out] as the checkpoint stores it, bias [n_out] -> [..., n_out].
    """
    y = matrix_product(x, weight)  # [..., n_out]
    y += bias  # in place: y is a new array
    return y
