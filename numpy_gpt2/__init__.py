"""GPT-2 in pure NumPy: a forward pass to read, exact and fast enough to use. Start with model.py."""

from .cache import KVCache
from .checkpoint import load, load_model, load_tokenizer
from .weights import build_model, parameter_shapes, random_model
from .config import SIZES, CheckpointError, GPT2Config
from .decoding import generate_tokens, stream_samples, stream_text
from .hub import HubError
from .lens import ablate, chain, direct_logit_attribution, logit_lens, patch, residual_logits, top_tokens
from .model import forward, transform, unembed
from .weights import GPT2, named_parameters
from .sampling import Sampling
from .saving import save
from .scoring import Scores, score_tokens
from .tap import STAGES, Recorder, no_tap
from .tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "GPT2", "GPT2Config", "SIZES", "load", "load_model", "load_tokenizer", "random_model", "build_model", "save",
    "named_parameters", "parameter_shapes", "CheckpointError", "HubError", "Tokenizer", "forward", "transform",
    "unembed", "KVCache", "no_tap", "Recorder", "STAGES", "patch", "ablate", "chain", "logit_lens",
    "residual_logits", "top_tokens", "direct_logit_attribution", "generate_tokens", "stream_text", "stream_samples",
    "Sampling", "score_tokens", "Scores",
]
