"""What does W_0 do? The survey calls `attn.c_proj` the matrix that mixes the heads' results.

Method: a head's output is d_head numbers wide and is multiplied only by its own d_head rows of W_0. So attention's
output is a sum of one contribution per head, and the bias. Here each is computed separately, and their sum compared
with `attn.out` of the pass. Then W_0 is replaced by the identity, one layer at a time: the heads' outputs are
concatenated without mixing.

How to read the table: a head's fraction is the projection of its contribution onto the whole output, over the text (sum
of c . out / sum of out . out), so a row sums to 100%; a head with a negative fraction opposes the others. `length` is
the root of the sum of the contributions' squared norms, divided by the norm of their sum: above 1 they cancel, below 1
they agree. The last column is the loss when this layer's W_0 is the identity.
"""

import experiment
import numpy as np

from numpy_gpt2 import Recorder, replace_weights, transform
from numpy_gpt2.cli.exits import run


def contributions(z, c_proj):
    """z [n_head, n_tokens, d_head] -> [n_head, n_tokens, n_embd]: each head's, without the bias."""
    n_head, _, d_head = z.shape
    rows_of_head = c_proj.weight.reshape(n_head, d_head, -1)  # [n_head, d_head, n_embd]
    return z @ rows_of_head


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=250)
    args, model, tokenizer = experiment.start(parser)
    ids = experiment.text_ids(args, tokenizer)[:model.config.n_positions]
    acts = Recorder()
    transform(model, ids, tap=acts)
    before = experiment.loss(model, ids)
    n_head = model.config.n_head

    rows, fractions, damages, furthest = [], [], [], 0.0
    identity = np.eye(model.config.n_embd, dtype=model.wte.dtype)
    for i, block in enumerate(model.h):
        out = acts[f"h.{i}.attn.out"]  # [n_tokens, n_embd]
        by_head = contributions(acts[f"h.{i}.attn.z"], block.attn.c_proj)  # [n_head, n_tokens, n_embd]
        bias = np.broadcast_to(block.attn.c_proj.bias, out.shape)
        parts = np.concatenate([by_head, bias[np.newaxis]]).astype(np.float64)  # [n_head + 1, n_tokens, n_embd]
        difference = np.max(np.abs(parts.sum(axis=0) - out)) / np.max(np.abs(out))
        if difference > 1e-4:
            raise AssertionError(f"layer {i}: the parts sum to attn.out only up to {difference:.1e}")
        furthest = max(furthest, float(difference))

        whole = parts.sum(axis=0)
        fraction = np.sum(parts * whole, axis=(1, 2)) / np.sum(whole * whole)  # [n_head + 1], sums to 1
        length = np.sqrt(np.sum(parts * parts) / np.sum(whole * whole))
        after = experiment.loss(replace_weights(model, {f"h.{i}.attn.c_proj.weight": identity}), ids)
        fractions.append(fraction[:-1])
        damages.append(after - before)
        rows.append([str(i), *(f"{x:.0%}" for x in fraction), f"{fraction.sum():.0%}", f"{length:.2f}", f"{after:.3f}"])

    print(f"{len(ids) - 1} tokens of {args.text}; loss {before:.3f}\n")
    header = ["layer", *(f"head {head}" if head == 0 else str(head) for head in range(n_head))]
    experiment.print_table([*header, "bias", "sum", "length", "W_0 = 1"], rows)
    layer, head = np.unravel_index(np.argmax(fractions), (len(fractions), n_head))
    worst = int(np.argmax(damages))
    experiment.conclude(
        f"In every layer the heads' contributions and the bias sum to attn.out, up to {furthest:.0e} of its largest "
        f"number. The largest fraction is head {head}'s in layer {layer}: {fractions[layer][head]:.0%}; an equal one "
        f"would be {1 / n_head:.0%}.",
        f"Without W_0 the loss increases most in layer {worst}, by {damages[worst]:.2f} nats per token, and on average "
        f"by {np.mean(damages):.2f}: W_0 has learnt how to mix the heads." if min(damages) > 0 else
        "In some layer the identity is no worse than W_0.")
    if args.plot:
        with experiment.picture(args.plot, 2) as (left, right):
            equal = 1 / n_head
            reach = np.max(np.abs(np.array(fractions) - equal))
            image = left.imshow(fractions, aspect="auto", cmap="RdBu", vmin=equal - reach, vmax=equal + reach)
            left.set(xlabel="head", ylabel="layer", title=f"fraction of attn.out (white: an equal {equal:.0%})")
            left.figure.colorbar(image, ax=left, format="{x:.0%}")
            right.bar(range(len(damages)), damages)
            right.set(xlabel="layer", ylabel="nats per token", title="loss added by W_0 = 1")
            for axis in (left.xaxis, left.yaxis, right.xaxis):
                axis.get_major_locator().set_params(integer=True)


if __name__ == "__main__":
    run(main)
