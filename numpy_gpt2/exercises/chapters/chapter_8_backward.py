"""Chapter 8: the backward pass. The gradients of the loss.

d_y is the gradient of the loss with respect to y, and has y's shape. Given d_y of a forward function's output, its
backward function returns d_x of its input. Two rules suffice: the chain rule, and that a value used several times gets
the sum of its gradients.

The checks compare with finite differences: (f(x + h) - f(x - h)) / 2h, for each number of x separately, where f is the
sum of d_y * function(x). You can do that too.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import math

import numpy as np

from numpy_gpt2.weights import Conv1D, LayerNorm


def softmax_backward(d_y: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y = softmax(x): d_x = y (d_y - sum(d_y y)), the sum over the last axis.

    d_y and y [..., n] -> [..., n]. One probability can rise only if others fall: each row of d_x sums to 0.
    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors".

    >>> softmax_backward(np.float32([1, 0, 0]), np.float32([0.5, 0.25, 0.25]))
    array([ 0.25 , -0.125, -0.125], dtype=float32)
    """
    return y * (d_y - (d_y * y).sum(axis=-1, keepdims=True))


def gelu_backward(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """y = gelu(x), in its tanh form: d_x is d_y times the derivative of gelu at x.

    With t = tanh(s (x + 0.044715 x^3)) and s = sqrt(2 / pi), gelu is 0.5 x (1 + t), and its derivative
    0.5 (1 + t) + 0.5 x (1 - t^2) s (1 + 3 0.044715 x^2): the derivative of tanh is 1 - t^2. [..., n] -> [..., n].

    >>> gelu_backward(np.float32([1, 1, 2]), np.float32([-1, 0, 1])).round(4)
    array([-0.083 ,  0.5   ,  2.1659], dtype=float32)
    """
    s = math.sqrt(2 / math.pi)
    t = np.tanh(s * (x + 0.044715 * x**3))
    d_inner = s * (1 + 3 * 0.044715 * x**2)
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * d_inner
    return d_y * slope


def layer_norm_backward(d_y: np.ndarray, x: np.ndarray, weights: LayerNorm,
                        epsilon: float) -> tuple[np.ndarray, LayerNorm]:
    """y = n weight + bias, where n = (x - mean) / deviation, and deviation = sqrt(variance + epsilon).

    d_n = d_y weight, and d_x = (d_n - mean(d_n) - n mean(d_n n)) / deviation: the subtracted terms are the effects of x
    through the mean and the deviation. Means are over the last axis. The gradients of weight and bias are the sums of
    d_y n and of d_y over all tokens of the batch.
    d_y, x [..., n_embd] -> d_x [..., n_embd], and LayerNorm(d_weight [n_embd], d_bias [n_embd]).
    Source: Ioffe and Szegedy, "Batch Normalization", section 3; the same, along another axis.

    >>> d_x, d_weights = layer_norm_backward(np.float32([[1, 0]]), np.float32([[3, 1]]),
    ...                                      LayerNorm(np.float32([2, 2]), np.float32([0, 0])), epsilon=3.0)
    >>> d_x, d_weights.weight, d_weights.bias
    (array([[ 0.375, -0.375]], dtype=float32), array([0.5, 0. ], dtype=float32), array([1., 0.], dtype=float32))
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon)  # [..., 1]
    n = centered / deviation
    d_n = d_y * weights.weight
    d_x = (d_n - d_n.mean(axis=-1, keepdims=True) - n * (d_n * n).mean(axis=-1, keepdims=True)) / deviation
    tokens = tuple(range(d_y.ndim - 1))  # all axes but the last
    return d_x, LayerNorm((d_y * n).sum(axis=tokens), d_y.sum(axis=tokens))


def linear_backward(d_y: np.ndarray, x: np.ndarray, weights: Conv1D) -> tuple[np.ndarray, Conv1D]:
    """y = x @ weight + bias: d_x = d_y @ weight.T, d_weight = x.T @ d_y, d_bias = the sum of d_y.

    The last two sum over all tokens of the batch: make them rows first, with reshape(-1, n).
    d_y [..., n_out], x [..., n_in] -> d_x [..., n_in], and Conv1D(d_weight [n_in, n_out], d_bias [n_out]).

    >>> d_x, d_weights = linear_backward(np.float32([[1, 2]]), np.float32([[3, 4]]),
    ...                                  Conv1D(np.float32([[1, 0], [0, 1]]), np.float32([0, 0])))
    >>> d_x
    array([[1., 2.]], dtype=float32)
    >>> d_weights.weight
    array([[3., 6.],
           [4., 8.]], dtype=float32)
    """
    d_x = d_y @ weights.weight.T  # [..., n_in]
    rows_x, rows_d_y = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])  # [n_rows, n_in], [n_rows, n_out]
    return d_x, Conv1D(rows_x.T @ rows_d_y, rows_d_y.sum(axis=0))
