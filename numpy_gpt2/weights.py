"""The weights of a GPT-2 as plain data, under the checkpoint's names: `model.h[3].attn.c_attn.weight`."""

import difflib
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import Iterator, Mapping

import numpy as np

from .config import GPT2Config
from .matmul import allocate_parameter


class Weights:
    """Named arrays; the repr shows their shapes."""

    def __repr__(self) -> str:
        texts = []
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                texts.append(f"{name} {list(value.shape)}")
            elif isinstance(value, tuple):
                texts.append(f"{name}: {len(value)} blocks")
            elif isinstance(value, Weights):
                texts.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(texts)})"

    def _repr_html_(self) -> str:
        from .html import weights_html  # imported on use, as in all `_repr_html_`: keeps `import numpy_gpt2` fast
        return weights_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class LayerNorm(Weights):
    """A gain (weight) and a shift (bias) for each channel."""

    weight: np.ndarray  # [n_embd]
    bias: np.ndarray  # [n_embd]


@dataclass(frozen=True, eq=False, repr=False)
class Conv1D(Weights):
    """A linear layer stored as [n_in, n_out], so that `x @ weight` needs no transpose. (The name is OpenAI's.)"""

    weight: np.ndarray  # [n_in, n_out]
    bias: np.ndarray  # [n_out]


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Weights):
    """Two linear layers: to queries, keys and values, and from the heads' outputs."""

    c_attn: Conv1D  # [n_embd, 3*n_embd]: queries, keys and values, fused
    c_proj: Conv1D  # [n_embd, n_embd]


@dataclass(frozen=True, eq=False, repr=False)
class MLP(Weights):
    """Two linear layers: to the neurons and back."""

    c_fc: Conv1D  # [n_embd, n_inner]
    c_proj: Conv1D  # [n_inner, n_embd]


@dataclass(frozen=True, eq=False, repr=False)
class Block(Weights):
    """One of n_layer blocks: attention and MLP, each after a layer norm."""

    ln_1: LayerNorm
    attn: Attention
    ln_2: LayerNorm
    mlp: MLP


@dataclass(frozen=True, eq=False, repr=False)
class GPT2(Weights):
    """The whole model. If the checkpoint ties them, `lm_head` and `wte` are the same array."""

    config: GPT2Config
    wte: np.ndarray  # [vocab_size, n_embd]: the token embedding
    wpe: np.ndarray  # [n_positions, n_embd]: the position embedding
    h: tuple[Block, ...]  # n_layer blocks
    ln_f: LayerNorm
    lm_head: np.ndarray  # [vocab_size, n_embd]: the unembedding


BLOCK_PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def named_parameters(model: GPT2) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter once, with its name in the checkpoint.

    `lm_head` is one unless the config ties it and it is wte itself.
    """
    yield "wte.weight", model.wte
    yield "wpe.weight", model.wpe
    for i, weights in enumerate(model.h):
        for part in BLOCK_PARTS:
            yield f"h.{i}.{part}.weight", attrgetter(part)(weights).weight
            yield f"h.{i}.{part}.bias", attrgetter(part)(weights).bias
    yield "ln_f.weight", model.ln_f.weight
    yield "ln_f.bias", model.ln_f.bias
    if model.lm_head is not model.wte or not model.config.tie_word_embeddings:
        yield "lm_head.weight", model.lm_head


def named_shapes(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the items of `parameter_shapes`, so that a config that claims a billion layers is cheap to reject."""
    n_embd, n_inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "ln_1": (n_embd,),
        "attn.c_attn": (n_embd, 3 * n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "ln_2": (n_embd,),
        "mlp.c_fc": (n_embd, n_inner),
        "mlp.c_proj": (n_inner, n_embd),
    }
    yield "wte.weight", (config.vocab_size, n_embd)
    yield "wpe.weight", (config.n_positions, n_embd)
    for i in range(config.n_layer):
        for part in BLOCK_PARTS:
            yield f"h.{i}.{part}.weight", shapes[part]
            yield f"h.{i}.{part}.bias", shapes[part][-1:]  # one per output
    yield "ln_f.weight", (n_embd,)
    yield "ln_f.bias", (n_embd,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, n_embd)


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter of a checkpoint with this config, in checkpoint order."""
    return dict(named_shapes(config))


def build_model(config: GPT2Config, arrays: Mapping[str, np.ndarray]) -> GPT2:
    """A model of arrays with the names and shapes of `parameter_shapes`, without checks or copies.

    An "lm_head.weight" beside a tied config is taken too.
    """
    def norm(name: str) -> LayerNorm:
        return LayerNorm(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def conv(name: str) -> Conv1D:
        return Conv1D(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def block(name: str) -> Block:
        return Block(
            ln_1=norm(f"{name}.ln_1"),
            attn=Attention(c_attn=conv(f"{name}.attn.c_attn"), c_proj=conv(f"{name}.attn.c_proj")),
            ln_2=norm(f"{name}.ln_2"),
            mlp=MLP(c_fc=conv(f"{name}.mlp.c_fc"), c_proj=conv(f"{name}.mlp.c_proj")),
        )

    wte = arrays["wte.weight"]
    is_tied = config.tie_word_embeddings and "lm_head.weight" not in arrays
    lm_head = wte if is_tied else arrays["lm_head.weight"]
    blocks = tuple(block(f"h.{i}") for i in range(config.n_layer))
    return GPT2(config, wte, arrays["wpe.weight"], blocks, norm("ln_f"), lm_head)


def replace_weights(model: GPT2, replacements: Mapping[str, np.ndarray]) -> GPT2:
    """A new model with some arrays of `named_parameters` replaced; it shares all others with this one.

    In a tied model, "wte.weight" is the unembedding too. Raises ValueError for a name that the model does not have, or
    an array of a different shape or dtype.
    """
    arrays = dict(named_parameters(model))
    for name, array in replacements.items():
        if name not in arrays:
            nearest = difflib.get_close_matches(name, arrays, n=1, cutoff=0)[0]
            raise ValueError(f"the model has no parameter {name!r}; the nearest is {nearest!r}.")
        if (array.shape, array.dtype) != (arrays[name].shape, arrays[name].dtype):
            raise ValueError(f"{name} must have shape {arrays[name].shape}, {arrays[name].dtype}. "
                             f"Got {array.shape}, {array.dtype}.")
    return build_model(model.config, {**arrays, **replacements})


def random_model(config: GPT2Config, seed: int = 0) -> GPT2:
    """An untrained float32 model, reproducible by its seed.

    Weights are normal with standard deviation 0.02, position embeddings with 0.01, as in GPT-2's initialisation. Gains
    and biases are random around 1 and 0, instead of exact, so that a pass that omits one gives different results.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in named_shapes(config):
        array = allocate_parameter(name, shape, np.float32)
        array[...] = rng.standard_normal(shape, dtype=np.float32)
        array *= 0.01 if name == "wpe.weight" else 0.02
        if re.search(r"ln_\w\.weight", name):
            array += 1
        arrays[name] = array
    return build_model(config, arrays)
