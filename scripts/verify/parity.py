"""Does it compute what transformers computes? The largest difference over random checkpoints, and at small's size.

    pip install -e '.[parity]' && python scripts/verify/parity.py

Each config draws its sizes, tied or untied, n_inner, epsilon, a batch, a length from 1 token to the whole context, and
weights that all affect the result. transformers saves the checkpoint, numpy_gpt2 loads it, and both compute, in float32
and in float64. A difference is the largest absolute one between two arrays, as a fraction of the reference's largest
absolute value.

    prompt          the logits of a whole prompt
    hidden states   each block's input, the last one's output, and the logits (with a tap)
    cached steps    the logits of single tokens, each library with its own cache after the prompt
    large scores    the logits with queries and keys so large that exp(score) would overflow
    one by one      numpy_gpt2 alone: the logits of a batch, and of its rows by themselves
    float32         numpy_gpt2 alone: its float32 against its float64, an estimate of rounding errors
    theirs          the same for transformers, for comparison
    small           the logits of 1,024 tokens with random weights of small's size, 124M parameters

The limits are 1e-4 in float32 and 1e-10 in float64. If one is exceeded, the exit status is 1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from numpy_gpt2 import KVCache, Recorder, forward, load_model
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import run, say

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

from experiment import Parser, print_table  # noqa: E402

LIMITS = {"float32": 1e-4, "float64": 1e-10}
OVERFLOW = {"float32": 100, "float64": 800}  # scores whose exponential overflows: 88.8 and 709.8 would suffice
OWN = ("float32", "theirs")  # the cases that have no column of their own in float64
CASES = ("prompt", "hidden states", "cached steps", "large scores", "one by one", *OWN, "small")


class Record:
    """The largest difference of every case, in which config it was, and how many configs there were."""

    def __init__(self):
        self.largest = {}  # (case, dtype) -> (difference, config)
        self.n = {}

    def add(self, case, dtype, difference, config):
        largest, _ = self.largest.get((case, dtype), (-1.0, ""))
        if not difference <= largest:  # a NaN is the largest of all
            self.largest[case, dtype] = (difference, config)
        self.n[case] = self.n.get(case, 0) + (dtype == "float32")

    def beyond_limits(self):
        return [(case, dtype, difference, config) for (case, dtype), (difference, config) in self.largest.items()
                if not difference <= LIMITS[dtype]]


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=whole_number(1), default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="default: %(default)s")
    parser.add_argument("--without-small", action="store_true", help="leave out the case that takes the most memory")
    return parser


def main():
    args = make_parser().parse_args()
    torch.set_num_threads(1)  # such small products are done before two threads have met
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record = Record()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for number in range(args.configs):
            rng = np.random.default_rng([args.seed, number])
            compare(record, number, random_settings(rng), rng, Path(folder))
            if (number + 1) % 100 == 0:
                say(f"{number + 1:,} configs")
        if not args.without_small:
            compare_small(record, np.random.default_rng(args.seed), Path(folder))
    print_record(record, args.configs)


# The comparisons ------------------------------------------------------------------------------------------------------


def compare(record, number, settings, rng, folder):
    """Record all cases for one random checkpoint, written to the folder."""
    config = describe(number, settings)
    theirs = random_checkpoint(settings, rng, folder)
    n_tokens = settings["n_positions"]
    if rng.random() < 0.9:
        n_tokens = int(rng.integers(1, n_tokens, endpoint=True))
    ids = rng.integers(0, settings["vocab_size"], (int(rng.integers(1, 4)), n_tokens))
    n_prompt = int(rng.integers(max(1, n_tokens - 8), n_tokens, endpoint=True))

    logits = {}
    for dtype in LIMITS:
        ours = load_model(folder, dtype=dtype)
        theirs = theirs.to(getattr(torch, dtype))
        reference = theirs(torch.from_numpy(ids), output_hidden_states=True)
        logits[dtype] = forward(ours, ids), reference.logits.numpy()
        record.add("prompt", dtype, difference(*logits[dtype]), config)
        record.add("hidden states", dtype, hidden_difference(ours, ids, reference), config)
        if n_prompt < n_tokens:
            record.add("cached steps", dtype, cached_difference(ours, theirs, ids, n_prompt), config)
        rows = np.stack([forward(ours, row) for row in ids])
        record.add("one by one", dtype, difference(rows, logits[dtype][0]), config)
    for case, (single, double) in zip(OWN, zip(logits["float32"], logits["float64"])):
        record.add(case, "float32", difference(single.astype(np.float64), double), config)
    if n_tokens > 1:  # the attention weight of a single key is 1, however large its score
        compare_large_scores(record, theirs, int(rng.integers(settings["n_layer"])), ids, folder, config)


def hidden_difference(ours, ids, reference):
    """The largest difference of all hidden states that transformers returns, and of the logits, with a tap."""
    acts = Recorder(["h.*.resid_pre", "ln_f", "logits"])
    forward(ours, ids, tap=acts)
    names = [*(f"h.{i}.resid_pre" for i in range(ours.config.n_layer)), "ln_f", "logits"]
    states = [*reference.hidden_states, reference.logits]
    return max(difference(acts[name], state.numpy()) for name, state in zip(names, states, strict=True))


def cached_difference(ours, theirs, ids, n_prompt):
    """The largest difference of the logits of all tokens after the prompt, decoded one by one."""
    our_cache, their_cache = KVCache(ours, batch=ids.shape[:1]), transformers.DynamicCache(config=theirs.config)
    our_steps, their_steps = [], []
    for chunk in np.split(ids, range(n_prompt, ids.shape[1]), axis=1):  # [n_batch, n_prompt], then [n_batch, 1] each
        our_steps.append(forward(ours, chunk, cache=our_cache)[:, -1])
        output = theirs(torch.from_numpy(chunk), their_cache, use_cache=True)  # an argument whose name has changed
        their_steps.append(output.logits[:, -1].numpy())
    return difference(np.stack(our_steps), np.stack(their_steps))


def compare_large_scores(record, theirs, layer, ids, folder, config):
    """Scale the queries and keys of one block until exp(score) would overflow.

    Only one block: with large scores the attention weights amplify rounding errors, from block to block.
    """
    plain = largest_score(load_model(folder, dtype="float64"), layer, ids)
    if plain <= 0:
        return
    c_attn, n_embd = theirs.transformer.h[layer].attn.c_attn, theirs.config.n_embd
    scale = 1.0
    for dtype, target in OVERFLOW.items():
        factor = (target / plain) ** 0.5 / scale
        scale *= factor
        c_attn.weight[:, :2 * n_embd] *= factor
        c_attn.bias[:2 * n_embd] *= factor
        theirs.to(torch.float32).save_pretrained(folder)
        ours = load_model(folder, dtype=dtype)
        assert largest_score(ours, layer, ids) > 0.99 * target
        reference = theirs.to(getattr(torch, dtype))(torch.from_numpy(ids))
        record.add("large scores", dtype, difference(forward(ours, ids), reference.logits.numpy()), config)


def largest_score(ours, layer, ids):
    name = f"h.{layer}.attn.scores"
    acts = Recorder(name)
    forward(ours, ids, tap=acts)
    return acts[name].max()


def compare_small(record, rng, folder):
    """The whole context, with the sizes of the released model."""
    theirs = random_checkpoint({}, rng, folder)
    ids = rng.integers(0, 50257, 1024)
    for dtype in LIMITS:
        ours = load_model(folder, dtype=dtype)
        reference = theirs.to(getattr(torch, dtype))(torch.from_numpy(ids[np.newaxis])).logits[0].numpy()
        record.add("small", dtype, difference(forward(ours, ids), reference), "1,024 tokens of small's size")
        say(f"small in {dtype}")


def difference(array, reference):
    """The largest absolute difference, as a fraction of the reference's largest absolute value."""
    assert (array.shape, array.dtype) == (reference.shape, reference.dtype)
    return float(np.abs(array - reference).max() / np.abs(reference).max())


# Random checkpoints ---------------------------------------------------------------------------------------------------


def random_settings(rng):
    """A random small config that numpy_gpt2 supports, under transformers' names."""
    n_head = int(rng.integers(1, 6))
    n_embd = n_head * int(rng.integers(8 // n_head + 1, 17))  # fewer make a layer norm nearly a step function
    return {
        "vocab_size": int(rng.integers(2, 400)), "n_positions": int(rng.integers(1, 400)),
        "n_embd": n_embd, "n_head": n_head, "n_layer": int(rng.integers(1, 5)),
        "n_inner": None if rng.random() < 0.5 else int(rng.integers(1, 6 * n_embd)),
        "activation_function": str(rng.choice(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"])),
        "layer_norm_epsilon": float(rng.choice([1e-6, 1e-5, 1e-3, 1e-1])),
        "tie_word_embeddings": bool(rng.random() < 0.5),
        "scale_attn_weights": bool(rng.random() < 0.7), "scale_attn_by_inverse_layer_idx": bool(rng.random() < 0.3),
        "attn_implementation": str(rng.choice(["sdpa", "eager"])),  # transformers' two implementations
    }


def random_checkpoint(settings, rng, folder):
    """transformers' model with noise added to every parameter, saved to the folder."""
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_matrix = ".h." in name and parameter.ndim == 2
        parameter.add_(noise / parameter.shape[0] ** 0.5 if is_matrix else noise / 4)
    theirs.save_pretrained(folder)
    return theirs


# The report -----------------------------------------------------------------------------------------------------------


def describe(number, settings):
    return " ".join([f"config {number}:", *(f"{name}={value}" for name, value in settings.items())])


def print_record(record, n_configs):
    """Print the table, the configs of the largest differences, and a summary; exit with 1 if a limit is exceeded."""
    print(f"numpy_gpt2 against transformers {transformers.__version__}, torch {torch.__version__}, "
          f"NumPy {np.__version__}\n")
    rows = [[case, record.n[case], *(shown(record.largest.get((case, dtype))) for dtype in LIMITS)]
            for case in CASES if case in record.n]
    print_table(["largest difference", "configs", *LIMITS], [*rows, ["limit", "", *map(shown_number, LIMITS.values())]])
    against_theirs = {key: value for key, value in record.largest.items() if key[0] not in (*OWN, "one by one")}
    worst = {dtype: max((value for key, value in against_theirs.items() if key[1] == dtype), key=sort_key)
             for dtype in LIMITS}
    print()
    for dtype, (_, config) in worst.items():
        print(f"{dtype}, at its largest in {config}")
    print(f"\n{n_configs:,} random configs: at most {shown(worst['float32'])} of the largest logit in float32, "
          f"{shown(worst['float64'])} in float64.")
    beyond = record.beyond_limits()
    if beyond:
        case, dtype, value, config = beyond[0]
        sys.exit(f"error: {case} in {dtype} differs by {value:.1e}, expected at most "
                 f"{shown_number(LIMITS[dtype])}: {config}")


def sort_key(largest):
    value, _ = largest
    return np.inf if np.isnan(value) else value


def shown(largest):
    return "" if largest is None else shown_number(largest[0])


def shown_number(value):
    return f"{value:.1e}"


if __name__ == "__main__":
    run(main)
