"""The backward pass: how much each weight, and each named array of the forward pass, moves the loss.

The mirror of model.py. For each function of the forward pass there is one here, named after it, and gradients flow
through them from the last to the first:

    d_logits -> unembed -> layer_norm -> block, block, ... (mlp, then attention) -> embed

`d_x` is the gradient of the loss with respect to x: an array of the shape of x. Each function takes the gradient of what its twin
returned, and what its twin read, and returns the gradients of what its twin was given: first of x, then of the weights,
in the weights' own classes. All of it is the chain rule; where a value was used twice, its gradients add up.

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
"""

import math
from typing import Any, Mapping

import numpy as np

from .model import (GPT2, MLP, Attention, Block, Conv1D, LayerNorm, check_ids, forward, merge_heads, split_heads)
from .ops import SQRT_2_OVER_PI
from .tap import Tap, checked, no_tap, scoped

LEFT_OUT = -100  # the target of a position that is not to be learnt from, as in transformers
QUERY_BLOCK = 128
STRIP = 16


def loss_and_gradients(model: GPT2, ids: Any, targets: Any = None, *, tap: Tap = no_tap,
                       gradient_tap: Tap = no_tap) -> tuple[float, GPT2]:
    ids = check_ids(model, ids)
    if targets is None:
        targets = np.full_like(ids, LEFT_OUT)
        targets[..., :-1] = ids[..., 1:]
    targets = np.asarray(targets)
    activations: dict[str, np.ndarray] = {}
    checked_tap = checked(tap)
    unneeded = ("attn.scores", "attn.pattern") if tap is no_tap and gradient_tap is no_tap else ()

    def keep(name: str, value: np.ndarray) -> np.ndarray:
        value = checked_tap(name, value)
        if not name.endswith(unneeded):
            activations[name] = value
        return value

    logits = forward(model, ids, tap=keep)  # [n_tokens, vocab_size]
    loss, d_logits = cross_entropy(logits, targets)
    return loss, backpropagate(model, ids, activations, d_logits, gradient_tap=gradient_tap)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    n = int(np.sum(targets != LEFT_OUT))
    rows = logits.reshape(-1, logits.shape[-1])
    flat = targets.reshape(-1)
    d_logits = np.zeros_like(rows)
    total = 0.0
    for start in range(0, len(rows), STRIP):
        strip = rows[start:start + STRIP]
        of_strip = flat[start:start + STRIP]
        kept = np.flatnonzero(of_strip != LEFT_OUT)
        d_strip = d_logits[start:start + STRIP]
        np.subtract(strip, strip.max(axis=-1, keepdims=True), out=d_strip)
        chosen = d_strip[kept, of_strip[kept]]
        np.exp(d_strip, out=d_strip)
        sums = d_strip.sum(axis=-1, keepdims=True)
        total += float(np.sum(np.log(sums[kept, 0]) - chosen, dtype=np.float64))
        d_strip /= sums * n
        d_strip[kept, of_strip[kept]] -= 1 / n
        d_strip[of_strip == LEFT_OUT] = 0
    return total / n, d_logits.reshape(logits.shape)


def backpropagate(model: GPT2, ids: Any, activations: Mapping[str, np.ndarray], d_logits: np.ndarray, *,
                  gradient_tap: Tap = no_tap) -> GPT2:
    ids = check_ids(model, ids)
    config = model.config
    tap = checked(gradient_tap)
    d_logits = tap("logits", d_logits)
    d_hidden, d_lm_head = unembed_backward(d_logits, activations["ln_f"], model)
    d_hidden = tap("ln_f", d_hidden)
    last = activations[f"h.{config.n_layer - 1}.resid_post"]
    d_x, d_ln_f = layer_norm_backward(d_hidden, last, model.ln_f, config.layer_norm_epsilon)
    d_blocks = []
    for i in reversed(range(config.n_layer)):
        prefix = f"h.{i}."
        acts = {name[len(prefix):]: value for name, value in activations.items() if name.startswith(prefix)}
        d_x, d_block = block_backward(d_x, model.h[i], config, acts, scoped(tap, prefix))
        d_blocks.append(d_block)
    tied = model.lm_head is model.wte
    d_wte = d_lm_head if tied else np.zeros_like(model.wte)
    d_wpe = np.zeros_like(model.wpe)
    embed_backward(d_x, ids, d_wte, d_wpe, tap)
    return GPT2(config, d_wte, d_wpe, tuple(reversed(d_blocks)), d_ln_f, d_lm_head)


def unembed_backward(d_logits: np.ndarray, hidden: np.ndarray, model: GPT2) -> tuple[np.ndarray, np.ndarray]:
    d_hidden, d_weight = matmul_backward(d_logits, hidden, model.lm_head.T)
    return d_hidden, d_weight.T


def matmul_backward(d_y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x_rows = x.reshape(-1, x.shape[-1])  # [n_rows, n_in]
    d_rows = d_y.reshape(-1, d_y.shape[-1])  # [n_rows, n_out]
    d_x = (d_rows @ weight.T).reshape(x.shape)
    d_weight = (d_rows.T @ x_rows).T  # [n_in, n_out]
    return d_x, d_weight


def linear_backward(d_y: np.ndarray, x: np.ndarray, weights: Conv1D) -> tuple[np.ndarray, Conv1D]:
    d_x, d_weight = matmul_backward(d_y, x, weights.weight)
    d_bias = d_y.reshape(-1, d_y.shape[-1]).sum(axis=0)
    return d_x, Conv1D(d_weight, d_bias)


def layer_norm_backward(d_y: np.ndarray, x: np.ndarray, weights: LayerNorm,
                        epsilon: float) -> tuple[np.ndarray, LayerNorm]:
    n_embd = x.shape[-1]
    ones = np.ones((n_embd, 1), x.dtype)
    centred = x - x @ ones / n_embd
    deviation = np.sqrt((centred * centred) @ ones / n_embd + epsilon)  # [..., 1]
    normalised = np.divide(centred, deviation, out=centred)
    products = d_y * normalised
    leading = tuple(range(x.ndim - 1))
    d_weights = LayerNorm(products.sum(axis=leading), d_y.sum(axis=leading))
    d_normalised = d_y * weights.weight
    mean_product = products @ weights.weight[:, np.newaxis] / n_embd
    d_normalised -= d_normalised @ ones / n_embd
    normalised *= mean_product
    d_normalised -= normalised
    d_normalised /= deviation
    return d_normalised, d_weights


def block_backward(d_x, weights, config, acts, tap):
    d_x = tap("resid_post", d_x)
    d_normed, d_mlp = mlp_backward(d_x, weights.mlp, acts, tap)
    d_normed = tap("ln_2", d_normed)
    d_read, d_ln_2 = layer_norm_backward(d_normed, acts["resid_mid"], weights.ln_2, config.layer_norm_epsilon)
    d_x = d_x + d_read
    d_x = tap("resid_mid", d_x)
    d_normed, d_attn = attention_backward(d_x, weights.attn, config.n_head, acts, tap)
    d_normed = tap("ln_1", d_normed)
    d_read, d_ln_1 = layer_norm_backward(d_normed, acts["resid_pre"], weights.ln_1, config.layer_norm_epsilon)
    d_x = d_x + d_read
    d_x = tap("resid_pre", d_x)
    return d_x, Block(d_ln_1, d_attn, d_ln_2, d_mlp)


def mlp_backward(d_out, weights, acts, tap):
    d_out = tap("mlp.out", d_out)
    d_post, d_c_proj = linear_backward(d_out, acts["mlp.post"], weights.c_proj)
    d_post = tap("mlp.post", d_post)
    d_pre = gelu_backward(d_post, acts["mlp.pre"])
    d_pre = tap("mlp.pre", d_pre)
    d_x, d_c_fc = linear_backward(d_pre, acts["ln_2"], weights.c_fc)
    return d_x, MLP(d_c_fc, d_c_proj)


def gelu_backward(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    d_x = np.empty_like(d_y)
    n = x.shape[-1]
    for x_strip, d_y_strip, d_x_strip in strips(x.reshape(-1, n), d_y.reshape(-1, n), d_x.reshape(-1, n)):
        square = x_strip * x_strip
        inner = square * (SQRT_2_OVER_PI * 0.044715)
        inner += SQRT_2_OVER_PI
        inner *= x_strip
        t = np.tanh(inner, out=inner)
        square *= 3 * 0.044715 * SQRT_2_OVER_PI * 0.5
        square += SQRT_2_OVER_PI * 0.5
        square *= x_strip  # 0.5 x d_inner
        slope = t * t
        np.subtract(1.0, slope, out=slope)
        slope *= square
        t *= 0.5
        t += 0.5
        slope += t
        np.multiply(slope, d_y_strip, out=d_x_strip)
    return d_x


def strips(*arrays):
    for start in range(0, len(arrays[0]), STRIP):
        yield tuple(array[start:start + STRIP] for array in arrays)


def attention_backward(d_out, weights, n_head, acts, tap):
    d_out = tap("attn.out", d_out)
    d_merged, d_c_proj = linear_backward(d_out, merge_heads(acts["attn.z"]), weights.c_proj)
    d_z = split_heads(d_merged, n_head)  # [n_head, n_tokens, d_head]
    d_z = tap("attn.z", d_z)
    if "attn.pattern" in acts:
        d_q, d_k, d_v = mix_backward(d_z, acts, tap)
    else:
        d_q, d_k, d_v = mix_backward_in_blocks(d_z, acts)
    d_v = tap("attn.v_all", d_v)
    d_k = tap("attn.k_all", d_k)
    d_v = tap("attn.v", d_v)
    d_k = tap("attn.k", d_k)
    d_q = tap("attn.q", d_q)
    d_qkv = np.concatenate([merge_heads(d_q), merge_heads(d_k), merge_heads(d_v)], axis=-1)
    d_qkv = tap("attn.qkv", d_qkv)
    d_x, d_c_attn = linear_backward(d_qkv, acts["ln_1"], weights.c_attn)
    return d_x, Attention(d_c_attn, d_c_proj)


def mix_backward(d_z, acts, tap):
    from .ops import softmax
    q, k, v = acts["attn.q"], acts["attn.k_all"], acts["attn.v_all"]
    d_pattern = d_z @ np.swapaxes(v, -1, -2)
    d_v = np.swapaxes(acts["attn.pattern"], -1, -2) @ d_z
    d_pattern = tap("attn.pattern", d_pattern)
    pattern = softmax(acts["attn.scores"])
    d_scores = softmax_backward(d_pattern, pattern)
    d_scores = tap("attn.scores", d_scores)
    scale = 1 / math.sqrt(q.shape[-1])
    return d_scores @ k * scale, np.swapaxes(d_scores, -1, -2) @ q * scale, d_v


def softmax_backward(d_y, y):
    products = d_y * y
    return products - y * products.sum(axis=-1, keepdims=True)


def mix_backward_in_blocks(d_z, acts):
    q, k_all, v_all, z = acts["attn.q"], acts["attn.k_all"], acts["attn.v_all"], acts["attn.z"]
    n, d_head = q.shape[-2:]
    scale = 1 / math.sqrt(d_head)
    d_q = np.empty(q.shape, q.dtype)
    d_k = np.zeros(q.shape, q.dtype)
    d_v = np.zeros(q.shape, q.dtype)
    later = np.triu(np.full((QUERY_BLOCK, QUERY_BLOCK), -np.inf, q.dtype), 1)
    ones = np.ones((d_head, 1), q.dtype)
    dots = (d_z * z) @ ones  # [n_head, n, 1]
    for start in range(0, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        queries = q[..., start:end, :] * scale
        k, v = k_all[..., :end, :], v_all[..., :end, :]
        pattern = queries @ np.swapaxes(k, -1, -2)
        pattern[..., start:] += later[:end - start, :end - start]
        pattern -= pattern.max(axis=-1, keepdims=True)
        np.exp(pattern, out=pattern)
        pattern /= pattern.sum(axis=-1, keepdims=True)
        d_block = d_z[..., start:end, :]
        d_v[..., :end, :] += np.swapaxes(pattern, -1, -2) @ d_block
        d_scores = d_block @ np.swapaxes(v, -1, -2)
        d_scores -= dots[..., start:end, :]
        d_scores *= pattern
        d_q[..., start:end, :] = d_scores @ k
        d_k[..., :end, :] += np.swapaxes(d_scores, -1, -2) @ queries
    d_q *= scale
    return d_q, d_k, d_v


def embed_backward(d_x, ids, d_wte, d_wpe, tap):
    n_embd = d_x.shape[-1]
    d_token = tap("wte", d_x)
    d_position = d_x.reshape(-1, *d_x.shape[-2:]).sum(axis=0)
    d_position = tap("wpe", d_position)
    d_wpe[:ids.shape[-1]] += d_position
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    unique, starts = np.unique(flat[order], return_index=True)
    d_wte[unique] += np.add.reduceat(d_token.reshape(-1, n_embd)[order], starts, axis=0)
