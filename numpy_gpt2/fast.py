"""The less readable twins: a block for a long prompt that nobody looks into, equal to `model.block` up to rounding.

`transform` chooses it in one line; with a tap, and for a few tokens, the readable lines run. What pays, and why:

* Queries go in blocks. A block of early queries never meets the keys of later tokens, so that half of the scores is not
  computed at all, and what is computed is used again before it has left the processor's cache.
* All lies by channel, tokens side by side, as the cache keeps its keys and values (`zeros_by_channel`): nothing is
  turned over on its way in, and the largest score and the sum for each query are found for many queries at once.
* An array is overwritten where the readable form makes a new one, and small strips of it are finished one by one: such
  operations cost what moving their numbers costs.
* The sum that softmax divides by divides z instead, which is n_all / d_head times smaller than the pattern.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .matmul import matmul
from .ops import SQRT_2_OVER_PI, layer_norm, linear

if TYPE_CHECKING:
    from .cache import KVCache
    from .config import GPT2Config
    from .weights import MLP, Attention, Block

LONG_PROMPT = 64  # tokens from which on these twins pay
QUERY_BLOCK = 128  # queries at a time: fewer would make products too small for BLAS, more would waste half a square
STRIP = 16  # rows of neurons at a time: 200 KB, read and written a dozen times before the next


def block(x: np.ndarray, weights: Block, config: GPT2Config, cache: KVCache, layer: int) -> np.ndarray:
    """`model.block` without a tap: x [n_new, n_embd] -> [n_new, n_embd]."""
    normed = layer_norm(x, weights.ln_1.weight, weights.ln_1.bias, config.layer_norm_epsilon)
    x = x + attention(normed, weights.attn, config.n_head, cache, layer)
    normed = layer_norm(x, weights.ln_2.weight, weights.ln_2.bias, config.layer_norm_epsilon)
    x += mlp(normed, weights.mlp)
    return x


def attention(x: np.ndarray, weights: Attention, n_head: int, cache: KVCache, layer: int) -> np.ndarray:
    """`model.attention`: x [n_new, n_embd] -> [n_new, n_embd]."""
    *leading, n_new, n_embd = x.shape
    qkv = weights.c_attn.weight.T @ np.swapaxes(x, -1, -2)  # [3*n_embd, n_new]
    qkv += weights.c_attn.bias[:, np.newaxis]
    qkv = qkv.reshape(*leading, 3, n_head, n_embd // n_head, n_new)  # [3, n_head, d_head, n_new]
    q, k, v = (np.swapaxes(qkv[..., i, :, :, :], -1, -2) for i in range(3))  # three of [n_head, n_new, d_head]
    first_position = cache.length
    k_all, v_all = cache.append(layer, k, v)  # two of [n_head, n_all, d_head]
    z = mix_in_query_blocks(q, k_all, v_all, first_position)  # [n_head, d_head, n_new]
    merged = z.reshape(*leading, n_embd, n_new)  # [n_embd, n_new]
    return linear(np.swapaxes(merged, -1, -2), weights.c_proj.weight, weights.c_proj.bias)


def mix_in_query_blocks(q: np.ndarray, k_all: np.ndarray, v_all: np.ndarray, first_position: int) -> np.ndarray:
    """softmax(q @ k_all.T / sqrt(d_head), -inf where key > query) @ v_all, by channel.

    q [n_head, n_new, d_head]; k_all, v_all [n_head, n_all, d_head]; query i stands at first_position + i.
    Returns z [n_head, d_head, n_new].
    """
    *heads, n_new, d_head = q.shape
    q = np.swapaxes(q, -1, -2) / math.sqrt(d_head)  # [n_head, d_head, n_new]
    v_all = np.swapaxes(v_all, -1, -2)  # [n_head, d_head, n_all]
    z = np.empty(q.shape, q.dtype)
    room = np.empty((*heads, k_all.shape[-2], min(QUERY_BLOCK, n_new)), q.dtype)  # for one block's scores at a time
    later = np.tril(np.full((QUERY_BLOCK, QUERY_BLOCK), -np.inf, q.dtype), -1)  # -inf where key > query
    for start in range(0, n_new, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n_new)
        n_queries = end - start
        n_visible = first_position + end  # keys, up to the block's last query
        scores = room[..., :n_visible, :n_queries]  # [n_head, n_visible, n_queries]
        np.matmul(k_all[..., :n_visible, :], q[..., start:end], out=scores)
        scores[..., -n_queries:, :] += later[:n_queries, :n_queries]  # no other keys are later than any of its queries
        scores -= np.max(scores, axis=-2, keepdims=True)
        np.exp(scores, out=scores)
        total = np.sum(scores, axis=-2, keepdims=True)  # [n_head, 1, n_queries]
        np.divide(v_all[..., :n_visible] @ scores, total, out=z[..., start:end])
    return z


def mlp(x: np.ndarray, weights: MLP) -> np.ndarray:
    """`model.mlp`: [n_new, n_embd] -> [n_new, n_embd]."""
    neurons = matmul(x, weights.c_fc.weight)  # [n_new, n_inner]
    add_bias_and_gelu(neurons, weights.c_fc.bias)
    return linear(neurons, weights.c_proj.weight, weights.c_proj.bias)


def add_bias_and_gelu(x: np.ndarray, bias: np.ndarray) -> None:
    """x becomes `ops.gelu(x + bias)`, in place and in strips of rows: x [n_new, n_inner].

    The same formula with x taken out of the bracket: 0.5 x (1 + tanh(sqrt(2 / pi) x (1 + 0.044715 x^2))).
    """
    rows = x.reshape(-1, x.shape[-1])  # [n_rows, n_inner], a view
    for start in range(0, len(rows), STRIP):
        strip = rows[start:start + STRIP]
        strip += bias
        inner = strip * strip
        inner *= 0.044715
        inner += 1.0
        inner *= strip
        inner *= SQRT_2_OVER_PI
        np.tanh(inner, out=inner)
        inner += 1.0
        strip *= inner
        strip *= 0.5
