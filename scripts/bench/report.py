"""The benchmark's results: tables, a plot, JSON."""

import statistics
import sys
from dataclasses import dataclass, field

from experiment import draw_lines, picture, print_table

# Measurements are in seconds and bytes; tables show them in these units.
UNITS = {"ms": 1e3, "s": 1, "MB": 1e-6}
LEGEND = """
Medians of the rounds, with the smallest and the largest. "x floor": numpy_gpt2 over the floor. "x ours": transformers
over numpy_gpt2. A ratio is taken within each round, of times seconds apart, since a machine's speed drifts."""


@dataclass
class Measurement:
    """One case: the measurement of each side in each round. Lists are of one length, or empty if not measured."""

    group: str
    case: str
    unit: str  # of the table: a key of UNITS
    floor: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)  # numpy_gpt2's baseline: one sequence, or no lookup
    n_tokens: int = 1  # per step of the case; the baseline has one

    @property
    def times_floor(self):
        """numpy_gpt2's time over the floor; None without a floor."""
        return median_ratio(self.ours, self.floor)

    @property
    def times_ours(self):
        """transformers' time over numpy_gpt2's; None without transformers."""
        return median_ratio(self.theirs, self.ours)

    @property
    def gain(self):
        """The throughput over the baseline's; None without a baseline."""
        ratio = median_ratio(self.plain, self.ours)
        return None if ratio is None else self.n_tokens * ratio

    @property
    def tokens_per_second(self):
        return self.n_tokens / statistics.median(self.ours)


def median_ratio(numerators, denominators):
    """The median of the rounds' ratios; None if either side was not measured."""
    if not numerators or not denominators:
        return None
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


# The table ------------------------------------------------------------------------------------------------------------

GAINS = {"batch": "x one sequence", "lookup": "x plain greedy", "gradients": ""}  # the header of the last column


def print_measurements(group, measurements):
    """The table of a group."""
    header = [group, "floor", "numpy_gpt2", "", "x floor", "transformers", "", "x ours", "tokens/s",
              GAINS.get(group, "")]
    if measurements:
        print()
        print_table(*without_empty_columns(header, [cells(measurement) for measurement in measurements]))
        sys.stdout.flush()


def cells(measurement):
    """A row of the table, with empty cells for what was not measured."""
    scale = UNITS[measurement.unit]
    row = [f"{measurement.case}, {measurement.unit}", *median_and_range(measurement.floor, scale)[:1]]
    row += [*median_and_range(measurement.ours, scale), ratio_text(measurement.times_floor)]
    row += [*median_and_range(measurement.theirs, scale), ratio_text(measurement.times_ours)]
    is_counted = measurement.group in GAINS and measurement.unit != "MB"
    speed = number_text(measurement.tokens_per_second) if is_counted else ""
    return [*row, speed, ratio_text(measurement.gain)]


def median_and_range(values, scale):
    """"20.6" and "(19.9 to 22.1)"."""
    if not values:
        return ["", ""]
    low, middle, high = (number_text(scale * f(values)) for f in (min, statistics.median, max))
    return [middle, f"({low} to {high})"]


def number_text(value):
    """Three significant digits, but all digits before the point: 0.021, 20.6, 1,380."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def ratio_text(ratio):
    return "" if ratio is None else f"{ratio:.2f}"


def without_empty_columns(header, rows):
    """The table without empty columns."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


# JSON -----------------------------------------------------------------------------------------------------------------


def as_json(measurement):
    """Everything in seconds and bytes, each round's values in order."""
    return {"group": measurement.group, "case": measurement.case,
            "unit": "bytes" if measurement.unit == "MB" else "seconds",
            "floor": measurement.floor, "numpy_gpt2": measurement.ours, "transformers": measurement.theirs,
            "plain": measurement.plain, "n_tokens": measurement.n_tokens, "times_floor": measurement.times_floor,
            "times_ours": measurement.times_ours, "gain": measurement.gain}


# The picture ----------------------------------------------------------------------------------------------------------

AXES = {"decode": ("tokens of context", "ms for one token"), "prefill": ("tokens of prompt", "ms"),
        "batch": ("sequences at once", "ms a step")}


def draw(measurements, path):
    """A panel for each group that has an axis: floor, numpy_gpt2, transformers."""
    groups = [group for group in AXES if any(measurement.group == group for measurement in measurements)]
    with picture(path, len(groups)) as panels:
        for panel, group in zip(panels, groups):
            chosen = [measurement for measurement in measurements if measurement.group == group]
            x = [int(measurement.case.split()[0]) for measurement in chosen]
            lines = {"floor": [measurement.floor for measurement in chosen],
                     "numpy_gpt2": [measurement.ours for measurement in chosen],
                     "transformers": [measurement.theirs for measurement in chosen]}
            lines = {label: [1e3 * statistics.median(values) for values in line]
                     for label, line in lines.items() if all(line)}
            draw_lines(panel, x, lines, *AXES[group])
            panel.set(title=group, ylim=(0, None))
