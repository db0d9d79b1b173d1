"""A soak test: minutes of generation in one process, then several processes at once.

    python scripts/verify/soak.py --minutes 10 --processes 8

In one process, with the bundled checkpoint: texts, batches and scores with prompts and options drawn at random (every
option of sampling, stop strings, several samples, prompt lookup, prompts up to the whole context), some abandoned
halfway, interleaved with invalid arguments. Each round must end as expected, and:

    memory    at the end the process holds no more than after the first tenth of the time, within --megabytes
    seeds     the same prompts, options and seeds give the same texts at the end as at the start

Then several processes run `python -m numpy_gpt2.generate` at once: all must finish, with the same text.
The exit status is 1 if anything fails. Needs Linux, to measure memory.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from fuzz_watch import memory

from numpy_gpt2 import forward, generate_tokens, load, score_tokens, stream_samples
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import run, say

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

from experiment import STORY, Parser  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time"
FIXED = [  # asked at the start and at the end
    {"prompt": PROMPT, "seed": 1, "temperature": 0.8, "top_k": 40},
    {"prompt": "The king said", "seed": 2, "temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2},
    {"prompt": "", "seed": 3, "min_p": 0.05, "stop_strings": ["."]},
    {"prompt": "The fox", "temperature": 0, "prompt_lookup_num_tokens": 10},
]


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, metavar="M", help="of generation (default: %(default)s)")
    parser.add_argument("--processes", type=whole_number(0), default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--megabytes", type=whole_number(1), default=32, metavar="MB",
                        help="the allowed growth of memory (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="default: %(default)s")
    return parser


def main():
    args = make_parser().parse_args()
    problems = soak(args) + start_at_once(args.processes)
    if problems:
        sys.exit(f"error: {'; '.join(problems)}")


# One process ----------------------------------------------------------------------------------------------------------


def soak(args):
    """Generate for so many minutes, print the results, and return the problems."""
    model, tokenizer = load("fairytale")
    story = STORY.read_text(encoding="utf-8")
    rng = np.random.default_rng(args.seed)
    counts = Counter()
    at_start = fixed_texts(model, tokenizer)
    started = time.monotonic()
    warm = None
    while time.monotonic() < started + 60 * args.minutes:
        round_of = ROUNDS[int(rng.integers(len(ROUNDS)))]
        counts[round_of.__name__] += 1
        counts["tokens"] += round_of(model, tokenizer, story, rng)
        if warm is None and time.monotonic() > started + 6 * args.minutes:
            warm = memory("VmRSS")
    end = memory("VmRSS")
    warm = warm or end
    is_same = fixed_texts(model, tokenizer) == at_start

    n_rounds = sum(counts[round_of.__name__] for round_of in ROUNDS)
    kinds = ", ".join(f"{counts[round_of.__name__]:,} {round_of.__name__}" for round_of in ROUNDS)
    print(f"{args.minutes:g} minutes: {n_rounds:,} rounds ({kinds}), {counts['tokens']:,} tokens")
    print(f"memory: {warm / 1e6:.1f} MB after the first tenth, {end / 1e6:.1f} MB at the end, "
          f"{memory('VmHWM') / 1e6:.1f} MB at most")
    print(f"seeds: the texts of the start are {'the same' if is_same else 'OTHERS'} at the end")
    problems = []
    if end - warm > args.megabytes * 1e6:
        problems.append(f"memory grew by {(end - warm) / 1e6:.1f} MB, expected at most {args.megabytes}")
    if not is_same:
        problems.append("the same seeds gave other texts at the end than at the start")
    return problems


def fixed_texts(model, tokenizer):
    written = []
    for options in FIXED:
        options = dict(options)
        streams = stream_samples(model, tokenizer, options.pop("prompt"), 1, 60, **options)
        written += ["".join(stream) for stream in streams]
    return written


def random_prompt(tokenizer, story, rng):
    """Nothing, a few words, random characters, or a part of the story up to the whole context of 512 tokens."""
    kind = int(rng.integers(4))
    if kind == 0:
        return ["", " ", "\n", "The king", "Once upon a time, in a land far away,"][int(rng.integers(5))]
    if kind == 1:
        return "".join(map(chr, rng.integers(1, 0xD800, int(rng.integers(1, 30)))))
    n = int(rng.integers(1, 40 if kind == 2 else 500))
    start = int(rng.integers(0, len(story) - 4000))
    return tokenizer.decode(tokenizer.encode(story[start:start + 4000])[:n])


def random_sampling(rng):
    """Random sampling settings, each on or off."""
    values = {"temperature": float(rng.choice([0, 0.3, 0.8, 1.5, 10])), "top_k": int(rng.integers(1, 200)),
              "top_p": float(rng.uniform(0.1, 1)), "min_p": float(rng.uniform(0, 0.5)),
              "repetition_penalty": float(rng.uniform(0.5, 2)), "seed": int(rng.integers(2**32))}
    return {name: value for name, value in values.items() if rng.random() < 0.5}


# Rounds: each (model, tokenizer, story, rng) -> the number of tokens generated or read --------------------------------


def texts(model, tokenizer, story, rng):
    """One text or several, sometimes with stop strings."""
    stops = [story[i:i + 2] for i in rng.integers(0, len(story) - 2, int(rng.integers(3)))]
    streams = stream_samples(model, tokenizer, random_prompt(tokenizer, story, rng), int(rng.integers(1, 5)),
                             int(rng.integers(0, 80)), stop_strings=stops, **random_sampling(rng))
    for stream in streams:
        "".join(stream)
        assert stream.finish_reason in ("eos", "stop", "length")
    return sum(len(stream.ids) for stream in streams)


def texts_left_half_read(model, tokenizer, story, rng):
    """Texts abandoned halfway."""
    streams = stream_samples(model, tokenizer, random_prompt(tokenizer, story, rng), 3, 60, **random_sampling(rng))
    next(streams[1], None)
    return max(len(stream.ids) for stream in streams)


def drafts(model, tokenizer, story, rng):
    """Greedy text with prompt lookup, the same as without."""
    ids = tokenizer.encode(random_prompt(tokenizer, story, rng)) or [tokenizer.eot_id]
    n_new = int(rng.integers(1, 60))
    plain = list(generate_tokens(model, ids, n_new, temperature=0))
    drafted = list(generate_tokens(model, ids, n_new, temperature=0, prompt_lookup_num_tokens=int(rng.integers(1, 20))))
    differ = [i for i, (one, other) in enumerate(zip(plain, drafted)) if one != other]
    if differ:  # allowed only at a near tie
        first, second = np.sort(forward(model, ids + plain[:differ[0]])[-1])[:-3:-1]
        assert first - second < 1e-3, "drafts changed the text"
    return len(plain) + len(drafted)


def batches(model, tokenizer, story, rng):
    """A batch of prompts of one length, sometimes to the end of the context."""
    ids = rng.integers(0, model.config.vocab_size, (int(rng.integers(1, 4)), int(rng.integers(400, 513))))
    return sum(step.size for step in generate_tokens(model, ids, 60, **random_sampling(rng)))


def scores(model, tokenizer, story, rng):
    """The loss of a part of the story."""
    ids = tokenizer.encode(random_prompt(tokenizer, story, rng) + " the end")
    assert np.isfinite(score_tokens(model, ids).mean_loss)
    return len(ids)


def errors(model, tokenizer, story, rng):
    """Invalid arguments, and a failure in the middle of a pass."""
    def broken_tap(name, value):
        return value[..., :-1] if name == "h.3.attn.pattern" else value

    calls = [
        lambda: forward(model, [model.config.vocab_size]),
        lambda: forward(model, [1] * 513),
        lambda: forward(model, [1, 2, 3], tap=broken_tap),
        lambda: tokenizer.encode("a\ud800"),
        lambda: stream_samples(model, tokenizer, "word " * 600, 1, 5),
        lambda: generate_tokens(model, [1], 5, temperature=-1),
        lambda: generate_tokens(model, [1], 5, temperature=0.5, prompt_lookup_num_tokens=3),
    ]
    try:
        calls[int(rng.integers(len(calls)))]()
    except ValueError:
        return 0
    raise AssertionError("expected a ValueError")


ROUNDS = [texts, texts_left_half_read, drafts, batches, scores, errors]


# Several processes ----------------------------------------------------------------------------------------------------


def start_at_once(n):
    """Start n commands, wait for all, print the results, and return the problems."""
    if n == 0:
        return []
    command = [sys.executable, "-m", "numpy_gpt2.generate", PROMPT, "--seed", "1", "--max-new-tokens", "100"]
    say(f"starting {n} processes")
    started = time.monotonic()
    children = [subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE) for _ in range(n)]
    outputs = [child.communicate() for child in children]
    failed = [f"exit {child.returncode}, {errors.decode(errors='replace').strip()[-200:]}"
              for child, (_, errors) in zip(children, outputs) if child.returncode != 0]
    n_texts = len({text for text, _ in outputs})
    print(f"{n} processes at once: {n - len(failed)} finished, {n_texts} text, {time.monotonic() - started:.1f} s")
    if failed:
        return [f"{len(failed)} of {n} processes failed: {failed[0]}"]
    return [] if n_texts == 1 else [f"{n} processes wrote {n_texts} texts with one seed, expected one"]


if __name__ == "__main__":
    run(main)
