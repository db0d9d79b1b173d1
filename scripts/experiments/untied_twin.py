"""Is the course's "Model 5" GPT-2? It builds the architecture untied, with 163M parameters, subtracts the 38M of the
unembedding, and arrives at GPT-2's 124M.

Method: count the parameters of each released size from the shapes of its config, tied and untied, without weights. Then
make an untied twin of a loaded model, count the parameters in the arrays of both, and compare their logits.

How to read the table: `unembedding` is vocab_size x n_embd, the difference. The tied count is what the checkpoint
stores; `fraction` is the unembedding's fraction of the untied count, which falls as models grow.
"""

import math
from dataclasses import replace

import experiment
import numpy as np

from numpy_gpt2 import SIZES, forward, parameter_shapes
from numpy_gpt2.cli.exits import run


def count_by_shapes(config, tied):
    shapes = parameter_shapes(replace(config, tie_word_embeddings=tied))
    return sum(math.prod(shape) for shape in shapes.values())


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=100)
    args, model, tokenizer = experiment.start(parser)

    rows, counts = [], {}
    for name, config in [*SIZES.items(), (args.model, model.config)]:
        untied, tied = count_by_shapes(config, tied=False), count_by_shapes(config, tied=True)
        unembedding = config.vocab_size * config.n_embd
        if untied - unembedding != tied:
            raise AssertionError(f"{name}: {untied:,} - {unembedding:,} is not {tied:,}")
        counts[name] = (tied, unembedding)
        rows.append([name, untied, unembedding, tied, f"{unembedding / untied:.1%}"])
    experiment.print_table(["model", "untied", "- unembedding", "= tied", "fraction"], rows)

    twin = experiment.untied(model)
    ids = experiment.text_ids(args, tokenizer)[:model.config.n_positions]
    logits, twin_logits = forward(model, ids), forward(twin, ids)
    equal = np.array_equal(logits, twin_logits)
    difference = float(np.max(np.abs(logits - twin_logits)))
    n_model, n_twin = experiment.count(model), experiment.count(twin)
    print(f"\n{args.model} and its untied twin, on {len(ids) - 1} tokens of {args.text}:\n")
    experiment.print_table(["", "parameters", "MB", "lm_head is wte", "loss"], [
        [name, n, f"{n * one.wte.itemsize / 1e6:.1f}", str(one.lm_head is one.wte), f"{experiment.loss(one, ids):.4f}"]
        for name, n, one in (("as it is", n_model, model), ("twin", n_twin, twin))])

    tied, unembedding = counts["small"]
    experiment.conclude(
        f"{tied + unembedding:,} - {unembedding:,} = {tied:,}: the sum is right, and gives GPT-2 small. "
        f"(The survey truncates {unembedding / 1e6:.1f}M to 38M; 163 - 38 would be 125.)",
        f"The twin has {n_twin - n_model:,} more parameters than {args.model}, and its logits "
        + ("are bitwise equal." if equal else f"differ by at most {difference:.0e}."),
        "But the twin is GPT-2 only while the two matrices are equal: further training would make them differ."
        if n_twin > n_model else "This checkpoint is untied already.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            tied, unembedding = np.array(list(counts.values())).T / 1e6
            panel.bar(list(counts), tied, label="tied")
            panel.bar(list(counts), unembedding, bottom=tied, label="unembedding, untied")
            panel.set_ylabel("million parameters")
            panel.legend()


if __name__ == "__main__":
    run(main)
