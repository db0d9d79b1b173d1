"""Statistics of a GPT-2's weights by tensor and by layer, weight tying, and the loss on a text.

All sums are in float64, a million numbers at a time: float32 would lose precision in a sum over 80 million numbers, and
a float64 copy of xl's token embedding alone would need 643 MB.
"""

import math
from dataclasses import dataclass
from typing import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..scoring import score_tokens
from ..tokenizer import Tokenizer
from ..weights import BLOCK_PARTS, GPT2, named_parameters

CHUNK = 1 << 20  # numbers in float64 at a time: 8 MiB

# Bin edges, in standard deviations from the mean. The outermost two bins also count everything beyond.
HALF, BIN_WIDTH = 6, 0.5  # bins on each side of the mean
HISTOGRAM_EDGES = tuple(i * BIN_WIDTH for i in range(-HALF, HALF + 1))


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
    kurtosis: float | None  # excess: mean(((x - mean) / std)^4) - 3, a normal's is 0; None if std is 0
    beyond_4: float  # fraction of numbers more than four standard deviations from the mean
    histogram: tuple[int, ...]  # counts by bin of HISTOGRAM_EDGES


def describe(name: str, *arrays: np.ndarray) -> Statistics:
    """The statistics of one array, or of several together. Raises FloatingPointError for numbers that are not finite.

    The variance takes a second pass: mean(x^2) - mean^2 would lose precision where the mean is large.
    """
    arrays = in_memory_order(arrays)
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
    kurtosis, beyond_4, histogram = shape_of(arrays, mean, std)
    return Statistics(name, count, mean, std, smallest, largest, math.sqrt(squares), kurtosis, beyond_4, histogram)


def shape_of(arrays: Sequence[np.ndarray], mean: float, std: float) -> tuple[float | None, float, tuple[int, ...]]:
    """Excess kurtosis, fraction beyond four deviations and histogram, of the numbers in deviations from the mean.

    Numbers that are all equal have no kurtosis, and go into the bin to the right of the mean.
    Source: Joanes and Gill, "Comparing measures of sample skewness and kurtosis", their g2.
    """
    count, fourth_powers, n_beyond = 0, 0.0, 0
    bins = np.zeros(2 * HALF, np.int64)
    for chunk in chunks(*arrays):
        deviations = (chunk - mean) / std if std > 0 else np.zeros_like(chunk)
        count += chunk.size
        fourth_powers += float(np.sum(np.square(np.square(deviations))))  # 20 times as fast as **4
        n_beyond += int(np.sum(np.abs(deviations) > 4))
        numbers = np.clip(np.floor(deviations / BIN_WIDTH), -HALF, HALF - 1).astype(np.intp)  # of bins; 0 at the mean
        bins += np.bincount(numbers + HALF, minlength=2 * HALF)
    kurtosis = fourth_powers / count - 3 if std > 0 else None
    return kurtosis, n_beyond / count, tuple(map(int, bins))


def chunks(*arrays: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of the arrays as float64, at most CHUNK at a time."""
    for array in arrays:
        flat = array.reshape(-1)
        for i in range(0, flat.size, CHUNK):
            yield flat[i:i + CHUNK].astype(np.float64)


def in_memory_order(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays, transposed where that saves `chunks` a copy: only for statistics that ignore the order."""
    return tuple(array.T if array.flags.f_contiguous else array for array in arrays)


def tensor_statistics(model: GPT2) -> list[Statistics]:
    """The statistics of every parameter, in the checkpoint's order."""
    return [describe(name, array) for name, array in named_parameters(model)]


def layer_statistics(model: GPT2) -> list[Statistics]:
    """The statistics of all parameters of each block together: `h.0`, `h.1`, ..."""
    arrays = dict(named_parameters(model))
    return [describe(f"h.{i}", *(array for name, array in arrays.items() if name.startswith(f"h.{i}.")))
            for i in range(model.config.n_layer)]


# By purpose -----------------------------------------------------------------------------------------------------------

# The matrices of a block by purpose; biases and layer norms are left out. The fused c_attn has q, k and v side by side.
GROUPS = ("queries", "keys", "values", "attention", "MLP")

# Of a normal distribution, for comparison.
NORMAL_BEYOND_4 = math.erfc(4 / math.sqrt(2))  # 6.3e-5
NORMAL_BELOW = (0.0, *((1 + math.erf(edge / math.sqrt(2))) / 2 for edge in HISTOGRAM_EDGES[1:-1]), 1.0)
NORMAL_HISTOGRAM = tuple(round(1e6 * fraction) for fraction in np.diff(NORMAL_BELOW))  # of a million numbers


def grouped_weights(model: GPT2) -> dict[str, list[np.ndarray]]:
    """The matrices by name: wte, wpe, each of GROUPS in all blocks, then in each block, as in "h.0 queries"."""
    by_block: dict[str, list[np.ndarray]] = {}
    for i, block in enumerate(model.h):
        c_attn, c_proj = block.attn.c_attn.weight, block.attn.c_proj.weight
        queries, keys, values = np.split(c_attn, 3, axis=-1)  # three of [n_embd, n_embd]
        groups = ([queries], [keys], [values], [c_attn, c_proj], [block.mlp.c_fc.weight, block.mlp.c_proj.weight])
        by_block |= {f"h.{i} {name}": arrays for name, arrays in zip(GROUPS, groups)}
    whole = {name: [array for i in range(len(model.h)) for array in by_block[f"h.{i} {name}"]] for name in GROUPS}
    return {"wte": [model.wte], "wpe": [model.wpe], **whole, **by_block}


N_BINS = 80  # of an overlay
OVERLAY_REACH = 4  # the scale's end on each side of 0, in units of the largest standard deviation


@dataclass(frozen=True)
class Overlay:
    """Histograms of several groups on one scale, of raw values (not in standard deviations)."""

    title: str
    edges: tuple[float, ...]  # [N_BINS + 1]
    fractions: dict[str, tuple[float, ...]]  # of all numbers of a group, by bin; those outside the scale are in none


def overlays(groups: Mapping[str, Sequence[np.ndarray]], statistics: Mapping[str, Statistics]) -> list[Overlay]:
    """wte against wpe, queries against keys and values, attention and MLPs block by block."""
    compared = {"Embeddings": ["wte", "wpe"], "Queries, keys, values": ["queries", "keys", "values"]}
    for name in ("attention", "MLP"):
        compared[f"{name[0].upper()}{name[1:]} by block"] = [group for group in groups if group.endswith(f" {name}")]
    return [overlay(title, names, groups, statistics) for title, names in compared.items()]


def overlay(title: str, names: Sequence[str], groups: Mapping[str, Sequence[np.ndarray]],
            statistics: Mapping[str, Statistics]) -> Overlay:
    reach = OVERLAY_REACH * max(statistics[name].std for name in names) or 1.0
    fractions = {}
    for name in names:
        counts = np.zeros(N_BINS, np.int64)
        for chunk in chunks(*in_memory_order(groups[name])):
            counts += np.histogram(chunk, N_BINS, (-reach, reach))[0]
        fractions[name] = tuple((counts / statistics[name].count).tolist())
    return Overlay(title, tuple(np.linspace(-reach, reach, N_BINS + 1).tolist()), fractions)


# With depth -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DepthProfile:
    """How one kind of tensor changes from the first block to the last."""

    name: str  # within the block: attn.c_attn.weight, or one of GROUPS
    std: tuple[float, ...]  # by block
    trend: float | None  # correlation of std with depth, from -1 (falls) to 1 (grows); None if std is constant


def depth_profiles(tensors: Sequence[Statistics], n_layer: int) -> list[DepthProfile]:
    """The profile of each weight of a block, from the statistics of all tensors."""
    std = {statistic.name: statistic.std for statistic in tensors}
    return [depth_profile(f"{part}.weight", [std[f"h.{i}.{part}.weight"] for i in range(n_layer)])
            for part in BLOCK_PARTS]


def depth_profile(name: str, std: Sequence[float]) -> DepthProfile:
    return DepthProfile(name, tuple(std), correlation(np.arange(len(std)), np.array(std)))


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
    """A model's loss on a text, comparable between models with the same tokenizer; bits per byte always are."""

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
