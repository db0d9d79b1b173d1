"""How well a model predicts a text: `python -m numpy_gpt2.score story.txt`."""

import json
import math
import shutil
import sys
from typing import Any

from .checkpoint.loading import load
from .cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, announce_model, read_text,
                            special_tokens, whole_number)
from .cli.exits import BadInput, bad_input, run
from .cli.progress import with_progress_bar
from .scoring import Scores, checked_stride, join_scores, score_in_pieces
from .tokenizer import Tokenizer, quoted

N_ALTERNATIVES = 5  # so many of the likeliest tokens `--tokens` shows in each place


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.score", description="Score a text: mean loss, perplexity, bits per byte. "
                            "A text longer than the model's context is read in windows that overlap.",
                            epilog="What the numbers mean and how windows overlap: python -m pydoc numpy_gpt2.scoring. "
                            "WikiText-2 and LAMBADA, as in the GPT-2 paper: numpy_gpt2/summary/README.md")
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text, or - for standard input; every byte counts, line "
                        "ends too, and <|endoftext|> in the text is text")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--stride", type=whole_number(1), metavar="N",
                        help="tokens from one window to the next, less than the context; fewer give each token more "
                             "tokens before it, and take longer (default: half the context)")
    parser.add_argument("--no-bos", action="store_true",
                        help="do not put <|endoftext|> before the text; its first token is then not scored")
    parser.add_argument("--tokens", action="store_true",
                        help=f"a line for each token: its log-probability (natural), its rank (1: the likeliest), its "
                             f"id, the token, and the {N_ALTERNATIVES} likeliest tokens there with their probabilities")
    parser.add_argument("--json", action="store_true", help="one JSON object, numbers unrounded; losses are in nats")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    text = read_text(args.file)
    with bad_input():
        model, tokenizer = load(args.model)
    announce_model(args.model, model)

    ids = tokenizer.encode(text, special_tokens(args))
    if args.no_bos and len(ids) == 1:
        raise BadInput("the text is one token, before which nothing stands to score it by: leave out --no-bos")
    n_bytes = len(text.encode())
    if args.no_bos:
        n_bytes -= len(tokenizer.token_bytes(ids[0]))  # per byte of what is scored
    else:
        with bad_input():
            ids = tokenizer.with_bos(ids)
    with bad_input():
        stride = checked_stride(args.stride, model.config.n_positions)
        n_top = min(N_ALTERNATIVES, model.config.vocab_size) if args.tokens else 0
        pieces = score_in_pieces(model, ids, stride, n_top)
    scores = join_scores(with_progress_bar(pieces, len(ids) - 1))

    facts = {"model": args.model, "n_positions": model.config.n_positions, "stride": stride,
             **measures(scores, n_bytes)}
    if args.json:
        print_json(facts, scores, ids[1:], tokenizer, args.tokens)
    else:
        if args.tokens:
            print_table(scores, ids[1:], tokenizer)
        print_measures(facts)


def measures(scores: Scores, n_bytes: int) -> dict[str, Any]:
    return {"n_tokens": len(scores.log_probs), "n_bytes": n_bytes, "total_loss": -float(scores.log_probs.sum()),
            "mean_loss": scores.mean_loss, "perplexity": scores.perplexity,
            "bits_per_byte": scores.bits_per_byte(n_bytes)}


# Printing -------------------------------------------------------------------------------------------------------------


def print_measures(facts: dict[str, Any]) -> None:
    print(f"tokens scored  {facts['n_tokens']:,} (context {facts['n_positions']:,}, stride {facts['stride']:,})")
    print(f"bytes scored   {facts['n_bytes']:,}")
    print(f"mean loss      {facts['mean_loss']:.4f} nats per token")
    print(f"perplexity     {facts['perplexity']:.2f}")
    print(f"bits per byte  {facts['bits_per_byte']:.4f}")


def print_table(scores: Scores, ids: list[int], tokenizer: Tokenizer) -> None:
    """A line for each token, and an empty one. On a terminal, only the alternatives that fit in the line."""
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


def print_json(facts: dict[str, Any], scores: Scores, ids: list[int], tokenizer: Tokenizer, with_tokens: bool) -> None:
    if not math.isfinite(facts["perplexity"]):
        facts = {**facts, "perplexity": None}  # JSON has no infinity
    if with_tokens:
        facts = {**facts, "tokens": [token_facts(scores, i, token_id, tokenizer) for i, token_id in enumerate(ids)]}
    print(json.dumps(facts))


def token_facts(scores: Scores, i: int, token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [{**named_token(other_id, tokenizer), "log_prob": log_prob}
           for other_id, log_prob in zip(scores.top_ids[i].tolist(), scores.top_log_probs[i].tolist())]
    return {**named_token(token_id, tokenizer), "log_prob": float(scores.log_probs[i]), "rank": int(scores.ranks[i]),
            "top": top}


def named_token(token_id: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The id, and its text for people to read: parts of a character become U+FFFD, an id without a token None."""
    return {"id": token_id, "text": tokenizer.decode([token_id]) if token_id < tokenizer.vocab_size else None}


if __name__ == "__main__":
    run(main)
