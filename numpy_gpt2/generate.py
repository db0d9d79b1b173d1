"""Continue a prompt: `python -m numpy_gpt2.generate "Once upon a time"`."""

import argparse
import math
import os
import re
import sys
import time
from contextlib import suppress
from typing import Any, Iterator

from .checkpoint.loading import load
from .checkpoint.memory import available_memory, gigabytes
from .cli.arguments import (LONGEST_PROMPT, TOO_LONG, ArgumentParser, add_model_argument,
                            add_special_tokens_argument, announce_model, model_config, prompt_file_or_pipe,
                            read_prompt, special_tokens, utf8_text, whole_number)
from .cli.exits import BadInput, bad_input, run, say
from .cli.interrupts import interruptible_prompt
from .cli.tables import table, terminal_width, visible
from .config import GenerationConfig
from .decoding import TextStream, stream_samples
from .tokenizer import Tokenizer, quoted
from .weights import GPT2

TEMPERATURE = 0.8  # the default

HELP = ("Each line is a separate prompt; the model does not remember earlier lines. /quit or Ctrl-D exits, "
        "Ctrl-C stops a text, /help repeats this.")


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="numpy_gpt2.generate", description="Continue a prompt with a GPT-2 in NumPy. "
                            "The text goes to standard output, everything else to standard error.")
    parser.add_argument("prompt", nargs="?", help="the beginning of the text (default: standard input, if it is a pipe "
                        "or a file; otherwise none: the model starts from scratch)")
    parser.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file, or from standard input (-)")
    parser.add_argument("--interactive", action="store_true", help="read prompts interactively, one per line")
    add_model_argument(parser)
    add_special_tokens_argument(parser)
    parser.add_argument("--last", action="store_true", help="if the prompt is too long, keep its end, with room for "
                        "the new tokens, but at least half the context")
    parser.add_argument("--max-new-tokens", type=whole_number(0), default=40, metavar="N", help="default: %(default)s")
    parser.add_argument("--temperature", type=float, metavar="T",
                        help=f"below 1 more predictable, above 1 more random, 0 greedy (default: {TEMPERATURE})")
    parser.add_argument("--top-k", type=whole_number(0), default=40, metavar="K",
                        help="sample from the K most likely tokens, 0 is off (default: %(default)s)")
    parser.add_argument("--top-p", type=fraction, default=1.0, metavar="P",
                        help="sample from the most likely tokens with total probability P, 1 is off (the default)")
    parser.add_argument("--min-p", type=fraction, default=0.0, metavar="P",
                        help="sample from tokens at least P times as likely as the top one, 0 is off (the default)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R",
                        help="above 1 makes earlier tokens less likely, 1 is off (the default)")
    parser.add_argument("--greedy", action="store_true", help="always the most likely token; same as --temperature 0")
    parser.add_argument("--seed", type=whole_number(0), metavar="S", help="the same seed gives the same text")
    parser.add_argument("--num-samples", type=whole_number(1, 10_000), default=1, metavar="N",
                        help="generate N continuations of the prompt")
    parser.add_argument("--stop", action="append", type=stop_string, default=[], metavar="TEXT",
                        help="stop before this text appears; may be given several times")
    parser.add_argument("--prompt-lookup", type=whole_number(0), default=0, metavar="N",
                        help="with --greedy: draft up to N tokens at a time from earlier text and verify them in one "
                             "pass; the same text, faster where it repeats itself, 0 is off (the default)")
    parser.add_argument("--log-probs", action="store_true",
                        help="after each text, print a table of its new tokens, with each one's (natural) log-"
                             "probability and probability under the model, before temperature, top-k and the like")
    parser.add_argument("--stats", action="store_true", help="print token counts and speed")
    return parser


def main() -> None:
    """Parse, load, and continue each prompt."""
    args = make_parser().parse_args()
    if args.interactive and (args.prompt is not None or args.prompt_file is not None):
        raise BadInput("--interactive asks for its prompts: give no prompt and no --prompt-file with it")
    if args.prompt is not None and args.prompt_file is not None:
        raise BadInput("a prompt and --prompt-file were both given: give one")
    if args.greedy and args.temperature:
        raise BadInput(f"--greedy is --temperature 0. Got --temperature {args.temperature} with it: give one")
    if args.temperature is None:
        args.temperature = 0 if args.greedy else TEMPERATURE
    if args.prompt_lookup and (args.num_samples > 1 or args.temperature != 0):
        raise BadInput("--prompt-lookup guesses the likeliest tokens of one text: give it with --greedy, "
                       "without --num-samples")
    with bad_input():
        config = GenerationConfig(
            max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
            min_p=args.min_p, repetition_penalty=args.repetition_penalty, seed=args.seed,
            stop_strings=args.stop, prompt_lookup_num_tokens=args.prompt_lookup)
    n_positions = model_config(args.model).n_positions
    prompt = ""
    if not args.interactive:
        file = prompt_file_or_pipe(args.prompt, args.prompt_file)
        prompt = read_prompt(args.prompt, file, n_positions, args.last)
    with bad_input():
        model, tokenizer = load(args.model)
    announce_model(args.model, model)
    if args.interactive:
        answer_prompts(model, tokenizer, config, args)
    else:
        write_samples(model, tokenizer, prompt, config, args)


def write_samples(model: GPT2, tokenizer: Tokenizer, prompt: str, config: GenerationConfig, args: Any) -> None:
    """Print every continuation of one prompt, one after another, streaming each."""
    started = time.perf_counter()
    ids = tokenizer.encode(prompt, special_tokens(args))
    n_positions = model.config.n_positions
    if args.last:
        room = max(n_positions - args.max_new_tokens, n_positions // 2)
        prompt, ids = last_that_fit(prompt, ids, room, tokenizer, special_tokens(args))
    elif len(ids) > n_positions:
        raise BadInput(f"the prompt must be at most {n_positions:,} tokens, the model's context. Got {len(ids):,}: "
                       f"shorten it{TOO_LONG}")
    check_samples_fit(model, args.num_samples, min(len(ids) + args.max_new_tokens, n_positions))
    with bad_input():
        streams = stream_samples(model, tokenizer, prompt, args.num_samples, generation_config=config,
                                 allowed_special=special_tokens(args))
    first_piece = None
    for number, stream in enumerate(streams, start=1):
        if args.num_samples > 1:
            write(f"--- sample {number} of {args.num_samples} ---\n")
        write(prompt)
        for piece in stream:
            first_piece = first_piece or time.perf_counter()
            write(piece)
        write("\n")
        if args.log_probs:
            write("".join(f"{line}\n" for line in ["", *log_prob_table(stream, tokenizer), ""]))
    if any(stream.finish_reason == "length" and len(stream.ids) < args.max_new_tokens for stream in streams):
        say(f"note: the text ends where the model's context of {model.config.n_positions:,} tokens does")
    if args.stats:
        say(statistics(len(ids), streams, started, first_piece or time.perf_counter()))


def check_samples_fit(model: GPT2, n_samples: int, n_tokens: int) -> None:
    """Raise MemoryError if the keys, values and logits of all samples, which are drawn together, would not fit."""
    config = model.config
    of_cache = 2 * config.n_layer * config.n_embd * n_tokens * model.wte.itemsize
    of_logits = 24 * config.vocab_size  # logits, probabilities, and their sums in float64
    needed, available = n_samples * (of_cache + of_logits), available_memory()
    if available is not None and needed > available:
        raise MemoryError(f"{n_samples:,} samples of {n_tokens:,} tokens take {gigabytes(needed)}, and "
                          f"{gigabytes(available)} is available: lower --num-samples or --max-new-tokens")


def log_prob_table(stream: TextStream, tokenizer: Tokenizer) -> Iterator[str]:
    """A line for each generated token, including those cut off by a stop string."""
    rows = [[f"{log_prob:.3f}", f"{math.exp(log_prob):.4f}", str(token_id), quoted(tokenizer, token_id)]
            for token_id, log_prob in zip(stream.ids, stream.log_probs)]
    return table(["log-prob", "probability", "id", "token"], rows, ">>><", terminal_width())


def fraction(text: str) -> float:
    """An argparse type: a number; one that looks like a percentage is refused with a hint."""
    number = float(text)
    if 2 <= number <= 100:
        raise argparse.ArgumentTypeError(f"must be a fraction, at most 1. Got {text}: {text}% is {number / 100:g}")
    return number


def last_that_fit(prompt: str, ids: list[int], room: int, tokenizer: Tokenizer,
                  allowed_special: Any) -> tuple[str, list[int]]:
    """The prompt and its ids, cut to the last `room` ids, from a whole character on, with a note."""
    kept = room
    while len(ids) > room:
        end = b"".join(map(tokenizer.token_bytes, ids[-kept:]))
        prompt = end.lstrip(bytes(range(0x80, 0xc0))).decode()  # without the rest of a split character
        ids = tokenizer.encode(prompt, allowed_special)
        kept -= 1  # a split word can take more tokens than before
        if len(ids) <= room:
            say(f"note: of the prompt, the last {len(ids):,} tokens are read (--last)")
    return prompt, ids


def stop_string(text: str) -> str:
    """An argparse type: a non-empty text (an empty one would match everywhere)."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    if "\\n" in text:
        say(r"note: --stop: \n is two characters here, a backslash and an n; a line end is $'\n' in bash and zsh")
    return utf8_text(os.fsencode(text), "--stop")


def write(text: str) -> None:
    """Write to standard output, unbuffered; control characters are escaped on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def statistics(n_prompt: int, streams: list[TextStream], started: float, first_piece: float) -> str:
    """The line that `--stats` prints."""
    n_new = sum(len(stream.ids) for stream in streams)
    seconds = time.perf_counter() - started
    reasons = ", ".join(stream.finish_reason for stream in streams)
    line = (f"stats: {n_prompt} prompt tokens, {n_new} new tokens in {seconds:.2f} s ({n_new / seconds:.1f} tokens/s, "
            f"first text after {first_piece - started:.2f} s), finished by {reasons}")
    lookup = streams[0].lookup
    if lookup is not None:
        line += (f"; {lookup.n_tokens / max(1, lookup.n_passes):.2f} tokens per pass: {lookup.n_accepted} of "
                 f"{lookup.n_drafted} guesses accepted in {lookup.n_passes} passes")
    return line


# Prompts line by line -------------------------------------------------------------------------------------------------


def answer_prompts(model: GPT2, tokenizer: Tokenizer, config: GenerationConfig, args: Any) -> None:
    """Continue each line typed, until the end of input or /quit. On a terminal, Ctrl-C stops only the current text."""
    on_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_a_terminal:
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  (gives input() line editing and history)
    say(HELP)
    while True:
        try:
            line = next_line(on_a_terminal)
            if line.strip() in ("/quit", "/exit"):
                return
            if re.fullmatch(r"/\w+ *", line):
                say(HELP if line.strip() == "/help" else f"error: no command is called {line}: expected /help or /quit")
            else:
                write_samples(model, tokenizer, read_prompt(line, None, model.config.n_positions), config, args)
        except EOFError:
            return say("")
        except BadInput as error:
            say(f"error: {error}")  # and wait for the next prompt
        except KeyboardInterrupt:
            if not on_a_terminal:
                raise
            say("\nstopped; /quit or Ctrl-D exits")


def next_line(on_a_terminal: bool) -> str:
    """The next line, decoded like an argument. Raises EOFError at the end of input.

    From a pipe, a line longer than any prompt is cut, but still recognizably too long.
    """
    if on_a_terminal:
        with interruptible_prompt():
            return input("prompt> ")
    say("prompt> ", end="")
    line = sys.stdin.buffer.readline(LONGEST_PROMPT + 1)
    if not line:
        raise EOFError
    rest = line
    while len(rest) > LONGEST_PROMPT and not rest.endswith(b"\n"):
        rest = sys.stdin.buffer.readline(LONGEST_PROMPT + 1)
    return os.fsdecode(line).rstrip("\r\n")


if __name__ == "__main__":
    run(main)
