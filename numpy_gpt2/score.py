"""How well a model predicts a text: `python -m numpy_gpt2.score story.txt`."""

import argparse
import json
import math
import os
import re
import shutil
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from .checkpoint.loading import load
from .cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, announce_model, byte_parts,
                            check_file, check_plot, name_of, non_empty_text, special_tokens, text_parts, whole_number)
from .cli.exits import BadInput, bad_input, run, say
from .cli.progress import with_progress_bar
from .explore.rendering import write_page
from .explore.scored_text import MOST_SHOWN, check_fits_page, scored_page
from .scoring import Scores, checked_stride, join_scores, score_in_pieces, score_stream
from .tokenizer import Tokenizer, quoted
from .weights import GPT2

N_ALTERNATIVES = 5  # most likely tokens that `--tokens` and `--html` show at each position
SMOOTHED = 50  # tokens in the moving average of `--plot`

LONGEST_WHOLE = 2**22  # bytes of a text that is encoded and scored as a whole; longer ones are divided
MOST_UNDIVIDED = 2**24  # characters without a place to divide the text
WINDOW, MARGIN, MOST_PLACES = 2**16, 200, 100  # characters to search, context to compare, places to try


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.score", description="Score a text: mean loss, perplexity, bits per byte. "
                            "A text longer than the model's context is scored in overlapping windows.",
                            epilog="What the numbers mean and how windows overlap: python -m pydoc numpy_gpt2.scoring. "
                            "WikiText-2 and LAMBADA, as in the GPT-2 paper: numpy_gpt2/summary/README.md")
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text, or - for standard input; every byte counts, line "
                        "ends too, and <|endoftext|> in the text is text")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--stride", type=whole_number(1), metavar="N",
                        help="tokens from one window to the next, less than the context; a smaller stride gives each "
                             "token more context, and takes longer (default: half the context)")
    parser.add_argument("--no-bos", action="store_true",
                        help="do not prepend <|endoftext|> to the text; its first token is then not scored")
    parser.add_argument("--tokens", action="store_true",
                        help=f"a line for each token: its log-probability (natural), its rank (1: most likely), its "
                             f"id, the token, and the {N_ALTERNATIVES} most likely tokens with their probabilities")
    parser.add_argument("--json", action="store_true", help="one JSON object, numbers unrounded; losses are in nats")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="also write a web page: the text, each token "
                        "coloured by its surprise, with its rank and the most likely tokens; at most "
                        f"{MOST_SHOWN:,} tokens")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also plot the surprise along the text, and its "
                        "distribution (needs matplotlib)")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.file != "-" and not os.path.exists(args.file):
        raise BadInput(f"{args.file}: no such file. A text comes in a file, or from standard input: "
                       'echo "the text" | python -m numpy_gpt2.score -')
    with bad_input():
        if args.html:
            check_file("--html", args.html, ".html")
        if args.plot:
            check_plot(args.plot)
    parts = byte_parts(args.file, LONGEST_WHOLE + 1)
    data, source = next(parts), name_of(args.file)
    if len(data) > LONGEST_WHOLE:
        return score_long_text(text_parts(chain([data], parts), source), source, args)
    text = non_empty_text(data, source)
    with bad_input():
        model, tokenizer = load(args.model)
    announce_model(args.model, model)

    ids = tokenizer.encode(text, special_tokens(args))
    if args.no_bos and len(ids) == 1:
        raise BadInput("the text is one token, with nothing before it to predict it from: leave out --no-bos")
    text_ids, n_bytes = ids, len(text.encode())
    if args.no_bos:
        n_bytes -= len(tokenizer.token_bytes(ids[0]))  # count only scored bytes
    with bad_input():
        if args.html:
            check_fits_page(len(ids))
        if not args.no_bos:
            ids = tokenizer.with_bos(ids)
        stride = checked_stride(args.stride, model.config.n_positions)
        n_top = min(N_ALTERNATIVES, model.config.vocab_size) if args.tokens or args.html else 0
        pieces = score_in_pieces(model, ids, stride, n_top)
    scores = join_scores(with_progress_bar(pieces, len(ids) - 1))

    facts = measures(args, model, tokenizer, stride, len(scores.log_probs), float(scores.log_probs.sum()), n_bytes)
    if args.tokens and args.json:
        facts["tokens"] = [token_facts(scores, i, token_id, tokenizer) for i, token_id in enumerate(ids[1:])]
    elif args.tokens:
        print_table(scores, ids[1:], tokenizer)
    print_measures(facts, args.json)
    if args.html:
        write_page(args.html, scored_page(tokenizer, text_ids, scores, model.config.vocab_size, lead(facts)))
    if args.plot:
        draw_surprise(-scores.log_probs, args.plot)
        say(f"picture: {args.plot}")


def measures(args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer, stride: int, n_tokens: int, log_prob: float,
             n_bytes: int) -> dict[str, Any]:
    """How tokens with this total log-probability were scored, and their measures. bos: the token put first, or None."""
    bos = None if args.no_bos else quoted(tokenizer, tokenizer.with_bos()[0]).strip('"')
    mean_loss = -log_prob / n_tokens
    return {"model": args.model, "n_positions": model.config.n_positions, "stride": stride, "bos": bos,
            "n_tokens": n_tokens, "n_bytes": n_bytes, "total_loss": -log_prob, "mean_loss": mean_loss,
            "perplexity": float(np.exp(mean_loss)), "bits_per_byte": -log_prob / math.log(2) / n_bytes}


# A text of any length -------------------------------------------------------------------------------------------------


def score_long_text(texts: Iterator[str], source: str, args: argparse.Namespace) -> None:
    """Score a text part by part, in bounded memory, and print the measures."""
    for option in ("tokens", "html", "plot"):
        if getattr(args, option):
            raise BadInput(f"--{option} shows a text of at most {LONGEST_WHOLE:,} bytes; {source} is longer: leave it "
                           "out")
    with bad_input():
        model, tokenizer = load(args.model)
        stride = checked_stride(args.stride, model.config.n_positions)
    announce_model(args.model, model)
    encode = partial(tokenizer.encode, allowed_special=special_tokens(args))
    n_bytes = 0

    def ids_of_parts() -> Iterator[list[int]]:
        nonlocal n_bytes
        if not args.no_bos:
            yield tokenizer.with_bos([])
        for part in divided(texts, encode, source):
            ids = encode(part)
            if args.no_bos and n_bytes == 0:
                n_bytes -= len(tokenizer.token_bytes(ids[0]))
            n_bytes += len(part.encode())
            yield ids

    n_tokens, log_prob = 0, 0.0
    with bad_input():
        for piece in with_progress_bar(score_stream(model, ids_of_parts(), stride)):
            n_tokens += len(piece.log_probs)
            log_prob += float(piece.log_probs.sum())
    print_measures(measures(args, model, tokenizer, stride, n_tokens, log_prob, n_bytes), args.json)


def divided(texts: Iterable[str], encode: Callable[[str], list[int]], source: str) -> Iterator[str]:
    """Yield the text in parts whose tokens are those of the whole. Raises BadInput if it cannot be divided."""
    rest = ""
    for text in texts:
        rest += text
        place = dividing_place(rest, encode)
        if place:
            yield rest[:place]
            rest = rest[place:]
        elif len(rest) > MOST_UNDIVIDED:
            raise BadInput(f"{source}: expected a text with spaces and line ends. Got more than {MOST_UNDIVIDED:,} "
                           "characters that cannot be divided")
    if rest:
        yield rest


def dividing_place(text: str, encode: Callable[[str], list[int]]) -> int:
    """The last place to divide a text: before white space, and not inside a token. 0 if there is none."""
    beginning = max(len(text) - WINDOW, 0)
    places = [beginning + match.end() for match in re.finditer(r"\S(?=\s)", text[beginning:-MARGIN])]
    for place in places[:-MOST_PLACES - 1:-1]:
        left, right = text[max(place - MARGIN, 0):place], text[place:place + MARGIN]
        if encode(left) + encode(right) == encode(left + right):
            return place
    return 0


# Printing -------------------------------------------------------------------------------------------------------------


def print_measures(facts: dict[str, Any], as_json: bool) -> None:
    """Print the measures as lines or, with the other facts, as one JSON object."""
    if as_json:
        perplexity = facts["perplexity"] if math.isfinite(facts["perplexity"]) else None  # JSON has no infinity
        return print(json.dumps({**facts, "perplexity": perplexity}))
    bos = f"{facts['bos']}, put before the text" if facts["bos"] else "none (--no-bos): the first token is not scored"
    print(f"BOS            {bos}")
    print(f"tokens scored  {facts['n_tokens']:,} (context {facts['n_positions']:,}, stride {facts['stride']:,})")
    print(f"bytes scored   {facts['n_bytes']:,}")
    print(f"mean loss      {facts['mean_loss']:.4f} nats per token")
    print(f"perplexity     {facts['perplexity']:.2f}")
    print(f"bits per byte  {facts['bits_per_byte']:.4f}")


def print_table(scores: Scores, ids: list[int], tokenizer: Tokenizer) -> None:
    """Print a line for each token, and an empty one; on a terminal, with as many alternatives as fit."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print("log-prob    rank     id  token           likeliest, with probabilities"[:width])
    for i, token_id in enumerate(ids):
        line = f"{scores.log_probs[i]:8.3f}  {scores.ranks[i]:6}  {token_id:5}  {quoted(tokenizer, token_id):14}"
        for other_id, log_prob in zip(scores.top_ids[i].tolist(), scores.top_log_probs[i].tolist()):
            alternative = f"  {quoted(tokenizer, other_id)} {math.exp(log_prob):.3f}"
            if len(line) + len(alternative) > width:
                break
            line += alternative
        print(line)
    print()


def lead(facts: dict[str, Any]) -> str:
    """The measures in a sentence, for the page."""
    return (f"{facts['model']} read {facts['n_tokens']:,} tokens. On average they surprised it by "
            f"{facts['mean_loss']:.2f} nats, as would a draw from {facts['perplexity']:,.1f} equally likely tokens. "
            f"That is {facts['bits_per_byte']:.2f} bits per byte.")


def draw_surprise(surprise: np.ndarray, path: Path) -> None:
    """Save a figure of the surprise [n_scored], in nats: along the text, with a moving average; its distribution."""
    from matplotlib.figure import Figure
    n = min(SMOOTHED, len(surprise))
    moving_average = np.convolve(surprise, np.full(n, 1 / n), "valid")  # [n_scored - n + 1]
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    along, distribution = figure.subplots(2, 1)
    along.plot(surprise, ".", markersize=3, color="C0", alpha=0.35, label="each token")
    along.plot(np.arange(n - 1, len(surprise)), moving_average, color="C1", label=f"mean of the last {n}")
    along.axhline(float(np.mean(surprise)), color="black", linewidth=1, linestyle="--", label="mean of all: the loss")
    along.set(title="Surprise along the text", xlabel="token", ylabel="nats", ylim=(0, None))
    along.legend(fontsize="small", ncols=3)
    distribution.hist(surprise, np.arange(0, np.max(surprise) + 1, 0.5), edgecolor="white")
    distribution.set(title="How often each surprise occurs", xlabel="nats", ylabel="tokens")
    figure.savefig(path, dpi=150)


def token_facts(scores: Scores, i: int, token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The i-th scored token as JSON: its log-probability (natural), its rank, and the alternatives."""
    top = [{**named_token(other_id, tokenizer), "log_prob": log_prob}
           for other_id, log_prob in zip(scores.top_ids[i].tolist(), scores.top_log_probs[i].tolist())]
    return {**named_token(token_id, tokenizer), "log_prob": float(scores.log_probs[i]), "rank": int(scores.ranks[i]),
            "top": top}


def named_token(token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The id and its `Tokenizer.token_text`, None for an id without a token."""
    return {"id": token_id, "text": tokenizer.token_text(token_id) if token_id < tokenizer.vocab_size else None}


if __name__ == "__main__":
    run(main)
