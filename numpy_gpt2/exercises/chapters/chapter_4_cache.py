"""Chapter 4: the cache. A causal model never changes its mind about a token it has read.

Keys and values depend on earlier tokens only. So they are computed once and kept, and the pass for one more token
costs one token's work. Without a cache, the hundredth token would cost a pass over a hundred.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import numpy as np

import numpy_gpt2.cache
from numpy_gpt2.model import transform, unembed
from numpy_gpt2.tap import Tap, no_tap
from numpy_gpt2.weights import GPT2


class KVCache(numpy_gpt2.cache.KVCache):
    """The engine's cache, with two methods for you to write.

        self.k, self.v    [n_layer, *batch, n_head, n_positions, d_head]: room for n_positions tokens
        self.length       how many of them are filled
    """

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write one layer's new keys and values after those that are there; return all that this layer has.

        k, v [*batch, n_head, n_new, d_head] -> two of [*batch, n_head, length + n_new, d_head].
        Leave self.length alone: every layer of a pass writes at the same place, and the pass moves it once, at its end.

        >>> from numpy_gpt2.config import GPT2Config
        >>> from numpy_gpt2.weights import random_model
        >>> cache = KVCache(random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1)))
        >>> k_all, v_all = cache.append(0, np.float32([[[1, 2]]]), np.float32([[[3, 4]]]))
        >>> cache.length = 1
        >>> cache.append(0, np.float32([[[5, 6]]]), np.float32([[[7, 8]]]))[0]
        array([[[1., 2.],
                [5., 6.]]], dtype=float32)
        """
        end = self.length + k.shape[-2]
        self.k[layer, ..., self.length:end, :] = k
        self.v[layer, ..., self.length:end, :] = v
        return self.k[layer, ..., :end, :], self.v[layer, ..., :end, :]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens, in place. Raises ValueError unless 0 <= length <= self.length.

        No array needs to change: what lies behind self.length counts as empty, and will be written over.

        >>> from numpy_gpt2.config import GPT2Config
        >>> from numpy_gpt2.weights import random_model
        >>> cache = KVCache(random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1)))
        >>> cache.length = 3
        >>> cache.crop(1)
        >>> cache.length
        1
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be from 0 to {self.length}. Got {length}.")
        self.length = length


def next_logits(model: GPT2, new_ids: np.ndarray, cache: KVCache, tap: Tap = no_tap) -> np.ndarray:
    """Decoding: read new tokens, and score the one to follow: [*batch, n_new] -> [*batch, vocab_size].

    transform(model, new_ids, cache=cache) reads them, with what the cache holds before them, and moves the cache on:
    it gives [*batch, n_new, n_embd]. Unembed the last position only, which predicts the token to follow.
    tap: give it to both functions as tap=tap, or ignore it.

    >>> from numpy_gpt2.config import GPT2Config
    >>> from numpy_gpt2.weights import random_model
    >>> model = random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1))
    >>> next_logits(model, np.array([0, 2]), KVCache(model)).shape
    (3,)
    """
    hidden = transform(model, new_ids, cache=cache, tap=tap)  # [*batch, n_new, n_embd]
    return unembed(model, hidden[..., -1, :], tap=tap)
