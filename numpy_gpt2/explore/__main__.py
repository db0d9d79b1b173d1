"""Show one forward pass as an HTML page: `python -m numpy_gpt2.explore "Once upon a time" -o explore.html`."""

import webbrowser
from pathlib import Path

from ..checkpoint.loading import load
from ..checkpoint.saving import write_whole
from ..cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, announce_model,
                             read_prompt, special_tokens)
from ..cli.exits import BadInput, bad_input, run, say
from .page import MAX_TOKENS, page_data, prompt_ids
from .rendering import render

PAGE_SUFFIXES = ("", ".html", ".htm")


def make_parser() -> ArgumentParser:

    parser = ArgumentParser(prog="numpy_gpt2.explore", description="Show one forward pass over a prompt: its tokens, "
                            "the model's parts, attention, the logit lens, the residual stream, and the next token. "
                            "Writes one HTML file, which needs no network.")
    parser.add_argument("prompt", nargs="?", help=f"the text, at most {MAX_TOKENS} tokens (default: standard "
                        "input, if it is a pipe or a file; else only <|endoftext|>)")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file, or from standard input (-)")
    parser.add_argument("-o", "--output", type=Path, default=Path("explore.html"), metavar="FILE.html",
                        help="where to write the page (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="then open the page in the browser")
    return parser


def main() -> None:

    args = make_parser().parse_args()
    if args.prompt is not None and args.prompt_file is not None:
        raise BadInput("a prompt and --prompt-file were both given: give one")
    check_output(args.output)
    prompt = read_prompt(args.prompt, args.prompt_file)
    with bad_input():
        model, tokenizer = load(args.model)
        announce_model(args.model, model)
        ids = prompt_ids(model, tokenizer, prompt, special_tokens(args))
    page = render(page_data(model, tokenizer, ids, args.model)).encode("utf-8")
    write_whole(args.output.resolve(), page)  # resolved, so that a symbolic link is kept
    say(f"page: {args.output}, {len(page) / 1000:,.0f} KB")
    if args.open:
        open_in_browser(args.output)


def check_output(path: Path) -> None:
    """Raise BadInput, before any computation, if the page could not be written there."""
    try:
        is_in_a_folder = path.resolve().parent.is_dir()
    except RuntimeError:  # a loop of symbolic links, up to Python 3.12
        is_in_a_folder = False
    if not is_in_a_folder:
        raise BadInput(f"--output must be a file in an existing folder. Got {str(path)!r}.")
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise BadInput(f"--output must end in .html: explore writes a web page. Got {str(path)!r}.")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise BadInput(f"--output must be a file. Got {str(path)!r}, which is {what}.")


def open_in_browser(path: Path) -> None:
    """Open the page; having no browser is not an error, since the page is written."""
    try:
        opened = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        say(f"no browser could be started: open {path} yourself")


if __name__ == "__main__":
    run(main)
