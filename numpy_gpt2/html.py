"""HTML for notebooks: `_repr_html_` of models, activations and scores, and `show_attention`.

Plain HTML and SVG: no script, no style sheet, nothing from the network. Colours are the notebook's own or translucent,
for light and dark themes. All text is escaped, unless it is already `Markup`.
"""

import html
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

MOST_TOKENS = 128  # of an attention map: more would be illegible
SIDE, LARGEST_CELL = 560, 26  # of an attention map and of one of its cells, in pixels
LONGEST_LABEL = 14  # characters
INK = "#2f7bc8"  # of an attention weight of 1; a weight of 0 is transparent
FAINTEST = 5e-4  # attention weights below this are not drawn: they would be shown as 0.000
CELL = "padding:0 1em 0 0;white-space:nowrap"
WHITESPACE = {" ": "·", "\n": "↵", "\t": "⇥"}  # visible substitutes


class Markup(str):
    """HTML that a notebook displays; `str(markup)` is its source."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML, {len(self):,} characters: shown by a notebook>"


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """<tag attributes>children</tag>. `_` in attribute names becomes `-`."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
                      for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Iterable[Any]) -> Markup:
    """Concatenate the children, escaping those that are not Markup."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markup:
    """Rows under a header, with numbers right-aligned, everything else left-aligned."""
    lines = [element("tr", *(element("th", title, style=f"{CELL};text-align:left") for title in header))]
    for row in rows:
        lines.append(element("tr", *(element("td", written(one), style=f"{CELL};text-align:{side(one)}")
                                     for one in row)))
    return element("table", *lines, style="font-variant-numeric:tabular-nums")


def side(cell: Any) -> str:
    return "right" if isinstance(cell, (int, float, np.number)) and not isinstance(cell, bool) else "left"


def written(cell: Any) -> Any:
    """A number formatted for reading: 1,234, 0.123."""
    if side(cell) == "left":
        return cell
    return f"{cell:,}" if isinstance(cell, (int, np.integer)) else f"{cell:.4g}"


def fold(summary: Any, *content: Any) -> Markup:
    """A summary that expands to the content when clicked."""
    inside = element("div", *content, style="margin-left:1.2em")
    return element("details", element("summary", summary, style="cursor:pointer"), inside)


def shape_text(array: np.ndarray) -> str:
    return f"[{', '.join(map(str, array.shape))}]"


# Models ---------------------------------------------------------------------------------------------------------------


def weights_html(weights: Any) -> Markup:
    """A model or a part of it: names, shapes and counts, each part collapsed."""
    return fold(f"{type(weights).__name__}, {count(weights):,} parameters", parts_of(weights))


def parts_of(weights: Any) -> Markup:
    """The arrays of a part as a table, then its sub-parts."""
    arrays, parts = [], []
    for name, value in vars(weights).items():
        if isinstance(value, np.ndarray):
            is_tied = name == "lm_head" and value is weights.wte
            arrays.append((name, shape_text(value), str(value.dtype), "wte itself (tied)" if is_tied else value.size))
        elif isinstance(value, tuple):
            blocks = (fold(f"{name}[{i}]: {count(block):,} parameters", parts_of(block))
                      for i, block in enumerate(value))
            parts.append(fold(f"{name}: {len(value)} blocks, {count(value):,} parameters", *blocks))
        elif name == "config":
            parts.append(fold("config", settings_html(value)))
        else:
            parts.append(fold(f"{name}: {type(value).__name__}, {count(value):,} parameters", parts_of(value)))
    return joined([table(("name", "shape", "type", "numbers"), arrays) if arrays else "", *parts])


def settings_html(config: Any) -> Markup:
    """The settings of a GPT-2: names and values."""
    return table(("setting", "value"), [(name, str(value)) for name, value in vars(config).items()])


def count(value: Any) -> int:
    """The number of parameters of a model or a part, counting a tied array once."""
    arrays: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, np.ndarray):
            arrays[id(value)] = value.size
        elif isinstance(value, tuple):
            for one in value:
                visit(one)
        elif hasattr(value, "__dict__"):
            for one in vars(value).values():
                visit(one)

    visit(value)
    return sum(arrays.values())


# Activations ----------------------------------------------------------------------------------------------------------


def activations_html(title: str, activations: Mapping[str, np.ndarray]) -> Markup:
    """Recorded arrays: names, shapes and a few statistics, each block collapsed."""
    n_numbers = sum(array.size for array in activations.values())
    summary = f"{title}: {len(activations)} arrays, {n_numbers:,} numbers"
    sections: dict[str, list[str]] = {}
    for name in activations:
        block = ".".join(name.split(".")[:2]) if name.startswith("h.") else ""
        sections.setdefault(block or name, []).append(name)
    content: list[Markup] = []
    outside: list[tuple[Any, ...]] = []
    for section, names in sections.items():
        rows = [statistics_of(name, activations[name]) for name in names]
        if section in activations:
            outside += rows
        else:
            content.append(fold(f"{section}: {len(names)} arrays", table(STATISTICS, rows)))
    return fold(summary, table(STATISTICS, outside) if outside else "", *content)


STATISTICS = ("name", "shape", "mean", "std", "min", "max")


def statistics_of(name: str, array: np.ndarray) -> tuple[Any, ...]:
    """A row of STATISTICS, over the finite numbers: attention scores also have -inf."""
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        return (name, shape_text(array), "", "", "", "")
    mean = float(finite.mean(dtype=np.float64))
    std = float(finite.std(dtype=np.float64))
    return (name, shape_text(array), mean, std, float(finite.min()), float(finite.max()))


def stage_html(stage: Any) -> Markup:
    """One entry of STAGES as a table."""
    return table(("stage", stage.name), [("equation", stage.equation), ("shape", f"[{', '.join(stage.shape)}]"),
                                         ("what it is", stage.sentence)])


def scores_html(scores: Any) -> Markup:
    """The measures of a text, and how often its tokens were the most likely."""
    rows: list[tuple[str, Any]] = [("tokens scored", scores.n_counted)]
    if scores.n_counted:
        counted = np.ones(scores.log_probs.shape, bool) if scores.mask is None else scores.mask
        rows += [("mean loss, nats per token", scores.mean_loss), ("perplexity", scores.perplexity),
                 ("the likeliest (rank 1)", f"{np.mean(scores.ranks[counted] == 1):.1%}"),
                 ("least likely: log-probability", float(np.min(scores.log_probs[counted])))]
    return table(("Scores", ""), rows)


# Attention ------------------------------------------------------------------------------------------------------------


def show_attention(acts: Mapping[str, np.ndarray], layer: int, head: int, tokens: Sequence[str]) -> Markup:
    """One head's attention weights as a heat map in a notebook: a row for each query, a column for each key.

    acts: a Recorder, or a mapping with "h.{layer}.attn.pattern" [n_head, n_new, n_all]. tokens: the texts of all n_all
    tokens, at most MOST_TOKENS. Hover over a cell for its weight.
    Raises KeyError if the pattern was not recorded, ValueError for an invalid head, tokens or shape.
    """
    pattern = acts[f"h.{layer}.attn.pattern"]
    if pattern.ndim != 3:
        raise ValueError(f"the pattern must be [n_head, n_new, n_all], of one text. Got {shape_text(pattern)}.")
    n_head, n_new, n_all = pattern.shape
    if not 0 <= head < n_head:
        raise ValueError(f"head must be from 0 to {n_head - 1}. Got {head}.")
    if len(tokens) != n_all or n_all > MOST_TOKENS:
        raise ValueError(f"tokens must be the texts of the pattern's {n_all} tokens, at most {MOST_TOKENS}. "
                         f"Got {len(tokens)}.")
    weights = pattern[head]  # [n_new, n_all]
    names = [label(token) for token in tokens]
    cell = min(LARGEST_CELL, max(SIDE // n_all, 5))
    size = min(max(cell * 0.55, 5), 12)  # of the letters
    margin = max(map(len, names)) * size * 0.62 + 8  # for labels
    width, height = margin + cell * n_all + 1, margin + cell * n_new + 1
    keys = [element("text", name, transform=f"translate({margin + cell * (key + 0.5) + size * 0.35:.1f},"
                    f"{margin - 5:.1f}) rotate(-90)") for key, name in enumerate(names)]
    queries = [element("text", name, x=f"{margin - 5:.1f}", text_anchor="end",
                       y=f"{margin + cell * (query + 0.5) + size * 0.35:.1f}")
               for query, name in enumerate(names[n_all - n_new:])]
    cells = [element("rect", element("title", f"{names[n_all - n_new + query]} attends to {names[key]}: "
                                     f"{weights[query, key]:.3f}"),
                     x=f"{margin + cell * key:.1f}", y=f"{margin + cell * query:.1f}", width=cell - 1, height=cell - 1,
                     fill_opacity=f"{weights[query, key]:.3f}")
             for query, key in np.argwhere(weights >= FAINTEST)]
    frame = element("rect", x=f"{margin - 0.5:.1f}", y=f"{margin - 0.5:.1f}", width=cell * n_all, height=cell * n_new,
                    fill="none", stroke="currentColor", stroke_opacity=0.3)
    picture = element("svg", *keys, *queries, frame, element("g", *cells, fill=INK),
                      xmlns="http://www.w3.org/2000/svg", role="img", aria_label=f"Attention weights of head {head} in "
                      f"layer {layer}", viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}",
                      height=f"{height:.0f}", font_size=f"{size:.1f}", fill="currentColor",
                      font_family="ui-monospace, Menlo, Consolas, monospace", style="max-width:100%;height:auto")
    caption = element("div", f"Head {head} of layer {layer}: a row for each query token, a column for each key token. "
                      f"The strongest is {np.max(weights):.3f}.")
    return element("div", caption, picture)


def label(token: str) -> str:
    """A token with visible white space, shortened to LONGEST_LABEL characters."""
    signs = "".join(WHITESPACE.get(character, character if character.isprintable() else f"U+{ord(character):04X}")
                    for character in token)
    return signs if len(signs) <= LONGEST_LABEL else f"{signs[:LONGEST_LABEL - 1]}…"
