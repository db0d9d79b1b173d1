"""Which heads copy? A sequence of random tokens is repeated: only the first copy can predict the second.

Method: a sequence of random tokens, all different, follows an end of text, and is then repeated. An induction head
attends from a token of the second copy to the token that followed it in the first, and so can predict what comes next;
a previous-token head, in an earlier layer, gives each token information about its predecessor. Both are identified by
their attention. Then each head is ablated (its z set to 0), one at a time, and the loss is measured again: do the heads
with the right attention matter?

How to read the table: `induction` is the mean attention from a token of the second copy to the token after its first
occurrence (at most 1), `previous` that from any token to the one before it; above the table are the values for uniform
attention over all visible tokens. `second copy` is the increase of the loss on the second copy without the head, in
nats per token; `first copy` is the increase on the first, where nothing can be copied: what else a head is good for.
Heads are sorted by `second copy`; head 3.1 is head 1 of layer 3. Random tokens are not the text that the model expects,
so its loss on them can exceed a uniform guess's: it is confident and wrong. --model small takes minutes.

Source: Olsson et al., "In-context Learning and Induction Heads", 2022.
"""

import math
from typing import NamedTuple

import experiment
import numpy as np

from numpy_gpt2 import Recorder, ablate, no_tap, transform
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, run
from numpy_gpt2.scoring import score_rows

CLEARLY = 3  # times uniform attention: the threshold for an induction or previous-token head


class Head(NamedTuple):
    name: str
    added_second: float  # nats per token
    added_first: float
    induction: float  # a fraction of attention
    previous: float


def repeated_sequences(tokenizer, vocab_size, n_samples, length, seed):
    """Distinct random tokens, twice after an end of text: [n_samples, 1 + 2*length]."""
    rng = np.random.default_rng(seed)
    pool = np.delete(np.arange(vocab_size), tokenizer.eot_id)
    copies = np.stack([rng.choice(pool, length, replace=False) for _ in range(n_samples)])  # [n_samples, length]
    ends = np.full((n_samples, 1), tokenizer.eot_id)
    return np.concatenate([ends, copies, copies], axis=-1)


def losses(model, ids, tap=no_tap):
    """Mean loss of the first copy and of the second, each without its first token, which nothing can predict."""
    hidden = transform(model, ids, tap=tap)  # [n_samples, n_tokens, n_embd]
    of_each = [-score_rows(model, rows[:-1], sample[1:], 0).log_probs for rows, sample in zip(hidden, ids)]
    _, first, second = np.split(np.stack(of_each), [1, ids.shape[-1] // 2], axis=-1)
    return first.mean(), second[:, 1:].mean()


def induction_scores(pattern, length):
    """From each token of the second copy to the one after its first occurrence: [..., n, n] -> [...]."""
    queries = np.arange(length + 1, 2 * length + 1)
    return pattern[..., queries, queries - length + 1].mean(axis=-1)


def previous_scores(pattern):
    """From each token to the one before it: [..., n, n] -> [...]."""
    return np.diagonal(pattern, offset=-1, axis1=-2, axis2=-1).mean(axis=-1)


def main():
    parser = experiment.make_parser(__doc__)
    parser.add_argument("--length", type=whole_number(2), default=25, metavar="N", help="of a copy (default: 25)")
    parser.add_argument("--samples", type=whole_number(1), default=4, metavar="N", help="sequences (default: 4)")
    experiment.add_seed(parser)
    args, model, tokenizer = experiment.start(parser)
    config, length = model.config, args.length
    vocab_size = min(tokenizer.vocab_size, config.vocab_size)
    longest = min((config.n_positions - 1) // 2, vocab_size - 1)
    if length > longest:
        raise BadInput(f"--length must be at most {longest}, for two copies in the context. Got {length}")

    ids = repeated_sequences(tokenizer, vocab_size, args.samples, length, args.seed)
    acts = Recorder("h.*.attn.pattern")
    first, second = losses(model, ids, acts)
    heads = []
    for layer in range(config.n_layer):
        pattern = acts[f"h.{layer}.attn.pattern"]  # [n_samples, n_head, n_tokens, n_tokens]
        induction = induction_scores(pattern, length).mean(axis=0)  # [n_head]
        previous = previous_scores(pattern).mean(axis=0)  # [n_head]
        for head in range(config.n_head):
            without = losses(model, ids, ablate(f"h.{layer}.attn.z", heads=head))
            heads.append(Head(f"{layer}.{head}", without[1] - second, without[0] - first, float(induction[head]),
                              float(previous[head])))

    n_visible = np.arange(1, 2 * length + 2)  # to each token, including itself
    even_induction, even_previous = np.mean(1 / n_visible[length + 1:]), np.mean(1 / n_visible[1:])
    print(f"{args.samples} sequences of {length} random tokens, twice")
    guess = math.log(vocab_size)
    print(f"loss: first copy {first:.3f}, second copy {second:.3f}, uniform guess {guess:.3f}")
    print(f"uniform attention: induction {even_induction:.3f}, previous {even_previous:.3f}\n")
    heads.sort(key=lambda head: -head.added_second)
    experiment.print_table(["head", "second copy", "first copy", "induction", "previous"],
                           [[head.name, f"{head.added_second:+.3f}", f"{head.added_first:+.3f}",
                             f"{head.induction:.3f}", f"{head.previous:.3f}"] for head in heads])
    experiment.conclude(*conclusion(heads, first, second, guess, even_induction, even_previous))
    if args.plot:
        with experiment.picture(args.plot, 2) as (left, right):
            of_head = {head.name: head for head in heads}
            grid = [[of_head[f"{layer}.{head}"] for head in range(config.n_head)] for layer in range(config.n_layer)]
            added = [[head.added_second for head in row] for row in grid]
            furthest = np.max(np.abs(added))
            image = left.imshow(added, aspect="auto", cmap="RdBu_r", vmin=-furthest, vmax=furthest)
            left.set(xlabel="head", ylabel="layer", title="loss added on the second copy, nats")
            left.figure.colorbar(image, ax=left)
            image = right.imshow([[head.induction for head in row] for row in grid], aspect="auto", vmin=0)
            right.set(xlabel="head", ylabel="layer", title=f"induction score (uniform: {even_induction:.2f})")
            right.figure.colorbar(image, ax=right)


def conclusion(heads, first, second, guess, even_induction, even_previous):
    """The conclusion, from the heads sorted by their effect on the second copy, and three losses."""
    yield (f"The second copy is {abs(first - second):.2f} nats a token {'easier' if second < first else 'harder'} than "
           f"the first; a uniform guess, {guess:.2f}, is better than "
           f"{'both' if guess < min(first, second) else 'the worse' if guess < max(first, second) else 'neither'}.")
    previous = [head for head in heads if head.previous > CLEARLY * even_previous]
    found = sorted((head for head in heads if head.induction > CLEARLY * even_induction),
                   key=lambda head: -head.induction)
    yield (f"{len(previous)} of {len(heads)} heads attend to the previous token more than {CLEARLY} times as much as "
           "uniform attention would.")
    if not found:
        yield "None attends to the token to copy that much: by this measure the model has no induction head."
        return
    names = ", ".join(f"{head.name} ({head.induction:.2f})" for head in found)
    at_top = {head.name for head in heads[:len(found)]}
    shared = sum(head.name in at_top for head in found)
    yield f"The induction heads, which attend to the token to copy that much more than uniformly, are {names}."
    if shared == len(found):
        yield f"They are also the {len(found)} whose ablation increases the second copy's loss most."
    else:
        yield (f"Of the {len(found)} whose ablation increases the second copy's loss most, {shared} are among them: "
               "the right attention is not all that matters. The first copy shows what else a head is good for.")


if __name__ == "__main__":
    run(main)
