"""Laws of chapter 5: from logits to a token."""

from typing import Any, Callable, Iterator

import numpy as np

from ... import sampling
from .law import BATCHES, Args, Law, leading, normal


def temperature_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, temperature in zip(BATCHES, [2.0, 0.5, 0.7, 1.5]):
        yield normal(rng, *batch, 5, scale=2), temperature
    yield normal(rng, 2, 4, scale=30), 0.1


def call_and_shift(function: Callable[..., Any], args: Args) -> Any:
    """Logits whose largest is 0: what is added to all of a row changes no probability."""
    logits = function(*args)
    return logits - logits.max(axis=-1, keepdims=True) if isinstance(logits, np.ndarray) else logits


def top_k_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield np.array([1, 3, 2, 0], np.float32), 2
    yield np.array([1, 3, 2, 2, 0], np.float32), 2  # the k-th and another are equal
    for batch, k in zip(BATCHES, [1, 3, 2, 4]):
        yield normal(rng, *batch, 6), k
    yield normal(rng, 2, 3), 10  # more than there are


def top_p_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.6
    for batch, p in zip(BATCHES, [0.9, 0.3, 0.7, 0.95]):
        yield normal(rng, *batch, 6, scale=2), p
    yield np.log(np.array([0.1, 0.7, 0.2], np.float32)), 0.01


def sample_cases(rng: np.random.Generator) -> Iterator[Args]:
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    for draw in [0.1, 0.3, 0.6, 0.9, 0.0]:
        yield logits, np.array(draw)
    yield np.array([-np.inf, 0, 0], np.float32), np.array(0.0)
    for batch in BATCHES[2:]:
        for _ in range(3):
            yield normal(rng, *batch, 6, scale=2), rng.random(batch)


LAWS = {
    "apply_temperature": Law(sampling.apply_temperature, temperature_cases, call_and_shift, batch_of=leading(1)),
    "keep_top_k": Law(sampling.keep_top_k, top_k_cases, batch_of=leading(1)),
    "keep_top_p": Law(sampling.keep_top_p, top_p_cases, batch_of=leading(1)),
    "sample": Law(sampling.sample, sample_cases, batch_of=leading(1)),
}
