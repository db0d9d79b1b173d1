"""What would the model predict if it stopped early? The logit lens reads the residual stream before every block.

Method: one pass is recorded. The residual stream before each block, and after the last, goes through the final layer
norm and the unembedding. Layer 0 is only the embeddings; the last column is the model's own prediction. Averages are
taken over a longer text.

How to read the tables: a row is an input token and the token that followed; a column is a layer (at most nine, evenly
spaced). The first table has the lens's top token, the second the probability of the token that followed. In the third,
`loss` is the lens's in nats per token, `correct` its accuracy, and `as final` the fraction of positions where its top
token is that of the whole model.

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
SETTLED = 0.5  # of the positions: the threshold for agreement with the whole model


def recorded(model, ids):
    """The residual streams of a pass over ids, of which the last is only a target."""
    acts = Recorder(["h.*.resid_pre", f"h.{model.config.n_layer - 1}.resid_post"])
    transform(model, ids[:-1], tap=acts)
    return acts


def lens_row(model, acts, layer, ids):
    """The lens's loss, accuracy and top tokens [n_tokens] at a layer."""
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
    header = ["token", "next", *(f"layer {layer}" if layer == 0 else str(layer) for layer in columns)]
    print("The lens's top token:\n")
    experiment.print_table(header, [[*names[i:i + 2], *cells] for i, cells in enumerate(zip(*likeliest))], len(header))
    print("\nThe probability of the next token:\n")
    experiment.print_table(header, [[*names[i:i + 2], *(f"{p:.1%}" for p in cells)]
                                    for i, cells in enumerate(zip(*probabilities))], n_left=2)

    text_acts = recorded(model, text_ids)
    found = [lens_row(model, text_acts, layer, text_ids) for layer in range(n_layer + 1)]
    losses = [loss for loss, _, _ in found]
    same = [float(np.mean(best == found[-1][2])) for _, _, best in found]
    print(f"\n{len(text_ids) - 1} tokens of {args.text}:\n")
    experiment.print_table(["layer", "loss", "correct", "as final"], [
        [str(layer), f"{loss:.3f}", f"{right:.1%}", f"{agreed:.1%}"]
        for layer, ((loss, right, _), agreed) in enumerate(zip(found, same))])

    n_falls = sum(after < before for before, after in zip(losses, losses[1:]))
    settled = next(layer for layer, agreed in enumerate(same) if min(same[layer:]) >= SETTLED)
    gains = [before - after for before, after in zip(losses, losses[1:])]
    experiment.conclude(
        f"The lens's loss falls in {n_falls} of {n_layer} blocks, from {losses[0]:.2f} nats per token for embeddings "
        f"to {losses[-1]:.2f}; most in block {int(np.argmax(gains))}, by {max(gains):.2f}.",
        f"From layer {settled} of {n_layer} on, its top token is the whole model's at {SETTLED:.0%} of the positions "
        "or more.",
        "The prediction improves with every block." if n_falls == n_layer else
        "Not every block improves the prediction: some write what only later blocks can use.")
    if args.plot:
        with experiment.picture(args.plot, 2) as (left, right):
            image = left.imshow(np.transpose(probabilities), aspect="auto", vmin=0, vmax=1)
            left.set(xlabel="layer", title="probability of the next token")
            left.set_xticks(range(len(columns)), map(str, columns))
            left.set_yticks(range(len(ids) - 1), names[1:])
            left.figure.colorbar(image, ax=left)
            experiment.draw_lines(right, range(n_layer + 1), {"loss": losses}, "layer", "nats per token")


if __name__ == "__main__":
    run(main)
