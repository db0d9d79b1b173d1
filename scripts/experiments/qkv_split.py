"""Does it pay to fuse queries, keys and values? The survey says that one product saves memory accesses over three.

Method: split every layer's fused matrix `c_attn`, check that the parts concatenate to it, and compare three separate
products with the fused one on the activations of a real pass. Then time both alternately for several numbers of tokens;
a round goes through all layers, as a pass does, so that weights are as cold in the processor's cache.

How to read the table: median milliseconds for all layers. `ratio` is the time of three products over that of one, the
median of the rounds' ratios, with quartiles in brackets: above 1 fusing is faster. `traffic` is the ratio to expect if
only memory traffic mattered: numbers read and written. Both read the same weights and write the same results; the fused
product reads its input once instead of three times.

On a busy machine BLAS threads wait for each other and timings vary; OPENBLAS_NUM_THREADS=1 makes them steadier.
"""

import statistics
import time

import experiment
import numpy as np

from numpy_gpt2 import transform
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import run
from numpy_gpt2.ops import linear


class Inputs:
    """A tap that keeps the inputs of each layer's attention."""

    def __init__(self):
        self.arrays = []

    def __call__(self, name, value):
        if name.endswith("ln_1"):
            self.arrays.append(value)
        return value


def fused(inputs, layers):
    return [linear(x, weight, bias) for x, (weight, bias) in zip(inputs, layers)]


def separate(inputs, layers):
    return [[linear(x, weight, bias) for weight, bias in parts] for x, parts in zip(inputs, layers)]


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser)
    parser.add_argument("--rounds", type=whole_number(2), default=60, metavar="N", help="rounds per case (default: 60)")
    args, model, tokenizer = experiment.start(parser)
    ids = experiment.text_ids(args, tokenizer)[:model.config.n_positions]
    width, n_layer = model.config.n_embd, model.config.n_layer
    inputs = Inputs()
    transform(model, ids, tap=inputs)

    whole = [(block.attn.c_attn.weight, block.attn.c_attn.bias) for block in model.h]
    parts = [[(np.ascontiguousarray(w), b.copy()) for w, b in zip(np.split(weight, 3, axis=1), np.split(bias, 3))]
             for weight, bias in whole]
    together = [np.concatenate([weight for weight, _ in three], axis=1) for three in parts]
    if not all(np.array_equal(again, weight) for again, (weight, _) in zip(together, whole)):
        raise AssertionError("the parts do not concatenate to the fused matrix")
    largest = relative = 0.0
    for one, three in zip(fused(inputs.arrays, whole), separate(inputs.arrays, parts)):
        difference = float(np.max(np.abs(np.concatenate(three, axis=-1) - one)))
        largest = max(largest, difference)
        relative = max(relative, difference / float(np.max(np.abs(one))))
    if relative > 1e-5:
        raise AssertionError(f"the three products differ from the fused one by {relative:.1e} of its largest number")
    print(f"c_attn {width} x {3 * width} = 3 of {width} x {width}, {n_layer} layers: the parts concatenate to it; "
          f"three products\nand one differ by at most {largest:.1e}, {relative:.1e} of the largest result\n")

    rows, ratios_by_n, traffic_by_n = [], {}, {}
    for n in [n for n in (1, 16, 128, 512) if n <= len(ids)]:
        few = [np.ascontiguousarray(x[:n]) for x in inputs.arrays]
        rounds = args.rounds if n < 128 else max(2, args.rounds // 4)
        times = []
        for i in range(-1, rounds):  # the first round warms up; the order alternates
            a = seconds(fused, few, whole) if i % 2 else None
            b = seconds(separate, few, parts)
            a = seconds(fused, few, whole) if a is None else a
            times.append((a, b))
        ratios = statistics.quantiles([b / a for a, b in times[1:]], n=4, method="inclusive")
        ratios_by_n[n] = ratios
        weights, results = 3 * width * width + 3 * width, 3 * n * width
        traffic = traffic_by_n[n] = (weights + results + 3 * n * width) / (weights + results + n * width)
        medians = [1e3 * statistics.median(column) for column in zip(*times[1:])]
        rows.append([str(n), *(f"{ms:.3f}" for ms in medians), f"{ratios[1]:.2f}",
                     f"({ratios[0]:.2f} to {ratios[2]:.2f})", f"{traffic:.2f}"])
    experiment.print_table(["tokens", "fused, ms", "separate, ms", "ratio", "", "traffic"], rows)

    faster = [n for n, (low, _, _) in ratios_by_n.items() if low > 1.02]
    slower = [n for n, (_, _, high) in ratios_by_n.items() if high < 0.98]
    undecided = [n for n in ratios_by_n if n not in faster + slower]
    beyond_traffic = [n for n in faster if ratios_by_n[n][0] > traffic_by_n[n]]
    verdicts = [f"{word} at {', '.join(map(str, ns))}" for word, ns in
                (("faster", faster), ("slower", slower), ("no clear difference", undecided)) if ns]
    experiment.conclude(
        f"On this machine, by the number of tokens, fusing is faster or slower as follows: {'; '.join(verdicts)}.",
        f"At {', '.join(map(str, beyond_traffic))} it gains more than the traffic explains: memory accesses are not "
        "the only reason; one product is also started and divided among threads not three." if beyond_traffic else
        "It gains no more than the traffic explains, as the survey says." if faster else
        "The survey's claim does not show here: the weights are read once either way.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            low, middle, high = zip(*ratios_by_n.values())
            scatter = [np.subtract(middle, low), np.subtract(high, middle)]
            panel.errorbar([str(n) for n in ratios_by_n], middle, yerr=scatter, fmt="o", capsize=4)
            panel.axhline(1, linestyle=":")
            panel.set(xlabel="tokens", ylabel="time of three products / of one")


if __name__ == "__main__":
    run(main)
