"""Interventions requested by the page: from JSON to a tap, and to Python code for the same tap.

    {"kind": "zero", "stage": "attn.z", "layer": 3, "heads": [4]}            one head ablated
    {"kind": "mean", "stage": "mlp.out", "layer": 2}                         an MLP's mean output at all positions
    {"kind": "scale", "stage": "attn.out", "layer": 0, "factor": 0.5}        a layer's attention, halved
    {"kind": "from", "stage": "resid_pre", "layer": 5, "positions": [2],     one position's residual stream, from
     "prompt": "..."}                                                          another prompt of the same length
"""

from typing import Any, Iterable, NamedTuple, Sequence

import numpy as np

from ..errors import check_int, shown
from ..lens import ablate, chain, patch
from ..model import transform
from ..tap import STAGES, Recorder, Tap, no_tap
from .prompts import Engine, Prompt, check_keys, parse_prompt

MOST_INTERVENTIONS = 32

KINDS = {"zero": (), "mean": (), "scale": ("factor",), "from": ("prompt", "ids")}  # and each one's own keys
COMMON_KEYS = ("kind", "stage", "layer", "heads", "positions")

# Name without the block -> the stage, for stages with one vector per token: only those have a mean over positions, and
# a counterpart in another prompt. (ln_f is left out: the logit lens ends before it.)
CHANGEABLE = {stage.name.removeprefix("h.i."): stage for stage in STAGES
              if stage.shape[-2] == "n_new" and stage.shape[-1] != "n_all" and stage.name != "ln_f"}


class Intervention(NamedTuple):
    """One change of a stage's array, or of part of it."""

    kind: str
    name: str  # of the stage: "h.3.attn.z"
    heads: list[int] | None  # None: all
    positions: list[int] | None
    factor: float = 1.0  # for "scale"
    source: Prompt = Prompt([], "")  # for "from"


def parse_interventions(engine: Engine, given: Any, n_tokens: int) -> list[Intervention]:
    """The interventions of a request for a pass over n_tokens. Raises ValueError."""
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > MOST_INTERVENTIONS:
        raise ValueError(f"'interventions' must be a list of at most {MOST_INTERVENTIONS}. Got {shown(given)}.")
    return [parse_intervention(engine, each, n_tokens) for each in given]


def parse_intervention(engine: Engine, given: Any, n_tokens: int) -> Intervention:
    """One intervention of a request for a pass over n_tokens. Raises ValueError."""
    check_keys("an intervention", given, [*COMMON_KEYS, "factor", "prompt", "ids"])
    kind = one_of("kind", given.get("kind"), KINDS)
    check_keys(f"an intervention of the kind {kind!r}", given, [*COMMON_KEYS, *KINDS[kind]])
    name = parse_stage(engine, given)
    heads = parse_indices("heads", given.get("heads"), engine.model.config.n_head)
    if heads is not None and "n_head" not in CHANGEABLE[given["stage"]].shape:
        raise ValueError(f"'heads' must be left out for a stage without heads. Got {heads} for {name!r}.")
    positions = parse_indices("positions", given.get("positions"), n_tokens)
    if kind == "scale":
        return Intervention(kind, name, heads, positions, factor=parse_factor(given.get("factor")))
    if kind == "from":
        source = parse_prompt(engine, given)
        if len(source.ids) != n_tokens:
            raise ValueError(f"the other prompt must have as many tokens as this one, {n_tokens}. "
                             f"Got {len(source.ids)}.")
        return Intervention(kind, name, heads, positions, source=source)
    return Intervention(kind, name, heads, positions)


def one_of(key: str, value: Any, allowed: Iterable[str]) -> str:
    """The value of a key. Raises ValueError if it is not among the allowed ones."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{key!r} must be one of {', '.join(allowed)}. Got {shown(value)}.")
    return value


def parse_stage(engine: Engine, given: dict[str, Any]) -> str:
    """The full name of a stage: "h.3.attn.z"."""
    stage = CHANGEABLE[one_of("stage", given.get("stage"), CHANGEABLE)]
    if not stage.name.startswith("h.i."):
        if given.get("layer") is not None:
            raise ValueError(f"'layer' must be left out for {stage.name!r}. Got {shown(given['layer'])}.")
        return stage.name
    layer = check_int("'layer'", given.get("layer"), 0, engine.model.config.n_layer - 1)
    return stage.name.replace("h.i.", f"h.{layer}.")


def parse_indices(key: str, given: Any, n: int) -> list[int] | None:
    """A sorted list of heads or positions, or None for all."""
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise ValueError(f"{key!r} must be a list of whole numbers, or left out for all. Got {shown(given)}.")
    return sorted({check_int(f"each of {key!r}", index, 0, n - 1) for index in given})


def parse_factor(given: Any) -> float:
    """A factor from -1e9 to 1e9. Raises ValueError for anything else."""
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not abs(given) <= 1e9:
        raise ValueError(f"'factor' must be a number from -1e9 to 1e9. Got {shown(given)}.")
    return float(given)


# As taps --------------------------------------------------------------------------------------------------------------


def tap_of(engine: Engine, interventions: Sequence[Intervention], n_tokens: int, watch: Tap = no_tap) -> Tap:
    """The tap that applies all interventions, in order, to a prompt of n_tokens and to what is generated after it.

    A mean, and values of another prompt, exist for the prompt's tokens only; zeros and factors apply to later ones too.
    watch: a tap for the passes over other prompts.
    """
    recorded = {tuple(ids): recorded_values(engine, ids, names, watch) for ids, names in sources(interventions)}
    return chain(*(tap_of_one(each, n_tokens, recorded) for each in interventions))


def sources(interventions: Sequence[Intervention]) -> list[tuple[list[int], list[str]]]:
    """The ids of each source prompt, with the names of the stages taken from it."""
    names: dict[tuple[int, ...], list[str]] = {}
    for each in interventions:
        if each.kind == "from":
            of_prompt = names.setdefault(tuple(each.source.ids), [])
            of_prompt += [each.name] if each.name not in of_prompt else []
    return [(list(ids), of_prompt) for ids, of_prompt in names.items()]


def recorded_values(engine: Engine, ids: Sequence[int], names: Sequence[str], watch: Tap) -> Recorder:
    """The arrays of these stages in a pass over another prompt."""
    acts = Recorder(names)
    transform(engine.model, ids, tap=chain(acts, watch))
    return acts


def tap_of_one(intervention: Intervention, n_tokens: int, recorded: dict[tuple[int, ...], Recorder]) -> Tap:
    """The tap for one intervention. recorded: the source prompts' arrays, by their ids."""
    kind, name, heads, positions, factor, source = intervention
    if kind == "zero":
        return ablate(name, heads, positions)
    if kind == "scale":
        return patch(name, lambda array: factor * array, positions, heads)
    positions = positions or list(range(n_tokens))
    if kind == "mean":
        return patch(name, lambda array: array[..., :n_tokens, :].mean(axis=-2, keepdims=True), positions, heads)
    values = recorded[tuple(source.ids)][name]  # [..., n_tokens, n]
    return patch(name, lambda array: np.concatenate([values, array[..., n_tokens:, :]], axis=-2), positions, heads)


# As Python ------------------------------------------------------------------------------------------------------------


def python_code(engine: Engine, prompt: Prompt, interventions: Sequence[Intervention]) -> str:
    """A script that runs the same pass and prints the top tokens of its `logits` [n_tokens, vocab_size]."""
    others = {tuple(ids): f"other_{i}" for i, (ids, _) in enumerate(sources(interventions), 1)}
    codes = {tuple(each.source.ids): each.source.code for each in interventions}
    lines = [*first_lines(engine), f"ids = {prompt.code}"]
    for ids, names in sources(interventions):
        other = others[tuple(ids)]
        lines += ["", f"{other} = numpy_gpt2.Recorder({names})",
                  f"numpy_gpt2.forward(model, {codes[tuple(ids)]}, tap={other})"]
    if not interventions:
        return "\n".join([*lines, "logits = numpy_gpt2.forward(model, ids)", *last_lines()])
    taps = [f"    {code_of_one(each, others)}," for each in interventions]
    return "\n".join([*lines, "", "tap = numpy_gpt2.chain(", *taps, ")",
                      "logits = numpy_gpt2.forward(model, ids, tap=tap)", *last_lines()])


def first_lines(engine: Engine) -> list[str]:
    return ["import numpy_gpt2", "", f"model, tokenizer = numpy_gpt2.load({engine.name!r})"]


def last_lines() -> list[str]:
    return ["", "# After the last token; logits[i] are those after position i.",
            "for token in numpy_gpt2.top_tokens(logits[-1], tokenizer):", "    print(token)", ""]


def code_of_one(intervention: Intervention, others: dict[tuple[int, ...], str]) -> str:
    """The Python expression of the same tap. others: the variable of each source prompt's Recorder, by its ids."""
    kind, name, heads, positions, factor, source = intervention
    where = "".join(f", {key}={indices}" for key, indices in (("positions", positions), ("heads", heads))
                    if indices is not None)
    if kind == "zero":
        return f'numpy_gpt2.ablate("{name}"{where})'
    if kind == "mean":
        return f'numpy_gpt2.patch("{name}", lambda array: array.mean(axis=-2, keepdims=True){where})'
    if kind == "scale":
        return f'numpy_gpt2.patch("{name}", lambda array: {factor} * array{where})'
    return f'numpy_gpt2.patch("{name}", {others[tuple(source.ids)]}["{name}"]{where})'
