"""Where does the model store what it needs later? Causal tracing: patch one activation of one prompt into another.

Method: two prompts of equal length differ in a word, and so do the expected answers. The clean prompt is recorded. Then
the corrupted one is run many times, each time with one vector of the residual stream, at one layer and position,
replaced by the clean run's. If that restores the clean answer, the vector has the information that differs. The metric
is the logit of the clean answer minus that of the corrupted one.

How to read the table: a row is a position, with its token in both prompts; a column is the layer whose input is patched
(at most nine, evenly spaced). A cell is the fraction of the metric that is restored: 0% is the corrupted run, 100% the
clean one. In early layers only the word that differs matters; in late layers only the last position, which predicts the
answer. In between you see in which layers the information moves, and through which tokens.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", section 2.1, 2022 (there with noise).
"""

from itertools import groupby

import experiment
import numpy as np

from numpy_gpt2 import Recorder, no_tap, patch, transform, unembed
from numpy_gpt2.cli.exits import BadInput, run
from numpy_gpt2.sampling import check_finite

CLEAN = "The old woman went into the forest. Then"
CORRUPTED = "The old man went into the forest. Then"
ANSWERS = (" she", " he")
MAX_COLUMNS = 9


def add_prompts(parser):
    parser.add_argument("--clean", default=CLEAN, metavar="PROMPT", help="default: %(default)s")
    parser.add_argument("--corrupted", default=CORRUPTED, metavar="PROMPT", help="default: %(default)s")
    parser.add_argument("--answers", nargs=2, default=ANSWERS, metavar=("CLEAN", "CORRUPTED"),
                        help="the answer to each, of which only the first token counts (default: ' she' ' he')")


def prompt_ids(args, model, tokenizer):
    """The tokens of the clean prompt, those of the corrupted one, and the first token of each answer."""
    clean = [tokenizer.eot_id, *tokenizer.encode(args.clean)]
    corrupted = [tokenizer.eot_id, *tokenizer.encode(args.corrupted)]
    check_prompts(tokenizer, clean, corrupted, model.config.n_positions)
    return clean, corrupted, answer_ids(tokenizer, args.answers)


def answer_ids(tokenizer, answers):
    """The first token of each answer."""
    first = [tokenizer.encode(answer)[:1] for answer in answers]
    if not all(first) or first[0] == first[1]:
        raise BadInput(f"--answers must begin with two different tokens. Got {answers[0]!r} and {answers[1]!r}")
    return first[0][0], first[1][0]


def check_prompts(tokenizer, clean, corrupted, n_positions):
    """Raise BadInput for prompts that cannot be compared position by position."""
    if len(clean) != len(corrupted):
        raise BadInput(f"the prompts must have the same number of tokens. Got {len(clean) - 1} and "
                       f"{len(corrupted) - 1}: {shown(tokenizer, clean)} and {shown(tokenizer, corrupted)}")
    if clean == corrupted:
        raise BadInput("the prompts must differ. Got the same tokens twice")
    if len(clean) > n_positions:
        raise BadInput(f"the prompts must be at most {n_positions - 1} tokens. Got {len(clean) - 1}")


def shown(tokenizer, ids):
    return repr("|".join(tokenizer.decode([token_id]) for token_id in ids[1:]))


def difference(model, ids, answers, tap=no_tap):
    """The logit of the first answer minus that of the second, after the last token."""
    hidden = transform(model, ids, tap=tap)  # [n_tokens, n_embd]
    logits = unembed(model, hidden[-1:])[0]  # [vocab_size]
    check_finite(logits)
    return float(logits[answers[0]]) - float(logits[answers[1]])


def main():
    parser = experiment.make_parser(__doc__)
    add_prompts(parser)
    args, model, tokenizer = experiment.start(parser)
    n_layer = model.config.n_layer
    clean, corrupted, answers = prompt_ids(args, model, tokenizer)

    acts = Recorder("h.*.resid_pre")
    with_clean = difference(model, clean, answers, acts)
    with_corrupted = difference(model, corrupted, answers)
    whole = with_clean - with_corrupted
    if whole == 0:
        raise BadInput("--answers must be distinguished by the prompts. Got the same logit difference after both")
    layers = sorted({round(layer) for layer in np.linspace(0, n_layer - 1, MAX_COLUMNS)})
    restored = np.zeros((len(clean), len(layers)))
    for column, layer in enumerate(layers):
        name = f"h.{layer}.resid_pre"
        for position in range(len(clean)):
            patched = difference(model, corrupted, answers, patch(name, acts[name], positions=position))
            restored[position, column] = (patched - with_corrupted) / whole

    print(f"logit of {args.answers[0]!r} minus logit of {args.answers[1]!r}: clean {with_clean:+.3f}, corrupted "
          f"{with_corrupted:+.3f}\n")
    names = [[repr(tokenizer.decode([token_id])) for token_id in ids] for ids in (clean, corrupted)]
    header = ["position", "clean", "corrupted", *(f"layer {layer}" if layer == 0 else str(layer) for layer in layers)]
    rows = [[str(position), names[0][position], "" if clean[position] == corrupted[position] else names[1][position],
             *(f"{fraction:.0%}" for fraction in restored[position])] for position in range(len(clean))]
    experiment.print_table(header, rows, n_left=3)

    apart = with_clean > 0 > with_corrupted
    best = restored.argmax(axis=0).tolist()  # the position that restores most, for each layer
    stays = [(position, [layer for layer, _ in group])
             for position, group in groupby(zip(layers, best), key=lambda pair: pair[1])]
    experiment.conclude(
        f"After the clean prompt the model prefers {args.answers[with_clean < 0]!r}, after the corrupted one "
        f"{args.answers[with_corrupted < 0]!r}" +
        ("." if apart else ", which is not as expected: try other prompts or answers."),
        "The vector that restores most is " + "; ".join(
            f"at {names[0][position]} in layer {held[0]}" + (f" to {held[-1]}" if len(held) > 1 else "")
            for position, held in stays) + ".",
        "So the blocks in between move the information from token to token, which only attention can do."
        if len(stays) > 1 else "So the information stays at one token up to the last block.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            image = panel.imshow(restored, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
            panel.set(xlabel="layer", title="restored by one vector of the clean run")
            panel.set_xticks(range(len(layers)), map(str, layers))
            panel.set_yticks(range(len(clean)), names[0])
            panel.figure.colorbar(image, ax=panel)


if __name__ == "__main__":
    run(main)
