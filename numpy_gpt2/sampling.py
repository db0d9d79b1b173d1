"""From logits to a token: how the settings of generation change the model's probabilities.

Each step takes logits [..., vocab_size] and returns logits of the same shape, with -inf for excluded tokens.
The order is transformers': repetition penalty, logits processors (your own functions), temperature, top-k, top-p,
min-p; then softmax, and one draw.
"""

from typing import Callable, Sequence

import numpy as np

from .config import GenerationConfig, GenerationSettings
from .ops import softmax
from .tap import Tap

# ids so far, the prompt included, [*rows, n_so_far], and logits [*rows, vocab_size] -> logits; -inf forbids a token
LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]


class GenerationOptions(GenerationSettings, total=False):
    """The keyword arguments of all generating functions, for type checkers; see `generate_tokens`."""

    top_log_probs: int
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor]
    tap: Tap


def process_logits(logits: np.ndarray, previous_ids: np.ndarray, config: GenerationConfig,
                   processors: Sequence[LogitsProcessor] = ()) -> np.ndarray:
    """Apply all settings: logits [..., vocab_size], previous_ids [..., n_previous] -> logits [..., vocab_size].

    With temperature 0, the steps after the processors are skipped: they do not change the most likely token.
    Raises FloatingPointError for logits that are not finite (weights that are not, or that overflow), and ValueError
    for an invalid result of a processor.
    """
    check_finite(logits)
    if config.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, previous_ids, config.repetition_penalty)
        check_finite(logits, "the repetition penalty makes them overflow")
    for processor in processors:
        logits = apply_processor(logits, previous_ids, processor)
    if config.temperature == 0:
        return logits
    if config.temperature != 1:
        logits = apply_temperature(logits, config.temperature)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


NOT_FINITE = "the checkpoint's weights are not, or they overflow, or a tap returned such numbers"


def check_finite(logits: np.ndarray, reason: str = NOT_FINITE) -> None:
    """Raise FloatingPointError, with the reason, for logits that are NaN or infinite."""
    if not np.isfinite(logits).all():
        raise FloatingPointError(f"the logits are not finite: {reason}")


def apply_repetition_penalty(logits: np.ndarray, previous_ids: np.ndarray, penalty: float) -> np.ndarray:
    """Make earlier tokens less likely: their positive logits are divided by the penalty, negative ones multiplied.

    Source: Keskar et al., "CTRL: A Conditional Transformer Language Model", section 4.1.
    """
    vocab_size = logits.shape[-1]
    n_ids = max(vocab_size, 1 + np.max(previous_ids, initial=-1))  # a prompt may have ids that are never sampled
    seen = np.zeros((*logits.shape[:-1], n_ids), dtype=bool)
    np.put_along_axis(seen, previous_ids, True, axis=-1)
    seen = seen[..., :vocab_size]
    with np.errstate(all="ignore"):  # the caller checks for overflow
        divisor = logits.dtype.type(penalty)  # NumPy 1 would change to float64 for a penalty beyond float32
        penalised = np.where(logits < 0, logits * divisor, logits / divisor)
    return np.where(seen, penalised, logits)


def apply_processor(logits: np.ndarray, previous_ids: np.ndarray, processor: LogitsProcessor) -> np.ndarray:
    """Apply a user's logits processor. Raises ValueError unless the result still gives a distribution."""
    new = processor(previous_ids.copy(), logits.copy())  # copies: it may write to them
    got = f"{new.shape}, {new.dtype}" if isinstance(new, np.ndarray) else type(new).__name__
    if got != f"{logits.shape}, {logits.dtype}":
        raise ValueError(f"a logits processor must return shape {logits.shape}, {logits.dtype}. Got {got}.")
    if not np.all(new < np.inf):
        raise ValueError("a logits processor must return numbers, or -inf to forbid a token. Got NaN or +inf.")
    if np.any(np.max(new, axis=-1) == -np.inf):
        raise ValueError("a logits processor must leave a token that can be drawn. Got -inf for all of a row.")
    return new


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Divide logits by temperature > 0: below 1 favours likely tokens, above 1 unlikely ones.

    The largest logit is shifted to 0 first, which softmax ignores, so that a tiny temperature cannot overflow.
    """
    largest = np.max(logits, axis=-1, keepdims=True)  # [..., 1]
    smallest_divisor = float(np.finfo(logits.dtype).tiny)  # below it, the temperature might become 0 in float32
    with np.errstate(over="ignore"):  # a quotient beyond float32 is -inf, a probability of 0
        return (logits - largest) / max(temperature, smallest_divisor)


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep only the k most likely tokens, and ties with the k-th.

    Source: Fan et al., "Hierarchical Neural Story Generation", section 5.4.
    """
    k = min(k, logits.shape[-1])
    kth_largest = np.partition(logits, -k, axis=-1)[..., -k, np.newaxis]  # [..., 1]
    return mask_logits(logits, logits < kth_largest)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the smallest set of most likely tokens with a total probability of at least p.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    order = np.argsort(logits, axis=-1, kind="stable")  # the least likely first
    cumulative = np.cumsum(softmax(np.take_along_axis(logits, order, axis=-1)), axis=-1, dtype=np.float64)
    unlikely = cumulative <= 1 - p  # the rest reaches p without these
    unlikely[..., -1] = False  # the most likely token stays, however small p is
    excluded = np.empty_like(unlikely)
    np.put_along_axis(excluded, order, unlikely, axis=-1)
    return mask_logits(logits, excluded)


def keep_min_p(logits: np.ndarray, min_p: float) -> np.ndarray:
    """Keep only tokens at least min_p times as likely as the most likely one.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", section 3.
    """
    probabilities = softmax(logits)
    likeliest = np.max(probabilities, axis=-1, keepdims=True)  # [..., 1]
    return mask_logits(logits, probabilities < min_p * likeliest)


def mask_logits(logits: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Set logits to -inf, a probability of exactly 0, where `excluded` is true: both [..., vocab_size]."""
    return np.where(excluded, -np.inf, logits)


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Sample one token per row by inverting the cumulative distribution: the first that exceeds the draw.

    logits [..., vocab_size], draws [...] uniform in [0, 1) -> ids [...].
    """
    cumulative = np.cumsum(softmax(logits), axis=-1, dtype=np.float64)
    cumulative = cumulative / cumulative[..., -1:]  # ends at exactly 1, above every draw
    return np.argmax(cumulative > draws[..., np.newaxis], axis=-1)
