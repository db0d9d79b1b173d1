"""Chapter 4: the cache. In a causal model, later tokens never change the keys and values of earlier ones.

So they are computed once and cached, and a pass for one more token costs one token's computation. Without a cache, the
hundredth token would cost a pass over a hundred tokens.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import numpy as np

import numpy_gpt2.cache
from numpy_gpt2.model import transform, unembed
from numpy_gpt2.tap import Tap, no_tap
from numpy_gpt2.weights import GPT2


class KVCache(numpy_gpt2.cache.KVCache):
    """The engine's cache, with two methods for you to write.

        self.k, self.v    [n_layer, *batch, n_head, n_positions, d_head]: the capacity is n_positions tokens
        self.length       how many of them are filled
    """

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write one layer's new keys and values after the existing ones; return all of that layer's.

        k, v [*batch, n_head, n_new, d_head] -> two of [*batch, n_head, length + n_new, d_head].
        Do not change self.length: every layer of a pass writes at the same positions; the pass advances it at the end.

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
        """Keep only the first `length` tokens, in place. Raises ValueError unless 0 <= length <= self.length.

        No array needs to change: everything after self.length counts as empty, and will be overwritten.

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
    """Process new tokens and return the logits of the next one: [*batch, n_new] -> [*batch, vocab_size].

    transform(model, new_ids, cache=cache) runs the pass after the tokens in the cache, and appends the new ones to it:
    it returns [*batch, n_new, n_embd]. Unembed only the last position, which predicts the next token.
    tap: give it to both functions as tap=tap, or ignore it.

    >>> from numpy_gpt2.config import GPT2Config
    >>> from numpy_gpt2.weights import random_model
    >>> model = random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1))
    >>> next_logits(model, np.array([0, 2]), KVCache(model)).shape
    (3,)
    """
    hidden = transform(model, new_ids, cache=cache, tap=tap)  # [*batch, n_new, n_embd]
    return unembed(model, hidden[..., -1, :], tap=tap)
