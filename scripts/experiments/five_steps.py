"""How does GPT-2 generate text? The survey's five steps, repeated: tokenize, array, forward, sample, decode.

Method: each step is one call, printed with its result in the first round; later rounds repeat the steps with one more
token. There is no cache: each round reads the whole text again, which a real loop avoids (see decoding.py). At the end,
`generate_tokens` should give the same tokens.

How to read the table: a line for each round, with the text, the sampled token and its probability at this temperature,
and the highest probability of any token.
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
    parser.add_argument("--rounds", type=whole_number(1), default=9, metavar="N", help="tokens to sample (default: 9)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="above 0 (default: 0.8)")
    experiment.add_seed(parser, default=4)
    args, model, tokenizer = experiment.start(parser)
    with bad_input():
        sampling = GenerationConfig(temperature=args.temperature)
    if sampling.temperature == 0 or not args.prompt:
        raise BadInput("sampling needs a temperature above 0 and a prompt that is not empty")
    vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
    generator = np.random.default_rng(np.random.SeedSequence(args.seed).spawn(1)[0])  # as in generate_tokens

    text, new_ids, rows, top = args.prompt, [], [], None
    ids = tokenizer.encode(text)  # 1. tokenize: the text as token ids
    prompt_ids = ids
    if len(ids) + args.rounds - 1 > model.config.n_positions:
        raise BadInput(f"--rounds and the prompt must fit the context, {model.config.n_positions} tokens. "
                       f"Got {args.rounds} and {len(ids)}")
    for i in range(args.rounds):
        array = np.array(ids)  # 2. array: the ids, [n_tokens]
        logits = forward(model, array)  # 3. forward: a score for every token of the vocabulary, at every position
        shaped = process_logits(logits[-1, :vocab_size], array, sampling)  # divides by the temperature
        token = int(sample(shaped, np.array(generator.random())))  # 4. sample one token
        written = tokenizer.decode([*ids, token])  # 5. decode: the ids as text
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
    experiment.print_table(["round", "read", "sampled", "probability", "highest"], rows, n_left=3)

    with bad_input():
        again = list(generate_tokens(model, prompt_ids, args.rounds, seed=args.seed, temperature=args.temperature,
                                     vocab_size=vocab_size, eos_token_id=-1))
    n_likeliest = sum(row[3] == row[4] for row in rows)
    experiment.conclude(
        f"{text!r} took {args.rounds} rounds of five calls; {n_likeliest} of them sampled the most likely token.",
        "generate_tokens, which uses a cache, samples the same tokens." if again == new_ids else
        "generate_tokens, which uses a cache, samples other tokens, because of a difference in rounding.")
    if args.plot:
        with experiment.picture(args.plot, 1) as (panel,):
            panel.barh([repr(name) for name, _ in top], [probability for _, probability in top])
            panel.invert_yaxis()
            panel.set(xlabel=f"probability after {args.prompt!r}", title="the ten most likely tokens")


if __name__ == "__main__":
    run(main)
