"""Plots of reports. They need matplotlib, from the extra `plot`."""

from pathlib import Path
from typing import Any, Callable, Sequence

from ..cli.arguments import check_plot
from .report import KINDS, ROLES, Reports


def check_panels(path: Path, sections: Sequence[str], has_loss: bool) -> None:
    """Raise ValueError, before any computation, if there would be nothing to plot or the file could not be written."""
    if not has_loss and not PANELS.keys() & set(sections):
        raise ValueError(f"--plot draws --{', --'.join(PANELS).replace('loss', 'text')}: choose at least one")
    check_plot(path)


def draw_reports(reports: Reports, path: Path) -> None:
    """Save one figure, with a panel for each section that has one."""
    from matplotlib.figure import Figure
    panels = [panel for section, panel in PANELS.items() if any(section in found for found in reports.values())]
    reports = {name.encode(errors="replace").decode(): found for name, found in reports.items()}  # of folders too
    figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        panel(axes, reports)
    figure.savefig(path, dpi=150)


def legend_below(axes: Any) -> None:
    """Put the legend where it covers no data."""
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


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


def draw_depth(axes: Any, reports: Reports) -> None:
    for name, found in reports.items():
        for profile in found["values"].get("depth", []):
            label = profile["name"] if len(reports) == 1 else f"{name}: {profile['name']}"
            axes.plot(profile["std"], ".-", label=label)
    axes.set(title="Weights by depth", xlabel="block", ylabel="standard deviation")
    legend_below(axes)


def draw_loss(axes: Any, reports: Reports) -> None:
    for name, found in reports.items():
        if "bits_per_byte" in found["loss"]:
            axes.plot(found["n_parameters"], found["loss"]["bits_per_byte"], "o")
            axes.annotate(name, (found["n_parameters"], found["loss"]["bits_per_byte"]))
    axes.set(title="Loss by size", xlabel="parameters", ylabel="bits per byte", xscale="log")


PANELS: dict[str, Callable[[Any, Reports], None]] = {
    "counts": draw_counts, "biases": draw_biases, "values": draw_depth, "loss": draw_loss}
