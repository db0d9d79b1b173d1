"""What do the token and position embeddings encode? (Not in the survey, which only counts them.)

Method, in four parts. (1) Which tokens are nearest to a word by cosine? (2) Token arithmetic: which token is nearest to
king - man + woman? The three words themselves are excluded, as usual; two controls show what this hides: the answer
with all tokens allowed, and the token nearest to `king` alone. (3) Which positions are nearest to a position, and how
similar are two at a given distance? (4) Is a token's embedding also its unembedding? In a tied model, by construction.
Its untied twin starts with two equal matrices; the gradients of the loss show whether training would keep them equal.
Control: a random matrix of the same shape, mean and standard deviation.

How to read the tables: a cosine follows each neighbour; it is 1 for the same direction, 0 for a right angle. Siblings
are tokens that differ only in case and spaces; `nearest is a sibling` counts tokens that have one. Means over tokens
are over at most 1000 of them, chosen by the seed. In (2), `rank` is that of the expected token, and `alone` its rank
among the tokens nearest to the third word. In (3), cosines are means over all pairs of positions at that distance.

Source: Mikolov et al., "Linguistic Regularities in Continuous Space Word Representations", 2013; Linzen, "Issues in
evaluating semantic spaces using word analogies", 2016 (the controls).
"""

from collections import Counter
from typing import NamedTuple

import experiment
import numpy as np

from numpy_gpt2 import loss_and_gradients
from numpy_gpt2.cli.exits import BadInput, run

WORDS = (" king", " mother", " said", " three", " gold", "The")
ANALOGIES = tuple(tuple(f" {word}" for word in line.split()) for line in (
    "man woman king queen", "man woman prince princess", "man woman father mother", "man woman son daughter",
    "man woman brother sister", "man woman husband wife", "man woman boy girl", "man woman he she",
    "he his she her", "man men woman women", "hand hands eye eyes", "day days night nights", "go went come came",
    "go went say said", "go went see saw", "go went take took", "go went give gave", "is was are were",
    "big bigger great greater", "good better bad worse"))
N_NEAREST = 5
MAX_TOKENS = 1000
PLACES = (0, 1, 10, 100, 500)


def unit(rows):
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def cosines_with(units, direction, left_out=()):
    """The cosine of every row with a direction: [n, width], [width] -> [n]; -inf for those left out."""
    cosines = units @ unit(direction)
    cosines[list(left_out)] = -np.inf
    return cosines


def nearest(units, chosen):
    """The nearest other row of each chosen one: ids [n_chosen], cosines [n_chosen]."""
    cosines = units[chosen] @ units.T  # [n_chosen, n]
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    return cosines.argmax(axis=-1), cosines.max(axis=-1)


def mean_cosine(units):
    """The mean over all pairs of different rows. All pairs together are the square of the sum."""
    n = len(units)
    total = units.sum(axis=0, dtype=np.float64)
    return float(total @ total - n) / (n * (n - 1))


def rank(cosines, expected):
    return 1 + int(np.sum(cosines > cosines[expected]))


class Answer(NamedTuple):
    best: int  # of all tokens but the three inputs
    rank: int  # of the expected token among these
    best_of_all: int
    alone: int  # the expected token's rank by its cosine with the third word


def analogy(units, a, b, c, expected):
    """a is to b as c is to what? Unit vectors b - a + c."""
    direction = units[b] - units[a] + units[c]
    others = cosines_with(units, direction, (a, b, c))
    alone = cosines_with(units, units[c], (a, b, c))
    return Answer(int(others.argmax()), rank(others, expected), int(cosines_with(units, direction).argmax()),
                  rank(alone, expected))


def right_answers(units, ids):
    """How many analogies are right: by arithmetic, with all tokens allowed, from the third word alone."""
    answers = [analogy(units, *four) for four in ids]
    return (sum(answer.rank == 1 for answer in answers),
            sum(answer.best_of_all == four[-1] for answer, four in zip(answers, ids)),
            sum(answer.alone == 1 for answer in answers))


def cosine_by_distance(units):
    """The mean cosine of two rows at each distance 1, 2, ..., n - 1: [n - 1]."""
    cosines = units @ units.T
    return np.array([np.diagonal(cosines, distance).mean() for distance in range(1, len(units))])


def token_of(tokenizer, text):
    """The id of a text that is one token, else None."""
    ids = tokenizer.encode(text)
    return ids[0] if len(ids) == 1 else None


def main():
    parser = experiment.make_parser(__doc__)
    experiment.add_text(parser, n_tokens=200)
    experiment.add_seed(parser)
    parser.add_argument("--words", nargs="+", metavar="WORD", help="single tokens (default: ' king' and five others)")
    args, model, tokenizer = experiment.start(parser)
    ids = experiment.text_ids(args, tokenizer)[:model.config.n_positions]
    for word in args.words or ():
        if token_of(tokenizer, word) is None:
            raise BadInput(f"--words must be single tokens. Got {word!r}, {len(tokenizer.encode(word))} tokens")
    rng = np.random.default_rng([args.seed, 1])  # `random_model` of the same seed draws a wte that training began with
    n_known = min(tokenizer.vocab_size, model.config.vocab_size)
    wte, wpe = unit(model.wte[:n_known]), unit(model.wpe)
    random_wte, random_wpe = [unit(experiment.noise_like(rows, rng)) for rows in (model.wte[:n_known], model.wpe)]
    texts = [tokenizer.decode([i]) for i in range(n_known)]

    print("(1) Tokens nearest to a token\n")
    words = [i for word in args.words or WORDS if (i := token_of(tokenizer, word)) is not None]
    experiment.print_table(["token", "nearest", "in a random matrix"],
                           [[repr(texts[i]), *(neighbours(units, i, texts) for units in (wte, random_wte))]
                            for i in words], n_left=3)
    chosen = np.sort(rng.permutation(n_known)[:MAX_TOKENS])
    measures = [token_measures(units, chosen, texts) for units in (wte, random_wte)]
    print()
    experiment.print_table(["mean over tokens", "wte", "random"], [
        ["cosine of two tokens", *(f"{m.any_two:.3f}" for m in measures)],
        ["cosine with the nearest", *(f"{m.with_nearest:.3f}" for m in measures)],
        [f"nearest is a sibling (of {measures[0].n_with_sibling})", *(f"{m.siblings:.1%}" for m in measures)]])

    print("\n(2) Token arithmetic\n")
    fours = [four for words in ANALOGIES if None not in (four := [token_of(tokenizer, word) for word in words])]
    answers = [analogy(wte, *four) for four in fours]
    experiment.print_table(["arithmetic", "answer", "all allowed", "expected", "rank", "alone"], [
        [f"{texts[b]} -{texts[a]} +{texts[c]}".strip(), repr(texts[answer.best]), repr(texts[answer.best_of_all]),
         repr(texts[d]), answer.rank, answer.alone] for (a, b, c, d), answer in zip(fours, answers)], n_left=4)

    print("\n(3) Positions nearest to a position\n")
    places = [place for place in PLACES if place < len(wpe)]
    experiment.print_table(["position", "nearest", "in a random matrix"],
                           [[str(i), *(neighbours(units, i, range(len(wpe))) for units in (wpe, random_wpe))]
                            for i in places], n_left=3)
    by_distance = [cosine_by_distance(units) for units in (wpe, random_wpe)]
    distances = [2**i for i in range(30) if 2**i < len(wpe)]
    print()
    experiment.print_table(["distance", "wpe", "random"], [
        [str(distance), *(f"{cosines[distance - 1]:.3f}" for cosines in by_distance)] for distance in distances])
    to_nearest = [np.median(np.abs(nearest(units, np.arange(len(units)))[0] - np.arange(len(units))))
                  for units in (wpe, random_wpe)]

    print("\n(4) Embedding and unembedding\n")
    tied = model.lm_head is model.wte
    lm_head = unit(model.lm_head[:n_known])
    pairs = {"wte and lm_head": lm_head, "wte and random": random_wte}
    same_token = {name: float(np.mean(np.sum(wte * other, axis=-1))) for name, other in pairs.items()}
    found = {name: float(np.mean((wte[chosen] @ other.T).argmax(axis=-1) == chosen)) for name, other in pairs.items()}
    experiment.print_table(["", "cosine of a token's rows", "nearest row is its own"],
                           [[name, f"{same_token[name]:.3f}", f"{found[name]:.1%}"] for name in pairs])
    twin = experiment.untied(model) if tied else model
    _, gradients = loss_and_gradients(twin, ids)
    alike = float(np.sum(unit(gradients.wte.ravel()) * unit(gradients.lm_head.ravel())))
    longer = float(np.linalg.norm(gradients.lm_head) / np.linalg.norm(gradients.wte))

    experiment.conclude(tokens_found(*measures))
    experiment.conclude(arithmetic_found(len(fours), right_answers(wte, fours), right_answers(random_wte, fours)))
    experiment.conclude(
        f"(3) Neighbouring positions have a cosine of {by_distance[0][0]:.2f}, those {distances[-1]} apart "
        f"{by_distance[0][distances[-1] - 1]:.2f} (random: {by_distance[1][0]:.2f} and "
        f"{by_distance[1][distances[-1] - 1]:.2f}). The nearest position is {to_nearest[0]:.0f} away, in the median "
        f"(random: {to_nearest[1]:.0f}).")
    experiment.conclude(
        "(4) wte and lm_head are one array: a token's rows are equal because they are one row." if tied else
        "(4) wte and lm_head are two arrays; a token's two rows have a mean cosine of "
        f"{same_token['wte and lm_head']:.2f}.",
        f"In {'its untied twin' if tied else 'this untied model'} the gradients of the loss have a cosine of "
        f"{alike:.2f} (1 would keep equal matrices equal in direction), and lm_head's is {longer:.1f} times as long"
        + (": training would soon separate them; tied, wte gets the sum." if tied and alike < 0.5 else "."))
    if args.plot and len(wpe) > 1:
        draw(args.plot, wpe, by_distance)


def neighbours(units, chosen, names):
    """The nearest rows, with their cosines, as a text."""
    cosines = cosines_with(units, units[chosen], [chosen])
    best = np.argsort(-cosines)[:min(N_NEAREST, len(units) - 1)].tolist()
    return ", ".join(f"{names[i]!r} {cosines[i]:.2f}" for i in best)


class Measures(NamedTuple):
    any_two: float
    with_nearest: float
    siblings: float  # a fraction, of the tokens that have a sibling
    n_with_sibling: int


def token_measures(units, chosen, texts):
    words = ["" if "\ufffd" in text else text.strip().lower() for text in texts]
    n_of_word = Counter(words)
    best, cosines = nearest(units, chosen)
    pairs = [(words[i], words[j]) for i, j in zip(chosen, best) if words[i] and n_of_word[words[i]] > 1]
    siblings = sum(word == other for word, other in pairs) / max(len(pairs), 1)
    return Measures(mean_cosine(units), float(cosines.mean()), siblings, len(pairs))


def tokens_found(own, control):
    return (f"(1) The nearest token has a mean cosine of {own.with_nearest:.2f} (random matrix: "
            f"{control.with_nearest:.2f}), any two {own.any_two:.2f} ({control.any_two:.2f}). Of tokens that have a "
            f"sibling, it is the nearest for {own.siblings:.0%} ({control.siblings:.0%}).")


def arithmetic_found(n, own, control):
    """The conclusion: what the arithmetic adds to the third word alone."""
    if n == 0:
        return "(2) This vocabulary has none of the analogies."
    by_arithmetic, of_all, alone = own
    return (f"(2) Arithmetic answers {by_arithmetic} of {n} analogies (random matrix: {control[0]}), {of_all} with all "
            f"tokens allowed. The token nearest to the third word alone answers {alone}: " + (
                f"{by_arithmetic - alone} more are due to the arithmetic." if by_arithmetic > alone else
                "the arithmetic adds nothing."))


def draw(path, wpe, by_distance):
    with experiment.picture(path, 2) as (left, right):
        image = left.imshow(wpe @ wpe.T, cmap="RdBu", vmin=-1, vmax=1)
        left.set(xlabel="position", ylabel="position", title="cosine of two positions")
        left.figure.colorbar(image, ax=left)
        for cosines, label in zip(by_distance, ("wpe", "random")):
            right.plot(range(1, len(cosines) + 1), cosines, label=label)
        right.set(xlabel="distance", ylabel="mean cosine", ylim=(-1, 1), title="by distance")
        right.legend()


if __name__ == "__main__":
    run(main)
