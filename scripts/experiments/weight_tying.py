"""Are embedding and unembedding one matrix, and what if not? The survey says: tied, which its correlation of 1.0 shows.

Method: check whether `lm_head` and `wte` are the same array in memory, and compute their correlation. Then make untied
copies of the model, change one matrix or both, and score a text. Permuting the rows loses only the assignment of rows
to tokens.

How to read the table: `correlation` is the elementwise correlation of the two matrices. `loss` is in nats per token;
`same best` is the fraction of positions where the copy's top token is the original model's. The loss of a uniform guess
is the logarithm of the vocabulary size, given in the last lines.
"""

import math

import experiment
import numpy as np
from experiment import untied

from numpy_gpt2 import forward
from numpy_gpt2.cli.exits import run
from numpy_gpt2.scoring import score_tokens
from numpy_gpt2.summary.weight_statistics import correlation


def correlation_text(model):
    value = 1.0 if model.lm_head is model.wte else correlation(model.wte, model.lm_head)
    return "-" if value is None else f"{value:.4f}"


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=500)
    experiment.add_seed(parser)
    args, model, tokenizer = experiment.start(parser)
    ids = np.array(experiment.text_ids(args, tokenizer))
    rng = np.random.default_rng(args.seed)
    vocab_size = model.config.vocab_size
    old_of_new = rng.permutation(vocab_size)  # row i of a permuted matrix is row old_of_new[i] of the original
    new_of_old = np.argsort(old_of_new)
    noise = rng.standard_normal(model.lm_head.shape, dtype=model.wte.dtype) * model.wte.std()

    print(f"model.lm_head is model.wte: {model.lm_head is model.wte}")
    print(f"memory shared:              {np.shares_memory(model.lm_head, model.wte)}")
    print(f"correlation:                {correlation_text(model)}")
    print(f"parameters:                 {experiment.count(model):,}, untied {experiment.count(untied(model)):,}")
    print(f"\nUntied, and changed; {len(ids) - 1} tokens of {args.text}:\n")

    permuted_head, permuted_wte = model.lm_head[old_of_new], model.wte[old_of_new]
    copies = {  # the model, and the text's ids in its numbering
        "as it is": (model, ids),
        "untied, two equal matrices": (untied(model), ids),
        "lm_head permuted": (untied(model, lm_head=permuted_head), ids),
        "wte permuted": (untied(model, wte=permuted_wte), ids),
        "both permuted alike": (untied(model, wte=permuted_wte, lm_head=permuted_head), ids),
        "both, and the text renamed": (untied(model, wte=permuted_wte, lm_head=permuted_head), new_of_old[ids]),
        "lm_head random": (untied(model, lm_head=noise), ids),
    }
    rows, losses = [], {}
    best = None
    for name, (copy, copy_ids) in copies.items():
        scores = score_tokens(copy, copy_ids, n_top=1)
        losses[name] = scores.mean_loss
        copy_best = scores.top_ids[:, 0]
        best = copy_best if best is None else best
        expected = best if copy_ids is ids else new_of_old[best]
        rows.append([name, correlation_text(copy), f"{scores.mean_loss:.4f}", f"{np.mean(copy_best == expected):.1%}"])
    experiment.print_table(["", "correlation", "loss", "same best"], rows)

    window = ids[:min(64, model.config.n_positions)]
    logits = forward(model, window)
    equal = np.array_equal(forward(untied(model), window), logits)
    unpermuted = forward(copies["lm_head permuted"][0], window)[:, new_of_old]  # each logit back in its token's place
    difference = np.max(np.abs(unpermuted - logits))
    broken = losses["lm_head permuted"] - losses["as it is"]
    experiment.conclude(
        f"Two equal matrices give {'exactly the same logits' if equal else 'logits equal up to rounding'}: tying saves "
        f"{model.wte.size:,} numbers and changes no result.",
        f"With lm_head permuted the loss is {broken:.2f} nats per token higher, {losses['lm_head permuted']:.2f}; that "
        f"of a uniform guess is {math.log(vocab_size):.2f}. The predictions are the same, but for the wrong tokens: "
        f"with the permutation undone, the logits differ by at most {difference:.1g}.",
        f"With both permuted alike and the text renumbered, it is {losses['both, and the text renamed']:.2f} again: "
        "ids are only labels, and tying uses the same label for a token as input and as output.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            panel.barh(list(losses), list(losses.values()))
            panel.axvline(math.log(vocab_size), linestyle=":", label="uniform guess")
            panel.invert_yaxis()
            panel.set_xlabel("loss, nats per token")
            panel.legend()


if __name__ == "__main__":
    run(main)
