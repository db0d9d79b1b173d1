"""The model card of the bundled checkpoint: a description, measurements on the shipped files, and samples.

    python scripts/train/fairytale_card.py numpy_gpt2/fairytale --work build/fairytale    # rewrite the card
"""

import argparse
from pathlib import Path

import numpy as np

from numpy_gpt2 import load, named_parameters, score_tokens, stream_text

PROMPTS = {"Once upon a time": 4, "The old witch looked at the": 6, '"Who are you?" asked the': 1}  # prompt: seed
SAMPLE_TOKENS = 120

CARD = """---
license: mit
language: en
pipeline_tag: text-generation
---

# fairytale

A small GPT-2 that writes fairy tales, bundled with `numpy_gpt2` so that there is a model to run without a network.
The architecture, the file layout and the tokenizer's algorithm are GPT-2's; only the sizes are small. It was trained by
the code that runs it, a forward and a backward pass in NumPy, without any other framework.

| | |
| --- | --- |
| parameters | {n_parameters:,} ({n_layer} layers, {n_head} heads, width {n_embd}) |
| context | {n_positions} tokens |
| vocabulary | {vocab_size:,} byte-level BPE tokens, trained on the same books; the last is `<|endoftext|>` |
| weights | float16 safetensors |
| trained on | {n_books} books, {n_train:,} tokens, seen {epochs:.1f} times |
| recipe | {steps:,} steps of {batch:,} tokens; Muon at {muon_rate} for the blocks' matrices, AdamW at {adamw_rate} \
for the rest |
| held-out loss | {loss:.3f} nats per token |
| held-out bits per byte | {bits:.3f} in windows of {n_positions} tokens, each token after at least {half} others; \
{plain_bits:.3f} in windows that do not overlap |

**Sources.** Children's books in the public domain, from Project Gutenberg, by ebook number: {books}.
Held out entirely: {held_out}.

**Cleaning.** Licence text, title pages, prefaces, notes, headings and line wrapping are removed; quotation marks and
dashes are replaced by their ASCII forms; `<|endoftext|>` comes before each tale or chapter.

**Licence.** The books are in the public domain in the United States; the weights are under the project's MIT licence.

**Made by** `python scripts/train/fairytale.py BOOKS --steps {steps} --seed {seed}`.

**In transformers**, `GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)` gives the same logits; without
`dtype` it computes in float16, the file's type.

**Limitations.** It has read a few million words of old tales and nothing else: it knows no facts and no modern words,
and follows no instructions. It keeps a scene going for a few sentences, but no plot. The tales reflect the views of
their time.

## Samples

Temperature 0.8, top-k 40; the prompt is in bold.

{samples}
"""


def sample(model, tokenizer, prompt, seed):
    """One continuation as a Markdown quotation, followed by its seed."""
    pieces = stream_text(model, tokenizer, prompt, SAMPLE_TOKENS, temperature=0.8, top_k=40, seed=seed)
    lines = (f"**{prompt}**" + "".join(pieces)).split("\n")
    return "\n".join(f"> {line}".rstrip() for line in [*lines, "", f"(seed {seed})"])


def write_card(folder, data, recipe):
    """Measure the checkpoint in the folder, rounded to float16, and write its README.md."""
    model, tokenizer = load(folder)
    n_bytes, n_positions = int(data["held_out_bytes"]), model.config.n_positions
    overlapping = score_tokens(model, data["held_out"], stride=n_positions // 2)
    plain = score_tokens(model, data["held_out"], stride=n_positions - 1)
    card = CARD.format(
        **vars(model.config), n_parameters=sum(array.size for _, array in named_parameters(model)),
        n_books=len(data["books"]), n_train=len(data["train"]), **recipe,
        epochs=recipe["steps"] * recipe["batch"] / len(data["train"]), half=n_positions // 2,
        loss=overlapping.mean_loss, bits=overlapping.bits_per_byte(n_bytes), plain_bits=plain.bits_per_byte(n_bytes),
        books=", ".join(map(str, data["books"])), held_out=" and ".join(map(str, data["held_out_books"])),
        samples="\n\n".join(sample(model, tokenizer, prompt, seed) for prompt, seed in PROMPTS.items()))
    (Path(folder) / "README.md").write_text(card.replace("\\\n", ""), encoding="utf-8")
    print(f"{folder}: held-out bits per byte {overlapping.bits_per_byte(n_bytes):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--work", type=Path, default=Path("build/fairytale"), help="of the run (default: %(default)s)")
    args = parser.parse_args()
    with np.load(args.work / "tokens.npz") as data, np.load(args.work / "recipe.npz") as recipe:
        write_card(args.folder, data, {name: recipe[name].item() for name in recipe.files})


if __name__ == "__main__":
    main()
