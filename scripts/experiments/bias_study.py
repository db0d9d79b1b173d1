"""Do biases matter? The survey says that they matter little. Here they are set to zero, and a text is scored.

Method: build copies of the model in which one kind of bias is all zeros (or the layer norms' gains all ones), and
measure the loss on a text that no model was trained on. As a control, set as many random weights of the matrices to
zero as there are biases: do biases matter more than their number suggests?

How to read the table: `numbers` is how many are changed, `fraction` their fraction of all parameters. `loss` is in nats
per token, `change` its increase, and `times` the factor by which the perplexity grows. The key biases also have a row
of their own: they add the same to a query's score with every key, and softmax ignores that.
"""

import math

import experiment
import numpy as np

from numpy_gpt2 import named_parameters, replace_weights
from numpy_gpt2.cli.exits import run

KEYS = "  of them the keys'"
MATTERS = 0.05  # nats per token: perplexity grows by a twentieth


def zeroed(model, *endings):
    """All arrays whose names end in one of these, as zeros: {name: array}."""
    return {name: np.zeros_like(array) for name, array in named_parameters(model) if name.endswith(endings)}


def ones(model):
    """All layer-norm gains as ones: {name: array}."""
    return {name: np.ones_like(array) for name, array in named_parameters(model)
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))}


def without_third(model, third):
    """The fused biases with queries (0), keys (1) or values (2) as zeros: {name: array}."""
    arrays = {}
    for name, array in named_parameters(model):
        if name.endswith("c_attn.bias"):
            parts = np.split(array, 3)
            parts[third] = np.zeros_like(parts[third])
            arrays[name] = np.concatenate(parts)
    return arrays


def without_random_weights(model, n, seed):
    """The blocks' matrices with n random weights as zeros: {name: array}."""
    rng = np.random.default_rng(seed)
    matrices = {name: array for name, array in named_parameters(model) if name.startswith("h.") and array.ndim == 2}
    ends = np.cumsum([array.size for array in matrices.values()])
    places = rng.choice(ends[-1], n, replace=False)
    arrays = {}
    for (name, array), end in zip(matrices.items(), ends):
        begin = end - array.size
        arrays[name] = array.copy()
        arrays[name].reshape(-1)[places[(begin <= places) & (places < end)] - begin] = 0
    return arrays


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=500)
    experiment.add_seed(parser)
    args, model, tokenizer = experiment.start(parser)
    ids = experiment.text_ids(args, tokenizer)
    before = experiment.loss(model, ids)
    n_all, width = experiment.count(model), model.config.n_embd
    third = model.config.n_layer * width

    norms = zeroed(model, "ln_1.bias", "ln_2.bias", "ln_f.bias")
    all_biases = zeroed(model, ".bias")
    n_biases = sum(array.size for array in all_biases.values())
    attention = zeroed(model, "attn.c_attn.bias", "attn.c_proj.bias")
    mlp = zeroed(model, "mlp.c_fc.bias", "mlp.c_proj.bias")
    copies = [  # label, count of changed numbers (None: all in the arrays), the changed arrays
        ("attention's biases", None, attention),
        ("  of them the queries'", third, without_third(model, 0)),
        (KEYS, third, without_third(model, 1)),
        ("  of them the values'", third, without_third(model, 2)),
        ("the MLPs' biases", None, mlp),
        ("the layer norms' biases", None, norms),
        ("all biases", None, all_biases),
        ("the layer norms' gains to 1", None, ones(model)),
        ("all biases and gains", None, {**all_biases, **ones(model)}),
        ("as many random weights", n_biases, without_random_weights(model, n_biases, args.seed)),
    ]
    rows = [["nothing", 0, "0.000%", f"{before:.4f}", "", ""]]
    changes = {}
    for name, n, arrays in copies:
        if n is None:
            n = sum(array.size for array in arrays.values())
        after = experiment.loss(replace_weights(model, arrays), ids)
        changes[name] = after - before
        rows.append([name, n, f"{n / n_all:.3%}", f"{after:.4f}", f"{after - before:+.4f}",
                     f"{math.exp(min(after - before, 99)):.2f}"])

    print(f"{len(ids) - 1} tokens of {args.text}; set to zero:\n")
    experiment.print_table(["", "numbers", "fraction", "loss", "change", "times"], rows)
    biases, control = changes["all biases"], changes["as many random weights"]
    experiment.conclude(
        f"All biases are {n_biases / n_all:.2%} of the parameters, and without them the perplexity is "
        f"{math.exp(min(biases, 99)):.2f} times as large; without as many random weights "
        f"{math.exp(min(control, 99)):.2f} times.",
        "The survey's claim does not hold for this model: biases matter far more than their number suggests."
        if biases > max(MATTERS, 2 * control) else "The survey's claim holds for this model: they matter little.",
        f"The key biases alone change the loss by {abs(changes[KEYS]):.0e}: rounding.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            panel.barh([name.strip() for name in changes], list(changes.values()))
            panel.invert_yaxis()
            panel.set_xlabel("loss added, nats per token")


if __name__ == "__main__":
    run(main)
