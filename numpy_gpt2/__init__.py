"""GPT-2 in pure NumPy: a forward pass to read, exact and fast enough to use. Start with model.py."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .cli import interrupts  # noqa: F401  (first: it is about Ctrl-C while the rest is imported)
from .backward import backpropagate, loss_and_gradients
from .cache import KVCache
from .checkpoint.loading import load, load_model, load_tokenizer
from .checkpoint.saving import save
from .config import SIZES, GenerationConfig, GPT2Config
from .decoding import generate_tokens, stream_samples, stream_text
from .errors import CheckpointError, HubError
from .lens import (ablate, attribution_patching, chain, direct_logit_attribution, integrated_gradients,
                   logit_difference, logit_lens, mean_ablate, patch, residual_logits, saliency, top_tokens)
from .model import forward, transform, unembed
from .scoring import Scores, pad_ids, score_tokens
from .tap import STAGES, Recorder, no_tap
from .tokenizer import Tokenizer
from .weights import GPT2, build_model, named_parameters, parameter_shapes, random_model, replace_weights

if TYPE_CHECKING:
    from .explore.inline import show
    from .html import show_attention

__version__ = "0.1.0"

__all__ = [
    "GPT2", "GPT2Config", "SIZES", "load", "load_model", "load_tokenizer", "random_model", "build_model", "save",
    "named_parameters", "parameter_shapes", "replace_weights",
    "CheckpointError", "HubError", "Tokenizer", "forward", "transform",
    "unembed", "KVCache", "no_tap", "Recorder", "STAGES", "patch", "ablate", "mean_ablate", "chain", "logit_lens",
    "residual_logits", "top_tokens", "direct_logit_attribution", "saliency", "attribution_patching",
    "logit_difference", "integrated_gradients", "loss_and_gradients", "backpropagate", "generate_tokens",
    "stream_text", "stream_samples", "GenerationConfig", "score_tokens", "Scores", "pad_ids", "show",
    "show_attention",
]

IN_NOTEBOOKS = {"show": ".explore.inline", "show_attention": ".html"}  # imported on first use


def __getattr__(name: str) -> Any:
    if name in IN_NOTEBOOKS:
        return getattr(import_module(IN_NOTEBOOKS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *IN_NOTEBOOKS})
