"""Plots of reports. They need matplotlib, from the extra `plot`."""

from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

from ..cli.arguments import check_plot
from .report import KINDS, ROLES, Report, Reports
from .statements import rounded

MOST_COLUMNS = 2  # of panels: more would be illegible when the picture is scaled to a page


def check_panels(path: Path, sections: Sequence[str], has_loss: bool) -> None:
    """Raise ValueError, before any computation, if there is nothing to plot or the file cannot be written."""
    if not has_loss and not {*PANELS, "values"} & set(sections):
        raise ValueError("--plot draws --counts, --biases, --values, --text: choose at least one")
    check_plot(path)


def draw_reports(reports: Reports, path: Path) -> None:
    """Save one figure, with a panel for each section in PANELS, and six for the values of each model."""
    from matplotlib.figure import Figure
    reports = {name.encode(errors="replace").decode(): found for name, found in reports.items()}  # names of folders too
    panels: list[Callable[[Any], None]] = [partial(draw, reports=reports) for section, draw in PANELS.items()
                                           if any(section in found for found in reports.values())]
    for name, found in reports.items():
        values = found.get("values", {})
        if "overlays" in values:
            title = f"{name}: " if len(reports) > 1 else ""
            panels += [partial(draw_depth, profiles=values[key], title=f"{title}{what} by depth")
                       for key, what in (("depth", "Weights"), ("group_depth", "Matrices"))]
            groups = {one["name"]: one for one in values["groups"]}
            panels += [partial(draw_overlay, overlay=one, groups=groups, title=f"{title}{one['title']}")
                       for one in values["overlays"]]
    n_columns = min(len(panels), MOST_COLUMNS)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(5 * n_columns, 4.6 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
        panel(axes)
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


def legend_below(axes: Any, n_columns: int = 2) -> None:
    """Put the legend below the axes, where it covers no data."""
    axes.legend(fontsize="small", ncols=n_columns, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def draw_counts(axes: Any, reports: Reports) -> None:
    bottom = dict.fromkeys(reports, 0.0)
    for kind, label in KINDS.items():
        heights = {name: found["counts"]["fractions"].get(kind, 0.0) for name, found in reports.items()}
        if any(heights.values()):
            axes.bar(list(reports), list(heights.values()), bottom=list(bottom.values()), label=label)
        bottom = {name: bottom[name] + heights[name] for name in reports}
    axes.set(title="Parameters by part", ylabel="fraction of all parameters")
    legend_below(axes)


def draw_biases(axes: Any, reports: Reports) -> None:
    for role in ("biases", "gains"):
        percentages = [100 * found["biases"]["fractions"][role] for found in reports.values()]
        axes.plot(list(reports), percentages, "o-", label=ROLES[role])
    axes.set(title="Biases and gains", ylabel="% of all parameters", ylim=(0, None))
    legend_below(axes)


def draw_depth(axes: Any, profiles: Sequence[Report], title: str) -> None:
    for profile in profiles:
        axes.plot(profile["std"], ".-", label=profile["name"])
    axes.set(title=title, xlabel="block", ylabel="standard deviation", ylim=(0, None))
    legend_below(axes)


def draw_overlay(axes: Any, overlay: Report, groups: Reports, title: str) -> None:
    """Histograms on one scale. Blocks go from light to dark, instead of a legend of 48 lines."""
    from matplotlib import colormaps
    edges, fractions = overlay["edges"], overlay["fractions"]
    by_block = any(group.startswith("h.") for group in fractions)
    for i, (group, bins) in enumerate(fractions.items()):
        colour = colormaps["viridis_r"](0.1 + 0.9 * i / max(len(fractions) - 1, 1)) if by_block else f"C{i}"
        is_named = not by_block or i in (0, len(fractions) - 1)
        found = groups[group]
        label = (f"{group}: std {found['std']:.3g}, excess kurtosis {rounded(found['kurtosis'])}, beyond 4 std "
                 f"{found['beyond_4']:.1e}")
        axes.stairs(bins, edges, color=colour, linewidth=1.4, label=label if is_named else None)
    axes.set(title=title, xlabel="weight", ylabel=f"fraction, in {len(edges) - 1} bins")
    legend_below(axes, n_columns=1)


def draw_loss(axes: Any, reports: Reports) -> None:
    for name, found in reports.items():
        if "bits_per_byte" in found["loss"]:
            axes.plot(found["n_parameters"], found["loss"]["bits_per_byte"], "o")
            axes.annotate(name, (found["n_parameters"], found["loss"]["bits_per_byte"]))
    axes.set(title="Loss by size", xlabel="parameters", ylabel="bits per byte", xscale="log")


PANELS: dict[str, Callable[..., None]] = {"counts": draw_counts, "biases": draw_biases, "loss": draw_loss}
