"""What does temperature do? The survey says: a low one repeats itself, 1 balances, 10 and more is noise.

Method: at each temperature the model generates several samples from one prompt, without top-k or top-p. The samples,
and the distributions that their tokens were sampled from, are measured; so are passages of a text that a person wrote,
at temperature 1, as a reference that neither repeats itself nor is noise.

How to read the table (means over the samples): `distinct-2` is the number of distinct bigrams of tokens over all
bigrams (1: none is repeated), `repeat` the length of the longest run of tokens that occurs twice. `entropy` is that of
the distributions sampled from, in bits (a uniform one has the most), `top 10` the total probability of the ten most
likely tokens. `own loss` is the model's loss on the sample at temperature 1, in nats per token: low is dull, high is
strange.
"""

import math
import textwrap
from typing import NamedTuple

import experiment
import numpy as np

from numpy_gpt2 import forward, generate_tokens
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, bad_input, run
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import apply_temperature

TEMPERATURES = (0.1, 0.3, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0)


class Measures(NamedTuple):
    distinct_2: float
    repeat: float
    entropy: float  # bits
    top_10: float
    own_loss: float  # nats


def n_grams(ids, n):
    return [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]


def longest_repeat(ids):
    """The length of the longest run that occurs twice, possibly overlapping."""
    length = 0
    while len(set(n_grams(ids, length + 1))) < len(ids) - length:
        length += 1
    return length


def measure(model, ids, n_prompt, temperature, vocab_size):
    """Measure one sample: ids are the prompt's n_prompt tokens, then those to measure."""
    drawn = list(ids[n_prompt:])
    logits = forward(model, ids[:-1])[n_prompt - 1:, :vocab_size].astype(np.float64)  # [n_drawn, vocab_size]
    log_probs = np.log(softmax(logits)[np.arange(len(drawn)), drawn])
    probabilities = softmax(apply_temperature(logits, temperature))
    surprises = np.log2(np.maximum(probabilities, np.finfo(float).tiny))  # 0 log 0 counts as 0
    entropy = -np.sum(probabilities * surprises, axis=-1)
    top_10 = np.sort(probabilities, axis=-1)[:, -10:].sum(axis=-1)
    pairs = n_grams(drawn, 2)
    return Measures(len(set(pairs)) / len(pairs), longest_repeat(drawn), entropy.mean(), top_10.mean(),
                    -log_probs.mean())


def mean(measures):
    return Measures(*np.mean(measures, axis=0).tolist())


def row(name, m):
    return [name, f"{m.distinct_2:.3f}", f"{m.repeat:.1f}", f"{m.entropy:.2f}", f"{m.top_10:.3f}", f"{m.own_loss:.3f}"]


def main():
    parser = experiment.make_parser(__doc__)
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, metavar="T")
    parser.add_argument("--samples", type=whole_number(1), default=8, metavar="N", help="samples at each (default: 8)")
    parser.add_argument("--prompt", default="Once upon a time", help="default: %(default)s")
    parser.add_argument("--length", type=whole_number(3), default=60, metavar="N", help="tokens of each (default: 60)")
    experiment.add_text(parser)
    experiment.add_seed(parser)
    args, model, tokenizer = experiment.start(parser)
    if not all(0 < temperature < math.inf for temperature in args.temperatures):
        raise BadInput(f"--temperatures must be numbers above 0. Got {' '.join(map(str, args.temperatures))}")
    prompt = [tokenizer.eot_id, *tokenizer.encode(args.prompt)]
    length, vocab_size = args.length, min(tokenizer.vocab_size, model.config.vocab_size)
    if len(prompt) + length > model.config.n_positions:
        raise BadInput(f"prompt and --length must fit the context, {model.config.n_positions} tokens. "
                       f"Got {len(prompt)} and {length}")

    results, first_samples = {}, {}
    for temperature in sorted(set(args.temperatures)):
        with bad_input():
            steps = generate_tokens(model, prompt, length, num_return_sequences=args.samples, seed=args.seed,
                                    temperature=temperature, vocab_size=vocab_size, eos_token_id=-1)
        samples = np.stack(list(steps), axis=1)  # [n_samples, length]
        first_samples[temperature] = tokenizer.decode(samples[0])
        results[temperature] = mean([measure(model, [*prompt, *sample.tolist()], len(prompt), temperature, vocab_size)
                                     for sample in samples])
    ids = experiment.text_ids(args, tokenizer)
    n_whole = len(prompt) + length
    passages = [ids[i:i + n_whole] for i in range(0, max(len(ids) - n_whole, 0) + 1, n_whole)][:args.samples]
    human = mean([measure(model, passage, min(len(prompt), len(passage) - 3), 1, vocab_size) for passage in passages])

    print(f"{args.samples} samples of {length} tokens at each temperature; {len(passages)} passages of {args.text}\n")
    header = ["temperature", "distinct-2", "repeat", "entropy", "top 10", "own loss"]
    experiment.print_table(header, [row(f"{t:g}", m) for t, m in results.items()] + [row("the text", human)])
    print(f"\nThe first sample of each, after {args.prompt!r}:")
    for temperature, text in first_samples.items():
        print(f"\n  {temperature:g}:\n" + textwrap.indent(textwrap.fill(experiment.one_line(text), 110), "    "))

    coldest, hottest, most = min(results), max(results), math.log2(vocab_size)
    low, high = results[coldest], results[hottest]
    nearest = min(results, key=lambda t: abs(results[t].own_loss - human.own_loss))
    noise = [t for t, m in results.items() if m.entropy > 0.9 * most]
    experiment.conclude(
        f"At {coldest:g} the longest repeated run of a sample has {low.repeat:.0f} of its {length} tokens, in the text "
        f"{human.repeat:.0f}: low temperatures {'repeat themselves' if low.repeat > 2 * human.repeat else 'do not'}.",
        f"The own loss of samples at {nearest:g} is closest to the text's ({results[nearest].own_loss:.2f} and "
        f"{human.own_loss:.2f} nats per token).",
        f"At {hottest:g} the entropy is {high.entropy / most:.0%} of the {most:.2f} bits of a uniform distribution;",
        f"it exceeds 90%, and the text is noise, from {noise[0]:g} on." if noise else "it never exceeds 90%.")
    if args.plot:
        with experiment.picture(args.plot, 2) as (left, right):
            columns = Measures(*zip(*results.values()))
            experiment.draw_lines(left, list(results), {
                "distinct bigrams": columns.distinct_2, "top 10": columns.top_10},
                "temperature", "fraction")
            experiment.draw_lines(right, list(results), {
                "entropy, bits": columns.entropy, "own loss, nats": columns.own_loss}, "temperature", "per token")
            right.axhline(human.own_loss, linestyle=":", color="C1", label="own loss of the text")
            left.legend(loc="center right")
            right.legend()
            left.set_title("repetition and certainty")
            right.set_title("entropy and loss")
            for panel in (left, right):
                panel.set_xscale("log")
                panel.xaxis.set_major_formatter("{x:g}")


if __name__ == "__main__":
    run(main)
