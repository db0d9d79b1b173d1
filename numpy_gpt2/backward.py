"""The backward pass: the gradient of the loss with respect to each weight and each named array of the forward pass.

It mirrors model.py and ops.py: each function there has its derivative here, in the order in which gradients flow:

    cross_entropy -> unembed -> layer_norm -> block, block, ... (mlp, then attention) -> embed

`d_x` is the gradient of the loss with respect to x, and has x's shape. Given the gradient of a forward function's
output, and its inputs, its `..._backward` returns the gradient of its input, then those of its weights, in the weights'
classes. Two rules suffice: the chain rule, and that a value used twice gets the sum of two gradients.

`tap` gets each gradient under the name of its array (see tap.py), and returns it. Shapes leave out leading batch axes,
as in model.py; n_rows is the number of tokens of the whole batch.

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
"""

import math
from typing import Any, Mapping

import numpy as np

from .config import GPT2Config
from .model import QUERY_BLOCK, attend, check_ids, forward, merge_heads, split_heads
from .ops import SQRT_2, SQRT_2_OVER_PI, STRIP, erf, in_strips, row_mean, softmax
from .scoring import check_targets, cross_entropy
from .tap import ArrayTap, Recorder, Tap, check_activations, no_tap, scoped, tap_of_pass, watches
from .weights import GPT2, MLP, Attention, Block, Conv1D, LayerNorm

Activations = Recorder | Mapping[str, np.ndarray]

READ = ("h.*.resid_*", "h.*.ln_*", "h.*.attn.[qkvz]*", "h.*.mlp.p*", "ln_f")  # what the backward pass reads, as globs


def loss_and_gradients(model: GPT2, ids: Any, targets: Any = None, *, tap: Tap = no_tap,
                       gradient_tap: Tap = no_tap) -> tuple[float, GPT2]:
    """The mean cross-entropy of the targets, in nats, and its gradient with respect to every weight.

    ids [n_tokens], with any leading batch axes. targets, of the same shape: the id that each position should predict,
        or -100 to ignore a position. None means the next token, and ignores the last position.
    tap: for the forward pass. gradient_tap: gets the gradient of each array under the array's name; what it returns is
        propagated. If `tap` replaced an array, the gradient passes through unchanged.
    Returns a float, and a GPT2 whose arrays are gradients. If `lm_head` is tied, its gradient is added to `wte`'s.
    Raises ValueError for ids or targets that are not tokens of this model, and if all targets are ignored.
    Memory: the gradients, and all activations; scores and pattern only if a tap uses them.
    """
    ids = check_ids(model, ids)
    targets = check_targets(model, ids, targets)
    activations: dict[str, np.ndarray] = {}
    checked_tap = tap_of_pass(tap, model.config, first_position=0)

    def keep(name: str, value: np.ndarray) -> np.ndarray:
        value = checked_tap(name, value)
        activations[name] = value  # by reference: an array never changes after its tap
        return value

    keep.globs = READ if tap is no_tap else (*READ, *getattr(tap, "globs", "*"))  # type: ignore[attr-defined]
    loss, d_logits = cross_entropy(forward(model, ids, tap=keep), targets)  # [n_tokens, vocab_size]
    del activations["logits"]  # as large as its gradient, and not needed any more
    return loss, backpropagate(model, ids, activations, d_logits, gradient_tap=gradient_tap)


@np.errstate(under="ignore")  # tiny numbers become 0, as in the forward pass
def backpropagate(model: GPT2, ids: Any, activations: Activations, d_logits: np.ndarray, *,
                  gradient_tap: Tap = no_tap) -> GPT2:
    """The gradient of any scalar computed from the logits, with respect to every weight: a GPT2 of gradients.

    activations: of a pass over ids without a cache, under the names of STAGES: a Recorder, or a dict.
    d_logits [n_tokens, vocab_size]: the scalar's gradient with respect to the logits. For the logit of token t at the
        last position it is 0 except d_logits[-1, t] = 1. gradient_tap: as for `loss_and_gradients`.
    Raises ValueError for activations of any other pass.
    """
    ids = check_ids(model, ids)
    check_activations(activations, d_logits, model.config, ids.shape)
    tap = tap_of_pass(gradient_tap, model.config, first_position=0)
    config = model.config
    d_hidden, d_lm_head = unembed_backward(tap("logits", d_logits), activations["ln_f"], model.lm_head)
    d_hidden = tap("ln_f", d_hidden)  # [n_tokens, n_embd]
    x = activations[f"h.{config.n_layer - 1}.resid_post"]
    d_x, d_ln_f = layer_norm_backward(d_hidden, x, model.ln_f, config.layer_norm_epsilon)
    d_h: list[Block] = []
    for layer in reversed(range(config.n_layer)):
        prefix = f"h.{layer}."
        acts = {name.removeprefix(prefix): activations[name] for name in activations if name.startswith(prefix)}
        d_x, d_block = block_backward(d_x, model.h[layer], config, acts, scoped(tap, prefix))
        d_h.insert(0, d_block)
    d_wte = d_lm_head if model.lm_head is model.wte else np.zeros_like(model.wte)
    d_wpe = np.zeros_like(model.wpe)
    embed_backward(d_x, ids, d_wte, d_wpe, tap)
    return GPT2(config, d_wte, d_wpe, tuple(d_h), d_ln_f, d_lm_head)


def unembed_backward(d_logits: np.ndarray, hidden: np.ndarray, lm_head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits = hidden @ lm_head.T: returns d_hidden [n_tokens, n_embd] and d_lm_head [vocab_size, n_embd]."""
    d_hidden = as_rows(d_logits) @ lm_head  # [n_rows, n_embd]
    d_lm_head = as_rows(d_logits).T @ as_rows(hidden)  # [vocab_size, n_embd]
    return d_hidden.reshape(hidden.shape), d_lm_head


def layer_norm_backward(d_y: np.ndarray, x: np.ndarray, weights: LayerNorm,
                        epsilon: float) -> tuple[np.ndarray, LayerNorm]:
    """y = n weight + bias, n = (x - mean) / deviation: d_x = (d_n - mean(d_n) - n mean(d_n n)) / deviation.

    The subtracted terms are the effects of x through the mean and the deviation. d_y, x [n_tokens, n_embd].
    Source: Ioffe and Szegedy, "Batch Normalization", section 3; the derivation is the same along another axis.
    """
    centered = x - row_mean(x)
    deviation = np.sqrt(row_mean(centered * centered) + epsilon)  # [n_tokens, 1]
    n = centered / deviation
    d_weights = LayerNorm(as_rows(d_y * n).sum(axis=0), as_rows(d_y).sum(axis=0))  # [n_embd], [n_embd]
    d_n = d_y * weights.weight
    d_x = (d_n - row_mean(d_n) - n * row_mean(d_n * n)) / deviation
    return d_x, d_weights


def block_backward(d_x: np.ndarray, weights: Block, config: GPT2Config, acts: Activations,
                   tap: ArrayTap) -> tuple[np.ndarray, Block]:
    """x + mlp(ln_2(x)), then x + attention(ln_1(x)): each sum passes d_x on unchanged, and its branch adds a part."""
    d_x = tap("resid_post", d_x)  # [n_tokens, n_embd]
    d_normed, d_mlp = mlp_backward(d_x, weights.mlp, config.activation_function, acts, tap)
    d_normed = tap("ln_2", d_normed)
    d_read, d_ln_2 = layer_norm_backward(d_normed, acts["resid_mid"], weights.ln_2, config.layer_norm_epsilon)
    d_x = tap("resid_mid", d_x + d_read)
    d_normed, d_attn = attention_backward(d_x, weights.attn, config.n_head, acts, tap)
    d_normed = tap("ln_1", d_normed)
    d_read, d_ln_1 = layer_norm_backward(d_normed, acts["resid_pre"], weights.ln_1, config.layer_norm_epsilon)
    return tap("resid_pre", d_x + d_read), Block(d_ln_1, d_attn, d_ln_2, d_mlp)


def mlp_backward(d_out: np.ndarray, weights: MLP, activation: str, acts: Activations,
                 tap: ArrayTap) -> tuple[np.ndarray, MLP]:
    """d_x [n_tokens, n_embd] and the weights' gradients, through both linear layers."""
    d_post, d_c_proj = linear_backward(tap("mlp.out", d_out), acts["mlp.post"], weights.c_proj)  # [n_tokens, n_inner]
    d_post = tap("mlp.post", d_post)
    d_pre = tap("mlp.pre", activation_backward(activation, d_post, acts["mlp.pre"]))
    d_x, d_c_fc = linear_backward(d_pre, acts["ln_2"], weights.c_fc)  # [n_tokens, n_embd]
    return d_x, MLP(d_c_fc, d_c_proj)


def attention_backward(d_out: np.ndarray, weights: Attention, n_head: int, acts: Activations,
                       tap: ArrayTap) -> tuple[np.ndarray, Attention]:
    """d_x [n_tokens, n_embd] and the weights' gradients, through d_q, d_k and d_v, each [n_head, n_tokens, d_head]."""
    d_out = tap("attn.out", d_out)
    q, k_all, v_all = acts["attn.q"], acts["attn.k_all"], acts["attn.v_all"]  # each [n_head, n_tokens, d_head]
    d_merged, d_c_proj = linear_backward(d_out, merge_heads(acts["attn.z"]), weights.c_proj)  # [n_tokens, n_embd]
    d_z = tap("attn.z", split_heads(d_merged, n_head))  # [n_head, n_tokens, d_head]

    d_q, d_k, d_v = np.empty_like(q), np.zeros_like(q), np.zeros_like(q)  # each [n_head, n_tokens, d_head]
    n_tokens = q.shape[-2]
    scores_tap = tap if watches(tap, "attn.scores") or watches(tap, "attn.pattern") else no_tap
    n_queries = QUERY_BLOCK if scores_tap is no_tap and "attn.scores" not in acts else n_tokens
    for start in range(0, n_tokens, n_queries):
        queries = np.s_[..., start:start + n_queries, :]
        visible = np.s_[..., :start + n_queries, :]
        d_q[queries], d_k_of_block, d_v_of_block = attend_backward(
            d_z[queries], q[queries], k_all[visible], v_all[visible], acts, scores_tap)
        d_k[visible] += d_k_of_block  # a key's gradient sums over the queries that see it
        d_v[visible] += d_v_of_block

    d_v = tap("attn.v", tap("attn.v_all", d_v))  # without a cache, v_all is v
    d_k = tap("attn.k", tap("attn.k_all", d_k))
    d_q = tap("attn.q", d_q)
    d_qkv = np.concatenate([merge_heads(d_q), merge_heads(d_k), merge_heads(d_v)], axis=-1)  # [n_tokens, 3*n_embd]
    d_x, d_c_attn = linear_backward(tap("attn.qkv", d_qkv), acts["ln_1"], weights.c_attn)  # [n_tokens, n_embd]
    return d_x, Attention(d_c_attn, d_c_proj)


def attend_backward(d_z: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, acts: Activations,
                    tap: ArrayTap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z = softmax(q @ k.T / sqrt(d_head)) @ v: d_q [n_head, n_queries, d_head], d_k and d_v [n_head, n_all, d_head].

    Scores and pattern are recomputed unless they were kept, which is faster than writing and reading them.
    Source: Dao et al., "FlashAttention", appendix B.2.
    """
    if "attn.scores" in acts:
        pattern, used = softmax(acts["attn.scores"]), acts["attn.pattern"]  # `used` may be a tap's replacement
    else:
        again: dict[str, np.ndarray] = {}
        attend(q, k, v, again.setdefault)
        pattern = used = again["attn.pattern"]  # [n_head, n_queries, n_all]
    d_v = np.swapaxes(used, -1, -2) @ d_z  # [n_head, n_all, d_head]
    d_pattern = tap("attn.pattern", d_z @ np.swapaxes(v, -1, -2))  # [n_head, n_queries, n_all]
    d_scores = tap("attn.scores", softmax_backward(d_pattern, pattern))
    scale = 1 / math.sqrt(q.shape[-1])
    d_q = d_scores @ k * scale  # [n_head, n_queries, d_head]
    d_k = np.swapaxes(d_scores, -1, -2) @ (q * scale)  # [n_head, n_all, d_head]
    return d_q, d_k, d_v


def softmax_backward(d_y: np.ndarray, y: np.ndarray) -> np.ndarray:
    """d_x = y (d_y - sum(d_y y)), where y = softmax(x): a probability can rise only if others fall. [..., n]."""
    d_x = d_y - np.einsum("...i,...i->...", d_y, y)[..., np.newaxis]
    d_x *= y
    return d_x


def activation_backward(name: str, d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """d_y times the derivative of the MLP's nonlinearity at x, by its name in the config. [..., n]."""
    if name == "relu":
        return d_y * (x > 0)
    if name == "gelu":
        return gelu_erf_backward(d_y, x)
    return gelu_backward(d_y, x)


def gelu_backward(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """d_y times the derivative of gelu, (1 + t) / 2 + x / 2 (1 - t^2) sqrt(2 / pi) (1 + 3 0.044715 x^2). [..., n].

    t is tanh(inner), inner = sqrt(2 / pi) (x + 0.044715 x^3), and (1 - t^2) d_inner its derivative.
    """
    if x[..., 0].size > STRIP:
        return in_strips(gelu_backward, d_y, x)
    square = x * x
    t = np.tanh(SQRT_2_OVER_PI * x * (1 + 0.044715 * square))
    d_inner = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * square)
    return d_y * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * d_inner)


def gelu_erf_backward(d_y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """d_y times the derivative of gelu_erf: the normal CDF at x, plus x times the density at x. [..., n]."""
    if x[..., 0].size > STRIP:
        return in_strips(gelu_erf_backward, d_y, x)
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return d_y * (0.5 * (1.0 + erf(x / SQRT_2)) + x * density)


def linear_backward(d_y: np.ndarray, x: np.ndarray, weights: Conv1D) -> tuple[np.ndarray, Conv1D]:
    """y = x @ weight + bias: d_x = d_y @ weight.T, d_weight = x.T @ d_y, d_bias = the sum of d_y over all tokens.

    d_y [n_tokens, n_out], x [n_tokens, n_in] -> d_x [n_tokens, n_in], and gradients of the weights' shapes.
    """
    d_x = as_rows(d_y) @ weights.weight.T  # [n_rows, n_in]
    d_weight = (as_rows(d_y).T @ as_rows(x)).T  # [n_in, n_out], in the weight's own memory order
    return d_x.reshape(x.shape), Conv1D(d_weight, as_rows(d_y).sum(axis=0))


def embed_backward(d_x: np.ndarray, ids: np.ndarray, d_wte: np.ndarray, d_wpe: np.ndarray, tap: ArrayTap) -> None:
    """wte[ids] + wpe[positions]: the gradients of each row's uses, summed and added to d_wte and d_wpe in place."""
    d_token_embedding = tap("wte", d_x)  # [n_tokens, n_embd]
    d_position_embedding = tap("wpe", d_x.reshape(-1, *d_x.shape[-2:]).sum(axis=0))  # [n_tokens, n_embd], for all rows
    d_wpe[:ids.shape[-1]] = d_position_embedding
    order = np.argsort(ids, axis=None)  # [n_rows]: equal ids side by side
    distinct_ids, starts = np.unique(ids.reshape(-1)[order], return_index=True)
    d_wte[distinct_ids] += np.add.reduceat(as_rows(d_token_embedding)[order], starts, axis=0)  # [n_distinct, n_embd]


def as_rows(x: np.ndarray) -> np.ndarray:
    """All tokens of a batch as rows: [..., n] -> [n_rows, n]."""
    return x.reshape(-1, x.shape[-1])
