"""Show one forward pass as an HTML page: `python -m numpy_gpt2.explore "Once upon a time" -o explore.html`.

With `--serve`: as a live page, backed by the model.
"""

import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any, Collection

from ..checkpoint.loading import load
from ..cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, announce_model,
                             check_file, read_prompt, special_tokens, whole_number)
from ..cli.exits import BadInput, bad_input, run, say
from ..tokenizer import Tokenizer
from ..weights import GPT2
from .page import MAX_TOKENS, page_data, prompt_ids
from .rendering import render, write_page

OUTPUT = Path("explore.html")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.explore", description="Show one forward pass over a prompt: its tokens, "
                            "the model's parts, attention, the logit lens, the residual stream, and the next token. "
                            "Writes one HTML file, which needs no network; or, with --serve, serves a live page on "
                            "this machine: type prompts, intervene, compare, generate.")
    parser.add_argument("prompt", nargs="?", help=f"the text, at most {MAX_TOKENS} tokens (default: only "
                        "<|endoftext|>)")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file, or from standard input (-)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html",
                        help=f"where to write the page, - for standard output (default: {OUTPUT})")
    parser.add_argument("--serve", action="store_true", help="serve a live page instead, backed by the model, "
                        "to browsers on this machine, until Ctrl-C")
    parser.add_argument("--port", type=whole_number(1, 65535), metavar="N",
                        help="the port to serve on (default: any free port)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.prompt is not None and args.prompt_file is not None:
        raise BadInput("a prompt and --prompt-file were both given: give one")
    if args.serve and args.output is not None:
        raise BadInput("--serve and --output were both given: give one")
    if args.port is not None and not args.serve:
        raise BadInput("--port must come with --serve")
    output = args.output or OUTPUT
    is_piped = str(output) == "-"
    if is_piped and args.open:
        raise BadInput("--open needs the page in a file. Got -o -, standard output")
    if not args.serve and not is_piped:
        with bad_input():
            check_file("--output", output, ".html", ".htm", "")
    prompt = read_prompt(args.prompt, args.prompt_file)
    with bad_input():
        model, tokenizer = load(args.model)
        announce_model(args.model, model)
        ids = prompt_ids(model, tokenizer, prompt, special_tokens(args))
    data = page_data(model, tokenizer, ids, args.model)
    if args.serve:
        serve(data, prompt, model, tokenizer, args.model, special_tokens(args), args.port, args.open)
        return
    page = render(data)
    if is_piped:
        sys.stdout.buffer.write(page.encode("utf-8"))
        return
    write_page(output, page)
    if args.open:
        open_in_browser(output.resolve().as_uri(), str(output))


def serve(data: dict[str, Any], prompt: str, model: GPT2, tokenizer: Tokenizer, name: str,
          allowed_special: Collection[str], port: int | None, is_opened: bool) -> None:
    """Serve the page until Ctrl-C; print its address to standard output. Raises BadInput for an unavailable port."""
    from .answers import server_data  # imported here: writing a page needs no server
    from .prompts import Engine
    from .server import PageServer

    engine = Engine(model, tokenizer, name, allowed_special)
    engine.kept[tuple(data["ids"])] = data
    page = render({**data, "server": server_data(engine, prompt)})
    try:
        server = PageServer(engine, page, port or 0)
    except OSError as error:
        with PageServer(engine, page) as other:
            free = other.port
        raise BadInput(f"port {port} cannot be used ({error.strerror}). Try a free one: --port {free}") from error
    with server:
        print(server.address, flush=True)
        say("Open this address in a browser on this machine. Press Ctrl-C to stop.")
        if is_opened:  # in a thread, because some browsers block their caller until they have loaded the page
            threading.Thread(target=open_in_browser, args=[server.address, server.address], daemon=True).start()
        server.serve_forever()


def open_in_browser(address: str, name: str) -> None:
    """Open the page in a browser. A missing browser is no error: the message names where the page is."""
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        say(f"no browser could be started: open {name} yourself")


if __name__ == "__main__":
    run(main)
