"""What the benchmark times, the same for each side, and the processes that the sides run in.

A side is a module with a function `load(folder)` that gives a `Side`: `engine` is numpy_gpt2, `reference`
is transformers. Each works in a process of its own while all others are asleep: BLAS's and OpenMP's threads wait for
their next task by spinning, which would steal the other side's time.

    python scripts/bench/sides.py MODULE FOLDER N_NEW ID [ID ...]    loads and writes N_NEW tokens, once, from cold
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

# Logits of one model computed in two ways differ by less than 1e-4 of the largest one (float32; the parity tests hold
# this). Two candidates closer than ten times that may come out in either order.
NEAR_TIE = 10 * 1e-4
PAUSE = 0.1  # seconds, in which the threads of the side that has just worked stop spinning


def median_seconds(action, seconds, afterwards=lambda: None):
    """The median time of an action, done again and again for so many seconds, at least once. `afterwards` runs after
    each, untimed."""
    times = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
        afterwards()
    return statistics.median(times)


class Side:
    """What is timed. Of its own a side has four methods; ids and tokens are arrays, as are logits [n_batch, n_vocab].

        prefill(ids, room) -> logits, cache     read [n_batch, n_tokens] into a new cache with room for so many tokens
        step(token, cache) -> logits            read one token [n_batch] more
        crop(cache, n)                          forget the last n tokens
        gradients(ids) -> loss, gradients       of ids [n_batch, n_tokens], each predicted from those before it
    """

    def __init__(self):
        self.read = {}  # by the size of the batch: a cache, and the token to read next

    def greedy(self, ids, n_new, at_first_token=lambda: None):
        """Read ids [n_batch, n_tokens] and write on: tokens [n_batch, n_new], and whether each was nearly another one.

        What `decode` needs is kept: the cache as it was before the first new token was read. `at_first_token` is called
        when that is known.
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
        """Seconds of a step: the same token read again and again after what `greedy` has read, and the next chosen."""
        cache, token = self.read[n_batch]
        return median_seconds(lambda: np.argmax(self.step(token, cache), axis=-1), seconds,
                              afterwards=lambda: self.crop(cache, 1))

    def time_prefill(self, ids, seconds):
        """Seconds from a prompt to the logits of its last position, the cache filled."""
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
    """Whether the two largest of [..., n_vocab] are so close that rounding decides which comes first."""
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second < NEAR_TIE * np.abs(logits).max(axis=-1)


# One process for a side, many commands -------------------------------------------------------------------------------


class Worker:
    """A side in a process of its own: `worker("decode", 1, 0.5)` runs that method there, and waits for the result.

    Between two commands the process waits at a pipe, and costs nothing.
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
            sys.exit(f"error: the process of {self.module} was killed: out of memory? Take a smaller "
                     "--size, fewer groups with --only, or leave out the other side with --without-transformers.")

    def close(self):
        """End the process, and give its memory back."""
        self.pool.shutdown()


def process_pool():
    """One fresh process: nothing loaded, no thread running. Ctrl-C is the parent's to answer."""
    return ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def load_side(module, folder):
    """In the worker's process: load the side that all later commands are for."""
    global side
    side = import_module(module).load(folder)


def call_side(method, arguments):
    """In the worker's process: one command."""
    return getattr(side, method)(*arguments)


# A process for one run, from cold ------------------------------------------------------------------------------------


def run_fresh(module, folder, prompt, n_new):
    """What `main` below prints, with "first" and "end" added: seconds from the start of a fresh process to its first
    token, and to its end."""
    command = [sys.executable, __file__, module, str(folder), str(n_new), *map(str, prompt)]
    first, end, output = time_output(command, 1)
    return {**json.loads(output), "first": first, "end": end}


def fresh_peak(module, folder, ids):
    """The peak memory of a fresh process that computes the gradients of ids [n_batch, n_tokens] twice: bytes."""
    shape = "x".join(map(str, ids.shape))
    command = [sys.executable, __file__, module, str(folder), shape, *map(str, ids.ravel())]
    _, _, output = time_output(command, 1)
    return json.loads(output)["peak"]


def time_output(command, n_bytes):
    """Run a program: seconds from its start to its first n bytes of output, to its end, and all of its output."""
    time.sleep(PAUSE)
    started = time.perf_counter()
    # Unbuffered, so that communicate() finds all that has not been read here.
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
    """Load a side, read a prompt, write on; a line break at the first token, then a line of JSON. Or its gradients."""
    module, folder, n_new, *prompt = sys.argv[1:]
    module = import_module(module)
    started = time.perf_counter()
    side = module.load(folder)
    load = time.perf_counter() - started
    if "x" in n_new:  # the shape of ids whose gradients are computed
        ids = np.array(prompt, dtype=np.int64).reshape([int(size) for size in n_new.split("x")])
        losses = [side.loss(ids) for _ in range(2)]
        print(json.dumps({"peak": peak_memory(), "losses": losses}))
        return
    ids = np.array([prompt], dtype=np.int64)
    tokens, near_ties = side.greedy(ids, int(n_new), at_first_token=lambda: print(flush=True))
    print(json.dumps({"load": load, "peak": peak_memory(), "tokens": tokens.tolist(), "near_ties": near_ties.tolist()}))


def peak_memory():
    """The most bytes of memory that this process has held at once."""
    import resource  # here: Windows has none
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


if __name__ == "__main__":
    main()
