"""The whole forward pass of GPT-2: a handful of functions, read from top to bottom as the data flows.

    ids -> embed -> block, block, ... (attention, then mlp) -> layer_norm -> unembed -> logits

The same lines process long prompts and single tokens, with or without a cache or a tap. Comments give the shape where
it changes, without the leading batch axes, which all arrays but `wpe` have. `tap` is an activation hook (tap.py): it
gets each array by name, read-only, and the array that it returns, if any, is used from there on.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3, and OpenAI's gpt-2.
"""

import math
from typing import Any

import numpy as np

from .cache import KVCache
from .config import GPT2Config
from .errors import as_array
from .matmul import matrix_product
from .ops import activation, layer_norm, linear, softmax
from .tap import ArrayTap, Tap, no_tap, scoped, tap_of_pass, watches
from .weights import GPT2, MLP, Attention, Block

# How many queries attention processes at a time, which does not change the result. Smaller blocks would make the matrix
# products too small for BLAS; larger ones would waste work on scores that the mask discards.
QUERY_BLOCK = 128


def forward(model: GPT2, ids: Any, *, cache: KVCache | None = None, tap: Tap = no_tap) -> np.ndarray:
    """Logits of the next token at every position: ids [n_new] -> [n_new, vocab_size].

    ids: token ids, a list or an integer array, with any leading batch axes. cache: keys and values of earlier tokens;
    those of the new tokens are appended. Raises ValueError for ids that are not tokens of this model or do not fit.
    With and without a cache, float32 logits are equal up to rounding: np.allclose(a, b, rtol=1e-4, atol=1e-3).
    """
    hidden = transform(model, ids, cache=cache, tap=tap)  # [n_new, n_embd]
    first_position = 0 if cache is None else cache.length - hidden.shape[-2]
    return unembed(model, hidden, tap_of_pass(tap, model.config, first_position))


def transform(model: GPT2, ids: Any, *, cache: KVCache | None = None, tap: Tap = no_tap) -> np.ndarray:
    """The pass without the unembedding: ids [n_new] -> [n_new, n_embd]. Arguments and errors as for `forward`."""
    ids = check_ids(model, ids)
    *batch, n_new = ids.shape
    if cache is None:
        cache = KVCache(model, n_positions=n_new, batch=tuple(batch))
    if not hasattr(cache, "check_room"):
        raise TypeError(f"cache must be a KVCache. Got {type(cache).__name__}; activations are recorded with tap=.")
    cache.check_room(model, tuple(batch), n_new)
    array_tap = tap_of_pass(tap, model.config, cache.length)
    with np.errstate(under="ignore"):  # tiny numbers become 0, even if the caller's np.errstate raises
        x = embed(model, ids, cache.length, array_tap)  # [n_new, n_embd]
        for layer, weights in enumerate(model.h):
            x = block(x, weights, model.config, cache, layer, scoped(array_tap, f"h.{layer}."))
        hidden = array_tap("ln_f", layer_norm(x, model.ln_f.weight, model.ln_f.bias, model.config.layer_norm_epsilon))
    cache.length += n_new
    return hidden


def embed(model: GPT2, ids: np.ndarray, first_position: int, tap: ArrayTap) -> np.ndarray:
    """Token embedding plus position embedding: ids [n_new] -> [n_new, n_embd]."""
    positions = np.arange(first_position, first_position + ids.shape[-1])  # [n_new]
    token_embedding = tap("wte", model.wte[ids])  # [n_new, n_embd]
    position_embedding = tap("wpe", model.wpe[positions])  # [n_new, n_embd], once for all rows of a batch
    return token_embedding + position_embedding


def block(x: np.ndarray, weights: Block, config: GPT2Config, cache: KVCache, layer: int, tap: ArrayTap) -> np.ndarray:
    """Attention, then the MLP; each reads the residual stream x [n_new, n_embd] and adds to it."""
    x = tap("resid_pre", x)
    normed = tap("ln_1", layer_norm(x, weights.ln_1.weight, weights.ln_1.bias, config.layer_norm_epsilon))
    x = tap("resid_mid", x + attention(normed, weights.attn, config.n_head, cache, layer, tap))
    normed = tap("ln_2", layer_norm(x, weights.ln_2.weight, weights.ln_2.bias, config.layer_norm_epsilon))
    return tap("resid_post", x + mlp(normed, weights.mlp, config.activation_function, tap))


def attention(x: np.ndarray, weights: Attention, n_head: int, cache: KVCache, layer: int, tap: ArrayTap) -> np.ndarray:
    """Each token averages the values of the tokens up to itself, weighted by how well their keys match its query.

    x [n_new, n_embd] -> [n_new, n_embd]. Attends to the tokens in the cache as well, and appends the new ones to it.
    """
    n_new, n_embd = x.shape[-2:]
    qkv = tap("attn.qkv", linear(x, weights.c_attn.weight, weights.c_attn.bias))  # [n_new, 3*n_embd]
    q = tap("attn.q", split_heads(qkv[..., :n_embd], n_head))  # [n_head, n_new, d_head]
    k = tap("attn.k", split_heads(qkv[..., n_embd:2 * n_embd], n_head))  # [n_head, n_new, d_head]
    v = tap("attn.v", split_heads(qkv[..., 2 * n_embd:], n_head))  # [n_head, n_new, d_head]
    k_all, v_all = cache.append(layer, k, v)  # two of [n_head, n_all, d_head]: the cached tokens come first
    k_all = tap("attn.k_all", k_all)
    v_all = tap("attn.v_all", v_all)

    z = np.empty_like(q)  # [n_head, n_new, d_head], in q's type and memory order: merging its heads copies nothing
    scores_tap = tap if watches(tap, "attn.scores") or watches(tap, "attn.pattern") else no_tap
    n_at_once = QUERY_BLOCK if scores_tap is no_tap else n_new  # a tap gets the scores of all queries at once
    for start in range(0, n_new, n_at_once):
        stop = min(start + n_at_once, n_new)
        queries = slice(start, stop)
        visible = slice(cache.length + stop)  # the keys up to the last query's own
        z[..., queries, :] = attend(q[..., queries, :], k_all[..., visible, :], v_all[..., visible, :], scores_tap)
    z = tap("attn.z", z)
    return tap("attn.out", linear(merge_heads(z), weights.c_proj.weight, weights.c_proj.bias))  # [n_new, n_embd]


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, tap: ArrayTap) -> np.ndarray:
    """softmax(q @ k.T / sqrt(d_head), -inf where key_position > query_position) @ v, in every head.

    q [n_head, n_query, d_head], k and v [n_head, n_key, d_head] -> [n_head, n_query, d_head]. The last keys belong
    to the queries' own tokens: query i is at the position of key n_key - n_query + i.
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.
    """
    n_query, d_head = q.shape[-2:]
    scaled = q / math.sqrt(d_head)  # keeps the variance of scores independent of d_head
    scores = scaled @ np.swapaxes(k, -1, -2)  # [n_head, n_query, n_key]
    if n_query > 1:  # a single query is the latest token, which sees every key
        position = np.arange(n_query)  # of queries and of their own keys; all earlier keys are visible
        later = position > position[:, np.newaxis]  # [n_query, n_query]: key_position > query_position
        scores[..., -n_query:] = np.where(later, -np.inf, scores[..., -n_query:])
    scores = tap("attn.scores", scores)
    out = scores if tap is no_tap else None  # in place, unless a tap may hold the scores
    pattern = tap("attn.pattern", softmax(scores, out=out))  # [n_head, n_query, n_key]
    return pattern @ v  # [n_head, n_query, d_head]


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:
    """[n_new, n_embd] -> [n_head, n_new, d_head]: head i gets the channels from i*d_head to (i+1)*d_head."""
    *leading, n_embd = x.shape
    x = x.reshape(*leading, n_head, n_embd // n_head)  # [n_new, n_head, d_head]
    return np.swapaxes(x, -3, -2)


def merge_heads(z: np.ndarray) -> np.ndarray:
    """[n_head, n_new, d_head] -> [n_new, n_embd]: the inverse of split_heads."""
    z = np.swapaxes(z, -3, -2)  # [n_new, n_head, d_head]
    *leading, n_head, d_head = z.shape
    return z.reshape(*leading, n_head * d_head)


def mlp(x: np.ndarray, weights: MLP, activation_function: str, tap: ArrayTap) -> np.ndarray:
    """Transform each token independently: [n_new, n_embd] -> [n_new, n_inner] neurons -> [n_new, n_embd]."""
    pre = tap("mlp.pre", linear(x, weights.c_fc.weight, weights.c_fc.bias))  # [n_new, n_inner]
    post = tap("mlp.post", activation(activation_function, pre))
    return tap("mlp.out", linear(post, weights.c_proj.weight, weights.c_proj.bias))  # [n_new, n_embd]


def unembed(model: GPT2, hidden: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """The logits of the next token: [n, n_embd] -> [n, vocab_size].

    tap: as for `forward`; `tap_of_pass` (tap.py) makes one for tokens that are not the first of the text.
    """
    with np.errstate(under="ignore"):
        logits = matrix_product(hidden, model.lm_head.T)  # [n, vocab_size]
    return tap_of_pass(tap, model.config, first_position=0)("logits", logits)


def check_ids(model: GPT2, ids: Any) -> np.ndarray:
    """The ids as an integer array. Raises ValueError for invalid ids, some of which NumPy would accept, such as -1."""
    array = as_array(ids)
    if array.size == 0:
        raise ValueError(f"ids must be a list of one token id or more. Got shape {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"ids must be integers. Got {array.dtype}.")
    if array.min() < 0 or array.max() >= model.config.vocab_size:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"ids must be from 0 to {model.config.vocab_size - 1}. Got {wrong}.")
    if array.shape[-1] > model.config.n_positions:
        raise ValueError(f"ids must be at most {model.config.n_positions} tokens, the model's context. "
                         f"Got {array.shape[-1]}.")
    return array.astype(np.int64, copy=False)
