"""A plot of a run's losses. Needs matplotlib, from the extra `plot`."""

from pathlib import Path

from .loop import Run


def draw(run: Run, path: Path) -> None:
    """Save a plot of the training loss of every step, and of the held-out losses."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, run.step + 1), run.losses, linewidth=0.8, label="training, each step's batch")
    if run.held_out_losses:
        axes.plot(list(run.held_out_losses), list(run.held_out_losses.values()), "o-", label="held-out text")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
