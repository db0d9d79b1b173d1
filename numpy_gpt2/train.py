"""Fine-tune a checkpoint on texts, or train from scratch: `python -m numpy_gpt2.train story.txt --out my-model`."""

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .checkpoint.loading import load, load_tokenizer
from .checkpoint.memory import check_memory
from .checkpoint.saving import save
from .cli.arguments import ArgumentParser, announce_model, check_plot, read_text, whole_number
from .cli.exits import bad_input, say
from .cli.exits import run as run_command
from .cli.tables import table, terminal_width
from .config import GPT2Config
from .decoding import stream_text
from .errors import check_number
from .scoring import score_tokens
from .tokenizer import Tokenizer
from .training.loop import Run, best_step, diverged, frozen_names, initial_model, start, training_step
from .training.memory import check_training_memory
from .training.plot import draw
from .training.saved_run import check_folder, description, finish_run, is_finished, only_run, resume, save_run
from .training.settings import TrainingConfig
from .training.windows import split_tail
from .weights import GPT2, parameter_shapes

SAMPLE_TOKENS = 40
PASSES, FEWEST_STEPS, MOST_STEPS = 3, 20, 200  # by default: more passes over the text overfit


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="numpy_gpt2.train", description="Fine-tune a checkpoint on texts, or train from "
                            "scratch. The run's state is saved regularly: after Ctrl-C, a crash or a full disk, the "
                            "same command resumes from there, to the same weights.")
    parser.add_argument("texts", nargs="+", metavar="TEXT",
                        help="a UTF-8 text file, or - for standard input; <|endoftext|> is prepended to each")
    parser.add_argument("--model", default="fairytale", metavar="NAME",
                        help="the model to start from: fairytale (bundled, the default), gpt2, gpt2-medium, an "
                             "owner/repo on the hub, or a folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="the output folder: a new one, or that of a run to resume")

    scratch = parser.add_argument_group("a new model")
    scratch.add_argument("--from-scratch", action="store_true",
                         help="start with an untrained model, using only the tokenizer of --model")
    for name, default in (("n-layer", 4), ("n-head", 4), ("n-embd", 128)):
        scratch.add_argument(f"--{name}", type=whole_number(1), default=default, metavar="N",
                             help="default: %(default)s")

    recipe = parser.add_argument_group("training")
    recipe.add_argument("--steps", type=whole_number(1), metavar="N",
                        help=f"updates of the weights (default: {PASSES} passes over the text, but at least "
                             f"{FEWEST_STEPS} and at most {MOST_STEPS} steps; from scratch {MOST_STEPS})")
    recipe.add_argument("--batch-size", type=whole_number(1), default=8, metavar="N",
                        help="windows of the text per forward pass (default: %(default)s)")
    recipe.add_argument("--context", type=whole_number(1), metavar="N",
                        help="tokens per window (default: 256, or the model's context if that is shorter)")
    recipe.add_argument("--accumulate", type=whole_number(1), default=1, metavar="N",
                        help="forward and backward passes per step: a larger batch in less memory "
                             "(default: %(default)s)")
    recipe.add_argument("--rate", type=float, metavar="R",
                        help="AdamW's peak learning rate (default: 0.001, from scratch 0.005)")
    recipe.add_argument("--muon-rate", type=float, metavar="R",
                        help="Muon's peak learning rate, for the matrices of the blocks; 0 uses AdamW for them "
                             "(default: 0.01, from scratch 0.02)")
    recipe.add_argument("--weight-decay", type=float, default=0.05, metavar="D",
                        help="for the matrices of the blocks (default: %(default)s)")
    recipe.add_argument("--warmup", type=float, default=0.1, metavar="F",
                        help="the fraction of the steps over which the rates rise, before cosine decay "
                             "(default: %(default)s)")
    recipe.add_argument("--clip", type=float, default=1.0, metavar="NORM",
                        help="the maximum norm of AdamW's gradients; 0 is off (default: %(default)s)")
    recipe.add_argument("--freeze", nargs="+", default=[], metavar="GLOB",
                        help="parameters to keep fixed: 'wte' 'h.[0-3].*'")
    recipe.add_argument("--seed", type=whole_number(0), default=0, metavar="S",
                        help="for the order of the windows, and a new model's weights (default: %(default)s)")

    watching = parser.add_argument_group("evaluation and saving")
    watching.add_argument("--held-out", type=float, default=0.1, metavar="F",
                          help="the fraction of the text, its tail, to hold out for evaluation: the weights with the "
                               "lowest loss there are kept; with 0, those of the last step (default: %(default)s)")
    watching.add_argument("--eval-every", type=whole_number(1), metavar="N",
                          help="steps between evaluations, each with a sample of text (default: a fifth of --steps)")
    watching.add_argument("--save-every", type=float, default=60.0, metavar="S",
                          help="seconds between saves of the run's state (default: %(default)s)")
    watching.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the losses")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    with bad_input():
        if args.plot:
            check_plot(args.plot)
        check_number("--save-every", args.save_every, 0, math.inf, "0 (after every step) or more seconds")
        check_folder(args.out)
        tokenizer = load_tokenizer(args.model)
    ids = np.concatenate([tokenizer.with_bos(tokenizer.encode(read_text(text))) for text in args.texts])
    with bad_input():
        train_ids, held_out = split_tail(ids, args.held_out)
        model = starting_model(args, tokenizer)
        config = training_config(args, model, len(train_ids))
        check_training_memory(model.config, config, frozen_names(list(parameter_shapes(model.config)), config.freeze))
        run = start(model, config)
        check_length(train_ids, config)
    about = {**description(run, ids, args.model), "held_out": args.held_out, "from_scratch": args.from_scratch}
    with bad_input():
        if is_finished(args.out, about):
            return say(f"{args.out} holds this run, finished. To train further: the same command with --model "
                       f"{args.out} and another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as until_finished:
        with bad_input():
            until_finished.enter_context(only_run(args.out))
            if resume(run, args.out, about):
                say(f"{args.out}: resuming after step {run.step} of {config.steps}")
        announce_model("a new one" if args.from_scratch else args.model, model)
        passes = config.steps * tokens_per_step(config) / len(train_ids)
        say(f"{len(train_ids):,} tokens to train on, {len(held_out):,} held out; {config.steps:,} steps of "
            f"{tokens_per_step(config):,} tokens, {passes:.1f} passes over the text")
        try:
            take_steps(run, train_ids, held_out, tokenizer, about, args)
        except KeyboardInterrupt:
            if run.is_whole:  # otherwise interrupted during an update: the last saved state is used
                save_run(run, args.out, about)
            say("stopped: run the same command again to resume")
            raise
        best = best_step(run)
        if best is None:
            save(run.model, args.out, tokenizer=tokenizer)
        finish_run(run, args.out, about)
    print_losses(run)
    if best is not None:
        say(f"{args.out}: {kept(run, best)}")
    say(f"{args.out}: done; try python -m numpy_gpt2.generate --model {args.out}")
    if args.plot:
        draw(run, args.plot)


# Settings -------------------------------------------------------------------------------------------------------------


def starting_model(args: Any, tokenizer: Tokenizer) -> GPT2:
    """The checkpoint's model, or with --from-scratch an untrained one."""
    if not args.from_scratch:
        return load(args.model)[0]
    context = args.context or 256
    end = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    config = GPT2Config(tokenizer.vocab_size, context, args.n_embd, args.n_layer, args.n_head,
                        bos_token_id=tokenizer.bos_id, eos_token_id=end)
    check_memory(config, np.dtype(np.float32))  # before a billion layers are made, one by one
    return initial_model(config, args.seed)


def training_config(args: Any, model: GPT2, n_tokens: int) -> TrainingConfig:
    """The settings, with defaults filled in. n_tokens: the length of the training text."""
    defaults = {"rate": 0.005, "muon_rate": 0.02} if args.from_scratch else {"rate": 0.001, "muon_rate": 0.01}
    rates = defaults | {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
    config = TrainingConfig(args.steps or MOST_STEPS, args.batch_size,
                            args.context or min(256, model.config.n_positions), args.accumulate, **rates,
                            weight_decay=args.weight_decay, warmup=args.warmup, clip=args.clip,
                            freeze=tuple(args.freeze), seed=args.seed)
    if args.steps or args.from_scratch:
        return config
    steps = math.ceil(PASSES * n_tokens / tokens_per_step(config))
    return replace(config, steps=min(max(steps, FEWEST_STEPS), MOST_STEPS))


def tokens_per_step(config: TrainingConfig) -> int:
    return config.accumulate * config.batch_size * config.context


def check_length(train_ids: np.ndarray, config: TrainingConfig) -> None:
    """Raise ValueError for a text shorter than one window."""
    if len(train_ids) <= config.context:
        raise ValueError(f"the text must be longer than one window, --context {config.context}. Got "
                         f"{len(train_ids):,} tokens to train on: use a longer text, or "
                         f"--context {max(1, len(train_ids) // 2)}.")


# The run --------------------------------------------------------------------------------------------------------------


def take_steps(run: Run, ids: np.ndarray, held_out: np.ndarray, tokenizer: Tokenizer, about: dict[str, Any],
               args: Any) -> None:
    """Take the remaining steps, with a progress bar, evaluations, and regular saves of the state."""
    eval_every = args.eval_every or max(1, run.config.steps // 5)
    n_tokens = tokens_per_step(run.config)
    saved = time.monotonic()
    if run.step == 0:
        measure(run, held_out, tokenizer)
    with tqdm(total=run.config.steps, initial=run.step, unit="step", disable=None) as bar:
        while True:
            is_last = run.step == run.config.steps
            is_due = run.step > 0 and (is_last or run.step % eval_every == 0)
            if is_due and run.step not in run.held_out_losses:  # a resumed run may have stopped before this
                bar.clear()
                try:
                    measure(run, held_out, tokenizer)
                except FloatingPointError as error:
                    raise diverged(run, "the logits are not finite") from error
            is_best = run.step == best_step(run)
            if is_last or is_best or run.step > 0 and time.monotonic() - saved >= args.save_every:
                save_run(run, args.out, about)
                saved = time.monotonic()
            if is_best:
                save(run.model, args.out, tokenizer=tokenizer)
            if is_last:
                return
            started = time.perf_counter()
            loss = training_step(run, ids)
            speed = n_tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()


def measure(run: Run, held_out: np.ndarray, tokenizer: Tokenizer) -> None:
    """Record the held-out loss, and print it with a sample of the model's text to standard error."""
    line = f"step {run.step}/{run.config.steps}"
    if run.losses:
        line += f", loss {run.losses[-1]:.3f}"
    if len(held_out) > 1:
        stride = run.model.config.n_positions - 1  # windows hardly overlap, to evaluate quickly
        run.held_out_losses[run.step] = score_tokens(run.model, held_out, stride=stride).mean_loss
        line += f", held-out loss {run.held_out_losses[run.step]:.3f}"
    sample = "".join(stream_text(run.model, tokenizer, "", SAMPLE_TOKENS, temperature=0.8, top_k=40, seed=run.step))
    say(f"{line}: {' '.join(sample.split())}")


def kept(run: Run, best: int) -> str:
    """One line that says which weights are kept, and why."""
    losses, last = run.held_out_losses, run.step
    if best == last:
        line = f"the weights of the last step are kept: its held-out loss is the lowest, {losses[last]:.3f}"
    else:
        line = (f"the weights of step {best} are kept: its held-out loss is the lowest, {losses[best]:.3f}; after "
                f"{last} steps it was {losses[last]:.3f}, so fewer --steps would be enough")
    if losses[best] > losses[0]:
        line += f" (before the first step it was lower, {losses[0]:.3f}: the text may be short, or unlike its tail)"
    return line


def print_losses(run: Run) -> None:
    """Print the final table: the losses at each evaluation."""
    rows = [[f"{step:,}", mean_of_last(run.losses[:step]), f"{loss:.3f}", f"{math.exp(min(loss, 700)):.4g}"]
            for step, loss in run.held_out_losses.items()]
    header = ["step", "training loss", "held-out loss", "held-out perplexity"]
    for line in table(header, rows, ">>>>", terminal_width()):
        print(line)


def mean_of_last(losses: list[float], n: int = 10) -> str:
    """The mean of the last n losses, since single batches vary: "3.142"."""
    return f"{np.mean(losses[-n:]):.3f}" if losses else ""


if __name__ == "__main__":
    run_command(main)
