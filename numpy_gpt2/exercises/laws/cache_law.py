"""Laws of chapter 4: the cache of keys and values."""

from typing import Any, Callable, Iterator

import numpy as np

from ...cache import KVCache
from ...decoding import next_logits
from .law import Args, Law, normal, small_model
from .pass_law import read_before

SIZES = [((), 1, 0, 0), ((), 2, 1, 1), ((), 1, 3, 0), ((2,), 2, 3, 1), ((2, 3), 1, 2, 0)]  # batch, n_new, length, layer


def append_cases(rng: np.random.Generator) -> Iterator[Args]:
    model = small_model(rng)
    for batch, n_new, length, layer in SIZES:
        k, v = normal(rng, *batch, 3, n_new, 4), normal(rng, *batch, 3, n_new, 4)
        yield read_before(rng, model, batch, length), layer, k, v


def call_append(function: Callable[..., Any], args: Args) -> Any:
    """Move the cache on afterwards, as `transform` does, so that what was written to it is compared too."""
    cache, layer, k, v = args
    result = function(cache, layer, k, v)
    cache.length += k.shape[-2]
    return result


def next_logits_cases(rng: np.random.Generator) -> Iterator[Args]:
    model = small_model(rng)
    for batch, n_new, length, _ in SIZES:
        yield model, rng.integers(0, 11, (*batch, n_new)), read_before(rng, model, batch, length)


def crop_cases(rng: np.random.Generator) -> Iterator[Args]:
    model = small_model(rng, n_layer=1)
    sizes = [((), 3, 2), ((), 4, 1), ((), 3, 3), ((), 2, 0), ((2,), 5, 3), ((), 2, 3), ((), 2, -1)]
    for batch, before, length in sizes:
        yield read_before(rng, model, batch, before), length


LAWS = {
    "append": Law(KVCache.append, append_cases, call_append, batch_of=lambda args: args[0].batch),
    "next_logits": Law(next_logits, next_logits_cases, batch_of=lambda args: args[2].batch),
    "crop": Law(KVCache.crop, crop_cases, own_errors=(ValueError,), batch_of=lambda args: args[0].batch),
}
