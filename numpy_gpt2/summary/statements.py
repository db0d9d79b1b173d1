"""The course's statements about GPT-2's parameters and weights, each checked against measurements."""

import math
from dataclasses import dataclass
from typing import Iterator, Mapping, Sequence

from ..config import SIZES
from .report import Report, Reports

ALIKE = 0.1  # two standard deviations are alike if they differ by less than this fraction of the larger one
GROWS = math.sqrt(0.5)  # it grows with depth if the correlation exceeds this: depth explains half of its variance


@dataclass(frozen=True)
class Statement:
    """What the course says, whether it holds, and what was measured."""

    said: str  # by the course
    holds: bool
    found: str  # the measured values

    @property
    def verdict(self) -> str:
        return f'"{self.said}" {"holds" if self.holds else "does not hold"}: {self.found}.'


# Of the four sizes ----------------------------------------------------------------------------------------------------

# Kind -> the course's name for it, and its percentages of small, medium, large and xl.
PERCENTAGES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "attn": ("Attention is", (22, 28, 30, 31)), "mlp": ("The MLPs are", (45, 56, 60, 63))}


def size_statements(reports: Reports) -> Iterator[Statement]:
    """The statements about the released sizes, from their counts; none if a size is missing."""
    if not SIZES.keys() <= reports.keys():
        return
    counts = [reports[size]["counts"] for size in SIZES]
    of_all, of_weights = ([one[key] for one in counts] for key in ("fractions", "weight_fractions"))
    for kind, (name, said) in PERCENTAGES.items():
        measured = " and ".join(f"{percentages(fractions, kind, 2)} {of_what}{matching(fractions, kind, said)}"
                                for fractions, of_what in ((of_weights, "without biases"),
                                                           (of_all, "of all parameters")))
        yield Statement(f"{name} about {in_order(said)}%",
                        all(abs(100 * one[kind] - n) <= 1.01 for one, n in zip(of_weights, said)), measured)
    yield Statement(
        "Layer norms are under 0.01%", max(one["ln"] for one in of_all) < 1e-4,
        f"{percentages(of_weights, 'ln', 5)} without biases and {percentages(of_all, 'ln', 3)} of all parameters")
    wte, wpe = ([one["kinds"][kind] for one in counts] for kind in ("wte", "wpe"))
    rows = {(config.vocab_size, config.n_positions) for config in SIZES.values()}
    yield Statement(
        "Embeddings have the same size in all versions", len(set(wte)) == 1,
        f"wte grows from {wte[0] / 1e6:.1f}M to {wte[-1] / 1e6:.1f}M and wpe from {wpe[0] / 1e6:.1f}M to "
        f"{wpe[-1] / 1e6:.1f}M; only the numbers of rows do not change: "
        f"{' or '.join(f'{n_tokens:,} and {n_positions:,}' for n_tokens, n_positions in rows)}")
    gains = [one["weight_kinds"]["ln"] for one in counts]
    shifts = [one["kinds"]["ln"] - n for one, n in zip(counts, gains)]
    yield Statement("In layer norms, weights and biases are equal in number", gains == shifts,
                    f"weights {in_order(gains)}; biases {in_order(shifts)}")


def percentages(fractions: Sequence[Mapping[str, float]], kind: str, decimals: int) -> str:
    return f"{', '.join(f'{100 * one[kind]:.{decimals}f}' for one in fractions)}%"


def matching(fractions: Sequence[Mapping[str, float]], kind: str, said: Sequence[int]) -> str:
    """A remark if the course's percentages are these fractions, rounded down."""
    cut = [int(100 * one[kind]) for one in fractions]
    return " (rounded down, these are the course's figures)" if cut == list(said) else ""


def in_order(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


# Of one model's weights -----------------------------------------------------------------------------------------------


def value_statements(found: Report) -> Iterator[Statement]:
    """The statements about the distributions of trained weights, from the section `values` of a report."""
    std = {one["name"]: one["std"] for one in found["groups"]}
    kurtosis = {one["name"]: one["kurtosis"] for one in found["groups"]}
    embeddings = found["overlays"][0]["fractions"]
    near = {name: sum(bins[len(bins) // 2 - 1:len(bins) // 2 + 1]) for name, bins in embeddings.items()}
    yield Statement(
        "wte is wide, wpe near zero", near["wpe"] > 2 * near["wte"],
        f"{near['wpe']:.0%} of the numbers in wpe and {near['wte']:.0%} of those in wte are closer to 0 than a tenth "
        "of the larger standard deviation (in a normal distribution, 8%; the criterion is more than twice as many in "
        f"wpe); the standard deviations are {std['wpe']:.3g} and {std['wte']:.3g}, the excess kurtosis is "
        f"{rounded(kurtosis['wpe'])} and {rounded(kurtosis['wte'])}")
    profiles = {one["name"]: one for one in found["group_depth"]}
    ends = [f"in {name} from {profiles[name]['std'][0]:.3g} to {profiles[name]['std'][-1]:.3g} (trend "
            f"{signed(profiles[name]['trend'])})" for name in ("attention", "MLP")]
    yield Statement(
        "Later layers are wider", all((profiles[name]["trend"] or 0) > GROWS for name in ("attention", "MLP")),
        f"from the first block to the last, the standard deviation changes {' and '.join(ends)}. The trend is its "
        f"correlation with the block number; the criterion is more than {GROWS:.2f} in both")
    queries, keys, values = (std[name] for name in ("queries", "keys", "values"))
    yield Statement(
        "Q and K alike, V narrower",
        abs(queries - keys) <= ALIKE * max(queries, keys) and values < (1 - ALIKE) * min(queries, keys),
        f"the standard deviations are {queries:.3g}, {keys:.3g} and {values:.3g} (the criterion is Q and K "
        f"within {ALIKE:.0%}, V narrower by more)")


def rounded(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.3g}"


def signed(trend: float | None) -> str:
    return "none" if trend is None else f"{trend:+.2f}"
