"""Statistics of a GPT-2's weights by tensor and by layer, weight tying, and the loss on a text.

All sums are in float64, a million numbers at a time: float32 would lose precision in a sum over 80 million numbers, and
a float64 copy of xl's token embedding alone would need 643 MB.
"""

import math
from dataclasses import dataclass
from typing import Collection, Iterator, Sequence

import numpy as np

from ..scoring import score_tokens
from ..tokenizer import Tokenizer
from ..weights import BLOCK_PARTS, GPT2, named_parameters

CHUNK = 1 << 20  # numbers in float64 at a time: 8 MiB

# Bin edges, in standard deviations from the mean. The outermost two bins also count everything beyond.
HISTOGRAM_EDGES = tuple(i / 2 for i in range(-6, 7))


# Statistics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Summary statistics of a set of numbers."""

    name: str
    count: int
    mean: float
    std: float  # population: sqrt(mean((x - mean)^2))
    smallest: float
    largest: float
    norm: float  # sqrt(sum(x^2)), the Frobenius norm of a matrix
    histogram: tuple[int, ...]  # counts by bin of HISTOGRAM_EDGES


def describe(name: str, *arrays: np.ndarray) -> Statistics:
    """The statistics of one array, or of several together. Raises FloatingPointError for numbers that are not finite.

    The variance takes a second pass: mean(x^2) - mean^2 would lose precision where the mean is large.
    """
    count, total, squares = 0, 0.0, 0.0
    smallest, largest = math.inf, -math.inf
    for chunk in chunks(*arrays):
        count += chunk.size
        total += float(np.sum(chunk))
        squares += float(np.dot(chunk, chunk))
        smallest = min(smallest, float(np.min(chunk)))
        largest = max(largest, float(np.max(chunk)))
    if not math.isfinite(squares):
        raise FloatingPointError(f"{name} has numbers that are not finite, or too large to square")
    # exact for a constant array, whose sum may be rounded
    mean = smallest if smallest == largest else total / count
    std = math.sqrt(sum(float(np.sum((chunk - mean) ** 2)) for chunk in chunks(*arrays)) / count)
    return Statistics(name, count, mean, std, smallest, largest, math.sqrt(squares), histogram(arrays, mean, std))


def histogram(arrays: Sequence[np.ndarray], mean: float, std: float) -> tuple[int, ...]:
    """Counts by bin. Numbers that are all equal go into the bin to the right of the mean."""
    counts = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)
    first, last = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]
    for chunk in chunks(*arrays):
        deviations = (chunk - mean) / std if std > 0 else np.zeros_like(chunk)
        counts += np.histogram(np.clip(deviations, first, last), len(counts), (first, last))[0]
    return tuple(map(int, counts))


def chunks(*arrays: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of the arrays as float64, at most CHUNK at a time."""
    for array in arrays:
        flat = array.reshape(-1)
        for i in range(0, flat.size, CHUNK):
            yield flat[i:i + CHUNK].astype(np.float64)


def tensor_statistics(model: GPT2) -> list[Statistics]:
    """The statistics of every parameter, in the checkpoint's order."""
    return [describe(name, array) for name, array in named_parameters(model)]


def layer_statistics(model: GPT2) -> list[Statistics]:
    """The statistics of all parameters of each block together: `h.0`, `h.1`, ..."""
    arrays = dict(named_parameters(model))
    return [describe(f"h.{i}", *(array for name, array in arrays.items() if name.startswith(f"h.{i}.")))
            for i in range(model.config.n_layer)]


# With depth -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DepthProfile:
    """How one kind of tensor changes from the first block to the last."""

    name: str  # within the block: attn.c_attn.weight
    std: tuple[float, ...]  # by block
    trend: float | None  # correlation of std with depth, from -1 (falls) to 1 (grows); None if std is constant


def depth_profiles(tensors: Sequence[Statistics], n_layer: int) -> list[DepthProfile]:
    """The profile of each weight of a block, from the statistics of all tensors."""
    std = {statistic.name: statistic.std for statistic in tensors}
    profiles = []
    for part in BLOCK_PARTS:
        of_block = tuple(std[f"h.{i}.{part}.weight"] for i in range(n_layer))
        trend = correlation(np.arange(n_layer), np.array(of_block))
        profiles.append(DepthProfile(f"{part}.weight", of_block, trend))
    return profiles


# Two arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightTying:
    """How the unembedding `lm_head` relates to the token embedding `wte`."""

    n_arrays: int  # 1: one array under two names
    correlation: float | None  # elementwise; None if either is constant
    largest_difference: float


def weight_tying(model: GPT2) -> WeightTying:
    """Whether a model's embedding and unembedding are one array, and if not, how similar they are.

    Source: Press and Wolf, "Using the Output Embedding to Improve Language Models".
    """
    if model.lm_head is model.wte:
        return ONE_ARRAY
    pairs = zip(chunks(model.wte), chunks(model.lm_head))
    largest = max(float(np.max(np.abs(wte - lm_head))) for wte, lm_head in pairs)
    return WeightTying(2, correlation(model.wte, model.lm_head), largest)


ONE_ARRAY = WeightTying(1, 1.0, 0.0)  # of an array with itself


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays of the same shape, from -1 to 1. None if either is constant."""
    if np.min(a) == np.max(a) or np.min(b) == np.max(b):
        return None
    mean_a = sum(float(np.sum(chunk)) for chunk in chunks(a)) / a.size
    mean_b = sum(float(np.sum(chunk)) for chunk in chunks(b)) / b.size
    squares_a = squares_b = products = 0.0
    for chunk_a, chunk_b in zip(chunks(a), chunks(b)):
        chunk_a -= mean_a
        chunk_b -= mean_b
        squares_a += float(np.dot(chunk_a, chunk_a))
        squares_b += float(np.dot(chunk_b, chunk_b))
        products += float(np.dot(chunk_a, chunk_b))
    scale = math.sqrt(squares_a) * math.sqrt(squares_b)
    return products / scale if scale > 0 else None


# A text ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts a text. Losses are comparable only with the same tokenizer, bits per byte always."""

    n_tokens: int  # all are scored, the first after <|endoftext|>
    n_bytes: int
    mean_loss: float  # nats per token
    perplexity: float
    bits_per_byte: float


def text_loss(model: GPT2, tokenizer: Tokenizer, text: str, allowed_special: Collection[str] = ()) -> TextLoss:
    """The loss of a whole text, in windows if it is longer than the context. Raises ValueError for an empty text.

    allowed_special: see `Tokenizer.encode`.
    """
    if not text:
        raise ValueError("text must not be empty.")
    ids = tokenizer.encode(text, allowed_special)
    scores = score_tokens(model, tokenizer.with_bos(ids))
    n_bytes = len(text.encode("utf-8"))
    return TextLoss(len(ids), n_bytes, scores.mean_loss, scores.perplexity, scores.bits_per_byte(n_bytes))
