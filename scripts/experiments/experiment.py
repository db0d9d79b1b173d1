"""Shared code of the survey's experiments: arguments, a text, modified models, tables and plots.

Each experiment is a script, such as `python scripts/experiments/temperature_study.py`; `--help` has its method.
"""

import argparse
import os
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

import numpy_gpt2
from numpy_gpt2 import build_model, named_parameters
from numpy_gpt2.cli.arguments import (ArgumentParser, add_model_argument, announce_model, check_plot, read_prompt,
                                      whole_number)
from numpy_gpt2.cli.exits import BadInput, bad_input, say
from numpy_gpt2.cli.tables import table
from numpy_gpt2.scoring import score_tokens

STORY = Path(__file__).with_name("story.txt")  # written for these experiments: not in any training data


class Parser(ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message} (see python {os.path.relpath(sys.argv[0])} --help)")


def make_parser(docstring):
    """A parser with the common arguments. The script's docstring is its help."""
    parser = Parser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="also save a plot (needs matplotlib)")
    return parser


def add_seed(parser, default=1):
    parser.add_argument("--seed", type=whole_number(0), default=default, metavar="S",
                        help="random seed (default: %(default)s)")


def add_text(parser, n_tokens=None):
    parser.add_argument("--text", default=os.path.relpath(STORY), metavar="FILE",
                        help="a UTF-8 text (default: scripts/experiments/story.txt)")
    parser.add_argument("--tokens", type=whole_number(2), default=n_tokens, metavar="N",
                        help=f"only the first N tokens of the text (default: {n_tokens or 'all'})")


def start(parser):
    """Arguments, model and tokenizer."""
    args = parser.parse_args()
    with bad_input():
        if args.plot:
            check_plot(Path(args.plot))
        model, tokenizer = numpy_gpt2.load(args.model)
    announce_model(args.model, model)
    return args, model, tokenizer


def count(model):
    """The number of parameters, counted from the arrays."""
    return sum(array.size for _, array in named_parameters(model))


def text_ids(args, tokenizer):
    """The text's tokens after an end of text, as in training."""
    ids = tokenizer.encode(read_prompt(None, args.text))[:args.tokens]
    if len(ids) < 2:
        raise BadInput(f"{args.text}: expected a text of two tokens or more, found {len(ids)}")
    return [tokenizer.eot_id, *ids]


def loss(model, ids):
    """Mean loss over the text, in nats per token."""
    return score_tokens(model, ids).mean_loss


def rebuilt(model, arrays, **settings):
    """A model with some settings and arrays replaced."""
    return build_model(replace(model.config, **settings), {**dict(named_parameters(model)), **arrays})


def untied(model, **arrays):
    """A copy with two matrices: wte and lm_head as given, else copies of the model's own."""
    return rebuilt(model, {"wte.weight": arrays.get("wte", model.wte),
                           "lm_head.weight": arrays.get("lm_head", model.lm_head.copy())}, tie_word_embeddings=False)


def noise_like(array, rng):
    """Normal noise with the array's shape, dtype, mean and standard deviation (both exact, up to rounding)."""
    noise = rng.standard_normal(array.shape, dtype=array.dtype)
    noise -= float(noise.mean(dtype=np.float64))
    noise *= float(array.std(dtype=np.float64) / noise.std(dtype=np.float64))
    noise += float(array.mean(dtype=np.float64))
    return noise


def one_line(text):
    """Generated text on one line, with control characters, of which noise has many, replaced by "?"."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def print_table(header, rows, n_left=1):
    """Print aligned columns, the first n_left left-aligned, the others right-aligned. Cells are strings or ints."""
    rows = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    align = "<" * n_left + ">" * (len(header) - n_left)
    for line in table(header, rows, align, width=10_000):
        print(line)


def conclude(*sentences):
    print("\n" + textwrap.fill(" ".join(sentences), 110))


@contextmanager
def picture(path, n_panels):
    """Save a PNG with two panels per row: `with picture(args.plot, 2) as (left, right): left.plot(...)`.

    The first of an odd number has a row to itself: a wider figure would be illegible when scaled to a page.
    """
    from matplotlib.figure import Figure
    labels = [0] * (n_panels % 2) + list(range(n_panels))
    rows = np.reshape(labels, (-1, 2)).tolist()
    figure = Figure(figsize=(9, 3.6 * len(rows)), layout="constrained")
    yield list(figure.subplot_mosaic(rows).values())
    figure.savefig(path, format="png", dpi=120)
    say(f"picture: {path}")


def draw_lines(panel, x, lines, x_label, y_label=""):
    """Plot {label: y} in a panel; a y of None is a gap."""
    for label, y in lines.items():
        panel.plot(x, [float("nan") if value is None else value for value in y], "o-", label=label)
    panel.set(xlabel=x_label, ylabel=y_label)
    if len(lines) > 1:
        panel.legend()
