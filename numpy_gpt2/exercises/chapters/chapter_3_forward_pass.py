"""Chapter 3: the forward pass, from token ids to a logit for every possible next token.

    ids -> embed -> block, block, ... (attention, then mlp) -> layer_norm -> unembed -> logits

Shapes leave out leading batch axes, which every line must support: count axes from the end. If you need the operations
of chapter 2, or another function of this chapter, the checks use the engine's, from the start.

You may ignore `tap`. It is an activation hook: with pattern = tap("attn.pattern", pattern) the engine's tools can see
an array, and replace it. Each docstring lists the names that the engine's own function gives to its tap.
"""

import math

import numpy as np

from numpy_gpt2.cache import KVCache
from numpy_gpt2.config import GPT2Config
from numpy_gpt2.model import merge_heads
from numpy_gpt2.ops import activation, layer_norm, linear, softmax
from numpy_gpt2.tap import ArrayTap, Tap, no_tap
from numpy_gpt2.weights import GPT2, MLP, Attention, Block


def embed(model: GPT2, ids: np.ndarray, first_position: int, tap: ArrayTap) -> np.ndarray:
    """Token embedding plus position embedding: wte[ids] + wpe[positions].

    ids [n_new] -> [n_new, n_embd]. model.wte [vocab_size, n_embd] has a row for each token, model.wpe
    [n_positions, n_embd] one for each position. The first of these tokens has the position `first_position`, which is
    not 0 if earlier tokens have been processed.
    Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", section 3.1.

    >>> from types import SimpleNamespace
    >>> tiny = SimpleNamespace(wte=np.float32([[1, 2], [3, 4], [5, 6]]), wpe=np.float32([[10, 0], [20, 0], [30, 0]]))
    >>> embed(tiny, np.array([2, 0]), 1, no_tap)
    array([[25.,  6.],
           [31.,  2.]], dtype=float32)
    """
    positions = np.arange(first_position, first_position + ids.shape[-1])  # [n_new]
    return model.wte[ids] + model.wpe[positions]


def split_heads(x: np.ndarray, n_head: int) -> np.ndarray:
    """Cut each token's vector into n_head pieces: [n_new, n_embd] -> [n_head, n_new, d_head].

    d_head = n_embd / n_head. Head i has channels i * d_head up to (i + 1) * d_head of every token.
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.2.

    >>> split_heads(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), 2)
    array([[[1, 2],
            [5, 6]],
    <BLANKLINE>
           [[3, 4],
            [7, 8]]])
    """
    *leading, n_embd = x.shape
    pieces = x.reshape(*leading, n_head, n_embd // n_head)  # [n_new, n_head, d_head]
    return np.swapaxes(pieces, -2, -3)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, tap: ArrayTap) -> np.ndarray:
    """Causal attention: softmax(q @ k.T / sqrt(d_head), -inf where key_position > query_position) @ v.

    q [n_head, n_new, d_head], k and v [n_head, n_all, d_head] -> [n_head, n_new, d_head]. There are n_all tokens so
    far, and the queries are those of the last n_new: query i has the position of key n_all - n_new + i.
    Taps: "attn.scores" (after the mask), "attn.pattern", "attn.z".
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.

    >>> q, k = np.float32([[[2, 0], [0, 2]]]), np.float32([[[1, 0], [0, 1]]])
    >>> v = np.float32([[[10, 20], [30, 40]]])
    >>> attend(q, k, v, no_tap).round(2)  # the first token sees only itself
    array([[[10.  , 20.  ],
            [26.09, 36.09]]], dtype=float32)
    """
    n_new, d_head = q.shape[-2:]
    n_all = k.shape[-2]
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(d_head)  # [n_head, n_new, n_all]
    query_position = np.arange(n_all - n_new, n_all)[:, np.newaxis]  # [n_new, 1]
    key_position = np.arange(n_all)  # [n_all]
    scores = np.where(key_position > query_position, np.float32(-np.inf), scores)
    pattern = softmax(scores)  # [n_head, n_new, n_all]
    return pattern @ v


def attention(x: np.ndarray, weights: Attention, n_head: int, cache: KVCache, layer: int, tap: ArrayTap) -> np.ndarray:
    """Each token attends to the tokens up to itself: [n_new, n_embd] -> [n_new, n_embd].

    1. linear with weights.c_attn.weight and .bias: [n_new, 3*n_embd], which holds queries, keys and values, in this
       order, n_embd channels each.
    2. split_heads of each: q, k, v, all [n_head, n_new, d_head].
    3. cache.append(layer, k, v) stores the new keys and values, and returns those of all tokens so far.
    4. attend, then merge_heads ([n_head, n_new, d_head] -> [n_new, n_embd], the inverse of split_heads).
    5. linear with weights.c_proj.
    Taps: "attn.qkv", "attn.q", "attn.k", "attn.v" (before the cache), "attn.out".
    Source: Vaswani et al., "Attention Is All You Need", section 3.2.2.

    >>> from numpy_gpt2.weights import Conv1D, random_model
    >>> model = random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1))
    >>> copy_all = Attention(Conv1D(np.float32([[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]), np.zeros(6, np.float32)),
    ...                      Conv1D(np.eye(2, dtype=np.float32), np.zeros(2, np.float32)))
    >>> attention(np.float32([[2, 4], [4, 8]]), copy_all, 1, KVCache(model), 0, no_tap)  # means of what came before
    array([[2., 4.],
           [3., 6.]], dtype=float32)
    """
    qkv = linear(x, weights.c_attn.weight, weights.c_attn.bias)  # [n_new, 3*n_embd]
    q, k, v = (split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))  # each [n_head, n_new, d_head]
    k_all, v_all = cache.append(layer, k, v)  # each [n_head, n_all, d_head]
    z = attend(q, k_all, v_all, tap)  # [n_head, n_new, d_head]
    return linear(merge_heads(z), weights.c_proj.weight, weights.c_proj.bias)


def mlp(x: np.ndarray, weights: MLP, activation_function: str, tap: ArrayTap) -> np.ndarray:
    """For each token separately: linear with weights.c_fc, the activation function, linear with weights.c_proj.

    [n_new, n_embd] -> [n_new, n_inner] neurons -> [n_new, n_embd]. activation(activation_function, x) applies the
    function of that name: in OpenAI's GPT-2 "gelu_new", which is gelu; some other GPT-2s use another.
    Taps: "mlp.pre" (before the activation function), "mlp.post", "mlp.out".
    Source: Vaswani et al., "Attention Is All You Need", section 3.3, with GELU for ReLU.

    >>> from numpy_gpt2.weights import Conv1D
    >>> one_neuron = MLP(Conv1D(np.float32([[1], [1]]), np.float32([0])),
    ...                  Conv1D(np.float32([[2, 3]]), np.float32([0, 1])))
    >>> mlp(np.float32([[0.5, 0.5]]), one_neuron, "gelu_new", no_tap).round(3)
    array([[1.682, 3.524]], dtype=float32)
    """
    pre = linear(x, weights.c_fc.weight, weights.c_fc.bias)  # [n_new, n_inner]
    post = activation(activation_function, pre)
    return linear(post, weights.c_proj.weight, weights.c_proj.bias)


def block(x: np.ndarray, weights: Block, config: GPT2Config, cache: KVCache, layer: int, tap: ArrayTap) -> np.ndarray:
    """Attention, then the MLP; each reads the residual stream x through a layer norm, and adds to it.

    x = x + attention(layer_norm(x with weights.ln_1), weights.attn, config.n_head, cache, layer, tap)
    x = x + mlp(layer_norm(x with weights.ln_2), weights.mlp, config.activation_function, tap)

    [n_new, n_embd] -> [n_new, n_embd]. The layer norms' epsilon is config.layer_norm_epsilon.
    Taps: "resid_pre", "ln_1", "resid_mid", "ln_2", "resid_post".
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3.

    >>> from numpy_gpt2.weights import Conv1D, LayerNorm, random_model
    >>> config = GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1, n_inner=1)
    >>> nothing = [Conv1D(np.zeros(shape, np.float32), np.zeros(shape[1], np.float32))
    ...            for shape in [(2, 6), (2, 2), (2, 1), (1, 2)]]
    >>> norm = LayerNorm(np.ones(2, np.float32), np.zeros(2, np.float32))
    >>> silent = Block(norm, Attention(*nothing[:2]), norm, MLP(*nothing[2:]))
    >>> block(np.float32([[5, 7]]), silent, config, KVCache(random_model(config)), 0, no_tap)  # x goes through
    array([[5., 7.]], dtype=float32)
    """
    normed = layer_norm(x, weights.ln_1.weight, weights.ln_1.bias, config.layer_norm_epsilon)
    middle = x + attention(normed, weights.attn, config.n_head, cache, layer, tap)
    normed = layer_norm(middle, weights.ln_2.weight, weights.ln_2.bias, config.layer_norm_epsilon)
    return middle + mlp(normed, weights.mlp, config.activation_function, tap)


def unembed(model: GPT2, hidden: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """The logits of the next token: hidden @ lm_head.T.

    hidden [n, n_embd] (after the last layer norm), model.lm_head [vocab_size, n_embd] -> logits [n, vocab_size].
    Tap: "logits".
    Source: Press and Wolf, "Using the Output Embedding to Improve Language Models".

    >>> from types import SimpleNamespace
    >>> unembed(SimpleNamespace(lm_head=np.float32([[1, 0], [0, 1], [1, 1]])), np.float32([[2, 3]]))
    array([[2., 3., 5.]], dtype=float32)
    """
    return hidden @ model.lm_head.T
