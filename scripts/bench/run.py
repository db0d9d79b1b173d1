"""How fast is it, compared with this machine's limits and with transformers? In one run, with random weights.

Method: measure the floors (lower bounds on the time: see engine.py), numpy_gpt2 and, if they are installed, PyTorch and
transformers, alternately: floor, numpy_gpt2, transformers, floor, numpy_gpt2, ... Each runs in a process of its own
while the others sleep, with the same number of threads, on the same weights in float32. Before a case is timed, both
sides generate greedily from its prompt, and must choose the same tokens, near ties aside.

    load      a fresh process that loads the model (from the file cache), reads 20 tokens, generates 4
    start     a fresh process that generates 40 tokens with the bundled checkpoint: python -m numpy_gpt2.generate
    decode    one more token, by the length of the context, itself included
    prefill   a prompt, up to the logits of its last position
    batch     one more token for each of several sequences, with 128 tokens of context
    lookup    greedy text with and without prompt lookup: text that repeats itself always, at times, hardly
    gradients loss and gradients of a batch, and the peak memory of a process that computes nothing else

decode, prefill and batch time the forward pass and the argmax, on both sides; lookup times numpy_gpt2's
generate_tokens. (transformers memory-maps the file and reads it at the first token, so its load time alone looks
shorter than it is.) Ratios are more reliable than times: a machine's speed drifts within the hour. If the weights
hardly fit into memory, use --without-transformers and --only.
"""

import argparse
import json
import os
import platform
import re
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from cases import GROUPS, SMALLEST_CONTEXT, Bench
from engine import louder
from report import AXES, LEGEND, as_json, draw, median_and_range, print_measurements
from sides import process_pool
from experiment import Parser, print_table

from numpy_gpt2 import SIZES, random_model, save
from numpy_gpt2.checkpoint.hub import checkpoint_files
from numpy_gpt2.checkpoint.json_file import read_config
from numpy_gpt2.checkpoint.wanted import CONFIG, WEIGHTS
from numpy_gpt2.cli.arguments import check_plot, whole_number
from numpy_gpt2.cli.exits import BadInput, bad_input, say
from numpy_gpt2.summary.counting import count_parameters

# The number of threads of each BLAS or OpenMP library, which reads it once, when its process starts.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--size", choices=SIZES,
                       help="random weights of this size, without a download (default: small)")
    model.add_argument("--model", metavar="NAME", help="a checkpoint instead: fairytale, a name on the hub, a folder")
    parser.add_argument("--only", type=group_names, default=list(GROUPS), metavar="GROUP,...",
                        help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rounds", type=whole_number(1), default=5, metavar="N", help="per case (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S",
                        help="how long each side repeats a case in one round (default: 0.5)")
    parser.add_argument("--threads", type=whole_number(1), default=n_usable_cores(), metavar="N",
                        help="threads of each side (default: the cores that this process may use)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S",
                        help="random seed of weights and prompts (default: 0)")
    parser.add_argument("--without-transformers", action="store_true", help="only numpy_gpt2 and the floors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's values")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also save a plot (needs matplotlib)")
    return parser


def main():
    args = make_parser().parse_args()
    if args.model is None and args.size is None:
        args.size = "small"  # not argparse's default, with which it would accept --model together with `--size small`
    check_outputs(args)
    os.environ.update({variable: str(args.threads) for variable in THREAD_VARIABLES})
    with_theirs = not args.without_transformers and has_transformers()
    with tempfile.TemporaryDirectory() as scratch:
        folder, config = checkpoint(args, Path(scratch))
        header = describe(args, config, with_theirs)
        for key, value in header.items():
            print(f"{key + ':':14}{value}", flush=True)
        bench = Bench(folder, config, args.rounds, args.seconds, args.seed, with_theirs)
        measurements = []
        for name in args.only:
            measured = []
            for measurement in GROUPS[name](bench):
                measured.append(measurement)
                say(f"measured: {name}, {measurement.case}")
            print_measurements(name, measured)
            measurements += measured
        bench.close()

    print_floors(bench)
    print(LEGEND)
    if with_theirs:
        print(f"\nChecked: {bench.n_checked:,} greedy tokens, the same by both sides.")
    if args.json:
        report = {"machine": header, "bandwidth": bench.bandwidths, "product_rates": bench.rates,
                  "n_checked": bench.n_checked, "measurements": [as_json(measurement) for measurement in measurements]}
        args.json.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        say(f"JSON: {args.json}")
    if args.plot:
        draw(measurements, args.plot)


def group_names(text):
    """An argparse type: names of groups, separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(GROUPS)}. Got {unknown[0]!r}.")
    return [name for name in GROUPS if name in names]


def n_usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_outputs(args):
    """Raise BadInput for options that would otherwise fail only after minutes."""
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise BadInput(f"--json must be a file in an existing folder. Got {args.json}")
    if args.plot:
        with bad_input():
            check_plot(args.plot)
        if not set(args.only) & set(AXES):
            raise BadInput(f"--plot draws {', '.join(AXES)}: name one of them in --only")
    if not 0 < args.seconds < float("inf"):
        raise BadInput(f"--seconds must be more than 0. Got {args.seconds}.")


def has_transformers():
    """Whether transformers is installed; if not, prints a note."""
    missing = [name for name in ("torch", "transformers") if not find_spec(name)]
    if missing:
        say(f"{' and '.join(missing)} not installed: numpy_gpt2 is measured against the floors only "
            "(pip install 'numpy_gpt2[bench]')")
    return not missing


def checkpoint(args, scratch):
    """The folder that both sides load, and its config. Random weights are made in another process, to free memory."""
    if args.model is None:
        say(f"making random weights of {args.size}'s size")
        with process_pool() as pool:
            pool.submit(save_random, args.size, args.seed, scratch).result()
        return scratch, SIZES[args.size]
    with bad_input():
        files = checkpoint_files(args.model, None, (CONFIG, WEIGHTS))
    config = read_config(files["config.json"])
    if config.n_positions < SMALLEST_CONTEXT:
        raise BadInput(f"{args.model} must have a context of {SMALLEST_CONTEXT} tokens or more. "
                       f"Got {config.n_positions}.")
    return files["config.json"].parent, config


def save_random(size, seed, folder):
    """Save random weights whose text varies from token to token: equal tokens then mean something."""
    save(louder(random_model(SIZES[size], seed), 10), folder)


# The header and the floors --------------------------------------------------------------------------------------------


def describe(args, config, with_theirs):
    """What the results depend on: model, machine, libraries."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = args.model or f"random weights of {args.size}'s size"
    lines = {
        "model": f"{name}, {count_parameters(config).stored:,} parameters, float32",
        "processor": processor_name(),
        "threads": str(args.threads),
        "NumPy": f"{np.__version__} with {blas['name']} {blas['version']}",
    }
    if with_theirs:
        lines["transformers"] = f"{version('transformers')} with torch {version('torch')}"
    lines["rounds"] = f"{args.rounds} of {args.seconds:g} s for each side"
    return lines


def processor_name():
    """The processor's name, from Linux or else from Python."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def print_floors(bench):
    """Print the measured speeds from which the floors are computed."""
    if not bench.rates:
        return
    rows = [["reading the weights, GB/s", *median_and_range(bench.bandwidths, 1e-9)]]
    for name in bench.rates[0]:
        rows.append([f"product of {name}, GFLOP/s", *median_and_range([rates[name] for rates in bench.rates], 1e-9)])
    best = [max(rates.values()) for rates in bench.rates]
    rows.append(["the best of them, GFLOP/s", *median_and_range(best, 1e-9)])
    print()
    print_table(["floors", "", ""], rows)
