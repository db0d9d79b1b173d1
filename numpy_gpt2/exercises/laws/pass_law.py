"""Laws of chapter 3: the forward pass, part by part."""

from typing import Any, Callable, Iterator

import numpy as np

from ... import model as engine
from ...cache import KVCache
from ...tap import no_tap
from ...weights import GPT2
from .law import BATCHES, Args, Law, leading, normal, small_model


def embed_cases(rng: np.random.Generator) -> Iterator[Args]:
    model = small_model(rng)
    for batch, n_new, first_position in [((), 2, 0), ((), 3, 4), ((2,), 3, 0), ((2, 3), 4, 2)]:
        yield model, rng.integers(0, model.config.vocab_size, (*batch, n_new)), first_position, no_tap


def split_heads_cases(rng: np.random.Generator) -> Iterator[Args]:
    yield np.arange(12, dtype=np.float32).reshape(3, 4), 2
    for batch in BATCHES:
        yield normal(rng, *batch, 4, 12), 3


def attend_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, n_new, n_all in [((), 2, 2), ((), 1, 3), ((), 4, 4), ((), 2, 5), ((2,), 3, 4), ((2, 3), 3, 3)]:
        q = normal(rng, *batch, 2, n_new, 3, scale=2)
        yield q, normal(rng, *batch, 2, n_all, 3, scale=2), normal(rng, *batch, 2, n_all, 3), no_tap


def read_before(rng: np.random.Generator, model: GPT2, batch: tuple[int, ...], length: int) -> KVCache:
    """A cache that holds `length` tokens."""
    cache = KVCache(model, batch=batch)
    cache.k[...] = normal(rng, *cache.k.shape)
    cache.v[...] = normal(rng, *cache.v.shape)
    cache.length = length
    return cache


def cached_cases(rng: np.random.Generator) -> Iterator[tuple[GPT2, np.ndarray, KVCache, int]]:
    """A model, the residual stream of n_new tokens, a cache of earlier ones, a layer."""
    model = small_model(rng)
    sizes = [((), 2, 0, 0), ((), 1, 2, 1), ((), 3, 3, 0), ((2,), 3, 2, 1), ((2, 3), 2, 1, 0)]
    for batch, n_new, length, layer in sizes:
        yield model, normal(rng, *batch, n_new, 12), read_before(rng, model, batch, length), layer


def attention_cases(rng: np.random.Generator) -> Iterator[Args]:
    for model, x, cache, layer in cached_cases(rng):
        yield x, model.h[layer].attn, 3, cache, layer, no_tap


def mlp_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, name in zip(BATCHES, ["gelu_new", "gelu_new", "relu", "gelu_new"]):
        yield normal(rng, *batch, 3, 12), small_model(rng).h[0].mlp, name, no_tap


def block_cases(rng: np.random.Generator) -> Iterator[Args]:
    for model, x, cache, layer in cached_cases(rng):
        yield x, model.h[layer], model.config, cache, layer, no_tap


def unembed_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, tied in [((), True), ((), False), ((2,), True), ((2, 3), False)]:
        yield small_model(rng, tied), normal(rng, *batch, 3, 12)


def call_as_a_pass(function: Callable[..., Any], args: Args) -> Any:
    """Move the cache on afterwards, as `transform` does, so that what was written to it is compared too."""
    result = function(*args)
    cache = next(arg for arg in args if isinstance(arg, KVCache))
    cache.length += args[0].shape[-2]
    return result


LAWS = {
    "embed": Law(engine.embed, embed_cases, batch_of=lambda args: args[1].shape[:-1]),
    "split_heads": Law(engine.split_heads, split_heads_cases, batch_of=leading(2)),
    "attend": Law(engine.attend, attend_cases, batch_of=leading(3)),
    "attention": Law(engine.attention, attention_cases, call_as_a_pass, batch_of=leading(2)),
    "mlp": Law(engine.mlp, mlp_cases, batch_of=leading(2)),
    "block": Law(engine.block, block_cases, call_as_a_pass, batch_of=leading(2)),
    "unembed": Law(engine.unembed, unembed_cases, batch_of=lambda args: args[1].shape[:-2]),
}
