"""Train the bundled checkpoint `fairytale`, a small GPT-2, on public-domain children's books, with this package alone.

    pip install -e '.[train]'
    python scripts/train/fairytale.py BOOKS --work build/fairytale --out build/fairytale/checkpoint

BOOKS is a folder of Project Gutenberg's plain-text files (11.txt, 113.txt, ...). The run saves its state every hundred
steps under --work, and a run that resumes from there ends with the same weights. It takes less than an hour on two idle
cores. The extra `train` installs `tokenizers`, which trains the vocabulary; the model card, written next to the
weights, has the measurements.

Muon trains the matrices inside the blocks, AdamW everything else (numpy_gpt2/training/optimizers.py). The first three
quarters of the run use windows of half the context, which are cheaper. The learning rate warms up, stays constant, then
falls linearly to 0.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: --threads parallelizes more than BLAS can

import argparse  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from functools import lru_cache  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from fairytale_card import write_card  # noqa: E402
from fairytale_corpus import HELD_OUT_BOOKS, read_books  # noqa: E402

from numpy_gpt2 import GPT2Config, load_tokenizer, save  # noqa: E402
from numpy_gpt2.checkpoint.vocabulary import tokenizer_from_files  # noqa: E402
from numpy_gpt2.training.loop import initial_model, learn, start  # noqa: E402
from numpy_gpt2.training.saved_run import resume, save_run  # noqa: E402
from numpy_gpt2.training.settings import TrainingConfig  # noqa: E402

EOT = "<|endoftext|>"
EOT_ID = 4095
MODEL = GPT2Config(vocab_size=4096, n_positions=512, n_embd=192, n_layer=6, n_head=6, bos_token_id=EOT_ID,
                   eos_token_id=EOT_ID)

BATCH_TOKENS, PART_TOKENS = 8192, 512  # per step, and per pass, whose arrays then stay in the processor's cache
SHORT_CONTEXT, SHORT_FRACTION = 256, 0.75  # the context in the first part of the run, and that part's length
WARMUP_STEPS, COOLDOWN_FRACTION = 100, 0.55
MUON_RATE, ADAMW_RATE, WEIGHT_DECAY = 0.02, 0.002, 0.05


# The data -------------------------------------------------------------------------------------------------------------


def train_vocabulary(stories, folder):
    """Train byte-level BPE with GPT-2's order of ids: the 256 bytes, the merges in order, the end of text last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=EOT_ID, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.add_special_tokens([EOT])
    if tokenizer.token_to_id(EOT) != EOT_ID:
        raise ValueError(f"expected {EOT_ID} tokens before {EOT}, got {tokenizer.token_to_id(EOT)}: "
                         "are there too few books?")
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted((trained["vocab"] | {EOT: EOT_ID}).items(), key=lambda item: item[1]))
    merges = "".join(f"{left} {right}\n" for left, right in trained["merges"])
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")


def prepare(books_folder, work):
    """The tokens of all stories, each after an end of text, as "train" and "held_out", and the held-out bytes."""
    prepared = work / "tokens.npz"
    if prepared.exists():
        with np.load(prepared) as file:
            return {name: file[name] for name in file.files}
    books = read_books(books_folder)
    absent = [number for number in HELD_OUT_BOOKS if number not in books]
    if absent:
        raise ValueError(f"the held-out books {absent} are not in {books_folder}")
    data = {"books": np.array([int(number) for number in books if number not in HELD_OUT_BOOKS]),
            "held_out_books": np.array([int(number) for number in HELD_OUT_BOOKS])}
    held_out = [story for number in HELD_OUT_BOOKS for story in books.pop(number)]
    train = [story for stories in books.values() for story in stories]
    train_vocabulary(train, work)
    tokenizer = load_tokenizer(work)
    data["held_out_bytes"] = np.array(sum(len(story.encode()) for story in held_out))
    for name, stories in (("train", train), ("held_out", held_out)):
        data[name] = np.concatenate([[EOT_ID, *tokenizer.encode(story)] for story in stories])
    np.savez(prepared, **data)
    return data


@lru_cache(maxsize=2)
def window_starts(seed, epoch, n_tokens, context):
    """The starts of one epoch's windows: the text is split from a random offset on, then shuffled."""
    rng = np.random.default_rng([seed, epoch, context])
    return rng.permutation(np.arange(rng.integers(context), n_tokens - context, context))


def batch(tokens, seed, step, context):
    """The windows of one step, [n_windows, context + 1]. It depends on nothing but its arguments, so runs resume."""
    n_windows = BATCH_TOKENS // context
    per_epoch = (len(tokens) // context - 2) // n_windows  # whole steps per epoch, whatever its offset
    epoch, place = divmod(step, per_epoch)
    starts = window_starts(seed, epoch, len(tokens), context)[place * n_windows:(place + 1) * n_windows]
    return np.stack([tokens[start:start + context + 1] for start in starts])


# The run --------------------------------------------------------------------------------------------------------------


def rate_at(step, steps):
    """The fraction of the peak learning rate: a short warm-up, a plateau, a linear decay to 0."""
    return min(1, (step + 1) / WARMUP_STEPS, (steps - step) / (COOLDOWN_FRACTION * steps))


def train(data, work, steps, seed, threads):
    """Train, or resume training: the model after `steps` steps."""
    config = TrainingConfig(steps, PART_TOKENS // SHORT_CONTEXT, MODEL.n_positions, BATCH_TOKENS // PART_TOKENS,
                            ADAMW_RATE, MUON_RATE, WEIGHT_DECAY, seed=seed)
    run = start(initial_model(MODEL, seed), config)
    about = {"steps": steps, "seed": seed}
    resume(run, work, about)
    short_steps = int(SHORT_FRACTION * steps)
    clock, n_timed = time.time(), 0
    while run.step < steps:
        if run.step < short_steps:
            windows = batch(data["train"], seed, run.step, SHORT_CONTEXT)
        else:
            windows = batch(data["train"], seed, run.step - short_steps, MODEL.n_positions)
        learn(run, np.split(windows, BATCH_TOKENS // PART_TOKENS), rate_at(run.step, steps), threads)
        n_timed += 1
        if run.step % 20 == 0:
            print(f"step {run.step}/{steps}  loss {np.mean(run.losses[-20:]):.4f}  "
                  f"{n_timed * BATCH_TOKENS / (time.time() - clock):,.0f} tokens/s", flush=True)
            clock, n_timed = time.time(), 0
        if run.step % 100 == 0 or run.step == steps:
            save_run(run, work, about)
    return run.model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("books", help="a folder of Project Gutenberg's plain-text files")
    parser.add_argument("--work", type=Path, default=Path("build/fairytale"),
                        help="state of the run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/fairytale/checkpoint"), help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3300, help=f"of {BATCH_TOKENS} tokens each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = prepare(args.books, args.work)
    print(f"{len(data['train']):,} tokens to train on, {len(data['held_out']):,} held out", flush=True)
    model = train(data, args.work, args.steps, args.seed, args.threads)
    vocabulary = {name: args.work / name for name in ("vocab.json", "merges.txt")}
    save(model, args.out, dtype="float16", tokenizer=tokenizer_from_files(vocabulary))
    recipe = {"steps": args.steps, "seed": args.seed, "batch": BATCH_TOKENS, "muon_rate": MUON_RATE,
              "adamw_rate": ADAMW_RATE}
    np.savez(args.work / "recipe.npz", **recipe)
    write_card(args.out, data, recipe)


if __name__ == "__main__":
    main()
