"""Train fairytale."""
import argparse, functools, json, math, os, shutil, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from fairytale_corpus import HELD_OUT_BOOKS, read_books

from numpy_gpt2 import GPT2Config, build_model, forward, load_tokenizer, named_parameters
from numpy_gpt2.backward import loss_and_gradients
from numpy_gpt2.checkpoint import empty_in_memory_order, parameter_shapes
from numpy_gpt2.training.optimizers import adamw, muon

VOCAB_SIZE, N_POSITIONS, N_EMBD, N_LAYER, N_HEAD = 4096, 512, 192, 6, 6
EOT_ID = VOCAB_SIZE - 1
BATCH_TOKENS = 8192
MICRO_BATCH_TOKENS = 512
SHORT_CONTEXT, SHORT_SHARE = 256, 0.75
WARMUP_STEPS, COOLDOWN_SHARE = 100, 0.55
MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 0.02, 0.95, 0.05
ADAM_RATE, ADAM_BETAS = 2e-3, (0.9, 0.95)


def prepare(books_folder, work):
    prepared = work / "tokens.npz"
    if prepared.exists():
        with np.load(prepared) as file:
            return {name: file[name] for name in file.files}
    books = read_books(books_folder)
    numbers = np.array([int(number) for number in books])
    held_out = [story for number in HELD_OUT_BOOKS for story in books.pop(number)]
    train = [story for stories in books.values() for story in stories]
    tokenizer = load_tokenizer("fairytale")
    data = {"books": numbers, "held_out_bytes": np.int64(sum(len(story.encode()) for story in held_out))}
    for name, stories in (("train", train), ("held_out", held_out)):
        data[name] = np.concatenate([np.array([EOT_ID] + tokenizer.encode(story), np.uint16) for story in stories])
    np.savez(prepared, **data)
    return data


@functools.lru_cache(maxsize=2)
def window_starts(seed, epoch, n_tokens, context):
    rng = np.random.default_rng([seed, epoch, context])
    return rng.permutation(np.arange(rng.integers(context), n_tokens - context, context))


def batch(tokens, seed, step, context):
    n_windows = BATCH_TOKENS // context
    per_epoch = (len(tokens) // context - 2) // n_windows
    epoch, place = divmod(step, per_epoch)
    starts = window_starts(seed, epoch, len(tokens), context)[place * n_windows:(place + 1) * n_windows]
    return np.stack([tokens[start:start + context + 1] for start in starts]).astype(np.int64)


def initial_model(seed):
    config = GPT2Config(VOCAB_SIZE, N_POSITIONS, N_EMBD, N_LAYER, N_HEAD, bos_token_id=EOT_ID, eos_token_id=EOT_ID)
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        array = empty_in_memory_order(name, shape, np.float32)
        if len(shape) == 2:
            std = 0.01 if name == "wpe.weight" else 0.02
            if "c_proj" in name:
                std /= math.sqrt(2 * N_LAYER)
            array[...] = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
        else:
            array[...] = 1 if name.split(".")[-2].startswith("ln_") and name.endswith("weight") else 0
        arrays[name] = array
    return build_model(config, arrays)


def held_out_bits_per_byte(model, data, pool, stride=N_POSITIONS, limit=None):
    tokens = data["held_out"].astype(np.int64)
    starts = np.arange(0, len(tokens) - N_POSITIONS, stride)[:limit]

    def nats_of(start):
        ids = tokens[start:start + N_POSITIONS + 1]
        logits = forward(model, ids[:-1]).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        losses = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(N_POSITIONS), ids[1:]]
        new = losses if start == 0 else losses[-stride:]
        return new.sum(), len(new)

    results = list(pool.map(nats_of, starts))
    nats = sum(r[0] for r in results) / sum(r[1] for r in results)
    return nats / math.log(2) / (data["held_out_bytes"] / len(tokens))


def rate_at(step, steps):
    return min(1, (step + 1) / WARMUP_STEPS, (steps - step) / (COOLDOWN_SHARE * steps))


def train(data, work, steps, seed, threads, until, log):
    model = initial_model(seed)
    parameters = dict(named_parameters(model))
    matrices = [n for n, v in parameters.items() if n.startswith("h.") and v.ndim == 2]
    others = [n for n in parameters if n not in matrices]
    groups = {}
    for n in matrices:
        groups.setdefault(parameters[n].shape, []).append(n)
    state = {("momentum", n): np.zeros_like(parameters[n]) for n in matrices}
    state |= {(kind, n): np.zeros_like(parameters[n]) for n in others for kind in ("mean", "square")}
    first = 0
    saved = work / "run.npz"
    if saved.exists():
        with np.load(saved) as file:
            first = int(file["step"])
            old_steps = int(file["steps"])
            assert int(file["seed"]) == seed
            if old_steps != steps:
                for s in (steps, old_steps):
                    assert first <= (1 - COOLDOWN_SHARE) * s and first <= int(SHORT_SHARE * s), "past the plateau"
            for n, v in parameters.items():
                v[...] = file["p/" + n]
            for (kind, n), v in state.items():
                v[...] = file[f"{kind}/{n}"]
    short_steps = int(SHORT_SHARE * steps)
    losses, clock = [], time.time()
    pool = ThreadPoolExecutor(threads)
    for step in range(first, steps):
        if until and step >= until:
            break
        short = step < short_steps
        context = SHORT_CONTEXT if short else N_POSITIONS
        windows = batch(data["train"], seed, step if short else step - short_steps, context)
        parts = np.split(windows, BATCH_TOKENS // MICRO_BATCH_TOKENS)

        def half(i):  # the sum over every threads-th part
            total, sums = 0.0, None
            for part in parts[i::threads]:
                loss, gradients = loss_and_gradients(model, part[:, :-1], part[:, 1:])
                total += loss / len(parts)
                if sums is None:
                    sums = dict(named_parameters(gradients))
                else:
                    for n, g in named_parameters(gradients):
                        sums[n] += g
            return total, sums

        halves = list(pool.map(half, range(threads)))
        losses.append(sum(h[0] for h in halves))
        gradients = halves[0][1]

        def add(n):
            for _, more in halves[1:]:
                gradients[n] += more[n]
            gradients[n] *= 1 / len(parts)
        list(pool.map(add, gradients))
        norm = math.sqrt(sum(float(np.vdot(gradients[n], gradients[n])) for n in others))
        if norm > 1:
            for n in others:
                gradients[n] *= 1 / (norm + 1e-6)
        rate = rate_at(step, steps)

        jobs = []
        for names in groups.values():
            for part in (names[:3], names[3:]):
                jobs.append(lambda part=part: muon([parameters[n] for n in part], [gradients[n] for n in part],
                            [state["momentum", n] for n in part], MUON_RATE * rate, MUON_MOMENTUM, MUON_DECAY))
        jobs += [lambda n=n: adamw(parameters[n], gradients[n], state["mean", n], state["square", n], step + 1,
                                   ADAM_RATE * rate, ADAM_BETAS) for n in others]
        list(pool.map(lambda job: job(), jobs))
        done = step + 1
        if done % 20 == 0 or done <= 5:
            speed = len(losses) * BATCH_TOKENS / (time.time() - clock)
            log(f"step {done}/{steps}  loss {np.mean(losses):.4f}  {speed:,.0f} tokens/s  norm {norm:.3f}")
            losses, clock = [], time.time()
        if done % 100 == 0 or done == steps:
            bits = held_out_bits_per_byte(model, data, pool, limit=48)
            log(f"step {done}/{steps}  held-out bits per byte {bits:.4f} (a sample)")
            arrays = {"p/" + n: v for n, v in parameters.items()} | {f"{k}/{n}": v for (k, n), v in state.items()}
            part = work / "run.part.npz"
            np.savez(part, step=done, steps=steps, seed=seed, **arrays)
            part.replace(saved)
            if done % 500 == 0:
                shutil.copyfile(saved, work / f"run{done}.npz")
            clock = time.time()
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("books")
    parser.add_argument("--work", default="build/fairytale")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--until", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)

    def log(text):
        print(time.strftime("%H:%M:%S"), text, flush=True)

    data = prepare(args.books, work)
    log(f"{len(data['train']):,} tokens to train on, {len(data['held_out']):,} held out")
    train(data, work, args.steps, args.seed, args.threads, args.until, log)


if __name__ == "__main__":
    main()
