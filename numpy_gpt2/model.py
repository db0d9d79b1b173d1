"""GPT-2: the weights, and the whole forward pass over them.

The weights are plain data under the checkpoint's names: `model.h[3].attn.c_attn.weight`. The pass is a handful of
functions, read from top to bottom as the data flows:

    ids -> embed -> block, block, ... (attention, then mlp) -> layer_norm -> unembed -> logits

A shape comment stands on every line that changes one. Shapes leave out leading batch axes, which every line carries
along. `tap` announces each array by name (see tap.py) and hands it back.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3, and OpenAI's gpt-2.
"""

import math
from typing import Any

import numpy as np

from . import fast
from .cache import KVCache
from .config import GPT2Config
from .matmul import matmul
from .ops import gelu, layer_norm, linear, softmax
from .tap import Tap, checked, no_tap, scoped
from .weights import GPT2, MLP, Attention, Block


def forward(model: GPT2, ids: Any, cache: KVCache | None = None, tap: Tap = no_tap) -> np.ndarray:
    """Logits of the next token at every position: ids [n_new] -> [n_new, vocab_size].

    ids: token ids, a list or an integer array, with any leading batch axes. cache: what was read before these tokens;
    they are added to it. Raises ValueError for ids that are not tokens of this model or do not fit.
    """
    hidden = transform(model, ids, cache, tap)
    return unembed(model, hidden, tap)


def transform(model: GPT2, ids: Any, cache: KVCache | None = None, tap: Tap = no_tap) -> np.ndarray:
    """All of the pass but the unembedding: ids [n_new] -> [n_new, n_embd]. Arguments and errors as for `forward`."""
    ids = check_ids(model, ids)
    *batch, n_new = ids.shape
    if cache is None:
        cache = KVCache(model, n_positions=n_new, batch=tuple(batch))
    cache.check_room(model, tuple(batch), n_new)
    tap = checked(tap)

    x = embed(model, ids, cache.length, tap)  # [n_new, n_embd]
    for layer, weights in enumerate(model.h):
        if tap is no_tap and n_new >= fast.LONG_PROMPT:  # a long prompt that nobody looks into
            x = fast.block(x, weights, model.config, cache, layer)
        else:
            x = block(x, weights, model.config, cache, layer, scoped(tap, f"h.{layer}."))
    hidden = layer_norm(x, model.ln_f.weight, model.ln_f.bias, model.config.layer_norm_epsilon)
    hidden = tap("ln_f", hidden)
    cache.length += n_new
    return hidden


def embed(model: GPT2, ids: np.ndarray, first_position: int, tap: Tap = no_tap) -> np.ndarray:
    """What a token is plus where it stands: ids [n_new] -> [n_new, n_embd]."""
    positions = np.arange(first_position, first_position + ids.shape[-1])  # [n_new]
    token_embedding = model.wte[ids]  # [n_new, n_embd]
    token_embedding = tap("wte", token_embedding)
    position_embedding = model.wpe[positions]  # [n_new, n_embd]
    position_embedding = tap("wpe", position_embedding)
    return token_embedding + position_embedding


def block(x: np.ndarray, weights: Block, config: GPT2Config, cache: KVCache, layer: int,
          tap: Tap = no_tap) -> np.ndarray:
    """Tokens read from each other, then each thinks by itself; both add to the residual stream x [n_new, n_embd]."""
    x = tap("resid_pre", x)
    normed = layer_norm(x, weights.ln_1.weight, weights.ln_1.bias, config.layer_norm_epsilon)
    normed = tap("ln_1", normed)
    x = x + attention(normed, weights.attn, config.n_head, cache, layer, tap)
    x = tap("resid_mid", x)
    normed = layer_norm(x, weights.ln_2.weight, weights.ln_2.bias, config.layer_norm_epsilon)
    normed = tap("ln_2", normed)
    x = x + mlp(normed, weights.mlp, tap)
    x = tap("resid_post", x)
    return x


def attention(x: np.ndarray, weights: Attention, n_head: int, cache: KVCache, layer: int,
              tap: Tap = no_tap) -> np.ndarray:
    """Each token mixes the values of the tokens up to itself, by how well their keys match its query.

    x [n_new, n_embd] -> [n_new, n_embd]. The tokens in the cache are read too, and the new ones are added to it.
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.
    """
    qkv = linear(x, weights.c_attn.weight, weights.c_attn.bias)  # [n_new, 3*n_embd]
    qkv = tap("attn.qkv", qkv)
    n_embd = x.shape[-1]
    q = split_heads(qkv[..., :n_embd], n_head)  # [n_head, n_new, d_head]
    q = tap("attn.q", q)
    k = split_heads(qkv[..., n_embd:2 * n_embd], n_head)  # [n_head, n_new, d_head]
    k = tap("attn.k", k)
    v = split_heads(qkv[..., 2 * n_embd:], n_head)  # [n_head, n_new, d_head]
    v = tap("attn.v", v)

    first_position = cache.length
    k_all, v_all = cache.append(layer, k, v)  # two of [n_head, n_all, d_head]
    k_all = tap("attn.k_all", k_all)
    v_all = tap("attn.v_all", v_all)

    scaled = q / math.sqrt(q.shape[-1])  # so that scores do not grow with d_head
    scores = scaled @ np.swapaxes(k_all, -1, -2)  # [n_head, n_new, n_all]
    n_new, n_all = scores.shape[-2:]
    if n_new > 1:  # a single new token is the latest: it sees them all
        query_position = np.arange(first_position, first_position + n_new)[:, np.newaxis]  # [n_new, 1]
        key_position = np.arange(n_all)  # [n_all]
        visible = key_position <= query_position  # [n_new, n_all]
        scores = np.where(visible, scores, scores.dtype.type(-np.inf))
    scores = tap("attn.scores", scores)
    pattern = softmax(scores)  # [n_head, n_new, n_all]
    pattern = tap("attn.pattern", pattern)
    z = pattern @ v_all  # [n_head, n_new, d_head]
    z = tap("attn.z", z)

    merged = merge_heads(z)  # [n_new, n_embd]
    out = linear(merged, weights.c_proj.weight, weights.c_proj.bias)  # [n_new, n_embd]
    out = tap("attn.out", out)
    return out


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:
    """[n_new, n_embd] -> [n_head, n_new, d_head]: head i has channels i*d_head up to (i+1)*d_head."""
    *leading, n_embd = x.shape
    x = x.reshape(*leading, n_head, n_embd // n_head)  # [n_new, n_head, d_head]
    return np.swapaxes(x, -3, -2)


def merge_heads(z: np.ndarray) -> np.ndarray:
    """[n_head, n_new, d_head] -> [n_new, n_embd]: the inverse of split_heads."""
    z = np.swapaxes(z, -3, -2)  # [n_new, n_head, d_head]
    *leading, n_head, d_head = z.shape
    return z.reshape(*leading, n_head * d_head)


def mlp(x: np.ndarray, weights: MLP, tap: Tap = no_tap) -> np.ndarray:
    """Each token by itself: [n_new, n_embd] -> [n_new, n_inner] neurons -> [n_new, n_embd]."""
    pre = linear(x, weights.c_fc.weight, weights.c_fc.bias)  # [n_new, n_inner]
    pre = tap("mlp.pre", pre)
    post = gelu(pre)
    post = tap("mlp.post", post)
    out = linear(post, weights.c_proj.weight, weights.c_proj.bias)  # [n_new, n_embd]
    out = tap("mlp.out", out)
    return out


def unembed(model: GPT2, hidden: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """How well each token of the vocabulary would go on from here: [n, n_embd] -> logits [n, vocab_size]."""
    logits = matmul(hidden, model.lm_head.T)  # [n, vocab_size]
    logits = checked(tap)("logits", logits)
    return logits


def check_ids(model: GPT2, ids: Any) -> np.ndarray:
    """The ids as an integer array. Raises ValueError for what NumPy would index with silently, or cannot."""
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError("ids must be token ids of prompts of one length. Got rows of different lengths.") from error
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"ids must be one token id or more. Got shape {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"ids must be integers. Got {array.dtype}.")
    if array.min() < 0 or array.max() >= model.config.vocab_size:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"ids must be from 0 to {model.config.vocab_size - 1}. Got {wrong}.")
    if array.shape[-1] > model.config.n_positions:
        raise ValueError(f"ids must be at most {model.config.n_positions} tokens, the model's context. "
                         f"Got {array.shape[-1]}.")
    return array.astype(np.int64, copy=False)
