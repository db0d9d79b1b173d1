"""What would the model say if it stopped early? The logit lens reads the residual stream before every block.

Method: one pass is recorded. The stream, as it enters each block and as it leaves the last one, goes through the last
layer norm and the unembedding, as if nothing were to follow. Layer 0 is the embeddings alone; the last column is the
model itself. The same is done for a longer text, for a sum over more than a handful of tokens.

How to read the tables: a row is a token as it is read, with the token that came after it; a column is a layer (at most
nine are shown, evenly spaced). The first table has the token that the lens finds likeliest there, the second the
probability of the token that came. In the third, `loss` is that of the lens in nats per token, `right` the fraction of
places where its likeliest token came, `as the last` that where it is the whole model's likeliest token already.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

import experiment
import numpy as np

from numpy_gpt2 import Recorder, logit_lens, top_tokens, transform
from numpy_gpt2.cli.exits import BadInput, run
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import check_finite
from numpy_gpt2.scoring import log_sum_exp

PROMPT = "Once upon a time there was a king who had three daughters"
MAX_COLUMNS = 9
SETTLED = 0.5  # of the places: from there on the lens is said to have made up its mind


def recorded(model, ids):
    """What the lens needs of a pass over ids, the last of which is only a thing to predict."""
    acts = Recorder(["h.*.resid_pre", f"h.{model.config.n_layer - 1}.resid_post"])
    transform(model, ids[:-1], tap=acts)
    return acts


def lens_row(model, acts, layer, ids):
    """A layer's loss, fraction of right tokens, and likeliest tokens [n_tokens]."""
    logits = logit_lens(model, acts, layer)  # [n_tokens, vocab_size]
    check_finite(logits)
    chosen = np.take_along_axis(logits, np.array(ids[1:])[:, np.newaxis], axis=-1)  # [n_tokens, 1]
    best = np.argmax(logits, axis=-1)  # [n_tokens]
    return float(np.mean(log_sum_exp(logits) - chosen)), float(np.mean(best == ids[1:])), best


def main():
    parser = experiment.make_parser(__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    experiment.add_text(parser, n_tokens=250)
    args, model, tokenizer = experiment.start(parser)
    n_layer, n_positions = model.config.n_layer, model.config.n_positions
    ids = [tokenizer.eot_id, *tokenizer.encode(args.prompt)]
    if not 2 <= len(ids) <= n_positions + 1:
        raise BadInput(f"--prompt must be from 1 to {n_positions} tokens. Got {len(ids) - 1}")
    text_ids = experiment.text_ids(args, tokenizer)[:n_positions + 1]

    acts = recorded(model, ids)
    columns = sorted({round(layer) for layer in np.linspace(0, n_layer, MAX_COLUMNS)})
    names = [repr(tokenizer.decode([token_id])) for token_id in ids]
    likeliest, probabilities = [], []
    for layer in columns:
        logits = logit_lens(model, acts, layer)  # [n_tokens, vocab_size]
        likeliest.append([repr(best[0].text) for best in top_tokens(logits, tokenizer, 1)])
        probabilities.append(softmax(logits)[np.arange(len(ids) - 1), ids[1:]])  # [n_tokens]
    header = ["read", "then came", *(f"layer {layer}" if layer == 0 else str(layer) for layer in columns)]
    print("The likeliest token:\n")
    experiment.print_table(header, [[*names[i:i + 2], *cells] for i, cells in enumerate(zip(*likeliest))], len(header))
    print("\nThe probability of the token that came:\n")
    experiment.print_table(header, [[*names[i:i + 2], *(f"{p:.1%}" for p in cells)]
                                    for i, cells in enumerate(zip(*probabilities))], n_left=2)

    text_acts = recorded(model, text_ids)
    found = [lens_row(model, text_acts, layer, text_ids) for layer in range(n_layer + 1)]
    losses = [loss for loss, _, _ in found]
    same = [float(np.mean(best == found[-1][2])) for _, _, best in found]
    print(f"\n{len(text_ids) - 1} tokens of {args.text}:\n")
    experiment.print_table(["layer", "loss", "right", "as the last"], [
        [str(layer), f"{loss:.3f}", f"{right:.1%}", f"{agreed:.1%}"]
        for layer, ((loss, right, _), agreed) in enumerate(zip(found, same))])

    n_falls = sum(after < before for before, after in zip(losses, losses[1:]))
    settled = next(layer for layer, agreed in enumerate(same) if min(same[layer:]) >= SETTLED)
    gains = [before - after for before, after in zip(losses, losses[1:])]
    experiment.conclude(
        f"The lens's loss falls in {n_falls} of {n_layer} blocks, from {losses[0]:.2f} nats a token at the embeddings "
        f"to {losses[-1]:.2f}; most in block {int(np.argmax(gains))}, by {max(gains):.2f}.",
        f"At layer {settled} of {n_layer}, and from there on, it names the whole model's likeliest token in "
        f"{SETTLED:.0%} of the places or more.",
        "The prediction grows block by block." if n_falls == n_layer else
        "Not every block brings the stream nearer to the answer, read so: some write what only later ones can use.")
    if args.plot:
        with experiment.picture(args.plot, 2) as (left, right):
            image = left.imshow(np.transpose(probabilities), aspect="auto", vmin=0, vmax=1)
            left.set(xlabel="layer", title="probability of the token that came")
            left.set_xticks(range(len(columns)), map(str, columns))
            left.set_yticks(range(len(ids) - 1), names[1:])
            left.figure.colorbar(image, ax=left)
            experiment.draw_lines(right, range(n_layer + 1), {"loss": losses}, "layer", "nats per token")


if __name__ == "__main__":
    run(main)
