"""Taps, this library's activation hooks: a tap is a callable that receives every named array of a forward pass.

The array that it returns is used from there on; None changes nothing. So a tap can read and modify activations:

    def double_the_pattern(name, value):
        if name == "h.3.attn.pattern":
            return 2 * value

    numpy_gpt2.forward(model, ids, tap=double_the_pattern)

The arrays are read-only: to change one, return a new array. `STAGES` lists all names in the order of the pass.

Generation and scoring take a tap too, and call it in each of their passes. A tap that needs to know the position of a
pass has a method `at_position(first_position)`, which is called before each pass and returns the tap for that pass.
"""

import difflib
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from .config import GPT2Config
from .errors import check_int, shown

Tap = Callable[[str, np.ndarray], np.ndarray | None]
ArrayTap = Callable[[str, np.ndarray], np.ndarray]  # no_tap or a CheckedTap, which always return an array


def no_tap(name: str, value: np.ndarray) -> np.ndarray:
    """The default tap, which does nothing."""
    return value


class Recorder(Mapping[str, np.ndarray]):
    """A tap that stores a copy of every array it receives: `acts = Recorder()`, then `acts["h.0.attn.pattern"]`.

    names: a glob or several, to store only some arrays: "h.3.attn.*", ["h.*.resid_pre", "logits"].
    A Mapping, in the order of the pass: `for name, array in acts.items()`; `acts.stack` stacks several arrays.
    A later pass overwrites an earlier one; `clear()` deletes all. Memory: the selected activations of one pass.
    Raises ValueError for a glob that matches no stage of any GPT-2.
    """

    def __init__(self, names: str | Sequence[str] = "*") -> None:
        self.globs = [names] if isinstance(names, str) else list(names)
        for glob in self.globs:
            stages_of(glob)
        self.activations: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if any(fnmatchcase(name, glob) for glob in self.globs):
            self.activations[name] = value.copy()
        return value

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.activations:
            raise KeyError(f"{name!r} is not among the {len(self)} stages recorded; {self._instead(name)}")
        return self.activations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    __eq__ = object.__eq__  # a Mapping's would compare arrays
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        names = [repr(name) for name in self]
        return f"Recorder({len(names)} arrays: {', '.join(names[:3] + ['...'] * (len(names) > 3)) or 'none yet'})"

    def _repr_html_(self) -> str:
        from .html import activations_html
        return activations_html("Recorder", self)

    def stack(self, glob: str) -> np.ndarray:
        """The recorded arrays that a glob matches, stacked on a new first axis in the order of the pass.

        stack("h.*.attn.pattern"): [n_layer, n_head, n_tokens, n_tokens], with any batch axes after n_layer.
        Raises ValueError for a glob that matches no stage, KeyError if no match was recorded.
        """
        stages_of(glob)
        arrays = [array for name, array in self.items() if fnmatchcase(name, glob)]
        if not arrays:
            raise KeyError(f"{glob!r} matches none of the {len(self)} stages recorded; {self._instead(glob)}")
        return np.stack(arrays)

    def _instead(self, name: str) -> str:
        """What to do about a name that was not recorded."""
        if not self.activations:
            return "record a pass first: forward(model, ids, tap=acts)"
        if any(fnmatchcase(known, str(name)) for known in self):
            return "stack(glob) takes a glob"
        return f"the nearest is {difflib.get_close_matches(str(name), self, n=1, cutoff=0)[0]!r}"

    def clear(self) -> None:
        """Delete all recorded arrays."""
        self.activations.clear()


@dataclass(frozen=True)
class CheckedTap:
    """A tap during one pass: it gets read-only views, and must return None or an array like the one given.

    Raises TypeError for what is no tap, such as a list of taps or the class Recorder itself.
    """

    tap: Tap
    globs: Sequence[str] = ("*",)  # of the names of the arrays that it may use
    prefix: str = ""  # precedes each name, as in "h.3." + "attn.pattern"

    def __post_init__(self) -> None:
        if isinstance(self.tap, type) or not (callable(self.tap) or hasattr(self.tap, "at_position")):
            raise TypeError("a tap must be a callable (name, value), such as Recorder(); chain(a, b) joins several. "
                            f"Got {shown(self.tap)}.")

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        name = self.prefix + name
        view = value.view()
        view.flags.writeable = False
        returned = self.tap(name, view)
        if returned is None or returned is view:
            return value
        if not isinstance(returned, np.ndarray):
            raise ValueError(f"the tap must return an array or None at {name!r}. Got {type(returned).__name__}.")
        if (returned.shape, returned.dtype) != (value.shape, value.dtype):
            raise ValueError(f"the tap must return shape {value.shape}, {value.dtype} at {name!r}. "
                             f"Got {returned.shape}, {returned.dtype}.")
        return returned


def scoped(tap: ArrayTap, prefix: str) -> ArrayTap:
    """The tap for one block: with the prefix "h.3.", it receives `attn.pattern` as `h.3.attn.pattern`."""
    return replace(tap, prefix=prefix) if isinstance(tap, CheckedTap) else tap


def watches(tap: ArrayTap, name: str) -> bool:
    """Whether a tap may use this array: `Recorder`, `patch`, `ablate` and `chain` have globs, others use all."""
    if isinstance(tap, CheckedTap):
        return any(fnmatchcase(tap.prefix + name, glob) for glob in tap.globs)
    return tap is not no_tap


def tap_of_pass(tap: Tap, config: GPT2Config, first_position: int) -> ArrayTap:
    """The tap for a pass whose first new token has this position. One that is already for a pass is returned as it is.

    Raises ValueError for a `Recorder`, `patch`, `ablate` or `chain` with a name or a position that this model does not
    have. Other callables are not checked. Raises TypeError for what is no tap.
    """
    if tap is no_tap:
        return no_tap
    if isinstance(tap, CheckedTap):
        return tap
    for glob in getattr(tap, "globs", ()):
        check_glob(glob, config)
    for position in getattr(tap, "positions", ()):
        check_int("positions", position, -config.n_positions, config.n_positions - 1)
    return bound(tap, first_position)


def bound(tap: Tap, first_position: int) -> ArrayTap:
    """The tap for a pass from this position on, by its method `at_position` if it has one; its results are checked."""
    tap = getattr(tap, "at_position", lambda _: tap)(first_position)
    return no_tap if tap is no_tap else CheckedTap(tap, getattr(tap, "globs", ("*",)))


@cache
def check_glob(glob: str, config: GPT2Config) -> None:
    """Raise ValueError, with the nearest names, for a glob that matches no stage of this model."""
    names = stage_names(config)
    if not any(fnmatchcase(name, glob) for name in names):
        nearest = difflib.get_close_matches(glob, names, n=3, cutoff=0)
        raise ValueError(f"the tap names {glob!r}, which matches no stage of this model with {config.n_layer} blocks; "
                         f"the nearest are {', '.join(nearest)}.")


def check_activations(activations: Recorder | Mapping[str, np.ndarray], d_logits: np.ndarray, config: GPT2Config,
                      shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the arrays have the shapes of a pass over ids of this shape without a cache."""
    *batch, n = shape
    arrays = {name: activations[name] for name in ("h.0.attn.k_all", "ln_f")} | {"logits": d_logits}
    for name, array in arrays.items():
        expected = (*batch, *stage_of(name).concrete_shape(config, n, n, n))
        if array.shape != expected:
            raise ValueError(f"activations and d_logits must come from a pass over ids without a cache: {expected} at "
                             f"{name!r}. Got {array.shape}.")


@dataclass(frozen=True)
class Stage:
    """One named array of the forward pass; `h.i.` means every block.

    Shapes leave out the leading batch axes, which every array but `wpe` has.
    """

    name: str
    equation: str
    shape: tuple[str, ...]
    sentence: str

    def __repr__(self) -> str:
        return f"Stage({self.name!r}: [{', '.join(self.shape)}], {self.equation})"

    def _repr_html_(self) -> str:
        from .html import stage_html
        return stage_html(self)

    def concrete_shape(self, config: GPT2Config, n_new: int, n_all: int, n_unembedded: int) -> tuple[int, ...]:
        """The shape in numbers, for a pass over n_new tokens; n_all includes those in the cache."""
        sizes = {"n_new": n_new, "n_all": n_all, "n_unembedded": n_unembedded, "n_head": config.n_head,
                 "d_head": config.d_head, "n_embd": config.n_embd, "3*n_embd": 3 * config.n_embd,
                 "n_inner": config.n_inner, "vocab_size": config.vocab_size}
        return tuple(sizes[axis] for axis in self.shape)


RESIDUAL = ("n_new", "n_embd")
HEADS_NEW = ("n_head", "n_new", "d_head")
HEADS_ALL = ("n_head", "n_all", "d_head")
QUERY_BY_KEY = ("n_head", "n_new", "n_all")

STAGES: tuple[Stage, ...] = (
    Stage("wte", "wte[ids]", RESIDUAL,
          "Each token's own vector, looked up by its id."),
    Stage("wpe", "wpe[positions]", RESIDUAL,
          "Each position's own vector, so that order is visible."),
    Stage("h.i.resid_pre", "wte + wpe, or resid_post of the block before", RESIDUAL,
          "The residual stream as it enters the block."),
    Stage("h.i.ln_1", "layer_norm(resid_pre)", RESIDUAL,
          "Each token's vector centred and scaled before attention reads it."),
    Stage("h.i.attn.qkv", "ln_1 @ c_attn.weight + c_attn.bias", ("n_new", "3*n_embd"),
          "Queries, keys and values of all heads in one product, side by side."),
    Stage("h.i.attn.q", "split_heads(split(qkv)[0])", HEADS_NEW,
          "Queries: what each token looks for, by head."),
    Stage("h.i.attn.k", "split_heads(split(qkv)[1])", HEADS_NEW,
          "Keys: what each token offers to be found by, by head."),
    Stage("h.i.attn.v", "split_heads(split(qkv)[2])", HEADS_NEW,
          "Values: what each token passes on when it is attended to, by head."),
    Stage("h.i.attn.k_all", "concatenate(k in the cache, k)", HEADS_ALL,
          "Keys of all tokens so far, those of earlier passes from the cache."),
    Stage("h.i.attn.v_all", "concatenate(v in the cache, v)", HEADS_ALL,
          "Values of all tokens so far, those of earlier passes from the cache."),
    Stage("h.i.attn.scores", "q @ k_all.T / sqrt(d_head), -inf where key > query", QUERY_BY_KEY,
          "How well each query matches each key; a later token scores -inf."),
    Stage("h.i.attn.pattern", "softmax(scores)", QUERY_BY_KEY,
          "The attention weights: each row is how much one token attends to each, and sums to 1."),
    Stage("h.i.attn.z", "pattern @ v_all", HEADS_NEW,
          "For each head, the values of the tokens, weighted by how much each is attended to."),
    Stage("h.i.attn.out", "merge_heads(z) @ c_proj.weight + c_proj.bias", RESIDUAL,
          "The heads' results side by side, projected back to the width of the residual stream."),
    Stage("h.i.resid_mid", "resid_pre + attn.out", RESIDUAL,
          "The residual stream after attention has added to it."),
    Stage("h.i.ln_2", "layer_norm(resid_mid)", RESIDUAL,
          "Each token's vector centred and scaled before the MLP reads it."),
    Stage("h.i.mlp.pre", "ln_2 @ c_fc.weight + c_fc.bias", ("n_new", "n_inner"),
          "The MLP's neurons before their nonlinearity."),
    Stage("h.i.mlp.post", "gelu(pre)", ("n_new", "n_inner"),
          "The neurons' activations: most are near zero, a few are large."),
    Stage("h.i.mlp.out", "post @ c_proj.weight + c_proj.bias", RESIDUAL,
          "The MLP's result, projected back to the width of the residual stream."),
    Stage("h.i.resid_post", "resid_mid + mlp.out", RESIDUAL,
          "The residual stream as it leaves the block."),
    Stage("ln_f", "layer_norm(resid_post of the last block)", RESIDUAL,
          "The last residual stream, centred and scaled for the unembedding."),
    Stage("logits", "ln_f @ lm_head.T", ("n_unembedded", "vocab_size"),
          "A score for every token of the vocabulary as the next one."),
)


def stage_names(config: GPT2Config) -> list[str]:
    """The names of all arrays of a forward pass, in order, with block numbers."""
    names = [stage.name for stage in STAGES]
    inside = [name for name in names if name.startswith("h.i.")]
    start = names.index(inside[0])
    blocks = [name.replace("h.i.", f"h.{i}.") for i in range(config.n_layer) for name in inside]
    return names[:start] + blocks + names[start + len(inside):]


def stage_of(name: str) -> Stage:
    """The stage of a name: `h.i.attn.pattern` for `h.3.attn.pattern`. Raises KeyError for an unknown name."""
    row = re.sub(r"^h\.\d+\.", "h.i.", name)
    return {stage.name: stage for stage in STAGES}[row]


@cache  # each patch asks: a page makes dozens, an experiment thousands
def stages_of(glob: str) -> list[Stage]:
    """The stages that a glob matches in some GPT-2: two for `h.3.attn.[qk]`. Raises ValueError if there are none."""
    blocks = {*range(100), *map(int, re.findall(r"\d+", glob))}  # and any larger block number in the glob
    fitting = [stage for stage in STAGES
               if any(fnmatchcase(stage.name.replace("h.i.", f"h.{i}."), glob) for i in blocks)]
    if not fitting:
        block = re.match(r"h\.(?!0\d|-)[\d*?\[\]!-]+\.", glob)
        prefix = block.group() if block else "h.*."
        names = [stage.name.replace("h.i.", prefix) for stage in STAGES]
        nearest = difflib.get_close_matches(glob, names, n=3, cutoff=0)
        raise ValueError(f"a name must be a stage, or a glob that matches one. Got {glob!r}; the nearest are "
                         f"{', '.join(nearest)}; numpy_gpt2.STAGES lists all.")
    return fitting
