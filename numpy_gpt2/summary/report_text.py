"""Reports as text: comparisons of several models side by side, and long tables of one model each."""

from typing import Callable, Iterable, Iterator, Mapping, Sequence

from ..cli.tables import bars, table, wrapped
from ..weights import BLOCK_PARTS
from .counting import MEMORY_TYPES, Parameter, folded
from .report import KINDS, ROLES, Report, Reports
from .statements import Statement, rounded, signed, size_statements, value_statements
from .weight_statistics import NORMAL_BEYOND_4, NORMAL_HISTOGRAM

TOTALS = {"stored": "stored", "tied": "tied", "untied": "untied", "difference": "  difference, wte",
          "per_block": "one block"}
SETTINGS = {"n_layer": "layers, n_layer", "n_head": "heads, n_head", "d_head": "head width, d_head",
            "n_embd": "width, n_embd", "n_inner": "MLP width, n_inner", "n_positions": "context, n_positions",
            "vocab_size": "vocabulary, vocab_size", "tie_word_embeddings": "tied embeddings"}


def text_report(reports: Reports, sections: Sequence[str], in_full: bool, width: int) -> Iterator[str]:
    """The printed lines. in_full: whether to list the parameters of every block separately."""
    for name, found in reports.items():
        extras = found["not_parameters"]
        besides = f" (and {len(extras)} tensors that are not parameters: {extras[0]}, ...)" if extras else ""
        yield from wrapped(f"{name}: {found['n_parameters']:,} parameters, by {found['source']}{besides}", width)
    for section in sections:
        if section in COMPARISONS:
            yield ""
            yield from COMPARISONS[section](reports, width)
            continue
        for name, found in reports.items():
            yield ""
            yield from wrapped(f"{section.capitalize()} of {name}", width, hang=2)
            yield from long_table(section, found, in_full, width)
    if any("loss" in found for found in reports.values()):
        yield ""
        yield from loss_lines(reports, width)


def long_table(section: str, found: Report, in_full: bool, width: int) -> Iterator[str]:
    """The lines of a section that is a table for one model."""
    if section == "parts":
        rows = [("  " * part["depth"] + part["name"], part["shape"], part["meaning"]) for part in found["parts"]]
        return table(("part", "shape", "what it is"), rows, "<<<", width)
    if section == "parameters":
        return parameter_lines(found["parameters"], in_full, width)
    if section == "figures":
        rows = [(one["figure"], f"{one['count']:,}" if one["count"] else "none",
                 f"{one['sum']}{'. ' if one['sum'] else ''}{one['remark']}") for one in found["figures"]]
        return table(("figure", "count", "the sum that gives it"), rows, "<><", width)
    return value_lines(found["values"], width)


def parameter_lines(listed: Sequence[Report], in_full: bool, width: int) -> Iterator[str]:
    shown = [Parameter(one["name"], tuple(one["shape"]), one["count"], one["bytes"]) for one in listed]
    total = sum(one.count for one in shown)
    if not in_full:
        yield from wrapped("h.* means all blocks together; --parameters lists each block.", width)
        shown = folded(shown)
    rows = [(one.name, one.shape_text, f"{one.count:,}", f"{one.count / total:.3%}", f"{one.n_bytes:,}")
            for one in shown]
    rows.append(("all", "", f"{total:,}", f"{1:.3%}", f"{sum(one.n_bytes for one in shown):,}"))
    yield from table(("parameter", "shape", "count", "fraction", "bytes"), rows, "<<>>>", width)


def configuration_lines(reports: Reports, width: int) -> Iterator[str]:
    rows = [(label, *(f"{found['configuration'][key]}" for found in reports.values()))
            for key, label in SETTINGS.items()]
    return comparison("Configuration", reports, rows, width)


def count_lines(reports: Reports, width: int) -> Iterator[str]:
    counts = [found["counts"] for found in reports.values()]
    for title, key, whole in (("Parameters by part", "", "all"), ("Only .weight, no biases", "weight_", "these")):
        yield from fraction_lines(title, whole, reports, [one[f"{key}kinds"] for one in counts],
                                  [one[f"{key}fractions"] for one in counts], KINDS, width)
        yield ""
    rows = [(label, *(f"{one[key]:,}" for one in counts)) for key, label in TOTALS.items()]
    yield from comparison("Parameters in all", reports, rows, width)
    yield from verdict_lines(size_statements(reports), width)


def verdict_lines(statements: Iterable[Statement], width: int) -> Iterator[str]:
    """The course's statements with their verdicts, under a heading if there are any."""
    for i, statement in enumerate(statements):
        if i == 0:
            yield ""
            yield from wrapped("What the course says:", width)
        yield from wrapped(statement.verdict, width, hang=2)


def bias_lines(reports: Reports, width: int) -> Iterator[str]:
    biases = [found["biases"] for found in reports.values()]
    fractions = [one["fractions"] for one in biases]
    return fraction_lines("Weights and biases", "all", reports, biases, fractions, ROLES, width)


def fraction_lines(title: str, whole: str, reports: Reports, counts: Sequence[Report], fractions: Sequence[Report],
                   labels: Mapping[str, str], width: int) -> Iterator[str]:
    """Counts and fractions: one table with bars for one model, two tables for several."""
    keys = [key for key in labels if any(key in one for one in counts)]
    if len(reports) > 1:
        rows = [(labels[key], *(f"{one.get(key, 0):,}" for one in counts)) for key in keys]
        yield from comparison(title, reports, rows, width)
        yield ""
        rows = [(labels[key], *(f"{one.get(key, 0):.3%}" for one in fractions)) for key in keys]
        yield from comparison(f"  as fractions of {whole}", reports, rows, width)
        return
    room = min(width - 50, 50)  # for the bars, next to the other columns
    rows = []
    for key in keys:
        fraction = fractions[0][key]
        rows.append((labels[key], f"{counts[0][key]:,}", f"{fraction:.3%}", "#" * round(fraction * max(room, 0))))
    columns = 4 if room >= 10 else 3
    header, align = (title, "count", "fraction", ""), "<>><"
    yield from table(header[:columns], [row[:columns] for row in rows], align[:columns], width)


def tying_lines(reports: Reports, width: int) -> Iterator[str]:
    tyings = [found["tying"] for found in reports.values()]
    labels = {"n_arrays": "arrays", "correlation": "correlation", "largest_difference": "largest difference"}
    rows = [(label, *(tying_text(one, key) for one in tyings)) for key, label in labels.items()]
    return comparison("Tying of wte and lm_head", reports, rows, width)


def tying_text(tying: Report, key: str) -> str:
    if "error" in tying:
        return tying["error"] if key == "n_arrays" else ""
    if key == "n_arrays":
        return "one" if tying[key] == 1 else "two"
    if key not in tying:
        return "use --tying"
    return "undefined" if tying[key] is None else f"{round(tying[key], 6)}"


def cost_lines(reports: Reports, width: int) -> Iterator[str]:
    """The cost of prefill over the whole context, and of decoding its last token."""
    costs = [found["cost"] for found in reports.values()]
    rows = [("context, tokens", *(f"{one['n_context']:,}" for one in costs))]
    for name in ("prefill", "decode"):
        rows.append((f"{name}, FLOPs per token", *(f"{one[name]['flops_per_token']:,.0f}" for one in costs)))
        for part in ("block", "attention", "unembed"):
            rows.append((f"  {part}", *(f"{one[name][part + '_flops'] / one[name]['n_new']:,.0f}" for one in costs)))
    yield from comparison("Cost", reports, rows, width)
    for name in ("prefill", "decode"):
        rows = [(f"{what}, {dtype}", *(f"{one[name][key][dtype]:,.0f}" for one in costs))
                for dtype in MEMORY_TYPES
                for what, key in (("weights", "weight_bytes_per_token"), ("KV cache", "cache_bytes_per_token"))]
        yield ""
        yield from comparison(f"{name}, bytes per token", reports, rows, width)
    yield ""
    yield from wrapped("FLOPs: two for each multiply-add of the matrix products; in prefill only the causal half of "
                       "attention, and the logits of only the last position. Prefill reads the weights once for the "
                       "whole context and writes the KV cache, which decode reads.", width)


def value_lines(found: Report, width: int) -> Iterator[str]:
    if "error" in found:
        yield from wrapped(f"not measured: {found['error']}", width)
        return
    edges = found["histogram_edges"]
    yield from wrapped(f"The histogram's bins are {edges[1] - edges[0]:g} standard deviations wide, from {edges[0]:g} "
                       f"to {edges[-1]:g} around the mean; the outermost two include everything beyond.", width)
    if "remark" in found:
        yield from wrapped(found["remark"], width)
    for title in ("tensors", "layers"):
        yield ""
        rows = [(one["name"], *(f"{one[key]:.3g}" for key in ("mean", "std", "smallest", "largest", "norm")),
                 bars(one["histogram"])) for one in found[title]]
        yield from table((title, "mean", "std", "min", "max", "norm", "histogram"), rows, "<>>>>><", width)
    yield ""
    yield from wrapped("Matrices by purpose, in all blocks together and in each, without biases. Excess kurtosis is "
                       "mean(((x - mean) / std)^4) - 3; the next column is the fraction of numbers more than four "
                       "standard deviations from the mean.", width)
    rows = [(one["name"], f"{one['std']:.3g}", rounded(one["kurtosis"]), f"{one['beyond_4']:.1e}",
             bars(one["histogram"])) for one in found["groups"]]
    rows.append(("normal distribution", "", "0", f"{NORMAL_BEYOND_4:.1e}", bars(NORMAL_HISTOGRAM)))
    yield from table(("matrices", "std", "kurtosis", "beyond 4", "histogram"), rows, "<>>><", width)
    yield ""
    yield from wrapped("Standard deviation of each weight, block by block; the trend is its correlation with the "
                       "block number.", width)
    profiles = found["depth"]
    rows = [(f"h.{i}", *(f"{one['std'][i]:.3g}" for one in profiles)) for i in range(len(profiles[0]["std"]))]
    rows.append(("trend", *(signed(one["trend"]) for one in profiles)))
    yield from table(("block", *BLOCK_PARTS), rows, "<>>>>>>", width)
    yield from verdict_lines(value_statements(found), width)


def loss_lines(reports: Reports, width: int) -> Iterator[str]:
    keys = {"n_tokens": ",", "n_bytes": ",", "mean_loss": ".4f", "perplexity": ".2f", "bits_per_byte": ".4f"}
    rows = []
    for name, found in reports.items():
        loss = found["loss"]
        cells = ["-" if loss.get(key) is None else format(loss[key], style) for key, style in keys.items()]
        rows.append((name, f"{found['n_parameters']:,}", *cells, loss.get("error", "")))
    header = ("Loss on the text", "parameters", "tokens", "bytes", "loss", "perplexity", "bits per byte", "")
    return table(header, rows, "<>>>>>><", width)


def comparison(title: str, reports: Reports, rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A table with a column for each model."""
    return table((title, *reports), rows, "<" + ">" * len(reports), width)


COMPARISONS: dict[str, Callable[[Reports, int], Iterator[str]]] = {
    "configuration": configuration_lines,
    "counts": count_lines,
    "biases": bias_lines,
    "tying": tying_lines,
    "cost": cost_lines,
}
