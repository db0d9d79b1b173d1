"""Count and measure a GPT-2: `python -m numpy_gpt2.summary small`, or `--sizes` for all four sizes."""

import argparse
import json
from pathlib import Path

from ..cli.arguments import ArgumentParser, read_text, whole_number
from ..cli.exits import BadInput, bad_input, run, say
from ..cli.tables import terminal_width
from ..config import SIZES
from .metadata import Metadata, read_metadata, metadata_of_size
from .report import SECTIONS, report_each
from .report_plot import check_panels, draw_reports
from .report_text import text_report

SIDE_BY_SIDE = ("configuration", "counts", "biases", "tying", "figures", "cost")  # the default for several models


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.summary", description="Count and measure a GPT-2. Counts come from the "
                            "config, verified against the header of the weights file; counting downloads no weights. "
                            "Without options: all sections that need no weights.")
    parser.add_argument("models", nargs="*", metavar="MODEL",
                        help="fairytale (bundled, the default), small, medium, large, xl, an owner/repo on the hub, or "
                             "a folder; several are shown side by side")
    parser.add_argument("--sizes", action="store_true",
                        help="the four released sizes side by side, from their configs alone: no network, no files")
    for section, meaning in SECTIONS.items():
        parser.add_argument(f"--{section}", action="store_true", help=f"only the named sections: {meaning}")
    parser.add_argument("--text", metavar="FILE", help="also the loss of each model on a text file, or on standard "
                        "input (-); loads the weights")
    parser.add_argument("--context", type=whole_number(1), metavar="N",
                        help="context length for --cost (default: the model's whole context)")
    parser.add_argument("--json", action="store_true", help="a JSON object with a key for each model")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the chosen sections (needs matplotlib)")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.sizes and args.models:
        raise BadInput("--sizes chooses the models itself: give either --sizes or MODEL")
    sections = chosen_sections(args)
    if args.plot:
        with bad_input():
            check_panels(args.plot, sections, args.text is not None)
    text = None if args.text is None else read_text(args.text)
    models = chosen_models(args)
    measured = [section for section in ("values", "tying") if getattr(args, section)]
    with bad_input():
        reports = report_each(models, sections, measured, args.context, text)

    if args.json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    else:
        for line in text_report(reports, sections, args.parameters, terminal_width()):
            print(line)
    if args.plot:
        draw_reports(reports, args.plot)
        say(f"picture: {args.plot}")


def chosen_sections(args: argparse.Namespace) -> list[str]:
    """The sections named on the command line; by default all that need no weights, or compare several models."""
    named = [section for section in SECTIONS if getattr(args, section)]
    if named or args.text is not None:
        return named
    if args.sizes or len(args.models) > 1:
        return list(SIDE_BY_SIDE)
    return [section for section in SECTIONS if section != "values"]


def chosen_models(args: argparse.Namespace) -> list[Metadata]:
    """Metadata of the models named. Raises BadInput for an unknown one, or one too small for --context."""
    if args.sizes:
        models = [metadata_of_size(size) for size in SIZES]
    else:
        if not args.models:
            say("model: fairytale (bundled; for OpenAI's GPT-2: small, or --sizes; all options: --help)")
        with bad_input():
            models = [read_metadata(name) for name in dict.fromkeys(args.models or ["fairytale"])]
    for model in models:
        if args.context is not None and args.context > model.config.n_positions:
            raise BadInput(f"--context must be at most {model.config.n_positions}, the context of {model.name}. "
                           f"Got {args.context}.")
    return models


if __name__ == "__main__":
    run(main)
