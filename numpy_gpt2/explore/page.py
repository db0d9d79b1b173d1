"""The data of the `explore` page: the activations that a `Recorder` stored in one forward pass, ready for JSON.

    attention patterns          multiples of 1/65535, an error below 1e-5; the page shows 3 decimals
    logits of the last token    exact float32: the page samples from them as sampling.py does
    logits of other positions   the N_EXACT highest, exact; the rest in groups: see `next_data`
    norms, attributions         5 decimals
    probabilities, losses       6 decimals
"""

import base64
from typing import Any, Callable, Collection, Mapping, Sequence

import numpy as np

from ..config import GPT2Config
from ..lens import chain, direct_logit_attribution, logit_lens, top_tokens
from ..model import check_ids, forward
from ..sampling import check_finite
from ..scoring import log_sum_exp
from ..tap import STAGES, Recorder, Tap, no_tap
from ..tokenizer import Tokenizer
from ..weights import GPT2, named_parameters, parameter_shapes
from .heads import named_heads

MAX_TOKENS = 128  # more would be illegible
MOST_NUMBERS = 60_000_000  # recorded in a pass: 240 MB. (128 tokens of GPT-2 xl: 49,152,000, a page of 35 MB)
N_TOP = 5  # tokens of the logit lens at each position
N_NAMED = 100  # most likely next tokens that are sent with their text at each position; of the others only the logits
N_EXACT = 1000  # highest logits, sent exactly, at each position before the last
N_GROUPS = 1000  # groups of the remaining logits there
WHOLE = 2**16 - 1  # an attention weight of 1, as stored

# Stage -> the part of the checkpoint whose weight and bias it uses.
PARTS: Mapping[str, str] = {
    "wte": "wte", "wpe": "wpe", "h.i.ln_1": "h.i.ln_1", "h.i.attn.qkv": "h.i.attn.c_attn",
    "h.i.attn.out": "h.i.attn.c_proj", "h.i.ln_2": "h.i.ln_2", "h.i.mlp.pre": "h.i.mlp.c_fc",
    "h.i.mlp.out": "h.i.mlp.c_proj", "ln_f": "ln_f", "logits": "lm_head"}


def prompt_ids(model: GPT2, tokenizer: Tokenizer, prompt: str, allowed_special: Collection[str] = ()) -> list[int]:
    """The ids of a prompt; an empty one becomes <|endoftext|>, as in `stream_text`.

    Raises ValueError for a prompt that is too long for the model or the page.
    """
    ids = tokenizer.encode(prompt, allowed_special) or tokenizer.with_bos()
    check_fits_page(model, ids)
    return ids


def check_fits_page(model: GPT2, ids: Sequence[int]) -> None:
    """Raise ValueError for ids outside the vocabulary, and for more than the model or the page can take."""
    limit = most_tokens(model.config)
    if len(ids) > limit:
        reason = "the page's limit" if limit == MAX_TOKENS else "the model's context"
        raise ValueError(f"the prompt must be at most {limit} tokens, {reason}. Got {len(ids)}: shorten it.")
    check_ids(model, ids)
    config = model.config
    n_numbers = config.n_layer * len(ids) * (3 * config.n_embd + config.n_head * len(ids))
    if n_numbers > MOST_NUMBERS:
        raise ValueError(f"a page can hold at most {MOST_NUMBERS:,} numbers of a pass. Got {n_numbers:,}, for "
                         f"{len(ids)} tokens and {config.n_layer:,} layers: shorten the prompt, or take another model.")


def most_tokens(config: GPT2Config) -> int:
    """The longest prompt that a page of this model shows."""
    return min(MAX_TOKENS, config.n_positions)


def page_data(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], name: str, tap: Tap = no_tap,
              after_layer: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Everything that the page shows of a forward pass over ids [n_tokens], ready for JSON.

    name: the model's name on the page. tap: an activation hook; the page shows what it returns. after_layer: called
    after each layer of the logit lens, which takes longer than the pass.
    Positions, layers and heads count from 0; `names` has the text of every id on the page, or its bytes where they are
    not whole characters.
    Raises FloatingPointError for logits that are not finite.
    """
    last = model.config.n_layer - 1
    acts = Recorder(["wte", "wpe", "h.*.resid_pre", "h.*.attn.pattern", "h.*.attn.z", "h.*.mlp.out",
                     f"h.{last}.resid_post", "logits"])
    logits = forward(model, ids, tap=chain(tap, acts))  # [n_tokens, vocab_size]
    check_finite(logits)
    known = logits[:, :tokenizer.vocab_size]  # ids without a token are never sampled
    order = np.argsort(-known, axis=-1, kind="stable")  # [n_tokens, n_known]
    lens = lens_data(model, tokenizer, acts, after_layer)
    predicted = lens["ids"][-1]  # by the last layer, which is the model's prediction
    shown = {*ids, *np.ravel(order[:, :N_NAMED]).tolist(), *np.ravel(lens["ids"]).tolist()}
    patterns = [acts[f"h.{i}.attn.pattern"] for i in range(model.config.n_layer)]
    return {
        "model": name,
        "config": model.config.to_dict(),
        "n_parameters": sum(array.size for _, array in named_parameters(model)),
        "prompt": tokenizer.decode(ids),
        "ids": list(ids),
        "names": {token_id: token_name(tokenizer, token_id) for token_id in sorted(shown)},
        "stages": stages_data(model.config, len(ids)),
        "attention": packed_attention(patterns),
        "heads": [head._asdict() for head in named_heads(patterns, ids)],
        "losses": losses(logits[:-1], ids[1:]),
        "norms": norms(acts, model.config.n_layer),
        "lens": lens,
        "attribution": attribution_data(model, acts, [tokens[0] for tokens in predicted]),
        "likeliest": order[-1, :N_NAMED].tolist(),
        "logits": packed(known[-1], "<f4"),
        "next": next_data(known[:-1], order[:-1]),
    }


def token_name(tokenizer: Tokenizer, token_id: int) -> str | list[int]:
    """The text of a token, or its bytes if they are not whole characters."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def stages_data(config: GPT2Config, n_tokens: int) -> list[dict[str, Any]]:
    """The table of stages, with concrete shapes and each stage's parameters: their names and shapes."""
    shapes = {name.replace("h.0.", "h.i."): shape for name, shape in parameter_shapes(config).items()}
    rows = []
    for stage in STAGES:
        part = PARTS.get(stage.name)
        parameters = [[name, shapes[name]] for name in (f"{part}.weight", f"{part}.bias") if name in shapes]
        rows.append({"name": stage.name, "equation": stage.equation, "sentence": stage.sentence, "axes": stage.shape,
                     "shape": stage.concrete_shape(config, n_tokens, n_tokens, n_tokens), "parameters": parameters})
    return rows


def packed_attention(patterns: Sequence[np.ndarray]) -> str:
    """The patterns of all layers, row by row, without the zeros above the diagonal: [n_layer, n_head, n*(n+1)/2]."""
    queries, keys = np.tril_indices(patterns[0].shape[-1])  # two of [n*(n+1)/2]
    seen = np.stack(patterns)[..., queries, keys]  # [n_layer, n_head, n*(n+1)/2]
    return packed(np.rint(seen * WHOLE), "<u2")


def refuse_overflow(array: Any) -> None:
    """Raise FloatingPointError for inf and NaN, which JSON cannot hold."""
    if not np.isfinite(array).all():
        raise FloatingPointError("the activations are not finite: they overflow")


def packed(array: np.ndarray, dtype: str) -> str:
    """The array's bytes in base64."""
    refuse_overflow(array)
    return base64.b64encode(array.astype(dtype).tobytes()).decode("ascii")


def losses(logits: np.ndarray, targets: Sequence[int]) -> list[float]:
    """The loss of each token but the first, -log(softmax(logits)[target]): logits [n_tokens - 1, vocab_size]."""
    of_targets = logits[np.arange(len(targets)), list(targets)]  # [n_tokens - 1]
    return rounded(log_sum_exp(logits)[:, 0] - of_targets, 6)


def norms(acts: Recorder, n_layer: int) -> list[list[float]]:
    """The norm of each token's residual stream before each block and after the last: [n_layer + 1, n_tokens]."""
    streams = [acts[f"h.{i}.resid_pre"] for i in range(n_layer)] + [acts[f"h.{n_layer - 1}.resid_post"]]
    return rounded(np.linalg.norm(streams, axis=-1), 5)


def rounded(array: Any, decimals: int) -> Any:
    """Nested lists of Python floats, rounded."""
    refuse_overflow(array)
    return np.round(np.asarray(array, np.float64), decimals).tolist()


def next_data(logits: np.ndarray, order: np.ndarray) -> dict[str, Any]:
    """A reduced form of the logits after each token but the last: [n_tokens - 1, n_known], with their descending order.

    ids, logits: of the N_EXACT highest, [n_tokens - 1, n_exact].
    groups: the rest, in groups of neighbours in that order: log(mean(exp(logit))), so that the probabilities at
        temperature 1 stay exact, [n_tokens - 1, n_groups].
    counts: how many tokens are in each group, [n_groups].
    """
    best, rest = order[:, :N_EXACT], order[:, N_EXACT:]
    n_groups = min(N_GROUPS, rest.shape[-1])
    bounds = np.linspace(0, rest.shape[-1], n_groups + 1).astype(int)
    counts = np.diff(bounds)  # [n_groups]
    groups = np.zeros((len(logits), n_groups))
    if groups.size:
        descending = np.take_along_axis(logits, rest, -1).astype(np.float64)  # [n_tokens - 1, n_rest]
        peaks = descending[:, bounds[:-1]]  # [n_tokens - 1, n_groups]
        sums = np.add.reduceat(np.exp(descending - np.repeat(peaks, counts, -1)), bounds[:-1], -1)
        groups = peaks + np.log(sums / counts)
    return {"ids": packed(best, "<u4"), "logits": packed(np.take_along_axis(logits, best, -1), "<f4"),
            "groups": packed(groups, "<f4"), "counts": counts.tolist()}


def lens_data(model: GPT2, tokenizer: Tokenizer, acts: Recorder, after_layer: Callable[[], None]) -> dict[str, Any]:
    """The top tokens before each block and after the last: ids and probabilities, [n_layer + 1, n_tokens, N_TOP]."""
    k = min(N_TOP, model.config.vocab_size, tokenizer.vocab_size)
    best = []
    for layer in range(model.config.n_layer + 1):
        best.append(top_tokens(logit_lens(model, acts, layer), tokenizer, k))
        after_layer()
    return {"ids": [[[int(token.id) for token in tokens] for tokens in row] for row in best],
            "probabilities": [[[round(float(token.probability), 6) for token in tokens] for tokens in row]
                              for row in best]}


def attribution_data(model: GPT2, acts: Recorder, predicted: Sequence[int]) -> dict[str, Any]:
    """Each part's contribution to the logit of the predicted token: values [n_tokens, n_parts]."""
    found = [direct_logit_attribution(model, acts, token_id, position)
             for position, token_id in enumerate(predicted)]
    logits = [acts["logits"][position, token_id] for position, token_id in enumerate(predicted)]
    return {"ids": list(predicted), "logits": rounded(logits, 5), "parts": found[0].names,
            "values": rounded([attribution.values for attribution in found], 5)}
