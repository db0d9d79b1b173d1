"""Count and measure a GPT-2: `python -m numpy_gpt2.summary small`, or `--sizes` for the four of them side by side."""

import argparse
import json
import shutil
from pathlib import Path

from ..cli.arguments import ArgumentParser, read_text, whole_number
from ..cli.exits import BadInput, bad_input, run, say
from ..config import SIZES
from .metadata import Metadata, read_metadata, metadata_of_size
from .report import SECTIONS, report_each
from .report_plot import check_panels, draw_reports
from .report_text import text_report

SIDE_BY_SIDE = ("configuration", "counts", "biases", "tying", "figures", "cost")  # what several models are compared by


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.summary", description="Count and measure a GPT-2. Counts come from the "
                            "config, verified against the header of the weights' file; no weights are downloaded to "
                            "count them. Without options: all sections that need no weights.")
    parser.add_argument("models", nargs="*", metavar="MODEL",
                        help="fairytale (bundled, the default), small, medium, large, xl, an owner/repo on the hub, or "
                             "a folder; several are set side by side")
    parser.add_argument("--sizes", action="store_true",
                        help="the four released sizes side by side, from their settings alone: no network, no file")
    for section, meaning in SECTIONS.items():
        parser.add_argument(f"--{section}", action="store_true", help=f"only this (and what else is named): {meaning}")
    parser.add_argument("--text", metavar="FILE", help="the loss of each model on a text file, or on standard input "
                        "(-), beside its count (the weights are loaded for it)")
    parser.add_argument("--context", type=whole_number(1), metavar="N",
                        help="the number of tokens that --cost is about (default: the model's whole context)")
    parser.add_argument("--json", action="store_true", help="for programs: an object with a key for each model")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the fractions, and what else was measured")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.sizes and args.models:
        raise BadInput("--sizes names its models itself: give either --sizes or MODEL")
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
        width = max(shutil.get_terminal_size(fallback=(120, 24)).columns, 10)
        for line in text_report(reports, sections, args.parameters, width):
            print(line)
    if args.plot:
        draw_reports(reports, args.plot)
        say(f"picture: {args.plot}")


def chosen_sections(args: argparse.Namespace) -> list[str]:
    """What was asked for; if nothing, what needs no weights, and for several models what can stand side by side."""
    named = [section for section in SECTIONS if getattr(args, section)]
    if named or args.text is not None:
        return named
    if args.sizes or len(args.models) > 1:
        return list(SIDE_BY_SIDE)
    return [section for section in SECTIONS if section != "values"]


def chosen_models(args: argparse.Namespace) -> list[Metadata]:
    """The models asked for, each once. Raises BadInput for one that is not known, or too small for --context."""
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
