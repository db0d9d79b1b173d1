"""The settings of a GPT-2, under the names in the hub's `config.json`; the released sizes; settings of generation."""

import difflib
import json
import sys
from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence, TypedDict

import numpy as np

from .errors import check_int, check_number, shown

# The largest value of any setting: far above every GPT-2, but low enough that a nonsensical size is refused with a
# message instead of an attempt to allocate it.
LARGEST_SETTING = 2**31 - 1
LARGEST_FLOAT, SMALLEST_FLOAT = sys.float_info.max, 5e-324  # finite, above 0

# Settings that change the computation, and their supported values. (checkpoint/loading.py folds the scale of attention
# scores into the weights.)
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (False, True),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, [], None),
}

# transformers' aliases of settings. If a config.json has both names, the alias wins, as in transformers.
ALIASES = {"num_attention_heads": "n_head", "hidden_size": "n_embd", "num_hidden_layers": "n_layer",
           "max_position_embeddings": "n_positions"}

# Name in a config.json -> name in ops.py.
ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new",
               "gelu_python_tanh": "gelu_new", "gelu_accurate": "gelu_new",
               "gelu": "gelu", "gelu_python": "gelu", "relu": "relu"}


@dataclass(frozen=True)
class GPT2Config:
    """The architecture of one GPT-2: its sizes and settings.

    Raises ValueError, naming the setting, for an invalid value.
    Source: transformers' `GPT2Config`, whose names and defaults these are.
    """

    vocab_size: int = 50257  # rows of wte: the number of different tokens
    n_positions: int = 1024  # rows of wpe: the context, the longest text that the model can attend to
    n_embd: int = 768  # width of the residual stream
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = None  # type: ignore[assignment]  # width inside the MLP; None, or null, means 4 * n_embd
    activation_function: str = "gelu_new"  # of the MLP: "gelu_new" (the tanh form), "gelu" (by erf) or "relu"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True  # whether the unembedding is wte itself
    bos_token_id: int | None = 50256  # the token that begins a text: <|endoftext|>, which separates texts
    eos_token_id: int | tuple[int, ...] | None = 50256  # the token that ends a text; some fine-tunes have several

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                value = 4 * self.n_embd
                object.__setattr__(self, name, value)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SETTING:
                raise ValueError(f"{name} must be a whole number from 1 to {LARGEST_SETTING}. Got {shown(value)}.")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head. Got n_embd {self.n_embd}, n_head {self.n_head}.")
        activation = self.activation_function
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"activation_function must be one of {', '.join(ACTIVATIONS)}. Got {shown(activation)}.")
        object.__setattr__(self, "activation_function", ACTIVATIONS[activation])
        epsilon = self.layer_norm_epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
            raise ValueError(f"layer_norm_epsilon must be a number between 0 and 1. Got {shown(epsilon)}.")
        object.__setattr__(self, "layer_norm_epsilon", float(epsilon))  # a NumPy scalar would make the pass float64
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"tie_word_embeddings must be true or false. Got {shown(self.tie_word_embeddings)}.")
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            several = name == "eos_token_id" and isinstance(value, (list, tuple))
            if value is not None and not all(type(token_id) is int for token_id in (value if several else [value])):
                raise ValueError(f"{name} must be a token id or null. Got {shown(value)}.")
            if several:
                object.__setattr__(self, name, tuple(value))  # so that the config stays hashable

    @property
    def d_head(self) -> int:
        """Width of one head's query, key and value."""
        return self.n_embd // self.n_head

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "GPT2Config":
        """The config of a hub `config.json`, with transformers' defaults for missing settings.

        Raises ValueError, naming key and value, for a setting that this forward pass does not support.
        """
        for name, supported in SUPPORTED.items():
            value = settings.get(name, supported[0])
            if not any(type(value) is type(known) and value == known for known in supported):
                raise ValueError(f"{name} must be {' or '.join(map(json.dumps, supported))}. "
                                 f"Got {json.dumps(value, default=repr)[:100]}.")
        settings = {**settings, **{name: settings[alias] for alias, name in ALIASES.items() if alias in settings}}
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__ if name in settings})

    def _repr_html_(self) -> str:
        from .html import settings_html
        return settings_html(self)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a hub `config.json`, which transformers can read."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": self.n_positions, **own}


SIZES: Mapping[str, GPT2Config] = {
    "small": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}


# What the generating functions take by keyword besides these settings: a slip may have meant one of them.
GENERATION_PARAMETERS = ("generation_config", "vocab_size", "top_log_probs", "logits_processor", "tap")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of a generation. The defaults sample from the model's own probabilities.

    max_new_tokens: None continues to the end of the context.
    temperature: 0 is greedy; 1 keeps the probabilities; higher values flatten them.
    top_k, top_p, min_p, repetition_penalty: see sampling.py; off by default (0, 1, 0 and 1).
    num_return_sequences: the number of samples of each prompt, which is processed only once.
    seed: the same seed samples the same tokens; sample 0 does not depend on the number of samples.
    eos_token_id: one or more ids that end a row; None means the checkpoint's, -1 none.
    stop_strings: for `stream_text`: the text ends before the first of these that appears.
    prompt_lookup_num_tokens: for greedy generation of one row, draft at most this many tokens from the text itself
        (prompt_lookup.py): the same ids, faster where the text repeats itself. 0 is off.
    Raises ValueError for an invalid value. Names are those of transformers' `GenerationConfig`.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_return_sequences: int | None = None
    seed: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] = ()
    prompt_lookup_num_tokens: int | None = 0

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 0), ("top_k", 0), ("num_return_sequences", 1), ("seed", 0),
                          ("prompt_lookup_num_tokens", 0)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_int(name, getattr(self, name), low))
        for name, least, most, meaning in (
                ("temperature", 0, LARGEST_FLOAT, "0 (greedy) or a larger finite number"),
                ("top_p", SMALLEST_FLOAT, 1, "above 0 and at most 1 (off)"),
                ("min_p", 0, 1, "from 0 (off) to 1"),
                ("repetition_penalty", SMALLEST_FLOAT, LARGEST_FLOAT, "above 0 and finite; 1 is off")):
            object.__setattr__(self, name, check_number(name, getattr(self, name), least, most, meaning))
        if self.eos_token_id is not None:
            ids = np.ravel(np.asarray(self.eos_token_id, dtype=object))
            object.__setattr__(self, "eos_token_id", tuple(check_int("eos_token_id", token_id, -1) for token_id in ids))
        texts = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop_strings must be non-empty strings. Got {shown(self.stop_strings)}.")
        object.__setattr__(self, "stop_strings", texts)
        if self.prompt_lookup_num_tokens and (self.temperature != 0 or self.num_return_sequences is not None):
            raise ValueError("prompt_lookup_num_tokens works only for greedy generation of one row: temperature must "
                             f"be 0. Got {self.temperature}, num_return_sequences={self.num_return_sequences}.")

    def updated(self, **settings: Any) -> "GenerationConfig":
        """A copy with these settings changed. Raises TypeError, with the nearest name, for an unknown setting."""
        if not isinstance(self, GenerationConfig):  # the argument of a generating function
            raise TypeError("generation_config must be a GenerationConfig, such as GenerationConfig(temperature=0.8); "
                            f"settings can also be given by keyword. Got {type(self).__name__}.")
        known = self.__dataclass_fields__
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, {*known, *GENERATION_PARAMETERS} - {name}, n=1)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise TypeError(f"unknown generation setting {name!r}{hint}")
        return replace(self, **settings)


class GenerationSettings(TypedDict, total=False):
    """The fields of `GenerationConfig` by keyword, for type checkers; two are in the signatures themselves."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    eos_token_id: int | Sequence[int] | None
    stop_strings: str | Sequence[str]
    prompt_lookup_num_tokens: int | None
