"""Interpretability tools on taps: patching and ablation, the logit lens, attribution.

    acts = Recorder()
    forward(model, ids, tap=chain(ablate("h.3.attn.z", heads=1), acts))   # a pass without one head, recorded
    logit_lens(model, acts, layer=3)                                      # the prediction before block 3
    direct_logit_attribution(model, acts, token_id)                       # the contributions of heads and MLPs
    saliency(model, ids, -1, token_id)                                    # each input token's effect on a logit
    attribution_patching(model, clean, corrupted, logit_difference(a, b)) # all patches at once, to first order
"""

from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Callable, Iterable, NamedTuple, Sequence, SupportsIndex

import numpy as np

from .backward import Activations, backpropagate
from .errors import check_int
from .model import check_ids, forward, unembed
from .weights import GPT2
from .ops import layer_norm, softmax
from .sampling import check_finite
from .scoring import top_ids_of
from .tap import Recorder, Tap, bound, stage_of, stages_of
from .tokenizer import Tokenizer

Indices = SupportsIndex | Sequence[SupportsIndex] | np.ndarray | None  # a whole number or several; None means all
Metric = Callable[[np.ndarray], tuple[float, np.ndarray]]  # logits -> value, gradient at the logits


def patch(name: str, value: Any, positions: Indices = None, heads: Indices = None) -> Tap:
    """A tap that replaces a stage's array, or part of it, with `value`.

    name: a stage, or a glob of stages: "h.3.attn.z", "h.*.mlp.out".
    value: a number or an array, broadcast and converted to the whole array, or a function from that array to such.
    positions: only these, on axis -2. They are positions in the context, from 0: with 4 tokens in the cache, the first
        new token has position 4. Positions outside a pass are ignored. -1 is the last token of a pass.
    heads: only these, on axis -3. Negative indices count from the end.

    A patched `k` or `v` stays in the cache for later passes; a patched `k_all` or `v_all` does not.
    Raises ValueError for a name that matches no stage, or heads for a stage without heads; before the pass, for a block
    or a position that the model does not have; in the pass, for a value that does not broadcast or a head out of range.
    """
    for stage in stages_of(name):
        if heads is not None and "n_head" not in stage.shape:
            raise ValueError(f"heads must be left out for a stage without heads. Got {heads} for {stage.name!r}, "
                             f"[{', '.join(stage.shape)}].")
    all_positions = [] if positions is None else np.asarray(positions).ravel().tolist()
    all_heads = [] if heads is None else np.asarray(heads).ravel().tolist()

    def patch_tap(at: str, array: np.ndarray, first_position: int) -> np.ndarray | None:
        if not fnmatchcase(at, name):
            return None
        chosen = np.array([[True]])
        if positions is not None:
            first = 0 if at.endswith("_all") else first_position  # k_all and v_all have the cached tokens too
            end = first + array.shape[-2]
            wanted = [position if position >= 0 else end + position for position in all_positions]
            chosen = np.isin(np.arange(first, end), wanted)[:, np.newaxis]  # [n_new, 1]
            if not chosen.any():
                return None
        if heads is not None:
            n_head = array.shape[-3]
            wanted = [check_int(f"heads at {at!r}", head, -n_head, n_head - 1) % n_head for head in all_heads]
            chosen = chosen & np.isin(np.arange(n_head), wanted)[:, np.newaxis, np.newaxis]  # [n_head, 1 or n_new, 1]
        new = value(array.copy()) if callable(value) else value  # a copy: the function may write to it
        return np.where(chosen, broadcast(new, array, at), array)

    def at_position(first_position: int) -> Tap:
        return with_settings(partial(patch_tap, first_position=first_position), [name], all_positions, at_position)

    return at_position(0)


def broadcast(new: Any, array: np.ndarray, name: str) -> np.ndarray:
    """`new` with the shape and dtype of `array`. Raises ValueError if it does not broadcast or is not numeric."""
    numbers = np.asarray(new)
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"the value must be an array or a number at {name!r}. Got {type(new).__name__}.")
    try:
        return np.broadcast_to(numbers, array.shape).astype(array.dtype)
    except ValueError:
        raise ValueError(f"the value must broadcast to {array.shape} at {name!r}. Got {numbers.shape}.") from None


def with_settings(tap: Any, globs: Sequence[str], positions: Sequence[int], at_position: Callable[[int], Tap]) -> Tap:
    """The tap, with the attributes that `tap_of_pass` in tap.py reads."""
    tap.globs, tap.positions, tap.at_position = globs, positions, at_position
    return tap


def ablate(name: str, heads: Indices = None, positions: Indices = None) -> Tap:
    """A tap that sets a stage's array, or part of it, to 0; arguments and errors are those of `patch`."""
    return patch(name, 0, positions, heads)


def mean_ablate(model: GPT2, texts: Iterable[Any], name: str, heads: Indices = None, positions: Indices = None) -> Tap:
    """A tap that replaces a stage's array, or part of it, with its mean over all tokens of some texts.

    Unlike `ablate`, this keeps what a head or an MLP adds on average, and removes only what depends on the text.

    texts: the ids of each, processed in one pass. Other arguments as for `patch`; each stage, head and channel has its
    own mean. Raises ValueError as `patch` and `forward`, for no texts, and for scores and pattern (rows of any length).
    Source: Wang et al., "Interpretability in the Wild", section 2.2, 2022 (which uses a mean per position).
    """
    for stage in stages_of(name):
        if stage.shape[-1] == "n_all":
            raise ValueError(f"mean_ablate needs a stage with a mean over texts. Got {stage.name!r}, "
                             f"[{', '.join(stage.shape)}].")
    sums: dict[str, np.ndarray] = {}  # by stage, [n_head, 1, width] or [1, width]
    n_summed: dict[str, int] = {}
    for ids in texts:
        acts = Recorder(name)
        forward(model, ids, tap=acts)
        for at, array in acts.items():
            kept = array.shape[-3:-2] if "n_head" in stage_of(at).shape else ()
            rows = array.reshape(-1, *kept, *array.shape[-2:])  # [n_texts, n_head, n_tokens, width]
            total = rows.sum(axis=(0, -2), dtype=np.float64, keepdims=True)[0]  # [n_head, 1, width]
            sums[at] = sums.get(at, 0) + total
            n_summed[at] = n_summed.get(at, 0) + array.size // total.size
    if not sums:
        raise ValueError("texts must be one or more lists of token ids. Got none.")
    return chain(*[patch(at, total / n_summed[at], positions, heads) for at, total in sums.items()])


def chain(*taps: Tap) -> Tap:
    """Compose taps; each gets what the previous one returned: `chain(patch(...), acts)` records the patched arrays."""
    globs = [glob for tap in taps for glob in getattr(tap, "globs", ("*",))]
    positions = [position for tap in taps for position in getattr(tap, "positions", ())]

    def at_position(first_position: int) -> Tap:
        links = [bound(tap, first_position) for tap in taps]

        def chain_tap(name: str, value: np.ndarray) -> np.ndarray:
            for link in links:
                value = link(name, value)
            return value

        return with_settings(chain_tap, globs, positions, at_position)

    return at_position(0)


class TopToken(NamedTuple):
    """A token and its probability."""

    id: int
    text: str  # from `Tokenizer.token_text`, which escapes bytes that are not whole characters
    probability: float


def residual_logits(model: GPT2, residual: np.ndarray) -> np.ndarray:
    """The logits if the model stopped at this residual stream: [..., n_embd] -> [..., vocab_size]."""
    hidden = layer_norm(residual, model.ln_f.weight, model.ln_f.bias, model.config.layer_norm_epsilon)
    return unembed(model, hidden)


def logit_lens(model: GPT2, acts: Activations, layer: SupportsIndex) -> np.ndarray:
    """The logits if the model stopped before block `layer`: [n_tokens, vocab_size].

    layer: 0 (only the embeddings) to n_layer (after the last block: the model's own logits, up to rounding).
    acts: with `h.{layer}.resid_pre`, or for n_layer the last block's `resid_post`.
    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    n_layer = model.config.n_layer
    layer = check_int("layer", layer, 0, n_layer)
    name = f"h.{layer}.resid_pre" if layer < n_layer else f"h.{n_layer - 1}.resid_post"
    return residual_logits(model, acts[name])


def top_tokens(logits: np.ndarray, tokenizer: Tokenizer, k: int = 5) -> list[Any]:
    """The k most likely tokens in descending order: a list of TopToken for logits [vocab_size], nested for more axes.

    Ids without a token are left out, but their probability still counts. Raises FloatingPointError for NaN or +inf.
    """
    n_known = min(tokenizer.vocab_size, logits.shape[-1])
    check_int("k", k, 1, n_known)
    check_finite(np.max(logits, axis=-1))  # NaN if any is; -inf is a masked token
    if logits.ndim > 1:
        return [top_tokens(row, tokenizer, k) for row in logits]
    probabilities = softmax(logits)  # [vocab_size]
    best = top_ids_of(logits[:n_known], k)  # [k]
    return [TopToken(int(i), tokenizer.token_text(i), float(probabilities[i])) for i in best]


class Attribution(NamedTuple):
    """Each part's contribution to one logit. The values sum to the logit."""

    names: tuple[str, ...]  # n_parts of them
    values: np.ndarray  # [n_parts]


def direct_logit_attribution(model: GPT2, acts: Activations, token_id: int, position: int = -1) -> Attribution:
    """The contributions of the embeddings, heads, MLPs and biases to the logit of `token_id` at one position.

    The input of ln_f is a sum of parts, and everything after it is linear except the division by the layer norm's
    scale. With the scale fixed at its value in this pass, the logit is a sum over the parts too.

    acts: of a pass, with `wte`, `wpe`, all `attn.z` and `mlp.out`, and the last block's `resid_post`. Any batch axes
        precede [n_parts]. (If `attn.out` or the residual stream was patched, the parts do not sum to the logit.)
    names: "wte", "wpe"; for every block "h.i.attn.head.j", "h.i.attn.c_proj.bias" and "h.i.mlp.out" (with its bias);
        "ln_f.bias". These are direct effects: a head's effect through later heads and MLPs is attributed to those.
    Raises ValueError for a token or position that is out of range.
    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
    """
    residual = acts[f"h.{model.config.n_layer - 1}.resid_post"]  # [n_tokens, n_embd]
    check_int("token_id", token_id, 0, model.config.vocab_size - 1)
    check_int("position", position, -residual.shape[-2], residual.shape[-2] - 1)
    parts = {"wte": acts["wte"][..., position, :], "wpe": acts["wpe"][position]}  # each [n_embd], as all that follow
    for i, block in enumerate(model.h):
        z = acts[f"h.{i}.attn.z"][..., position, :]  # [n_head, d_head]
        rows_of_head = block.attn.c_proj.weight.reshape(*z.shape[-2:], -1)  # [n_head, d_head, n_embd]
        for head, rows in enumerate(rows_of_head):
            parts[f"h.{i}.attn.head.{head}"] = z[..., head, :] @ rows
        parts[f"h.{i}.attn.c_proj.bias"] = block.attn.c_proj.bias
        parts[f"h.{i}.mlp.out"] = acts[f"h.{i}.mlp.out"][..., position, :]
    stacked = np.stack(np.broadcast_arrays(*parts.values()), axis=-2)  # [n_parts - 1, n_embd]
    centred = stacked - np.mean(stacked, axis=-1, keepdims=True)
    variance = np.var(residual[..., position, :], axis=-1, keepdims=True)  # [1]
    direction = model.lm_head[token_id]  # [n_embd]
    values = centred @ (model.ln_f.weight * direction) / np.sqrt(variance + model.config.layer_norm_epsilon)
    of_bias = np.broadcast_to(model.ln_f.bias @ direction, (*values.shape[:-1], 1))  # [1]
    return Attribution((*parts, "ln_f.bias"), np.concatenate([values, of_bias], axis=-1))


def logit_difference(token_id: int, other_id: int | None, position: int = -1) -> Metric:
    """The metric of most patching studies: the logit of one token minus that of another, at one position.

    other_id: None for the logit of one token alone. The metric is summed over the rows of a batch. When called, it
    raises ValueError for a token or position that is out of range.
    """
    terms = [(token_id, 1), (other_id, -1)] if other_id is not None else [(token_id, 1)]

    def metric(logits: np.ndarray) -> tuple[float, np.ndarray]:
        n_tokens, vocab_size = logits.shape[-2:]
        check_int("position", position, -n_tokens, n_tokens - 1)
        value, d_logits = 0.0, np.zeros_like(logits)  # [n_tokens, vocab_size]
        for term_id, sign in terms:
            check_int("token_id", term_id, 0, vocab_size - 1)
            value += sign * float(np.sum(logits[..., position, term_id]))
            d_logits[..., position, term_id] += sign
        return value, d_logits

    return metric


def saliency(model: GPT2, ids: Any, position: int, token_id: int) -> np.ndarray:
    """The effect of each input token on the logit of `token_id` at one position, as gradient times input: [n_tokens].

    The gradient with respect to a token's embedding, times the embedding: to first order, what the logit would lose
    without it. Raises ValueError for ids, a token or a position that are out of range.
    Source: Shrikumar et al., "Not Just a Black Box", section 2, 2016.
    """
    acts, gradients = Recorder(), Recorder("wte")
    _, d_logits = logit_difference(token_id, None, position)(forward(model, ids, tap=acts))  # [n_tokens, vocab_size]
    backpropagate(model, ids, acts, d_logits, gradient_tap=gradients)
    return np.sum(gradients["wte"] * acts["wte"], axis=-1)  # [n_tokens]


class PatchingEffects(NamedTuple):
    """The estimated effects on the metric of patching each stage of a corrupted pass with the clean one."""

    clean: float  # the metric on the clean prompt
    corrupted: float  # ... and on the corrupted one
    effects: dict[str, np.ndarray]  # by stage: [n_tokens], or by head [n_head, n_tokens]


def attribution_patching(model: GPT2, clean: Any, corrupted: Any, metric: Metric) -> PatchingEffects:
    """All activation patches at once, to first order: every stage, head and position in three passes.

    A patch changes the metric by about (clean - corrupted) * gradient, the gradient of the corrupted pass, summed over
    the channels (for scores and pattern, over the keys). The estimate is good where the difference is small or the rest
    of the model nearly linear.

    clean, corrupted: ids of the same shape. metric: `logit_difference`, or any function from logits to a value and its
    gradient. Raises ValueError for ids of different shapes.
    Source: Nanda, "Attribution Patching: Activation Patching At Industrial Scale", 2023.
    """
    clean, corrupted = check_ids(model, clean), check_ids(model, corrupted)
    if clean.shape != corrupted.shape:
        raise ValueError(f"clean and corrupted must be ids of the same shape. Got {clean.shape} and {corrupted.shape}.")
    clean_acts, acts, gradients = Recorder(), Recorder(), Recorder()
    clean_value, _ = metric(forward(model, clean, tap=clean_acts))
    value, d_logits = metric(forward(model, corrupted, tap=acts))
    backpropagate(model, corrupted, acts, d_logits, gradient_tap=gradients)
    effects = {}
    for name in acts:
        visible = np.isfinite(acts[name])  # the score of a later key is -inf in both passes
        change = np.subtract(clean_acts[name], acts[name], where=visible, out=np.zeros_like(acts[name]))
        effects[name] = np.sum(change * gradients[name], axis=-1)  # [n_tokens] or [n_head, n_tokens]
    return PatchingEffects(clean_value, value, effects)


def integrated_gradients(model: GPT2, ids: Any, metric: Metric, baseline: Any = 0.0, n_steps: int = 32) -> np.ndarray:
    """Each token's effect on the metric [n_tokens]; the effects sum to that of all tokens together.

    The token embeddings move along a straight line from `baseline` (a number or an array) to their actual values. A
    token's attribution is its displacement times the mean gradient along the line, by Gauss-Legendre quadrature with
    n_steps passes (1 or more). Attributions sum to metric(tokens) - metric(baseline), up to the quadrature error.
    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", section 3, 2017.
    """
    check_int("n_steps", n_steps, 1)
    ids = check_ids(model, ids)
    displacement = model.wte[ids] - np.asarray(baseline, model.wte.dtype)  # [n_tokens, n_embd]
    places, weights = np.polynomial.legendre.leggauss(n_steps)  # from -1 to 1, and weights that sum to 2
    mean_gradient = np.zeros_like(displacement)
    for place, weight in zip(places, weights):
        embedding = model.wte[ids] - float(1 - place) / 2 * displacement  # [n_tokens, n_embd]
        acts, gradients = Recorder(), Recorder("wte")
        _, d_logits = metric(forward(model, ids, tap=chain(patch("wte", embedding), acts)))
        backpropagate(model, ids, acts, d_logits, gradient_tap=gradients)
        mean_gradient += float(weight) / 2 * gradients["wte"]
    return np.sum(displacement * mean_gradient, axis=-1)  # [n_tokens]
