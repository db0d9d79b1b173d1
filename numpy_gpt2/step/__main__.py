"""Walk through one forward pass, array by array: `python -m numpy_gpt2.step "Once upon a time"`."""

import io
import sys
from typing import TextIO

import numpy as np

from ..cache import KVCache
from ..checkpoint.loading import load
from ..cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, announce_model,
                             model_config, read_prompt, special_tokens)
from ..cli.exits import BadInput, bad_input, run
from ..decoding import next_logits
from ..lens import top_tokens
from ..model import check_ids
from ..tap import stage_names
from ..tokenizer import Tokenizer, quoted
from ..weights import GPT2
from .naming import fitting_stages
from .walk import check_size, walk_through


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.step", description="Walk through one forward pass: stop at named arrays "
                            "and inspect them. At the prompt, help lists the commands, which can also come from "
                            "a pipe.")
    parser.add_argument("prompt", metavar="PROMPT", help="the text; an empty one stands for the end of text")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--until", default="*", metavar="NAME",
                        help="the first stop: a stage (h.3.attn.pattern), the first with a short name (pattern), or "
                             "the first that matches a glob (h.3.attn.*); default: the first stage")
    parser.add_argument("--next", action="store_true",
                        help="process the prompt without a stop, choose the most likely token, and walk through its "
                             "pass: one token, and the cache")
    return parser


def main() -> None:
    """Parse, load, and walk."""
    args = make_parser().parse_args()
    prompt = read_prompt(args.prompt)
    with bad_input():
        check_size(model_config(args.model), 1, 1)  # before the weights are read
        model, tokenizer = load(args.model)
    announce_model(args.model, model)
    with bad_input():
        ids = tokenizer.encode(prompt, special_tokens(args)) or tokenizer.with_bos()
    room = model.config.n_positions - args.next
    if len(ids) > room:
        raise BadInput(f"the prompt must be at most {room} tokens, the model's context"
                       f"{' less the one that follows' if args.next else ''}. Got {len(ids)}: shorten it.")
    with bad_input():
        check_ids(model, ids)
        check_size(model.config, 1 if args.next else len(ids), len(ids) + args.next)
        fitting_stages(args.until, stage_names(model.config))
    if not sys.stdin.isatty():
        sys.stdin = EchoedInput(sys.stdin)
    cache = KVCache(model, n_positions=len(ids) + args.next)
    if args.next:
        ids = [*ids, likeliest_next(model, tokenizer, ids, cache)]
    walk_through(model, tokenizer, ids, args.until, cache)


def likeliest_next(model: GPT2, tokenizer: Tokenizer, ids: list[int], cache: KVCache) -> int:
    """Prefill the cache with the prompt, then choose and print the most likely next token."""
    token, = top_tokens(next_logits(model, np.array(ids), cache), tokenizer, k=1)
    print(f"prefill: {len(ids)} tokens are in the cache now; the most likely next token is "
          f"{quoted(tokenizer, token.id)}, with probability {token.probability:.3f}; its pass:")
    return token.id


class EchoedInput(io.TextIOBase):
    """Commands from a pipe or a file, echoed as they are read, so that the output reads like a session."""

    def __init__(self, commands: TextIO) -> None:
        self.commands = commands

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]  # always a whole line
        line = self.commands.buffer.readline().decode("utf-8", errors="replace")
        print(line.rstrip("\r\n"), end="\n" if line else "")
        return line


if __name__ == "__main__":
    run(main)
