"""The tokens of a text, their ids and bytes: `python -m numpy_gpt2.tokens "Once upon a time"`."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from .bpe import merge_steps
from .checkpoint.loading import load_tokenizer
from .cli.arguments import (ArgumentParser, add_model_argument, add_special_tokens_argument, prompt_file_or_pipe,
                            read_prompt, special_tokens)
from .cli.exits import BadInput, bad_input, run, say
from .cli.tables import table, terminal_width
from .tokenizer import Tokenizer, quoted_bytes

NEARBY = 11  # tokens shown around a merge: enough for all of most words


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.tokens", description="Show the tokens of a text, their ids, and their "
                            "bytes in hexadecimal. A token that is not a whole character is shown as its bytes.",
                            epilog="The algorithm, to read: python -m pydoc numpy_gpt2.bpe")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text (default: standard input, if it is a pipe or "
                        "a file)")
    parser.add_argument("--prompt-file", metavar="FILE", help="read the text from a file, or from standard input (-), "
                        "as generate reads its prompt: without the last line end")
    parser.add_argument("--merges", action="store_true", help="also show how the tokens are formed: for each piece of "
                        "the text its bytes, then each merge with its rank (its index in the list of merges) and the "
                        f"tokens after it, at most {NEARBY} around it")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.text is not None and args.prompt_file is not None:
        raise BadInput("a text and --prompt-file were both given: give one")
    file = prompt_file_or_pipe(args.text, args.prompt_file)
    if args.text is None and file is None:
        raise BadInput("expected a text, or standard input, or --prompt-file with a file")
    text = read_prompt(args.text, file)
    with bad_input():
        tokenizer = load_tokenizer(args.model)
    hint = " (bundled; for OpenAI's: --model gpt2)" if args.model == "fairytale" else ""
    say(f"tokenizer: {args.model}, {tokenizer.vocab_size:,} tokens{hint}")

    if args.merges:
        pieces = tokenizer.pieces(text, special_tokens(args))
        rows = [row for piece in pieces for row in merge_rows(piece.encode(), tokenizer)]
        print_table(["rank", "merge", "tokens"], rows, "><<")
    ids = tokenizer.encode(text, special_tokens(args))
    rows = [[str(token_id), quoted_bytes(token), token.hex(" ")]
            for token_id, token in zip(ids, map(tokenizer.token_bytes, ids))]
    print_table(["id", "token", "bytes"], rows, "><<")
    print(f"tokens: {len(ids):,}, characters: {len(text):,}, bytes: {len(text.encode()):,}")


def print_table(header: list[str], rows: list[list[str]], align: str) -> None:
    for line in table(header, rows, align, terminal_width()):
        print(line)


def merge_rows(piece: bytes, tokenizer: Tokenizer) -> Iterator[list[str]]:
    """Rows for the bytes of a piece and for each merge (rank, pair, the tokens after it), and an empty one."""
    cuts = list(range(len(piece) + 1))
    yield ["", "", nearby_tokens(piece, cuts, 0)]
    for merge in merge_steps(piece, tokenizer.merge_ranks):
        at = bisect_left(cuts, merge.middle)
        del cuts[at]
        left, right = piece[merge.start:merge.middle], piece[merge.middle:merge.end]
        yield [str(merge.rank), f"{quoted_bytes(left)} {quoted_bytes(right)}", nearby_tokens(piece, cuts, at - 1)]
    yield ["", "", ""]


def nearby_tokens(piece: bytes, cuts: list[int], at: int) -> str:
    """The tokens of a piece, at most NEARBY around index `at`. `cuts`: the start of each token, and the end."""
    n_tokens = len(cuts) - 1
    first = max(min(at - NEARBY // 2, n_tokens - NEARBY), 0)
    last = min(first + NEARBY, n_tokens)
    tokens = [quoted_bytes(piece[start:end]) for start, end in pairwise(cuts[first:last + 1])]
    return " ".join(["..."] * (first > 0) + tokens + ["..."] * (last < n_tokens))


if __name__ == "__main__":
    run(main)
