"""Statistics of a GPT-2's weights by tensor and by layer, and weight tying.

All sums are in float64, a million numbers at a time: float32 would lose precision in a sum over 80 million numbers, and
a float64 copy of all of xl's attention weights would need 3.9 GB.
"""

import math
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from ..weights import GPT2

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

    The variance takes a second pass: mean(x^2) - mean^2 would lose precision where the mean is large. Numbers that are
    all equal have no kurtosis, and go into the bin to the right of the mean.
    Source: Joanes and Gill, "Comparing measures of sample skewness and kurtosis", their g2.
    """
    count, total, squares = sum(array.size for array in arrays), 0.0, 0.0
    for chunk in chunks(*arrays):
        total += float(np.sum(chunk))
        squares += float(np.dot(chunk, chunk))
    if not math.isfinite(squares):
        raise FloatingPointError(f"{name} has numbers that are not finite, or too large to square")
    smallest = min(float(np.min(array)) for array in arrays)
    largest = max(float(np.max(array)) for array in arrays)
    # exact for a constant array, whose sum may be rounded
    mean = smallest if smallest == largest else total / count
    std = math.sqrt(sum(float(np.sum((chunk - mean) ** 2)) for chunk in chunks(*arrays)) / count)
    fourth_powers, n_beyond, histogram = 0.0, 0, np.zeros(2 * HALF, np.int64)
    for chunk in chunks(*arrays):
        deviations = (chunk - mean) / std if std > 0 else np.zeros_like(chunk)
        fourth_powers += float(np.sum(np.square(np.square(deviations))))  # 20 times as fast as **4
        n_beyond += int(np.sum(np.abs(deviations) > 4))
        bins = np.clip(np.floor(deviations / BIN_WIDTH), -HALF, HALF - 1).astype(np.intp)  # by number: 0 at the mean
        histogram += np.bincount(bins + HALF, minlength=2 * HALF)
    kurtosis = fourth_powers / count - 3 if std > 0 else None
    return Statistics(name, count, mean, std, smallest, largest, math.sqrt(squares), kurtosis, n_beyond / count,
                      tuple(histogram.tolist()))


def chunks(*arrays: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of the arrays as float64, at most CHUNK at a time, in memory order: any other would need a copy."""
    for array in arrays:
        flat = array.ravel(order="K")
        for i in range(0, flat.size, CHUNK):
            yield flat[i:i + CHUNK].astype(np.float64)


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


def overlays(groups: Mapping[str, Sequence[np.ndarray]], statistics: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    """wte against wpe, queries against keys and values, attention and MLPs block by block."""
    compared = {"Embeddings": ["wte", "wpe"], "Queries, keys, values": ["queries", "keys", "values"],
                "Attention by block": [name for name in groups if name.endswith(" attention")],
                "MLP by block": [name for name in groups if name.endswith(" MLP")]}
    return [{"title": title, **overlay({name: groups[name] for name in names}, statistics)}
            for title, names in compared.items()]


def overlay(groups: Mapping[str, Sequence[np.ndarray]], statistics: Mapping[str, Statistics]) -> dict[str, Any]:
    """Histograms of several groups on one scale, of raw values (not in standard deviations).

    edges: [N_BINS + 1]. fractions: of all numbers of a group, by bin; those outside the scale are in none.
    """
    reach = OVERLAY_REACH * max(statistics[name].std for name in groups) or 1.0
    fractions = {}
    for name, arrays in groups.items():
        counts = np.zeros(N_BINS, np.int64)
        for chunk in chunks(*arrays):
            counts += np.histogram(chunk, N_BINS, (-reach, reach))[0]
        fractions[name] = (counts / statistics[name].count).tolist()
    return {"edges": np.linspace(-reach, reach, N_BINS + 1).tolist(), "fractions": fractions}


# Correlation ----------------------------------------------------------------------------------------------------------


def depth_profile(name: str, std: Sequence[float]) -> dict[str, Any]:
    """How the deviation of one kind of tensor changes from block to block.

    trend: its correlation with depth, from -1 (falls) to 1 (grows); None if it is constant.
    """
    return {"name": name, "std": std, "trend": correlation(np.arange(len(std)), np.array(std))}


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays of the same shape, from -1 to 1. None if either is constant."""
    if np.min(a) == np.max(a) or np.min(b) == np.max(b):
        return None
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def compare_embeddings(wte: np.ndarray, lm_head: np.ndarray) -> dict[str, Any]:
    """How similar an untied model's unembedding is to its token embedding, element by element.

    Raises FloatingPointError for numbers that are not finite.
    Source: Press and Wolf, "Using the Output Embedding to Improve Language Models".
    """
    with np.errstate(invalid="ignore"):  # of two infinities
        largest = float(np.max(np.abs(np.subtract(wte, lm_head, dtype=np.float64))))
    if not math.isfinite(largest):
        raise FloatingPointError("wte.weight or lm_head.weight has numbers that are not finite")
    return {"n_arrays": 2, "correlation": correlation(wte, lm_head), "largest_difference": largest}
