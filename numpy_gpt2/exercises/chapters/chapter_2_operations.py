"""Chapter 2: the four operations that GPT-2 is made of.

Each works on the last axis of an array with any leading axes: the same lines process [3], [n_tokens, n_embd] and
[n_batch, n_tokens, n_embd]. float32 in, float32 out; never change an argument in place.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import math

import numpy as np


def softmax(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Turn numbers of any size into probabilities: exp(x) / sum(exp(x)), over the last axis.

    x [..., n] -> [..., n]. exp(1000) overflows: subtract each row's largest number first, which changes no quotient.
    -inf becomes exactly 0. out: the engine may write its result there; ignore it, and return a new array.
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.1.

    >>> softmax(np.array([1, 2, 3], np.float32)).round(3)
    array([0.09 , 0.245, 0.665], dtype=float32)
    """
    largest = x.max(axis=-1, keepdims=True)  # [..., 1]
    exponentials = np.exp(x - largest)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    """The MLP's activation function, in its tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

    x [..., n] -> [..., n].
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2.

    >>> gelu(np.array([-1, 0, 1, 2], np.float32)).round(4)
    array([-0.1588,  0.    ,  0.8412,  1.9546], dtype=float32)
    """
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, for each token's vector separately.

    x [..., n_embd], weight [n_embd] (the gain), bias [n_embd] -> [..., n_embd]. The variance is the mean of the
    squared distances from the mean, divided by n.
    Source: Ba et al., "Layer Normalization", equation 4.

    >>> layer_norm(np.array([1, 2, 3], np.float32), np.float32([1, 1, 2]), np.float32([0, 0, 1]), 1e-5).round(3)
    array([-1.225,  0.   ,  3.449], dtype=float32)
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)  # [..., 1]
    return centered / np.sqrt(variance + epsilon) * weight + bias


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x @ weight + bias.

    x [..., n_in], weight [n_in, n_out] as GPT-2's checkpoints store it, bias [n_out] -> [..., n_out].

    >>> linear(np.float32([1, 2]), np.float32([[1, 0, 3], [0, 1, 1]]), np.float32([10, 20, 30]))
    array([11., 22., 35.], dtype=float32)
    """
    return x @ weight + bias
