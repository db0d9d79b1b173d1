"""Reports: counts and measurements of a model as plain data, for the JSON, text and plots of numpy_gpt2.summary."""

import math
from dataclasses import asdict
from typing import Any, Collection, Mapping, Sequence

from ..checkpoint.loading import load, load_model
from ..errors import CheckpointError, HubError
from ..scoring import score_tokens
from ..weights import BLOCK_PARTS, GPT2, named_parameters
from .counting import MEMORY_TYPES, PassCost, count_parameters, figures, parameters, parts, pass_cost
from .metadata import Metadata
from .weight_statistics import (GROUPS, HISTOGRAM_EDGES, compare_embeddings, depth_profile, describe, grouped_weights,
                                overlays)

Report = dict[str, Any]  # a few keys that are always present, and the chosen sections by name
Reports = Mapping[str, Report]  # by model name

# All sections, in the order in which they are shown.
SECTIONS = {
    "parts": "the parts as a tree, with their shapes",
    "configuration": "context, width, heads, layers, vocabulary",
    "parameters": "every parameter: its name, shape, count, fraction and bytes",
    "counts": "the parameters of each part, with and without biases; tied, untied, and the difference",
    "biases": "weights, biases and layer-norm gains separately",
    "tying": "whether wte and lm_head are one array; if not, how similar they are (loads the weights)",
    "figures": "published figures (124M, 137M, 117M, ...), each with the sum that gives it",
    "cost": "floating-point operations and bytes per token",
    "values": "statistics of the weights by tensor, by layer and with depth (loads the weights)",
}

# Labels of the keys of `Counts.kinds` and `Counts.roles`.
KINDS = {"wte": "token embedding, wte", "wpe": "position embedding, wpe", "attn": "attention", "mlp": "MLP",
         "ln": "layer norms", "lm_head": "unembedding, lm_head"}
ROLES = {"weights": "weights (matrices)", "biases": "biases", "gains": "layer-norm gains"}

ONE_ARRAY = {"n_arrays": 1, "correlation": 1.0, "largest_difference": 0.0}  # tied: an array compared with itself


def report_each(models: Sequence[Metadata], sections: Collection[str], measured: Collection[str] = (),
                n_context: int | None = None, text: str | None = None) -> dict[str, Report]:
    """A report on each model. If the weights of one of several models are unavailable, its report gives the reason.

    sections: keys of SECTIONS, in order. measured: those of them ("tying", "values") that load the weights.
    n_context: the context length for the cost; None means the model's whole context. text: to compute the loss on.
    Raises ValueError for a bad argument; CheckpointError, HubError or MemoryError if no report would have a result.
    """
    reports = {}
    failures: list[Exception] = []
    for model in models:
        report = report_counts(model, sections, n_context or model.config.n_positions)
        # a tied array needs no comparison
        wanted = [section for section in measured if section != "tying" or not model.config.tie_word_embeddings]
        try:
            report |= report_weights(model.name, wanted, text) if wanted or text is not None else {}
            if model.has_scaled_queries and "values" in report:
                report["values"]["remark"] = ("The weights of q, in c_attn, include the extra factor by which the "
                                              "config scales attention scores.")
        except (HubError, CheckpointError, MemoryError) as error:
            failures.append(error)
            reason = str(error).partition(" Ways out:")[0] or "not enough memory"
            report |= {section: {"error": reason} for section in (*wanted, *(["loss"] if text else []))}
        reports[model.name] = report
    if len(failures) == len(models) and (len(models) == 1 or set(sections) <= set(measured)):
        raise failures[0]
    return reports


# Without the weights --------------------------------------------------------------------------------------------------


def report_counts(model: Metadata, sections: Collection[str], n_context: int) -> Report:
    """The sections that need no weights; all of them are cheap to compute."""
    config = model.config
    counts = count_parameters(config)
    totals = asdict(counts)
    del totals["roles"]
    counted = {
        "parts": [asdict(part) for part in parts(config)],
        "configuration": {**asdict(config), "d_head": config.d_head},
        "parameters": [{"name": one.name, "shape": list(one.shape), "count": one.count,
                        "fraction": one.count / counts.stored, "bytes": one.n_bytes} for one in parameters(model)],
        "counts": {**totals, "fractions": fractions(counts.kinds), "weight_fractions": fractions(counts.weight_kinds)},
        "biases": {**counts.roles, "fractions": fractions(counts.roles)},
        "tying": ONE_ARRAY if config.tie_word_embeddings else {"n_arrays": 2},
        "figures": [{"figure": one.figure, "count": one.count, "sum": one.sum_text, "remark": one.remark}
                    for one in figures(config)],
        "cost": {"n_context": n_context, "prefill": report_cost(pass_cost(config, n_context, n_context)),
                 "decode": report_cost(pass_cost(config, 1, n_context))},
    }
    return {"n_parameters": counts.stored, "source": model.source, "verified": model.is_verified,
            "not_parameters": list(model.extras),
            **{section: counted[section] for section in sections if section in counted}}


def fractions(counts: Mapping[str, int]) -> dict[str, float]:
    """Each count's fraction of their sum."""
    return {key: n / sum(counts.values()) for key, n in counts.items()}


def report_cost(cost: PassCost) -> Report:
    """A pass's cost in all, and per new token: operations, and bytes by the type that is stored."""
    weight_bytes = {name: cost.weights_read * size / cost.n_new for name, size in MEMORY_TYPES.items()}
    cache_bytes = {name: cost.cache_read * size / cost.n_new for name, size in MEMORY_TYPES.items()}
    return {**asdict(cost), "flops": cost.flops, "flops_per_token": cost.flops / cost.n_new,
            "weight_bytes_per_token": weight_bytes, "cache_bytes_per_token": cache_bytes}


# From the weights -----------------------------------------------------------------------------------------------------


def report_weights(name: str, wanted: Collection[str], text: str | None) -> Report:
    """The sections that need the weights, which are downloaded if necessary."""
    report: Report = {}
    if text is None:
        model = load_model(name)
    else:
        model, tokenizer = load(name)
        scores = score_tokens(model, tokenizer.with_bos(tokenizer.encode(text)))
        n_bytes = len(text.encode("utf-8"))
        loss = {"n_tokens": len(scores.log_probs), "n_bytes": n_bytes, "mean_loss": scores.mean_loss,
                "perplexity": scores.perplexity, "bits_per_byte": scores.bits_per_byte(n_bytes)}
        report["loss"] = {key: value if math.isfinite(value) else None for key, value in loss.items()}
    if "values" in wanted:
        report["values"] = report_values(model)
    if "tying" in wanted:
        report["tying"] = compare_embeddings(model.wte, model.lm_head)
    return report


def report_values(model: GPT2) -> Report:
    """The statistics of all weights: by tensor, layer, depth and purpose. Raises FloatingPointError if not finite."""
    blocks = [f"h.{i}" for i in range(model.config.n_layer)]
    arrays = dict(named_parameters(model))
    tensors = {name: describe(name, array) for name, array in arrays.items()}
    layers = [describe(block, *(array for name, array in arrays.items() if name.startswith(f"{block}.")))
              for block in blocks]
    matrices = grouped_weights(model)
    groups = {name: describe(name, *of_group) for name, of_group in matrices.items()}
    return {"tensors": [asdict(one) for one in tensors.values()],
            "layers": [asdict(one) for one in layers],
            "depth": [depth_profile(f"{part}.weight", [tensors[f"{block}.{part}.weight"].std for block in blocks])
                      for part in BLOCK_PARTS],
            "groups": [asdict(one) for one in groups.values()],
            "group_depth": [depth_profile(name, [groups[f"{block} {name}"].std for block in blocks])
                            for name in GROUPS],
            "overlays": overlays(matrices, groups),
            "histogram_edges": list(HISTOGRAM_EDGES)}
