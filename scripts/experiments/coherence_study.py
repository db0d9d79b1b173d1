"""How far does coherence reach? The survey says: sentences hold together, longer texts do not.

Method, in three parts. (1) A text is scored with the model's full context, and again with the context cut to 8, 32 or
128 tokens: how much do distant tokens help? Each row has the same tokens, so that its losses are comparable. (2) How
far back does each layer attend? A tap measures every attention pattern of a pass. (3) Do long samples repeat themselves
more than the text does?

How to read the tables: (1) loss in nats per token, by the number of tokens before it in the window; with a context of 8
the model sees 4 to 7 of them. (2) The mean distance in tokens from a query to the keys it attends to, and the fraction
of attention on the text's first token, on the nearest 8, and more than 32 tokens back (both without the first). (3) The
fraction of trigrams (of tokens) that occurred before.
"""

import experiment
import numpy as np

from numpy_gpt2 import generate_tokens, transform
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, bad_input, run
from numpy_gpt2.sampling import GenerationConfig
from numpy_gpt2.scoring import score_tokens

CONTEXTS = (8, 32, 128)


def losses(model, ids, context):
    """The loss of every token but the first, each with at least half of a context of `context` tokens."""
    short = experiment.rebuilt(model, {"wpe.weight": model.wpe[:context]}, n_positions=context)
    return -score_tokens(short, ids, stride=context // 2).log_probs


def loss_by_position(model, ids):
    """The contexts, and rows of: tokens before, tokens scored, mean loss with each context and with all."""
    n_positions = model.config.n_positions
    contexts = [context for context in CONTEXTS if context < n_positions]
    short = [losses(model, ids, context) for context in contexts]  # [n_tokens - 1] each
    starts = range(0, len(ids) - 1, n_positions)
    whole = np.concatenate([-score_tokens(model, ids[start:start + n_positions]).log_probs for start in starts])
    scored = np.concatenate([np.arange(start + 1, min(start + n_positions, len(ids))) for start in starts])
    before = scored % n_positions  # the number of tokens before each in its window
    rows, low = [], 1
    for high in [2**i for i in range(3, 30)]:
        here = (low <= before) & (before < high)
        if here.any():
            means = [losses_of[scored[here] - 1].mean() if context <= low else None
                     for context, losses_of in zip(contexts, short)]
            rows.append((f"{low}-{min(high, n_positions) - 1}", int(here.sum()), [*means, whole[here].mean()]))
        low = high
    return contexts, rows


class Distances:
    """A tap that stores the measures of every attention pattern."""

    def __init__(self):
        self.rows = []

    def __call__(self, name, value):
        if name.endswith("attn.pattern"):
            n = value.shape[-1]
            distance = np.arange(n)[:, np.newaxis] - np.arange(n)  # [n_query, n_key]
            pattern = value.mean(axis=0)  # over heads
            self.rows.append([np.sum(pattern * distance) / n, pattern[:, 0].mean(),
                              pattern[:, 1:][(distance < 8)[:, 1:]].sum() / n,
                              pattern[:, 1:][(distance > 32)[:, 1:]].sum() / n])
        return value


def seen_before(ids):
    """Whether each trigram occurred before: [n_tokens - 2]."""
    seen, answers = set(), []
    for three in zip(ids, ids[1:], ids[2:]):
        answers.append(three in seen)
        seen.add(three)
    return np.array(answers)


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser)
    experiment.add_seed(parser)
    parser.add_argument("--samples", type=whole_number(1), default=4, metavar="N", help="samples to draw (default: 4)")
    parser.add_argument("--length", type=whole_number(8), default=384, metavar="N", help="tokens each (default: 384)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="default: 0.8")
    args, model, tokenizer = experiment.start(parser)
    with bad_input():
        GenerationConfig(temperature=args.temperature)
    ids = experiment.text_ids(args, tokenizer)
    if len(ids) < 64:
        raise BadInput(f"{args.text}: expected a text of 64 tokens or more, found {len(ids) - 1}")
    length = min(args.length, model.config.n_positions, len(ids) - 1)

    print(f"(1) Loss of {len(ids) - 1} tokens of {args.text}, windows of {model.config.n_positions}\n")
    contexts, rows = loss_by_position(model, ids)
    table = [[name, n, *("-" if x is None else f"{x:.3f}" for x in means)] for name, n, means in rows]
    experiment.print_table(["tokens before", "tokens", *(f"context {c}" for c in contexts), "all"], table)

    print("\n(2) Attention, by layer\n")
    distances = Distances()
    transform(model, ids[:model.config.n_positions], tap=distances)
    experiment.print_table(["layer", "distance", "first token", "nearest 8", "beyond 32"],
                           [[str(i), f"{far:.1f}", *(f"{fraction:.1%}" for fraction in fractions)]
                            for i, (far, *fractions) in enumerate(distances.rows)])

    print(f"\n(3) Trigrams seen before: {args.samples} samples at temperature {args.temperature:g}\n")
    steps = generate_tokens(model, [tokenizer.eot_id], length, num_return_sequences=args.samples, seed=args.seed,
                            temperature=args.temperature, vocab_size=tokenizer.vocab_size, eos_token_id=-1)
    samples = np.stack(list(steps), axis=1)  # [n_samples, length]
    in_samples = np.mean([seen_before(sample.tolist()) for sample in samples], axis=0)
    in_text = seen_before(ids[1:length + 1])
    quarters = np.array_split(np.arange(length - 2), 4)
    repeats = [(f"{q[0] + 1}-{q[-1] + 1}", in_samples[q].mean(), in_text[q].mean()) for q in quarters]
    experiment.print_table(["trigrams", "samples", "the text"], [[n, f"{a:.1%}", f"{b:.1%}"] for n, a, b in repeats])

    name, _, means = rows[-1]
    known = {f"a context of {c}": x for c, x in zip(contexts, means) if x is not None} | {"all": means[-1]}
    worst, best = next(iter(known.values())), min(known, key=known.get)
    fractions = [f"{label} {(worst - x) / (worst - known[best]):.0%}" for label, x in known.items() if x < worst]
    experiment.conclude(
        f"With {name} tokens before it, a token's loss is lowest when the model sees {best}: "
        f"{worst - known[best]:.2f} nats below that with {next(iter(known))}.",
        f"Of that gain: {', '.join(fractions)}." if fractions else "A longer context gains nothing.",
        f"In the last quarter of the samples {repeats[-1][1]:.0%} of the trigrams had occurred before, in the text "
        f"{repeats[-1][2]:.0%}.")
    if args.plot:
        with experiment.picture(args.plot, 3) as (left, middle, right):
            by_context = zip([*(f"context {c}" for c in contexts), "all"], zip(*(row[2] for row in rows)))
            experiment.draw_lines(left, [row[0] for row in rows], dict(by_context), "tokens before", "nats per token")
            experiment.draw_lines(middle, range(len(distances.rows)), {"mean": [row[0] for row in distances.rows]},
                                  "layer", "tokens")
            names, in_samples, in_text = zip(*repeats)
            experiment.draw_lines(right, names, {"samples": in_samples, "the text": in_text}, "trigrams", "fraction")
            left.set_title("(1) loss")
            middle.set_title("(2) mean distance of attention")
            right.set_title("(3) trigrams seen before")


if __name__ == "__main__":
    run(main)
