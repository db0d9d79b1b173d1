"""From logits to a token: what the settings of a generation do to the model's probabilities.

Each step takes logits [..., vocab_size] and gives logits of the same shape, with -inf for the tokens that it excludes.
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
    """What all generating functions take, for type checkers; `generate_tokens` says what it means."""

    top_log_probs: int
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor]
    tap: Tap


def process_logits(logits: np.ndarray, previous_ids: np.ndarray, config: GenerationConfig,
                   processors: Sequence[LogitsProcessor] = ()) -> np.ndarray:
    """All settings applied: logits [..., vocab_size], previous_ids [..., n_previous] -> logits [..., vocab_size].

    With temperature 0, what follows the processors is left out: it does not change which token is the likeliest.
    Raises FloatingPointError where the logits are not finite (weights that are not, or that overflow), and ValueError
    for what a processor may not return.
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


def check_finite(logits: np.ndarray, reason: str = "the checkpoint's weights are not, or they overflow") -> None:
    """Raise FloatingPointError, with the reason, for logits that are NaN or infinite."""
    if not np.isfinite(logits).all():
        raise FloatingPointError(f"the logits are not finite: {reason}")


def apply_repetition_penalty(logits: np.ndarray, previous_ids: np.ndarray, penalty: float) -> np.ndarray:
    """Make every token that was there before less likely: a positive logit is divided, a negative one multiplied.

    Source: Keskar et al., "CTRL: A Conditional Transformer Language Model", section 4.1.
    """
    vocab_size = logits.shape[-1]
    n_ids = max(vocab_size, 1 + np.max(previous_ids, initial=-1))  # a prompt may hold ids that are not to be drawn
    seen = np.zeros((*logits.shape[:-1], n_ids), dtype=bool)
    np.put_along_axis(seen, previous_ids, True, axis=-1)
    seen = seen[..., :vocab_size]
    with np.errstate(all="ignore"):  # what overflows is refused by the caller
        divisor = logits.dtype.type(penalty)  # NumPy 1 would go over to float64 for a penalty beyond float32
        penalised = np.where(logits < 0, logits * divisor, logits / divisor)
    return np.where(seen, penalised, logits)


def apply_processor(logits: np.ndarray, previous_ids: np.ndarray, processor: LogitsProcessor) -> np.ndarray:
    """What a function of the user's makes of the logits. Raises ValueError unless they still give a distribution."""
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
    """Divide: below 1 the likely tokens gain, above 1 the unlikely ones do. temperature > 0.

    The largest logit is moved to 0 first, which softmax does not see, so that a tiny temperature cannot overflow.
    """
    largest = np.max(logits, axis=-1, keepdims=True)  # [..., 1]
    smallest_divisor = float(np.finfo(logits.dtype).tiny)  # below it, the temperature might become 0 in float32
    with np.errstate(over="ignore"):  # a quotient beyond float32 is -inf, a probability of 0
        return (logits - largest) / max(temperature, smallest_divisor)


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Only the k likeliest tokens, and those as likely as the k-th.

    Source: Fan et al., "Hierarchical Neural Story Generation", section 5.4.
    """
    k = min(k, logits.shape[-1])
    kth_largest = np.partition(logits, -k, axis=-1)[..., -k, np.newaxis]  # [..., 1]
    return mask_logits(logits, logits < kth_largest)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The fewest likeliest tokens whose probabilities reach p together.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    order = np.argsort(logits, axis=-1, kind="stable")  # the unlikeliest first
    cumulative = np.cumsum(softmax(np.take_along_axis(logits, order, axis=-1)), axis=-1, dtype=np.float64)
    unlikely = cumulative <= 1 - p  # all that the rest reaches p without
    unlikely[..., -1] = False  # the likeliest token stays, however small p is
    excluded = np.empty_like(unlikely)
    np.put_along_axis(excluded, order, unlikely, axis=-1)
    return mask_logits(logits, excluded)


def keep_min_p(logits: np.ndarray, min_p: float) -> np.ndarray:
    """Only the tokens at least min_p times as likely as the likeliest.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", section 3.
    """
    probabilities = softmax(logits)
    likeliest = np.max(probabilities, axis=-1, keepdims=True)  # [..., 1]
    return mask_logits(logits, probabilities < min_p * likeliest)


def mask_logits(logits: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """-inf, a probability of exactly 0, where `excluded` is true: two of [..., vocab_size] -> [..., vocab_size]."""
    return np.where(excluded, -np.inf, logits)


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One token for each row, by the inverse of the cumulative distribution: the first that passes the draw.

    logits [..., vocab_size], draws [...] from 0 up to but not including 1 -> ids [...].
    """
    cumulative = np.cumsum(softmax(logits), axis=-1, dtype=np.float64)
    cumulative = cumulative / cumulative[..., -1:]  # ends at exactly 1, above every draw
    return np.argmax(cumulative > draws[..., np.newaxis], axis=-1)
