"""The keys and values of tokens already read: the one state of inference."""

import operator

import numpy as np

from .matmul import allocate_channel_major
from .weights import GPT2


class KVCache:
    """Keys and values of every layer, preallocated for `n_positions` tokens, of which the first `length` are filled.

    A causal model never changes its mind about a token it has read: keys and values depend on earlier tokens only. So
    they are computed once and kept, and the pass for one more token costs one token's work.

        cache.k, cache.v    [n_layer, *batch, n_head, n_positions, d_head], in the weights' type

    n_positions: the room asked for, at most the model's context (the default). batch: the leading axes of the ids that
    will be given. Raises ValueError where either makes no cache.
    """

    def __init__(self, model: GPT2, n_positions: int | None = None, batch: tuple[int, ...] = ()) -> None:
        config = model.config
        if n_positions is None:
            n_positions = config.n_positions
        if not 1 <= operator.index(n_positions) <= config.n_positions:
            raise ValueError(f"n_positions must be from 1 to {config.n_positions}, the model's context. "
                             f"Got {n_positions}.")
        self.batch = tuple(batch)
        if any(operator.index(size) < 1 for size in self.batch):
            raise ValueError(f"batch must be sizes of 1 or more. Got {self.batch}.")
        self.n_positions = n_positions
        self.length = 0
        shape = (config.n_layer, *self.batch, config.n_head, n_positions, config.d_head)
        self.k = allocate_channel_major(shape, model.wte.dtype)
        self.v = allocate_channel_major(shape, model.wte.dtype)

    def check_room(self, model: GPT2, batch: tuple[int, ...], n_new: int) -> None:
        """Raise ValueError, before anything is written, unless `n_new` tokens of this batch and this model fit."""
        config = model.config
        of_model = (config.n_layer, config.n_head, config.d_head, model.wte.dtype)
        of_cache = (self.k.shape[0], self.k.shape[-3], self.k.shape[-1], self.k.dtype)
        if of_model != of_cache:
            raise ValueError(f"the cache must be one of this model, with layers, heads, d_head and type {of_model}. "
                             f"Got {of_cache}.")
        if batch != self.batch:
            raise ValueError(f"ids must have the cache's leading axes {self.batch}. Got {batch}.")
        room = min(self.n_positions, config.n_positions)
        if self.length + n_new > room:
            raise ValueError(f"{n_new} new tokens do not fit: the cache holds {self.length} of {room}. "
                             "Make a larger one (at most the model's context), or crop it.")

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write one layer's new keys and values; return views of all that layer has.

        k, v [*batch, n_head, n_new, d_head] -> two of [*batch, n_head, length + n_new, d_head].
        `length` stays: every layer of a pass writes at the same place, and `transform` moves it once, at its end.
        """
        end = self.length + k.shape[-2]
        self.k[layer, ..., self.length:end, :] = k
        self.v[layer, ..., self.length:end, :] = v
        return self.k[layer, ..., :end, :], self.v[layer, ..., :end, :]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens, in place."""
        if not 0 <= operator.index(length) <= self.length:
            raise ValueError(f"length must be from 0 to the cache's length, {self.length}. Got {length}.")
        self.length = length

    def repeat(self, n: int) -> "KVCache":
        """A new cache of batch (n, *batch), its n rows copies of this one: n samples that share one prompt."""
        if operator.index(n) < 1:
            raise ValueError(f"n must be 1 or more. Got {n}.")
        repeated = object.__new__(KVCache)
        repeated.batch = (n, *self.batch)
        repeated.n_positions = self.n_positions
        repeated.length = self.length
        repeated.k = self._repeat_filled(self.k, n)
        repeated.v = self._repeat_filled(self.v, n)
        return repeated

    def _repeat_filled(self, array: np.ndarray, n: int) -> np.ndarray:
        n_layer, *one = array.shape
        repeated = allocate_channel_major((n_layer, n, *one), array.dtype)
        repeated[..., :self.length, :] = array[:, np.newaxis, ..., :self.length, :]
        return repeated

    def __repr__(self) -> str:
        return (f"KVCache(length={self.length}, n_positions={self.n_positions}, batch={self.batch}, "
                f"dtype={self.k.dtype})")
