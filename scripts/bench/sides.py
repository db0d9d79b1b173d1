"""The operations that the benchmark times, common to both sides, and the processes that the sides run in.

A side is a module with a function `load(folder)` that returns a `Side`: `engine` is numpy_gpt2, `reference` is
transformers. Each runs in a process of its own while the others sleep: BLAS's and OpenMP's threads spin while they wait
for work, which would steal time from the other side.

    python scripts/bench/sides.py MODULE FOLDER N_NEW ID [ID ...]    cold start: load, generate N_NEW tokens
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context

import numpy as np

# Logits of one model computed in two ways differ by less than 1e-4 of the largest one (float32; the parity tests check
# this). Two candidates closer than ten times that may come in either order.
NEAR_TIE = 10 * 1e-4
PAUSE = 0.1  # seconds, after which the threads of the side that just ran have stopped spinning


def median_seconds(action, seconds, afterwards=lambda: None):
    """The median time of an action, repeated for at least so many seconds; `afterwards` runs after each, untimed."""
    times = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
        afterwards()
    return statistics.median(times)


class Side:
    """The timed operations. Subclasses add four methods; ids and tokens are arrays, as are logits [n_batch, n_vocab].

        prefill(ids, room) -> logits, cache     read [n_batch, n_tokens] into a new cache of capacity `room`
        step(token, cache) -> logits            read one more token [n_batch]
        crop(cache, n)                          remove the last n tokens
        gradients(ids) -> loss, gradients       of ids [n_batch, n_tokens], each predicted from those before it
    """

    def __init__(self):
        self.read = {}  # batch size -> a cache, and the token to read next

    def greedy(self, ids, n_new, at_first_token=lambda: None):
        """Generate greedily from ids [n_batch, n_tokens]: tokens [n_batch, n_new], and whether each was a near tie.

        Keeps the state that `decode` needs: the cache before the first new token. `at_first_token` is called once that
        token is chosen.
        """
        logits, cache = self.prefill(ids, ids.shape[1] + n_new)
        tokens, near_ties = [], []
        for i in range(n_new):
            if i > 0:
                logits = self.step(tokens[-1], cache)
            tokens.append(np.argmax(logits, axis=-1))
            if i == 0:
                at_first_token()
            near_ties.append(is_near_tie(logits))
        self.crop(cache, n_new - 1)
        self.read[len(ids)] = cache, tokens[0]
        return np.stack(tokens, axis=-1), np.stack(near_ties, axis=-1)

    def decode(self, n_batch, seconds):
        """Seconds per step, which reads the first token of `greedy` again and takes the argmax."""
        cache, token = self.read[n_batch]
        return median_seconds(lambda: np.argmax(self.step(token, cache), axis=-1), seconds,
                              afterwards=lambda: self.crop(cache, 1))

    def time_prefill(self, ids, seconds):
        """Seconds from a prompt to a filled cache and the logits of the last position."""
        return median_seconds(lambda: self.prefill(ids, ids.shape[1]), seconds)

    def time_gradients(self, ids, seconds):
        """Seconds from ids [n_batch, n_tokens] to the loss and the gradient of every weight."""
        return median_seconds(lambda: self.gradients(ids), seconds)

    def loss(self, ids):
        """The loss of ids [n_batch, n_tokens], in nats per token."""
        return self.gradients(ids)[0]

    def forget(self):
        """Free the caches."""
        self.read.clear()


def is_near_tie(logits):
    """Whether the two largest of logits [..., n_vocab] are so close that rounding decides: [...]."""
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second < NEAR_TIE * np.abs(logits).max(axis=-1)


# One process for a side, many commands -------------------------------------------------------------------------------


class Worker:
    """A side in a process of its own: `worker("decode", 1, 0.5)` runs that method there and returns its result.

    Between two calls the process blocks on a pipe, which costs nothing.
    """

    def __init__(self, module, folder):
        self.module = module
        self.pool = process_pool()
        self.run(load_side, module, folder)

    def __call__(self, method, *arguments):
        time.sleep(PAUSE)
        return self.run(call_side, method, arguments)

    def run(self, function, *arguments):
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            sys.exit(f"error: the process of {self.module} was killed: out of memory? Use a smaller "
                     "--size, fewer groups with --only, or leave out the other side with --without-transformers.")

    def close(self):
        """End the process and free its memory."""
        self.pool.shutdown()


def process_pool():
    """A pool of one fresh process, which leaves Ctrl-C to its parent."""
    return ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def load_side(module, folder):
    """In the worker's process: load the side for all later calls."""
    global side
    side = import_module(module).load(folder)


def call_side(method, arguments):
    """In the worker's process: call a method of the side."""
    return getattr(side, method)(*arguments)


# A cold start in a fresh process -------------------------------------------------------------------------------------


def run_fresh(module, folder, prompt, n_new):
    """The output of `main` in a fresh process, plus "first" and "end": the seconds to its first token and its end."""
    command = [sys.executable, __file__, module, str(folder), str(n_new), *map(str, prompt)]
    first, end, output = time_output(command, 1)
    return {**json.loads(output), "first": first, "end": end}


def fresh_peak(module, folder, ids):
    """The peak memory in bytes of a fresh process that computes the gradients of ids [n_batch, n_tokens] twice."""
    shape = "x".join(map(str, ids.shape))
    command = [sys.executable, __file__, module, str(folder), shape, *map(str, ids.ravel())]
    _, _, output = time_output(command, 1)
    return json.loads(output)["peak"]


def time_output(command, n_bytes):
    """Run a program: seconds to its first n bytes of output, seconds to its end, and all of its output."""
    time.sleep(PAUSE)
    started = time.perf_counter()
    # Unbuffered, so that communicate() gets everything that was not read here.
    with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output = b""
        while len(output) < n_bytes and (piece := process.stdout.read(n_bytes - len(output))):
            output += piece
        first = time.perf_counter() - started
        rest, errors = process.communicate()
    end = time.perf_counter() - started
    if process.returncode:
        last_line = (errors.decode(errors="replace").splitlines() or ["no message"])[-1]
        sys.exit(f"error: {' '.join(command[1:4])} ... ended with status {process.returncode}: {last_line}")
    return first, end, output + rest


def main():
    """Load a side and generate: prints a line break at the first token, then a line of JSON. Or compute gradients."""
    module, folder, n_new, *prompt = sys.argv[1:]
    module = import_module(module)
    started = time.perf_counter()
    side = module.load(folder)
    load = time.perf_counter() - started
    if "x" in n_new:  # the shape of the ids to compute gradients of
        ids = np.array(prompt, dtype=np.int64).reshape([int(size) for size in n_new.split("x")])
        losses = [side.loss(ids) for _ in range(2)]
        print(json.dumps({"peak": peak_memory(), "losses": losses}))
        return
    ids = np.array([prompt], dtype=np.int64)
    tokens, near_ties = side.greedy(ids, int(n_new), at_first_token=lambda: print(flush=True))
    print(json.dumps({"load": load, "peak": peak_memory(), "tokens": tokens.tolist(), "near_ties": near_ties.tolist()}))


def peak_memory():
    """The peak resident memory of this process, in bytes."""
    import resource  # here: Windows has none
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


if __name__ == "__main__":
    main()
