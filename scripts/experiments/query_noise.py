"""Do we really need Q? The course: noise for W_Q hardly matters in 1/4 of the blocks; beyond 3/4 the text is noise.

Method: W_Q, the first third of `attn.c_attn.weight`, is replaced by normal noise of the same mean and standard
deviation (the bias stays): in one block, then in the first n blocks, then in the last n. Each changed model scores a
text and writes one, for several seeds of the noise. Controls: noise for W_K, for W_V, for W_Q of one head (drawn by the
seed), and W_Q = 0, which makes all positions' queries equal, b_Q: attention without queries.

How to read the tables: means over the seeds of the loss that is added, in nats per token; `+-` is the standard
deviation. `Q to guess` is how far the loss has gone from the model's own, 0%, to a uniform guess's, 100%. `its text` is
the same for what the model with noise for W_Q wrote, scored by the intact model: 0% is the loss of what the intact
model writes itself. Here "nearly normal" is at most 10% of the way, and "noise" at least 90%. There are at most 12
rows, evenly spaced. --model small takes minutes.
"""

import math
import textwrap
from typing import NamedTuple

import experiment
import numpy as np

from numpy_gpt2 import generate_tokens, replace_weights
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, run
from numpy_gpt2.scoring import score_tokens

NORMAL, NOISE = 0.1, 0.9  # of the way from the model's own loss to a uniform guess's
MAX_ROWS = 12
PROMPT = "Once upon a time"


def with_noise(model, layer, part, seed, head=None):
    """c_attn.weight of a block [n_embd, 3*n_embd] with noise for W_Q, W_K or W_V, or for one head's columns of it."""
    config = model.config
    start, width = "QKV".index(part) * config.n_embd, config.n_embd
    if head is not None:
        start, width = start + head * config.d_head, config.d_head
    weight = model.h[layer].attn.c_attn.weight.copy(order="K")
    rng = np.random.default_rng([seed, layer, start])
    weight[:, start:start + width] = experiment.noise_like(weight[:, start:start + width], rng)
    return weight


def with_one_noisy_head(model, layer, seed):
    head = np.random.default_rng([seed, layer]).integers(model.config.n_head)
    return with_noise(model, layer, "Q", seed, int(head))


def without_queries(model, layer, seed):
    weight = model.h[layer].attn.c_attn.weight.copy(order="K")
    weight[:, :model.config.n_embd] = 0
    return weight


CHANGES = {  # (model, layer, seed) -> c_attn.weight
    "Q": lambda model, layer, seed: with_noise(model, layer, "Q", seed),
    "K": lambda model, layer, seed: with_noise(model, layer, "K", seed),
    "V": lambda model, layer, seed: with_noise(model, layer, "V", seed),
    "one head": with_one_noisy_head,
    "Q = 0": without_queries,
}


def changed(model, change, layers, seed):
    return replace_weights(model, {f"h.{i}.attn.c_attn.weight": CHANGES[change](model, i, seed) for i in layers})


class Row(NamedTuple):
    label: str
    n_blocks: int  # with noise
    losses: dict[str, np.ndarray]  # of each change: [n_seeds]
    text_loss: float  # of what the models with noise for W_Q wrote, by the intact model
    text: str  # of the first seed


class Study:
    """The intact model, and what to score and to write with the changed ones."""

    def __init__(self, model, tokenizer, ids, n_seeds, length):
        self.model, self.tokenizer, self.ids, self.n_seeds, self.length = model, tokenizer, ids, n_seeds, length
        self.prompt = [tokenizer.eot_id, *tokenizer.encode(PROMPT)]

    def written(self, model, seed):
        """What a model writes, and how probable the intact one finds it: text, nats per token."""
        steps = generate_tokens(model, self.prompt, self.length, temperature=0.8, top_k=40, seed=seed, eos_token_id=-1,
                                vocab_size=min(self.tokenizer.vocab_size, model.config.vocab_size))
        tokens = list(steps)
        scores = score_tokens(self.model, [*self.prompt, *tokens])
        return self.tokenizer.decode(tokens), -scores.log_probs[len(self.prompt) - 1:].mean()

    def row(self, label, layers, changes):
        """Measure each change of these layers, and what the model with noise for W_Q writes."""
        losses, texts = {}, []
        for change in changes:
            of_seeds = []
            for seed in range(1 if change == "Q = 0" else self.n_seeds):
                model = changed(self.model, change, layers, seed)
                of_seeds.append(experiment.loss(model, self.ids))
                if change == "Q":
                    texts.append(self.written(model, seed))
            losses[change] = np.array(of_seeds)
        return Row(label, len(layers), losses, float(np.mean([loss for _, loss in texts])), texts[0][0])


def print_rows(first, rows, own, way, text_way):
    changes = list(rows[0].losses)
    header = [first, "Q", "+-", "Q to guess", "its text", *changes[1:]]
    experiment.print_table(header, [[
        row.label, f"{row.losses['Q'].mean() - own:+.3f}", f"{row.losses['Q'].std():.3f}",
        percent(way(row.losses["Q"].mean())), percent(text_way(row.text_loss)),
        *(f"{row.losses[change].mean() - own:+.3f}" for change in changes[1:])] for row in rows])


def print_texts(first, rows):
    print(f"\nWhat it writes after {PROMPT!r} (first seed):")
    for row in rows:
        text = f"{first} {row.label}: {experiment.one_line(row.text)}"
        print(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    "))


def scale(own, guess):
    """A function from a loss to its way from the model's own to a uniform guess's; to None if these hardly differ."""
    return lambda loss: float(loss - own) / (guess - own) if guess - own > 0.1 else None


def percent(way):
    return "-" if way is None else f"{way:.0%}"


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=200)
    parser.add_argument("--seeds", type=whole_number(1), default=3, metavar="N", help="seeds of the noise (default: 3)")
    parser.add_argument("--length", type=whole_number(1), default=30, metavar="N", help="tokens to write (default: 30)")
    args, model, tokenizer = experiment.start(parser)
    n_layer, n_positions = model.config.n_layer, model.config.n_positions
    study = Study(model, tokenizer, experiment.text_ids(args, tokenizer), args.seeds, args.length)
    if len(study.prompt) + args.length > n_positions:
        raise BadInput(f"the prompt and --length must fit the context, {n_positions} tokens. "
                       f"Got {len(study.prompt)} and {args.length}")

    own, guess = experiment.loss(model, study.ids), math.log(model.config.vocab_size)
    own_texts = [study.written(model, seed) for seed in range(args.seeds)]
    own_text_loss = float(np.mean([loss for _, loss in own_texts]))
    way, text_way = scale(own, guess), scale(own_text_loss, guess)
    print(f"{len(study.ids) - 1} tokens of {args.text}: loss {own:.3f}, uniform guess {guess:.3f}; {args.seeds} seeds")
    print(f"what the intact model writes: loss {own_text_loss:.3f}\n")

    counts = sorted({round(n) for n in np.linspace(0, n_layer, MAX_ROWS + 1)} - {0})
    single = [study.row(str(n - 1), [n - 1], CHANGES) for n in counts]
    print("Loss added by noise in one block\n")
    print_rows("block", single, own, way, text_way)
    print_texts("block", single)
    growing = [study.row(f"{n} ({n / n_layer:.0%})", range(n), CHANGES) for n in counts]
    print("\nLoss added by noise in the first blocks\n")
    print_rows("first", growing, own, way, text_way)
    print_texts("first", growing)
    reverse = [study.row(f"{n} ({n / n_layer:.0%})", range(n_layer - n, n_layer), ["Q"]) for n in counts]
    print("\nLoss added by noise in the last blocks\n")
    print_rows("last", reverse, own, way, text_way)
    for sentence in statements(growing, way, text_way):
        experiment.conclude(sentence)
    experiment.conclude(*conclusion(single, growing, reverse, own, way))
    if args.plot:
        draw(args.plot, single, growing, reverse, own, guess, n_layer)


def statements(growing, way, text_way):
    """The course's two statements, each with what was measured; none for a model that has nothing to lose."""
    n_layer = growing[-1].n_blocks
    if way(0) is not None:
        yield ("The course: nearly normal up to a quarter of the blocks. " + verdict(
            [row for row in growing if 4 * row.n_blocks <= n_layer], n_layer, way, text_way,
            lambda ways: max(ways) <= NORMAL, f"nearly normal (at most {NORMAL:.0%})"))
        yield ("The course: noise beyond three quarters of the blocks. " + verdict(
            [row for row in growing if 4 * row.n_blocks > 3 * n_layer], n_layer, way, text_way,
            lambda ways: min(ways) >= NOISE, f"noise (at least {NOISE:.0%})"))


def conclusion(single, growing, reverse, own, way):
    """What the controls, the single blocks and the reverse order show."""
    if way(own) is None:
        yield f"With a loss of {own:.2f} the intact model is hardly better than a uniform guess: nothing can be lost."
        return
    everywhere = {change: losses.mean() - own for change, losses in growing[-1].losses.items()}
    yield ("In all blocks, noise adds " + ", ".join(f"{added:.2f} nats for {change}" for change, added in
                                                    everywhere.items() if change != "Q = 0") +
           f"; W_Q = 0, attention without queries, {everywhere['Q = 0']:.2f}. So noise for W_Q is "
           f"{'no better' if everywhere['Q'] >= everywhere['Q = 0'] else 'better'} than no query, and what the model "
           f"needs most is {max('QKV', key=everywhere.get)}.")
    worst = max(single, key=lambda row: row.losses["Q"].mean())
    half = [pair for pair in zip(growing, reverse) if 2 * pair[0].n_blocks <= growing[-1].n_blocks]
    yield f"Alone, block {worst.label} needs its queries most: noise adds {worst.losses['Q'].mean() - own:.2f} nats."
    if half:
        first, last = (row.losses["Q"].mean() - own for row in half[-1])
        yield f"Noise in the first {half[-1][0].n_blocks} blocks adds {first:.2f} nats, in the last as many {last:.2f}."


def verdict(rows, n_layer, way, text_way, holds, words):
    """Whether a statement holds for all the rows that it is about, with their values."""
    if not rows:
        return f"With {n_layer} blocks there is none to test."
    ways, text_ways = [way(row.losses["Q"].mean()) for row in rows], [text_way(row.text_loss) for row in rows]
    counts = " or ".join(str(row.n_blocks) for row in rows)
    of_texts = [text_way for text_way in text_ways if text_way is not None]
    written = f", that of what it writes {spread(of_texts)}" if of_texts else ""
    return (f"With noise in {counts} of {n_layer}, the loss goes {spread(ways)} of the way to a uniform guess's"
            f"{written}: {'' if holds(ways) else 'not '}{words}.")


def spread(ways):
    low, high = percent(min(ways)), percent(max(ways))
    return low if low == high else f"{low} to {high}"


def draw(path, single, growing, reverse, own, guess, n_layer):
    with experiment.picture(path, 2) as (left, right):
        counts = [0, *(row.n_blocks for row in growing)]
        lines = {change: [own, *(row.losses[change].mean() for row in growing)] for change in CHANGES}
        lines["Q, last blocks"] = [own, *(row.losses["Q"].mean() for row in reverse)]
        experiment.draw_lines(left, counts, lines, "first blocks with noise", "nats per token")
        left.axhline(guess, linestyle=":", color="grey")
        left.set_title("loss (dotted: a uniform guess; grey: 1/4 and 3/4)")
        for quarter in (n_layer / 4, 3 * n_layer / 4):
            left.axvline(quarter, linewidth=0.8, color="grey", zorder=0)
        experiment.draw_lines(right, [int(row.label) for row in single],
                              {change: [row.losses[change].mean() - own for row in single] for change in CHANGES},
                              "block", "nats per token")
        right.set_title("loss added by noise in one block")


if __name__ == "__main__":
    run(main)
