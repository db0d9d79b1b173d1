"""The keys and values of tokens already read: the one state of inference."""

import numpy as np

from .errors import check_int, shown
from .matmul import allocate_channel_major, write_channel_major
from .weights import GPT2


class KVCache:
    """Keys and values of every layer, preallocated for `n_positions` tokens, of which the first `length` are filled.

    In a causal model, the keys and values of a token depend on that token and those before it, so they never change.
    They are computed once and cached; a pass over one more token computes only that token, and attends to the cache.

        cache.k, cache.v    [n_layer, *batch, n_head, n_positions, d_head], in the weights' type

    n_positions: the capacity in tokens, at most the model's context (the default). batch: the leading axes of the ids.
    Raises ValueError if either is invalid.
    """

    def __init__(self, model: GPT2, n_positions: int | None = None, batch: tuple[int, ...] = ()) -> None:
        config = model.config
        if n_positions is None:
            n_positions = config.n_positions
        if not isinstance(batch, (tuple, list)):
            raise ValueError(f"batch must be a tuple, the leading axes of the ids, such as (3,). Got {shown(batch)}.")
        self.model = model
        self.batch = tuple(check_int("batch", size, 1) for size in batch)
        self.n_positions = check_int("n_positions", n_positions, 1, config.n_positions)
        self.length = 0
        shape = (config.n_layer, *self.batch, config.n_head, self.n_positions, config.d_head)
        self.k = allocate_channel_major(shape, model.wte.dtype)  # zeros, in a special memory order
        self.v = allocate_channel_major(shape, model.wte.dtype)

    def check_room(self, model: GPT2, batch: tuple[int, ...], n_new: int) -> None:
        """Raise ValueError, before anything is written, unless `n_new` tokens of this batch and this model fit."""
        config = model.config
        of_model = (config.n_layer, config.n_head, config.d_head, model.wte.dtype)
        of_cache = (self.k.shape[0], self.k.shape[-3], self.k.shape[-1], self.k.dtype)
        if of_model != of_cache:
            raise ValueError("the cache must be of a model of the same layers, heads, d_head and type: "
                             f"{of_model}. Got {of_cache}.")
        if batch != self.batch:
            raise ValueError(f"ids must have the cache's leading axes {self.batch}. Got {batch}.")
        room = min(self.n_positions, config.n_positions)
        if self.length + n_new > room:
            raise ValueError(f"{n_new} new tokens do not fit: the cache holds {self.length} of {room}. "
                             "Make a larger one (at most the model's context), or crop it.")

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write one layer's new keys and values; return views of all keys and values of that layer.

        k, v [*batch, n_head, n_new, d_head] -> two of [*batch, n_head, length + n_new, d_head]. `length` does not
        change: every layer of a pass writes at the same positions, and `transform` advances it at the end.
        """
        end = self.length + k.shape[-2]
        write_channel_major(self.k[layer, ..., self.length:end, :], k)
        write_channel_major(self.v[layer, ..., self.length:end, :], v)
        return self.k[layer, ..., :end, :], self.v[layer, ..., :end, :]

    def crop(self, length: int) -> None:
        """Keep only the first `length` tokens, in place; later tokens overwrite the rest."""
        self.length = check_int("length", length, 0, self.length)

    def repeat(self, n: int) -> "KVCache":
        """A new cache of batch (n, *batch) with n copies of this one, for n samples of one prompt."""
        repeated = KVCache(self.model, self.n_positions, (check_int("n", n, 1), *self.batch))
        repeated.k[..., :self.length, :] = self.k[:, np.newaxis, ..., :self.length, :]
        repeated.v[..., :self.length, :] = self.v[:, np.newaxis, ..., :self.length, :]
        repeated.length = self.length
        return repeated

    def __repr__(self) -> str:
        return (f"KVCache(length={self.length}, n_positions={self.n_positions}, batch={self.batch}, "
                f"dtype={self.k.dtype})")
