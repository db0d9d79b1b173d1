"""The benchmark's cases, in groups: each case is checked first, then timed on both sides alternately.

Each group is a function that takes a `Bench`, with the two sides, and yields measurements.
"""

import sys
from pathlib import Path

import numpy as np
from report import Measurement
from sides import Worker, fresh_peak, run_fresh, time_output

import numpy_gpt2
from numpy_gpt2.cli.exits import say
from numpy_gpt2.summary.counting import count_parameters, pass_cost

OURS, THEIRS = "engine", "reference"
BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
PROMPT = "Once upon a time"

DECODE_CONTEXTS = (20, 128, 512, 900)
PREFILL_LENGTHS = (128, 512, 1024)
BATCHES = (1, 2, 4, 8, 16)
BATCH_CONTEXT = 128
N_PROMPT = 20  # tokens of the prompts of load and lookup
LOAD_WRITES = 4
START_WRITES = 40
N_CHECKED = 8  # tokens that both sides generate before a case is timed
LOOKUP_WRITES, LOOKUP_DRAFT = 200, 15
TEXTS = {"text that repeats itself": 0.1, "at times": 1, "hardly": 10}  # loudness: see engine.louder
SMALLEST_CONTEXT = N_PROMPT + LOOKUP_WRITES  # the context that a model needs for all groups
GRADIENT_SHAPES = {True: [(8, 256), (16, 512)], False: [(1, 256), (4, 128)]}  # whether the model is narrow -> shapes
SMALL_WIDTH = 768
ITEM = 4  # bytes of a float32


class Bench:
    """The two sides on one checkpoint, the settings of a run, and the results of its floors and checks."""

    def __init__(self, folder, config, rounds, seconds, seed, with_theirs):
        self.folder, self.config = folder, config
        self.rounds, self.seconds = rounds, seconds
        self.rng = np.random.default_rng(seed)
        self.with_theirs = with_theirs
        self.workers = {}
        self.bandwidths = []  # of each round, bytes per second
        self.rates = []  # of each round, {product: operations per second}
        self.n_checked = 0

    def ours(self, method, *arguments):
        """Run a method in numpy_gpt2's process."""
        return self.worker(OURS)(method, *arguments)

    def theirs(self, method, *arguments):
        """Run a method in transformers' process; None without it."""
        return self.worker(THEIRS)(method, *arguments) if self.with_theirs else None

    def worker(self, module):
        """A side's process, started on first use, so that earlier groups measure fresh processes undisturbed."""
        if module not in self.workers:
            say(f"loading {self.folder} for {module}")
            self.workers[module] = Worker(module, self.folder)
        return self.workers[module]

    def close(self):
        for worker in self.workers.values():
            worker.close()

    def random_ids(self, n_batch, n_tokens):
        return self.rng.integers(self.config.vocab_size, size=(n_batch, n_tokens))

    def floor(self, cost, n_batch=1):
        """Measure the machine's limits now, and return the floor in seconds for a pass of this cost."""
        bandwidth = self.ours("bandwidth", self.seconds)
        rates = self.ours("product_rates", self.seconds)
        self.bandwidths.append(bandwidth)
        self.rates.append(rates)
        return floor_seconds(cost, n_batch, bandwidth, max(rates.values()))

    def check(self, tokens, reference, near_ties):
        """Count the tokens equal to the reference's, [n_batch, n_new] each. Exits if they disagree."""
        try:
            self.n_checked += count_equal(tokens, reference, near_ties)
        except Disagreement as error:
            sys.exit(f"error: {error} No time of this run is to be believed.")

    def read_by_both(self, ids):
        """Both sides process the prompts and generate a few tokens, which must be equal."""
        n_new = min(N_CHECKED, self.config.n_positions - ids.shape[1] + 1)
        self.ours("forget")
        self.theirs("forget")
        ours, theirs = self.ours("greedy", ids, n_new), self.theirs("greedy", ids, n_new)
        if theirs is not None:
            self.check(ours[0], *theirs)


def floor_seconds(cost, n_batch, bandwidth, rate):
    """The floor in seconds for a pass of this cost (`counting.PassCost`) over n sequences at once.

    Weights are read once for all sequences, keys and values once per sequence; each sequence has its own operations.
    Reading and computing overlap, so the longer of the two is the floor.
    """
    n_bytes = ITEM * (cost.weights_read + n_batch * cost.cache_read)
    return max(n_bytes / bandwidth, n_batch * cost.flops / rate)


class Disagreement(Exception):
    """The sides chose different tokens, not at a near tie."""


def count_equal(tokens, their_tokens, near_ties):
    """How many tokens are equal, in each row up to the first difference, which must be a near tie of the reference's.

    All arrays [n_batch, n_new]. Raises Disagreement for a difference without a near tie.
    """
    n_equal = 0
    for row, theirs, near in zip(np.asarray(tokens), np.asarray(their_tokens), np.asarray(near_ties), strict=True):
        different = np.flatnonzero(row != theirs)
        first = different[0] if len(different) else len(row)
        if len(different) and not near[first]:
            raise Disagreement(f"numpy_gpt2's token {first + 1} is {row[first]}, expected {theirs[first]}.")
        n_equal += int(first)
    return n_equal


# The groups -----------------------------------------------------------------------------------------------------------


def measure_load(bench):
    """Fresh processes, one after another; the first of each side only warms the file cache."""
    load = Measurement("load", "load the model", "s")
    first = Measurement("load", "process start to first token", "s")
    peak = Measurement("load", "peak memory", "MB")
    prompt = bench.random_ids(1, N_PROMPT)[0].tolist()
    n_bytes = ITEM * count_parameters(bench.config).stored
    for i in range(bench.rounds + 1):
        ours = run_fresh(OURS, bench.folder, prompt, LOAD_WRITES)
        theirs = run_fresh(THEIRS, bench.folder, prompt, LOAD_WRITES) if bench.with_theirs else None
        if theirs is not None:
            bench.check(ours["tokens"], theirs["tokens"], theirs["near_ties"])
        if i == 0:
            continue
        peak.floor.append(n_bytes)
        for measurement, key in ((load, "load"), (first, "first"), (peak, "peak")):
            measurement.ours.append(ours[key])
            if theirs is not None:
                measurement.theirs.append(theirs[key])
    yield from (load, first, peak)


def measure_start(bench):
    """The bundled checkpoint with the command line as a user types it; transformers without a tokenizer."""
    command = [sys.executable, "-m", "numpy_gpt2.generate", PROMPT, "--seed", "1", "--max-new-tokens", START_WRITES]
    command = [str(part) for part in command]
    prompt = numpy_gpt2.load_tokenizer("fairytale").encode(PROMPT)
    first = Measurement("start", "process start to first text", "s")
    end = Measurement("start", f"to the end of {START_WRITES} tokens", "s")
    for i in range(bench.rounds + 1):
        to_first, to_end, _ = time_output(command, len(PROMPT) + 1)
        theirs = run_fresh(THEIRS, BUNDLED, prompt, START_WRITES) if bench.with_theirs else None
        if i == 0:  # to warm up, and to check
            if theirs is not None:
                ours = run_fresh(OURS, BUNDLED, prompt, START_WRITES)
                bench.check(ours["tokens"], theirs["tokens"], theirs["near_ties"])
            continue
        first.ours.append(to_first)
        end.ours.append(to_end)
        if theirs is not None:
            first.theirs.append(theirs["first"])
            end.theirs.append(theirs["end"])
    yield from (first, end)


def measure_decode(bench):
    for context in DECODE_CONTEXTS:
        if context >= bench.config.n_positions:
            continue
        measurement = Measurement("decode", f"{context} tokens of context", "ms")
        bench.read_by_both(bench.random_ids(1, context - 1))
        for _ in range(bench.rounds):
            measurement.floor.append(bench.floor(pass_cost(bench.config, 1, context)))
            measurement.ours.append(bench.ours("decode", 1, bench.seconds))
            if bench.with_theirs:
                measurement.theirs.append(bench.theirs("decode", 1, bench.seconds))
        yield measurement


def measure_prefill(bench):
    for length in PREFILL_LENGTHS:
        if length > bench.config.n_positions:
            continue
        measurement = Measurement("prefill", f"{length} tokens", "ms")
        ids = bench.random_ids(1, length)
        bench.read_by_both(ids)
        for _ in range(bench.rounds):
            measurement.floor.append(bench.floor(pass_cost(bench.config, length, length)))
            measurement.ours.append(bench.ours("time_prefill", ids, bench.seconds))
            if bench.with_theirs:
                measurement.theirs.append(bench.theirs("time_prefill", ids, bench.seconds))
        yield measurement


def measure_batch(bench):
    context = min(BATCH_CONTEXT, bench.config.n_positions - 1)
    for n_batch in BATCHES:
        measurement = Measurement("batch", f"{n_batch} at once", "ms", n_tokens=n_batch)
        ids = bench.random_ids(n_batch, context - 1)
        bench.read_by_both(ids)
        if n_batch > 1:
            bench.ours("greedy", ids[:1], 1)  # one sequence as well, to be timed alternately
        for _ in range(bench.rounds):
            measurement.floor.append(bench.floor(pass_cost(bench.config, 1, context), n_batch))
            if n_batch > 1:
                measurement.plain.append(bench.ours("decode", 1, bench.seconds))
            measurement.ours.append(bench.ours("decode", n_batch, bench.seconds))
            if bench.with_theirs:
                measurement.theirs.append(bench.theirs("decode", n_batch, bench.seconds))
        yield measurement


def measure_lookup(bench):
    prompt = bench.random_ids(1, N_PROMPT)[0].tolist()
    for text, loudness in TEXTS.items():
        measurement = Measurement("lookup", text, "ms")
        for _ in range(bench.rounds):
            seconds, plain = bench.ours("generate", prompt, LOOKUP_WRITES, loudness, None)
            measurement.plain.append(seconds)
            seconds, tokens = bench.ours("generate", prompt, LOOKUP_WRITES, loudness, LOOKUP_DRAFT)
            measurement.ours.append(seconds)
        near_ties = bench.ours("near_ties", prompt, plain, loudness)
        bench.check([tokens], [plain], [near_ties])
        measurement.case += f" ({len(set(plain))} different tokens of {len(plain)})"
        yield measurement


def measure_gradients(bench):
    """Loss and gradients, and the peak memory of a fresh process for each shape."""
    shapes = [shape for shape in GRADIENT_SHAPES[bench.config.n_embd < SMALL_WIDTH]
              if shape[1] <= bench.config.n_positions]
    for n_batch, n_tokens in shapes:
        ids = bench.random_ids(n_batch, n_tokens)
        ours, theirs = bench.ours("loss", ids), bench.theirs("loss", ids)
        if theirs is not None and abs(ours - theirs) > 1e-4 * abs(theirs):
            sys.exit(f"error: numpy_gpt2's loss is {ours}, expected {theirs}. No time of this run is to be believed.")
        seconds = Measurement("gradients", f"{n_batch} x {n_tokens} tokens", "ms", n_tokens=n_batch * n_tokens)
        for _ in range(bench.rounds):
            seconds.ours.append(bench.ours("time_gradients", ids, bench.seconds))
            if bench.with_theirs:
                seconds.theirs.append(bench.theirs("time_gradients", ids, bench.seconds))
        peak = Measurement("gradients", f"{n_batch} x {n_tokens} tokens, peak memory", "MB")
        peak.ours.append(fresh_peak(OURS, bench.folder, ids))
        if bench.with_theirs:
            peak.theirs.append(fresh_peak(THEIRS, bench.folder, ids))
        yield from (seconds, peak)


GROUPS = {"load": measure_load, "start": measure_start, "decode": measure_decode, "prefill": measure_prefill,
          "batch": measure_batch, "lookup": measure_lookup, "gradients": measure_gradients}
