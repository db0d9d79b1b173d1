"""How does GPT-2 write? The survey's five steps: tokenize, array, forward, sample, decode; then again from the start.

Method: each step is one call, printed with what came out. The first round shows everything; the rounds after it do the
same with one token more. Nothing is cached: each round reads the whole text again, which a real loop avoids (see
decoding.py). At the end `generate_tokens` is asked for the same tokens.

How to read the table: one line for each round, with the text as it was read, the token that was drawn and its
probability at this temperature, and that of the token which was likeliest.
"""

import experiment
import numpy as np

from numpy_gpt2 import GenerationConfig, forward, generate_tokens
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, bad_input, run
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import process_logits, sample


def main():
    parser = experiment.make_parser(__doc__)
    parser.add_argument("--prompt", default="Once upon a time", help="default: %(default)s")
    parser.add_argument("--rounds", type=whole_number(1), default=9, metavar="N", help="tokens to draw (default: 9)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="above 0 (default: 0.8)")
    experiment.add_seed(parser, default=4)
    args, model, tokenizer = experiment.start(parser)
    with bad_input():
        sampling = GenerationConfig(temperature=args.temperature)
    if sampling.temperature == 0 or not args.prompt:
        raise BadInput("a draw needs a temperature above 0 and a prompt that is not empty")
    vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
    generator = np.random.default_rng(np.random.SeedSequence(args.seed).spawn(1)[0])  # as generate_tokens makes its own

    text, new_ids, rows, top = args.prompt, [], [], None
    ids = tokenizer.encode(text)  # 1. tokenize: the text as token ids
    prompt_ids = ids
    if len(ids) + args.rounds - 1 > model.config.n_positions:
        raise BadInput(f"--rounds and the prompt must fit the context, {model.config.n_positions} tokens. "
                       f"Got {args.rounds} and {len(ids)}")
    for i in range(args.rounds):
        array = np.array(ids)  # 2. array: the ids as numbers in a row, [n_tokens]
        logits = forward(model, array)  # 3. forward: a score for every token of the vocabulary, at every position
        shaped = process_logits(logits[-1, :vocab_size], array, sampling)  # the last row, divided by the temperature
        token = int(sample(shaped, np.array(generator.random())))  # 4. sample: one draw
        written = tokenizer.decode([*ids, token])  # 5. decode: ids as text
        probabilities = softmax(shaped)  # [vocab_size]
        if i == 0:
            top = [(tokenizer.decode([best]), float(probabilities[best])) for best in np.argsort(-probabilities)[:10]]
            experiment.print_table(["step", "call", "result"], [
                ["1 tokenize", f"tokenizer.encode({text!r})", str(ids)],
                ["2 array", "np.array(ids)", f"{array.dtype} {array.shape}"],
                ["3 forward", "forward(model, array)", f"{logits.dtype} {logits.shape}"],
                ["4 sample", "sample(logits[-1] / temperature, draw)", str(token)],
                ["5 decode", "tokenizer.decode([*ids, token])", repr(written)]], n_left=3)
            print()
        rows.append([f"{i + 1}", repr(text[-40:]), repr(tokenizer.decode([token])), f"{probabilities[token]:.1%}",
                     f"{probabilities.max():.1%}"])
        new_ids.append(token)
        ids, text = [*ids, token], written
    experiment.print_table(["round", "read", "drawn", "probability", "likeliest"], rows, n_left=3)

    with bad_input():
        again = list(generate_tokens(model, prompt_ids, args.rounds, seed=args.seed, temperature=args.temperature,
                                     vocab_size=vocab_size, eos_token_id=-1))
    n_likeliest = sum(row[3] == row[4] for row in rows)
    experiment.conclude(
        f"{text!r} took {args.rounds} rounds of five calls; in {n_likeliest} the draw was the likeliest token.",
        "generate_tokens, which caches, draws the same tokens." if again == new_ids else
        "generate_tokens, which caches, draws other tokens: rounding differs, and a draw fell between two of them.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            panel.barh([repr(name) for name, _ in top], [probability for _, probability in top])
            panel.invert_yaxis()
            panel.set(xlabel=f"probability after {args.prompt!r}", title="the ten likeliest tokens")


if __name__ == "__main__":
    run(main)
