"""Laws of chapter 2: the four operations."""

from typing import Iterator

import numpy as np

from ... import ops
from .law import BATCHES, Args, Law, leading, normal


def softmax_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield (np.array([1, 2, 3], np.float32),)
    for batch in BATCHES:
        yield (normal(rng, *batch, 4, 5, scale=3),)
    yield (np.array([[1000, 1001, -np.inf], [-1000, -1002, -1001]], np.float32),)
    yield (np.array([[500, 0, 0, 0], [-500, -502, -501, -503], [0, 0, 0, -100]], np.float32),)


def gelu_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield (np.array([-1, 0, 1, 2], np.float32),)
    for batch in BATCHES:
        yield (normal(rng, *batch, 4, 5, scale=2),)


def layer_norm_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, n_tokens, n_embd in [((), 1, 3), ((), 4, 6), ((2,), 3, 5), ((2, 3), 2, 4)]:
        weight, bias = normal(rng, n_embd), normal(rng, n_embd)
        for scale, epsilon in [(2.0, 1e-5), (0.05, 1e-3)]:
            yield 1 + normal(rng, *batch, n_tokens, n_embd, scale=scale), weight, bias, epsilon


def linear_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, n_in, n_out in [((), 3, 3), ((), 2, 4), ((2,), 4, 4), ((2, 3), 5, 2)]:
        yield normal(rng, *batch, 3, n_in), normal(rng, n_in, n_out), normal(rng, n_out)


LAWS = {
    "softmax": Law(ops.softmax, softmax_cases, batch_of=leading(2)),
    "gelu": Law(ops.gelu, gelu_cases, batch_of=leading(2)),
    "layer_norm": Law(ops.layer_norm, layer_norm_cases, batch_of=leading(2)),
    "linear": Law(ops.linear, linear_cases, batch_of=leading(2)),
}
