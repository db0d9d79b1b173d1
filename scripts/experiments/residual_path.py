"""How far does the residual stream travel, and in how many dimensions? (Not in the survey: each block adds a step.)

Method: the residual stream before every block, between its attention and its MLP, and after the last block is recorded
over a text, in windows of the context. What attention adds is one step, what the MLP adds another. The first position
of a window is left out: in some models its norm is so large that it would dominate every mean. Control: the same
architecture with random weights, as before training.

How to read the tables: a row is the stream before a block, the last one the stream after all blocks. Lengths (Euclidean
norms) and angles (degrees) are means over the positions. `attn` and `mlp` are the lengths of the two steps, and `angle`
each step's with the stream that it is added to: at 90 it adds a new direction, below 90 it lengthens the stream, above
it cancels part. `turned` is the angle between the stream before and after the block, `start` between the stream and the
embeddings. `common` is the fraction of the squared length that is the mean over all positions. The rest, the variance
around that mean, has an effective dimensionality. Let p be the fractions of it along the principal axes: the squared
singular values of the centred streams [n_tokens, n_embd], over their sum. `particip.` is the participation ratio,
1 / sum(p^2), `entropy` exp(-sum(p log p)), and `90%` the number of axes that hold 90% of the variance. For k equal axes
the first two are k. None is more than the width, or than the number of positions less one.
"""

import math
from typing import NamedTuple

import experiment
import numpy as np

from numpy_gpt2 import Recorder, random_model, transform
from numpy_gpt2.cli.exits import run


CANCELS = 95  # degrees from the stream: clearly more than a right angle


class Step(NamedTuple):
    """What a block does: means over positions, angles in degrees."""

    attn: float
    attn_angle: float
    mlp: float
    mlp_angle: float
    turned: float


class Place(NamedTuple):
    """A residual stream."""

    length: float
    start: float  # degrees from the embeddings
    common: float  # a fraction
    participation: float
    entropy: float
    ninety: int


class Journey(NamedTuple):
    places: list[Place]  # n_layer + 1
    steps: list[Step]  # n_layer
    travelled: float  # the sum of the lengths of all steps
    away: float  # the distance from the embeddings to the last stream
    first: float  # how many times as long as the others the first position's stream is, at most


def principal_fractions(vectors):
    """The fractions of the variance along the principal axes, the largest first: [n, width] -> [min(n, width)]."""
    centred = vectors - vectors.mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    return variances / variances.sum()


def participation_ratio(fractions):
    return 1 / np.sum(fractions ** 2)


def entropy_dimension(fractions):
    positive = fractions[fractions > 0]
    return np.exp(-np.sum(positive * np.log(positive)))


def n_axes(fractions, amount=0.9):
    """How many of the largest fractions sum to `amount`, up to rounding."""
    return int(np.sum(np.cumsum(fractions) < amount - 1e-9)) + 1


def lengths(vectors):
    return np.linalg.norm(vectors, axis=-1)


def angles(a, b):
    """The angles between vectors, in degrees: [n, width] -> [n]."""
    cosines = np.sum(a * b, axis=-1) / (lengths(a) * lengths(b))
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def place(stream, embeddings):
    fractions = principal_fractions(stream)
    common = np.sum(stream.mean(axis=0) ** 2) / np.mean(lengths(stream) ** 2)
    return Place(lengths(stream).mean(), angles(stream, embeddings).mean(), common, participation_ratio(fractions),
                 entropy_dimension(fractions), n_axes(fractions))


def step(before, between, after):
    attn, mlp = between - before, after - between  # [n_tokens, n_embd]
    return Step(lengths(attn).mean(), angles(attn, before).mean(), lengths(mlp).mean(), angles(mlp, between).mean(),
                angles(after, before).mean())


def journey(model, ids):
    """Follow the stream of every position, but the first of each window, through the model."""
    n_layer, n_positions = model.config.n_layer, model.config.n_positions
    windows = []
    for start in range(0, len(ids), n_positions):
        windows.append(Recorder("h.*.resid_*"))
        transform(model, ids[start:start + n_positions], tap=windows[-1])

    def stream(name):
        return np.concatenate([acts[name][1:] for acts in windows]).astype(np.float64)  # [n_tokens, n_embd]

    names = [*(f"h.{i}.resid_pre" for i in range(n_layer)), f"h.{n_layer - 1}.resid_post"]
    embeddings = before = stream(names[0])
    places, steps, travelled = [place(before, embeddings)], [], 0.0
    for i in range(n_layer):
        between, after = stream(f"h.{i}.resid_mid"), stream(names[i + 1])
        places.append(place(after, embeddings))
        steps.append(step(before, between, after))
        travelled += steps[-1].attn + steps[-1].mlp
        before = after
    first = max(lengths(windows[0][name][0]) / at.length for name, at in zip(names, places))
    return Journey(places, steps, travelled, lengths(after - embeddings).mean(), first)


def print_journey(found):
    header = ["layer", "length", "attn", "angle", "mlp", "angle", "turned", "start", "common", "particip.", "entropy",
              "90%"]
    rows = []
    for i, at in enumerate(found.places):
        done = ["-"] * 5
        if i < len(found.steps):
            s = found.steps[i]
            done = [f"{s.attn:.2f}", f"{s.attn_angle:.0f}", f"{s.mlp:.2f}", f"{s.mlp_angle:.0f}", f"{s.turned:.0f}"]
        rows.append([str(i), f"{at.length:.2f}", *done, f"{at.start:.0f}", f"{at.common:.0%}",
                     f"{at.participation:.1f}", f"{at.entropy:.1f}", at.ninety])
    experiment.print_table(header, rows)


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser)
    experiment.add_seed(parser)
    args, model, tokenizer = experiment.start(parser)
    ids = experiment.text_ids(args, tokenizer)

    found = journey(model, ids)
    control = journey(random_model(model.config, args.seed), ids)
    print(f"{len(ids) - 1} tokens of {args.text}\n")
    print_journey(found)
    print("\nThe control, random weights\n")
    print_journey(control)
    experiment.conclude(*conclusion(found, control))
    if args.plot:
        with experiment.picture(args.plot, 3) as (top, left, right):
            layers = range(len(found.places))
            experiment.draw_lines(top, layers, {
                "the stream": [at.length for at in found.places],
                "attention's step": [*(s.attn for s in found.steps), None],
                "the MLP's step": [*(s.mlp for s in found.steps), None]}, "layer", "length")
            experiment.draw_lines(left, layers, {
                "attention's step": [*(s.attn_angle for s in found.steps), None],
                "the MLP's step": [*(s.mlp_angle for s in found.steps), None],
                "turned by the block": [*(s.turned for s in found.steps), None]}, "layer", "degrees")
            left.axhline(90, linestyle=":", color="grey")
            left.set_ylim(0, 180)
            experiment.draw_lines(right, layers, {
                "participation ratio": [at.participation for at in found.places],
                "entropy": [at.entropy for at in found.places], "90% of variance": [at.ninety for at in found.places],
                "participation, random": [at.participation for at in control.places]}, "layer", "dimensions")
            right.set_ylim(0, 1.6 * max(at.ninety for at in found.places))  # room for the legend
            top.set_title("how long: the stream before each block, and the steps")
            left.set_title("angle with the stream")
            right.set_title("effective dimensionality")


def conclusion(found, control):
    """What was found about the path, the steps and the dimensions."""
    n_layer = len(found.steps)
    longest = max(range(n_layer), key=lambda i: found.steps[i].attn + found.steps[i].mlp)
    yield (f"The {2 * n_layer} steps are {found.travelled:.3g} long together and end {found.away:.3g} from the "
           f"embeddings, whose length is {found.places[0].length:.2f}: the path is {found.travelled / found.away:.1f} "
           f"times the straight line (random weights: {control.travelled / control.away:.1f}; as many equal steps at "
           f"right angles: {math.sqrt(2 * n_layer):.1f}). Block {longest} goes furthest, "
           f"{found.steps[longest].attn + found.steps[longest].mlp:.3g}.")
    mlp_longer = sum(s.mlp > s.attn for s in found.steps)
    cancelling = [f"{kind} in {n} of {n_layer}" for kind, n in (
        ("attention", sum(s.attn_angle > CANCELS for s in found.steps)),
        ("the MLP", sum(s.mlp_angle > CANCELS for s in found.steps))) if n]
    yield (f"The MLP's step is the longer in {mlp_longer} of {n_layer} blocks. " + (
        f"More than {CANCELS} degrees from the stream, cancelling part of it: {', '.join(cancelling)}." if cancelling
        else f"No step is more than {CANCELS} degrees from the stream: none cancels what is there."))
    ratios = [at.participation for at in found.places]
    low, high = int(np.argmin(ratios)), int(np.argmax(ratios))
    places = [*(f"before block {i}" for i in range(n_layer)), "at the end"]
    yield (f"By the participation ratio the stream has fewest dimensions, {ratios[low]:.1f}, {places[low]}, and most, "
           f"{ratios[high]:.1f}, {places[high]}; {ratios[0]:.1f} in the embeddings and {ratios[-1]:.1f} at the end "
           f"(random weights: {control.places[0].participation:.1f} and {control.places[-1].participation:.1f}).")
    yield (f"The first position's stream, left out above, is up to {found.first:.1f} times as long as the others "
           f"(random weights: {control.first:.1f}).")


if __name__ == "__main__":
    run(main)
