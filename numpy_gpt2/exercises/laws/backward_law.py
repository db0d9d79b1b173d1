"""Laws of chapter 8: the backward pass. What is expected are finite differences of the forward functions."""

from typing import Callable, Iterator

import numpy as np

from ... import backward, ops
from ...weights import Conv1D, LayerNorm
from .law import BATCHES, Args, Law, leading, normal

STEP = 1e-5


def slope(function: Callable[[np.ndarray], np.ndarray], d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(f(x + step) - f(x - step)) / (2 step) for each number of x, where f is the sum of d_y * function(x).

    In float64, where the difference of two large sums still has its digits.
    """
    x = x.astype(np.float64)
    d_x = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[place] = STEP
        d_x[place] = np.sum(d_y * (function(x + step) - function(x - step))) / (2 * STEP)
    return d_x.astype(np.float32)


def softmax_differences(d_y: np.ndarray, y: np.ndarray) -> np.ndarray:
    return slope(ops.softmax, d_y, np.log(y, dtype=np.float64))


def gelu_differences(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return slope(ops.gelu, d_y, x)


def layer_norm_differences(d_y: np.ndarray, x: np.ndarray, weights: LayerNorm,
                           epsilon: float) -> tuple[np.ndarray, LayerNorm]:
    gain, bias = weights.weight, weights.bias
    d_x = slope(lambda x: ops.layer_norm(x, gain, bias, epsilon), d_y, x)
    d_gain = slope(lambda gain: ops.layer_norm(x, gain, bias, epsilon), d_y, gain)
    d_bias = slope(lambda bias: ops.layer_norm(x, gain, bias, epsilon), d_y, bias)
    return d_x, LayerNorm(d_gain, d_bias)


def linear_differences(d_y: np.ndarray, x: np.ndarray, weights: Conv1D) -> tuple[np.ndarray, Conv1D]:
    x, weight, bias = (array.astype(np.float64) for array in (x, weights.weight, weights.bias))
    d_x = slope(lambda x: ops.linear(x, weight, bias), d_y, x)
    d_weight = slope(lambda weight: ops.linear(x, weight, bias), d_y, weight)
    d_bias = slope(lambda bias: ops.linear(x, weight, bias), d_y, bias)
    return d_x, Conv1D(d_weight, d_bias)


def softmax_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield np.array([1, 0, 0], np.float32), np.array([0.5, 0.25, 0.25], np.float32)
    for batch in BATCHES:
        yield normal(rng, *batch, 2, 4), ops.softmax(normal(rng, *batch, 2, 4))


def gelu_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield np.ones(4, np.float32), np.array([-1, 0, 1, 2], np.float32)
    for batch in BATCHES:
        yield normal(rng, *batch, 2, 4), normal(rng, *batch, 2, 4, scale=1.5)


def layer_norm_cases(rng: np.random.Generator) -> Iterator[Args]:
    sizes = [((), 1, 3, 1e-5), ((), 3, 4, 0.1), ((2,), 2, 3, 0.01), ((2, 2), 2, 4, 0.5)]
    for batch, n_tokens, n_embd, epsilon in sizes:
        weights = LayerNorm(normal(rng, n_embd), normal(rng, n_embd))
        yield normal(rng, *batch, n_tokens, n_embd), 1 + normal(rng, *batch, n_tokens, n_embd), weights, epsilon


def linear_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, n_tokens, n_in, n_out in [((), 1, 2, 2), ((), 3, 2, 4), ((2,), 2, 3, 3), ((2, 3), 2, 3, 2)]:
        weights = Conv1D(normal(rng, n_in, n_out), normal(rng, n_out))
        yield normal(rng, *batch, n_tokens, n_out), normal(rng, *batch, n_tokens, n_in), weights


LAWS = {
    "softmax_backward": Law(backward.softmax_backward, softmax_cases, expected=softmax_differences,
                            batch_of=leading(2)),
    "gelu_backward": Law(backward.gelu_backward, gelu_cases, expected=gelu_differences, batch_of=leading(2)),
    "layer_norm_backward": Law(backward.layer_norm_backward, layer_norm_cases, expected=layer_norm_differences,
                               batch_of=leading(2)),
    "linear_backward": Law(backward.linear_backward, linear_cases, expected=linear_differences, batch_of=leading(2)),
}
