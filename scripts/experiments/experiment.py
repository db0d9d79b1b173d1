"""What the survey's experiments share: their arguments, a text, changed copies of a model, a table, a picture.

Each experiment is a script of its own: `python scripts/experiments/temperature_study.py`, with `--help` for what it
asks and how.
"""

import argparse
import os
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy_gpt2
from numpy_gpt2 import build_model, named_parameters
from numpy_gpt2.cli.arguments import (ArgumentParser, add_model_argument, announce_model, check_plot, read_prompt,
                                      whole_number)
from numpy_gpt2.cli.exits import BadInput, bad_input, say
from numpy_gpt2.cli.tables import table
from numpy_gpt2.scoring import score_tokens

STORY = Path(__file__).with_name("story.txt")  # a fairy tale written for these experiments, so no model has read it


class Parser(ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message} (see python {os.path.relpath(sys.argv[0])} --help)")


def make_parser(docstring):
    """The arguments that every experiment has. The script's docstring is its help."""
    parser = Parser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_argument(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="also draw a picture (needs matplotlib)")
    return parser


def add_seed(parser, default=1):
    parser.add_argument("--seed", type=whole_number(0), default=default, metavar="S",
                        help="of all draws (default: %(default)s)")


def add_text(parser, n_tokens=None):
    parser.add_argument("--text", default=os.path.relpath(STORY), metavar="FILE",
                        help="a UTF-8 text (default: scripts/experiments/story.txt)")
    parser.add_argument("--tokens", type=whole_number(2), default=n_tokens, metavar="N",
                        help=f"of the text, the first N tokens (default: {n_tokens or 'all'})")


def start(parser):
    """Arguments, model and tokenizer, once everything that can be refused early has been."""
    args = parser.parse_args()
    with bad_input():
        if args.plot:
            check_plot(Path(args.plot))
        model, tokenizer = numpy_gpt2.load(args.model)
    announce_model(args.model, model)
    return args, model, tokenizer


def count(model):
    """The number of parameters, from the arrays themselves."""
    return sum(array.size for _, array in named_parameters(model))


def text_ids(args, tokenizer):
    """The text's tokens after an end of text, which is how the model learnt that a text begins."""
    ids = tokenizer.encode(read_prompt(None, args.text))[:args.tokens]
    if len(ids) < 2:
        raise BadInput(f"{args.text}: expected a text of two tokens or more, found {len(ids)}")
    return [tokenizer.eot_id, *ids]


def loss(model, ids):
    """Nats per token, mean over the text."""
    return score_tokens(model, ids).mean_loss


def rebuilt(model, arrays, **settings):
    """A copy of the model with other settings, and with these arrays under their names in the checkpoint."""
    return build_model(replace(model.config, **settings), {**dict(named_parameters(model)), **arrays})


def print_table(header, rows, n_left=1):
    """Aligned columns: the first n_left to the left, the others to the right. Cells are texts, or whole numbers."""
    rows = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    align = "<" * n_left + ">" * (len(header) - n_left)
    for line in table(header, rows, align, width=10_000):
        print(line)


def conclude(*sentences):
    print("\n" + textwrap.fill(" ".join(sentences), 110))


@contextmanager
def picture(path, n_panels):
    """A PNG with panels side by side: `with picture(args.plot, 2) as (left, right): left.plot(...)`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(1 + 5 * n_panels, 4), layout="constrained")
    yield figure.subplots(1, n_panels, squeeze=False)[0]
    figure.savefig(path, format="png", dpi=120)
    say(f"picture: {path}")


def draw_lines(panel, x, lines, x_label, y_label=""):
    """Lines in a panel: {label: y}. None leaves a gap."""
    for label, y in lines.items():
        panel.plot(x, [float("nan") if value is None else value for value in y], "o-", label=label)
    panel.set(xlabel=x_label, ylabel=y_label)
    if len(lines) > 1:
        panel.legend()
