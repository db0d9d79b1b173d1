"""What caused the model's answer? Three gradient-based attributions, compared with real activation patching.

Method: the prompts and answers of patch_activations.py. The metric is the difference of the two answers' logits.

1. Saliency: the gradient of the answer's logit with respect to each token's embedding, times the embedding.
2. Integrated gradients: the same with the mean gradient along the line from zero embeddings, so that the attributions
   sum to the effect of all tokens together.
3. Attribution patching: an estimate of what each patch of an activation into the corrupted run would restore, for all
   patches in three passes; compared with real patching, which takes one pass per patch.

How to read the tables: the first has a row for each token. The second has the heads and MLPs whose patches matter most,
summed over positions: estimated, and by real patching. With --plot, each patch of the residual stream, heads and MLPs
is a point. Points far from the diagonal are patches whose effect is not linear: mostly in the first layers, where the
activations differ most and nearly all of the network is still to come.

Source: Nanda, "Attribution Patching: Activation Patching At Industrial Scale", 2023; Sundararajan et al., "Axiomatic
Attribution for Deep Networks", 2017.
"""

import experiment
import numpy as np
from patch_activations import add_prompts, prompt_ids

from numpy_gpt2 import (Recorder, attribution_patching, forward, integrated_gradients, logit_difference, patch,
                        saliency)
from numpy_gpt2.cli.exits import run

N_ROWS = 10


def real_effects(model, clean, corrupted, metric, names):
    """The change of the metric by each real patch: {name: [n_head or 1, n_tokens]}."""
    acts = Recorder(names)
    forward(model, clean, tap=acts)
    before, _ = metric(forward(model, corrupted))
    effects = {}
    for name in names:
        heads = range(model.config.n_head) if name.endswith("attn.z") else [None]
        effects[name] = np.array([[metric(forward(model, corrupted, tap=patch(name, acts[name], position, head)))[0]
                                   - before for position in range(len(clean))] for head in heads])
    return effects


def print_tokens(tokenizer, ids, columns):
    """Print a row for each token of the prompt, with its attribution by each method."""
    rows = [[str(i), repr(tokenizer.decode([token_id])), *(f"{values[i]:+.3f}" for values in columns.values())]
            for i, token_id in enumerate(ids)]
    sums = ["", "sum", *(f"{values.sum():+.3f}" for values in columns.values())]
    experiment.print_table(["position", "token", *columns], [*rows, sums], n_left=2)


def correlation(estimates, effects):
    """Pearson's correlation over all patches."""
    return float(np.corrcoef(np.concatenate([estimates[name].ravel() for name in effects]),
                             np.concatenate([values.ravel() for values in effects.values()]))[0, 1])


def main():
    parser = experiment.make_parser(__doc__)
    add_prompts(parser)
    args, model, tokenizer = experiment.start(parser)
    clean, corrupted, (answer, other) = prompt_ids(args, model, tokenizer)
    metric = logit_difference(answer, other)
    layers = range(model.config.n_layer)

    difference = saliency(model, clean, -1, answer) - saliency(model, clean, -1, other)
    parts = integrated_gradients(model, clean, metric)
    print(f"logit of {args.answers[0]!r} minus logit of {args.answers[1]!r} after the clean prompt, by token\n")
    print_tokens(tokenizer, clean, {"saliency": difference, "integrated gradients": parts})
    with_tokens, _ = metric(forward(model, clean))
    without, _ = metric(forward(model, clean, tap=patch("wte", 0)))

    estimated = attribution_patching(model, clean, corrupted, metric)
    whole = estimated.clean - estimated.corrupted
    kinds = {"residual stream": [f"h.{i}.resid_pre" for i in layers], "heads": [f"h.{i}.attn.z" for i in layers],
             "MLPs": [f"h.{i}.mlp.out" for i in layers]}
    real = {kind: real_effects(model, clean, corrupted, metric, names) for kind, names in kinds.items()}
    of_parts = []
    for name, effects in (real["heads"] | real["MLPs"]).items():
        for head, values in enumerate(effects):
            estimate = estimated.effects[name].reshape(effects.shape)[head]
            label = f"{name} head {head}" if len(effects) > 1 else name
            of_parts.append((label, float(estimate.sum()), float(values.sum())))
    of_parts.sort(key=lambda part: -abs(part[2]))
    print(f"\neffect of patches from the clean run ({estimated.clean:+.3f}) into the corrupted one "
          f"({estimated.corrupted:+.3f}), summed over positions\n")
    experiment.print_table(["patched", "estimated", "real"], [
        [label, f"{estimate:+.3f}", f"{truth:+.3f}"] for label, estimate, truth in of_parts[:N_ROWS]])

    n_patches = sum(values.size for effects in real.values() for values in effects.values())
    experiment.conclude(
        f"The integrated gradients sum to {parts.sum():+.3f}; the effect of all tokens together is "
        f"{with_tokens - without:+.3f}.",
        f"Three passes estimated the effects of {n_patches} patches. The correlation with real patching is " +
        ", ".join(f"{correlation(estimated.effects, effects):.2f} ({kind})" for kind, effects in real.items()) + ".",
        f"The patch with the largest effect, {of_parts[0][0]}, makes {of_parts[0][2] / whole:.0%} of the difference "
        f"between the two runs; its estimate is {of_parts[0][1] / whole:.0%}." if whole else
        "Both prompts give the same logit difference: these answers do not distinguish them.")
    if args.plot:
        with experiment.picture(args.plot, 3) as panels:
            for panel, (kind, effects) in zip(panels, real.items()):
                for name, values in effects.items():
                    panel.plot(estimated.effects[name].ravel(), values.ravel(), ".", label=name)
                panel.axline((0, 0), slope=1, color="grey", linewidth=0.8)
                panel.set(title=kind, xlabel="attribution patching", ylabel="real patching")
                panel.legend(fontsize="x-small")


if __name__ == "__main__":
    run(main)
