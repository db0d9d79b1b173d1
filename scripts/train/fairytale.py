"""Train the bundled checkpoint `fairytale`: a small GPT-2 on public-domain children's books.

    pip install -e '.[train]'
    python scripts/train/fairytale.py BOOKS --work build/fairytale --out numpy_gpt2/fairytale

BOOKS is a folder of Project Gutenberg's plain-text files (11.txt, 113.txt, ...). The run writes a checkpoint every few
minutes under --work and goes on from there when it is started again. Two runs with one seed on one machine with one
thread count give the same weights.

The model is the forward pass of numpy_gpt2/model.py written in PyTorch, which knows the gradients; its parameters
bear the checkpoint's names. Matrices inside the blocks learn by Muon (momentum made orthogonal: every direction of the
matrix moves as fast as the others), everything else by AdamW.
"""

import argparse
import functools
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fairytale_corpus import HELD_OUT_BOOKS, read_books
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from numpy_gpt2 import GPT2Config, build_model, load, named_parameters, save, stream_text

VOCAB_SIZE, N_POSITIONS, N_EMBD, N_LAYER, N_HEAD = 4096, 512, 192, 6, 6
EOT = "<|endoftext|>"
EOT_ID = VOCAB_SIZE - 1

BATCH_TOKENS, MICRO_BATCH_TOKENS = 8192, 4096
SHORT_CONTEXT, SHORT_SHARE = 256, 0.75  # the first part of the run sees half the context, which is cheaper
WARMUP_STEPS, COOLDOWN_SHARE = 100, 0.55
MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 0.02, 0.95, 0.05
ADAM_RATE, ADAM_BETAS = 2e-3, (0.9, 0.95)


# The data ---------------------------------------------------------------------------------------------------------


def train_tokenizer(stories, folder):
    """Byte-level BPE laid out as GPT-2's: the 256 bytes, the merges in order, the end of text last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.add_special_tokens([EOT])
    if tokenizer.get_vocab_size() != VOCAB_SIZE or tokenizer.token_to_id(EOT) != EOT_ID:
        raise ValueError(f"expected {VOCAB_SIZE} tokens, got {tokenizer.get_vocab_size()}: are the books too few?")
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted((trained["vocab"] | {EOT: EOT_ID}).items(), key=lambda item: item[1]))
    merges = "".join(f"{left} {right}\n" for left, right in trained["merges"])
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return tokenizer


def prepare(books_folder, work):
    """The tokens of all stories, an end of text before each, as "train" and "held_out", and the held-out bytes."""
    prepared = work / "tokens.npz"
    if prepared.exists():
        with np.load(prepared) as file:
            return {name: file[name] for name in file.files}
    books = read_books(books_folder)
    absent = [number for number in HELD_OUT_BOOKS if number not in books]
    if absent:
        raise ValueError(f"the held-out books {absent} are not in {books_folder}")
    numbers = np.array([int(number) for number in books])
    held_out = [story for number in HELD_OUT_BOOKS for story in books.pop(number)]
    train = [story for stories in books.values() for story in stories]
    tokenizer = train_tokenizer(train, work)
    data = {"books": numbers, "held_out_bytes": np.int64(sum(len(story.encode()) for story in held_out))}
    for name, stories in (("train", train), ("held_out", held_out)):
        encoded = tokenizer.encode_batch(stories)
        data[name] = np.concatenate([np.array([EOT_ID] + story.ids, np.uint16) for story in encoded])
    (work / "held_out.txt").write_text(EOT.join(["", *held_out]), encoding="utf-8")
    np.savez(prepared, **data)
    return data


@functools.lru_cache(maxsize=2)
def window_starts(seed, epoch, n_tokens, context):
    """Where the windows of one epoch start: the text cut at a random offset into windows, in random order."""
    rng = np.random.default_rng([seed, epoch, context])
    return rng.permutation(np.arange(rng.integers(context), n_tokens - context, context))


def batch(tokens, seed, step, context):
    """The windows of one step, [n_windows, context + 1]. It depends on nothing but its arguments, so runs resume."""
    n_windows = BATCH_TOKENS // context
    per_epoch = (len(tokens) // context - 2) // n_windows  # whole steps that every epoch has, whatever its offset
    epoch, place = divmod(step, per_epoch)
    starts = window_starts(seed, epoch, len(tokens), context)[place * n_windows:(place + 1) * n_windows]
    return torch.from_numpy(np.stack([tokens[start:start + context + 1] for start in starts]).astype(np.int64))


# The model --------------------------------------------------------------------------------------------------------


def initial_parameters(seed):
    """GPT-2's own start: normal 0.02, projections into the residual stream smaller by sqrt(2 * n_layer), biases 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.02):
        return torch.empty(shape).normal_(0, std, generator=generator)

    matrices = {"attn.c_attn": (N_EMBD, 3 * N_EMBD), "attn.c_proj": (N_EMBD, N_EMBD),
                "mlp.c_fc": (N_EMBD, 4 * N_EMBD), "mlp.c_proj": (4 * N_EMBD, N_EMBD)}
    parameters = {"wte.weight": normal(VOCAB_SIZE, N_EMBD), "wpe.weight": normal(N_POSITIONS, N_EMBD, std=0.01)}
    for i in range(N_LAYER):
        for name, (n_in, n_out) in matrices.items():
            std = 0.02 / math.sqrt(2 * N_LAYER) if name.endswith("c_proj") else 0.02
            parameters[f"h.{i}.{name}.weight"] = normal(n_in, n_out, std=std)
            parameters[f"h.{i}.{name}.bias"] = torch.zeros(n_out)
        for name in ("ln_1", "ln_2"):
            parameters |= {f"h.{i}.{name}.weight": torch.ones(N_EMBD), f"h.{i}.{name}.bias": torch.zeros(N_EMBD)}
    parameters |= {"ln_f.weight": torch.ones(N_EMBD), "ln_f.bias": torch.zeros(N_EMBD)}
    return {name: value.requires_grad_() for name, value in parameters.items()}


def forward(p, ids):
    """Logits [n_batch, n_tokens, vocab_size] of ids [n_batch, n_tokens]; p maps checkpoint names to tensors."""
    def layer_norm(name, x):
        return F.layer_norm(x, (N_EMBD,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def linear(name, x):
        return torch.addmm(p[f"{name}.bias"], x.flatten(0, -2), p[f"{name}.weight"]).unflatten(0, x.shape[:-1])

    x = F.embedding(ids, p["wte.weight"]) + p["wpe.weight"][:ids.shape[1]]
    for i in range(N_LAYER):
        qkv = linear(f"h.{i}.attn.c_attn", layer_norm(f"h.{i}.ln_1", x))
        q, k, v = (part.unflatten(-1, (N_HEAD, -1)).transpose(1, 2) for part in qkv.split(N_EMBD, dim=-1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(f"h.{i}.attn.c_proj", z.transpose(1, 2).flatten(-2))
        pre = linear(f"h.{i}.mlp.c_fc", layer_norm(f"h.{i}.ln_2", x))
        x = x + linear(f"h.{i}.mlp.c_proj", F.gelu(pre, approximate="tanh"))
    return layer_norm("ln_f", x) @ p["wte.weight"].T


def loss_of(p, windows, reduction="mean"):
    return F.cross_entropy(forward(p, windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def held_out_bits_per_byte(p, data, stride=N_POSITIONS, limit=None):
    """Bits per byte of the held-out text, in windows of the whole context that begin `stride` tokens apart.

    Each token counts once; with a smaller stride it has at least n_positions - stride tokens before it, but in the
    first window. limit: how many windows; None takes all.
    """
    tokens = data["held_out"].astype(np.int64)
    starts = np.arange(0, len(tokens) - N_POSITIONS, stride)[:limit]
    nats = counted = 0
    for group in np.array_split(starts, math.ceil(len(starts) / 8)):
        windows = torch.from_numpy(np.stack([tokens[start:start + N_POSITIONS + 1] for start in group]))
        losses = loss_of(p, windows, reduction="none").unflatten(0, (len(group), N_POSITIONS))
        for start, row in zip(group, losses):
            new = row if start == 0 else row[-stride:]
            nats, counted = nats + new.sum().item(), counted + len(new)
    bytes_per_token = data["held_out_bytes"] / len(tokens)
    return nats / counted / math.log(2) / bytes_per_token


# The optimisers ---------------------------------------------------------------------------------------------------


def orthogonalised(matrices):
    """[n, rows, columns] with every singular value brought near 1, by five Newton-Schulz steps of fifth order.

    Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """One momentum for each matrix; matrices of one shape are made orthogonal together."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}

    @torch.no_grad()
    def step(self, rate):
        groups = {}
        for name, value in self.parameters.items():
            momentum = self.momentum[name].lerp_(value.grad, 1 - MUON_MOMENTUM)
            groups.setdefault(value.shape, []).append((value, value.grad.lerp(momentum, MUON_MOMENTUM)))
        for (n_in, n_out), members in groups.items():
            updates = orthogonalised(torch.stack([update for _, update in members]))
            for (value, _), update in zip(members, updates):
                value.mul_(1 - rate * MUON_DECAY)
                value.sub_(update, alpha=rate * max(1, n_out / n_in) ** 0.5)


def rate_at(step, steps):
    """The share of the peak learning rate: a short warm-up, a plateau, a line down to zero."""
    return min(1, (step + 1) / WARMUP_STEPS, (steps - step) / (COOLDOWN_SHARE * steps))


# The run ----------------------------------------------------------------------------------------------------------


def train(data, work, steps, seed):
    """Train or go on training; returns the parameters after `steps` steps, a dict of tensors."""
    parameters = initial_parameters(seed)
    muon = Muon({name: value for name, value in parameters.items() if name.startswith("h.") and value.ndim == 2})
    others = [value for name, value in parameters.items() if name not in muon.parameters]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=ADAM_BETAS, weight_decay=0.0)
    saved = work / "run.pt"
    first = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise ValueError(f"{saved} is of a run with --steps {state['steps']} --seed {state['seed']}; "
                             "give the same, or another --work")
        for name, value in parameters.items():
            value.data.copy_(state["parameters"][name])
        muon.momentum, first = state["momentum"], state["step"]
        adam.load_state_dict(state["adam"])
    short_steps = int(SHORT_SHARE * steps)
    losses, clock = [], time.time()
    for step in range(first, steps):
        short = step < short_steps
        windows = batch(data["train"], seed, step if short else step - short_steps,
                        SHORT_CONTEXT if short else N_POSITIONS)
        for part in windows.split(MICRO_BATCH_TOKENS // (windows.shape[1] - 1)):
            loss = loss_of(parameters, part) * len(part) / len(windows)
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate_at(step, steps)
        muon.step(MUON_RATE * rate_at(step, steps))
        adam.step()
        for value in parameters.values():
            value.grad = None
        done = step + 1
        if done % 20 == 0:
            speed = 20 * BATCH_TOKENS / (time.time() - clock)
            print(f"step {done}/{steps}  loss {sum(losses) / 20:.4f}  {speed:,.0f} tokens/s", flush=True)
            losses, clock = [], time.time()
        if done % 100 == 0 or done == steps:
            bits = held_out_bits_per_byte(parameters, data, limit=48)
            print(f"step {done}/{steps}  held-out bits per byte {bits:.4f} (a sample)", flush=True)
            state = {"steps": steps, "seed": seed, "step": done, "momentum": muon.momentum, "adam": adam.state_dict(),
                     "parameters": {name: value.detach() for name, value in parameters.items()}}
            torch.save(state, saved.with_suffix(".part"))
            saved.with_suffix(".part").replace(saved)
            clock = time.time()
    return parameters


# The checkpoint --------------------------------------------------------------------------------------------------

CARD = """---
license: mit
language: en
pipeline_tag: text-generation
---

# fairytale

A small GPT-2 that writes fairy tales, bundled with `numpy_gpt2` so that there is something to run where the hub is out
of reach. The architecture, the file layout and the tokenizer's algorithm are GPT-2's; only the sizes are small.

| | |
| --- | --- |
| parameters | {n_parameters:,} ({n_layer} layers, {n_head} heads, width {n_embd}) |
| context | {n_positions} tokens |
| vocabulary | {vocab_size:,} byte-level BPE tokens, trained on the same books; the last is `<|endoftext|>` |
| weights | float16 safetensors |
| trained on | {n_books} books, {n_train:,} tokens, seen {epochs:.1f} times |
| recipe | {steps:,} steps of {batch:,} tokens; Muon at {muon_rate} for the blocks' matrices, AdamW at {adam_rate} \
for the rest |
| held-out loss | {loss:.3f} nats per token |
| held-out bits per byte | {bits:.3f} in windows of {n_positions} tokens, each token with {half} or more before it; \
{plain_bits:.3f} in windows that do not overlap |

**Sources.** Children's books in the public domain, from Project Gutenberg, by ebook number: {books}.
Held out, whole: {held_out}.

**Cleaning.** Licence text, title pages, prefaces, notes, headings and line wrapping are removed; quotation marks and
dashes are the keyboard's; each tale or chapter begins after `<|endoftext|>`.

**Licence.** The books are in the public domain in the United States; the weights are under the project's MIT licence.

**Made by** `python scripts/train/fairytale.py BOOKS --steps {steps} --seed {seed}`.

**In transformers**, `GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)` gives the same logits; without the
type it computes in the file's float16.

**What it cannot do.** It knows a few million words of old tales and nothing else: no facts, no modern words, no
instructions. It keeps a scene going for a few sentences and a plot not at all. The tales carry the views of their time.

## Samples

Temperature 0.8, top-k 40; the prompt is in bold.

{samples}
"""
PROMPTS = ("Once upon a time", "The old witch looked at the", '"Who are you?" asked the')


def export(parameters, data, work, out, steps, seed):
    """Write the checkpoint's folder: weights, config, vocabulary, and a card with what was measured on them."""
    config = GPT2Config(VOCAB_SIZE, N_POSITIONS, N_EMBD, N_LAYER, N_HEAD, bos_token_id=EOT_ID, eos_token_id=EOT_ID)
    arrays = {name: value.detach().numpy() for name, value in parameters.items()}
    out.mkdir(parents=True, exist_ok=True)
    save(build_model(config, arrays), out, dtype="float16")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(work / name, out / name)
    model, tokenizer = load(str(out))  # what users get: the weights as rounded
    rounded = {name: torch.from_numpy(value) for name, value in named_parameters(model)}
    bits = held_out_bits_per_byte(rounded, data, stride=N_POSITIONS // 2)
    samples = []
    for seed_of_sample, prompt in enumerate(PROMPTS, start=1):
        pieces = stream_text(model, tokenizer, prompt, 120, temperature=0.8, top_k=40, seed=seed_of_sample)
        lines = (f"**{prompt}**" + "".join(pieces)).split("\n")
        samples.append("\n".join(f"> {line}".rstrip() for line in lines))
    books = [str(number) for number in data["books"] if str(number) not in HELD_OUT_BOOKS]
    bytes_per_token = data["held_out_bytes"] / len(data["held_out"])
    card = CARD.format(
        **vars(config), n_parameters=sum(array.size for array in arrays.values()), n_books=len(books),
        n_train=len(data["train"]), epochs=steps * BATCH_TOKENS / len(data["train"]), steps=steps, batch=BATCH_TOKENS,
        muon_rate=MUON_RATE, adam_rate=ADAM_RATE, loss=bits * math.log(2) * bytes_per_token, bits=bits,
        half=N_POSITIONS // 2, plain_bits=held_out_bits_per_byte(rounded, data), books=", ".join(books),
        held_out=" and ".join(HELD_OUT_BOOKS), seed=seed, samples="\n\n".join(samples))
    (out / "README.md").write_text(card.replace("\\\n", ""), encoding="utf-8")
    print(f"{out}: held-out bits per byte {bits:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("books", help="a folder of Project Gutenberg's plain-text files")
    parser.add_argument("--work", default="build/fairytale", help="checkpoints of the run (default: %(default)s)")
    parser.add_argument("--out", default="numpy_gpt2/fairytale", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help=f"of {BATCH_TOKENS} tokens each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # gradients of unlikely tokens are tiny, and tiny floats are slow
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    data = prepare(args.books, work)
    print(f"{len(data['train']):,} tokens to train on, {len(data['held_out']):,} held out", flush=True)
    parameters = train(data, work, args.steps, args.seed)
    export(parameters, data, work, Path(args.out), args.steps, args.seed)


if __name__ == "__main__":
    main()
