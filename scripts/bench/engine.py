"""The numpy_gpt2 side of the benchmark, and the floors, measured on the same weights in the same process.

The floors: lower bounds on the time on this machine, whatever the program.

* A decode step multiplies one row by every matrix, so it must read every weight once, and every key and value in the
  cache. That is unavoidable: 500 MB of weights do not fit into a processor's cache, so each step reads them from memory
  again. Its floor is bytes / bandwidth, where `bandwidth` is that of the fastest way to read these arrays.
* A prefill multiplies many rows by each matrix that it reads, so it is compute-bound: its floor is the number of
  operations over the best rate of BLAS's matrix products, on matrices of this model's shapes.
"""

import time
from dataclasses import replace

import numpy as np
from sides import Side, is_near_tie, median_seconds

from numpy_gpt2 import (KVCache, forward, generate_tokens, load_model, loss_and_gradients, named_parameters, transform,
                        unembed)
from numpy_gpt2.matmul import reuse_freed_memory

# Row lengths to try: which one is fastest depends on how BLAS splits a matrix among its threads.
READING_WIDTHS = (2048, 4096, 8192)
N_ROWS = 512  # of the products that measure the best rate: enough to get close to it


def load(folder):
    return Engine(folder)


class Engine(Side):
    """numpy_gpt2."""

    def __init__(self, folder):
        super().__init__()
        self.model = load_model(folder)
        self.readings = []  # created on first use

    def prefill(self, ids, room):
        cache = KVCache(self.model, min(room, self.model.config.n_positions), batch=(len(ids),))
        hidden = transform(self.model, ids, cache=cache)
        return unembed(self.model, hidden[:, -1, :]), cache

    def step(self, token, cache):
        hidden = transform(self.model, token[:, np.newaxis], cache=cache)
        return unembed(self.model, hidden[:, -1, :])

    def crop(self, cache, n):
        cache.crop(cache.length - n)

    def gradients(self, ids):
        """The loss of ids [n_batch, n_tokens], and the gradient of every weight, computed as in a training run."""
        reuse_freed_memory()
        return loss_and_gradients(self.model, ids)

    # Floors ----------------------------------------------------------------------------------------------------------

    def bandwidth(self, seconds):
        """Bytes per second when reading every weight of a decode step once: the best of several ways, each a median."""
        self.readings = self.readings or ways_to_read(streamed_weights(self.model))
        rates = []
        for read, n_bytes in self.readings:
            rates.append(n_bytes / median_seconds(read, seconds / len(self.readings)))
        return max(rates)

    def product_rates(self, seconds):
        """Floating-point operations per second of each product of a block: {name: rate}."""
        config = self.model.config
        rng = np.random.default_rng(0)
        n_rows = min(N_ROWS, config.n_positions)
        rates = {}
        shapes = product_shapes(config, n_rows)
        for name, (n_matrices, n, n_in, n_out) in shapes.items():
            a = rng.random((n_matrices, n, n_in), dtype=np.float32)
            b = rng.random((n_matrices, n_in, n_out), dtype=np.float32)
            out = np.empty((n_matrices, n, n_out), dtype=np.float32)
            flops = 2 * n_matrices * n * n_in * n_out
            rates[name] = flops / median_seconds(lambda: np.matmul(a, b, out=out), seconds / len(shapes))
        return rates

    # Prompt lookup ---------------------------------------------------------------------------------------------------

    def generate(self, prompt, n_new, loudness, n_draft=None):
        """Generate greedily, with prompt lookup of n_draft tokens: seconds per token after the first, and the tokens.

        `loudness`: see `louder`."""
        options = {} if n_draft is None else {"prompt_lookup_num_tokens": n_draft}
        model = louder(self.model, loudness)
        tokens = generate_tokens(model, prompt, n_new, temperature=0, eos_token_id=-1, **options)
        first = next(tokens)
        started = time.perf_counter()
        rest = list(tokens)
        return (time.perf_counter() - started) / len(rest), [first, *rest]

    def near_ties(self, prompt, tokens, loudness):
        """For each greedy token after the prompt, whether it was a near tie."""
        logits = forward(louder(self.model, loudness), [*prompt, *tokens[:-1]])
        return is_near_tie(logits[len(prompt) - 1:])


def louder(model, loudness):
    """The model with its position embeddings scaled: the larger they are, the less its text repeats itself.

    With random weights the last token dominates the prediction, and is repeated forever. The speed is the same.
    """
    return model if loudness == 1 else replace(model, wpe=model.wpe * np.float32(loudness))


def streamed_weights(model):
    """The weights that a decode step reads completely, each flattened in memory order: views, no copies.

    A step reads only a row of wpe, and of a wte that is not also the unembedding.
    """
    looked_up = {"wpe.weight"} if model.lm_head is model.wte else {"wpe.weight", "wte.weight"}
    flat = []
    for name, array in named_parameters(model):
        if name not in looked_up:
            flat.append(array.ravel(order="K"))
            if not np.shares_memory(flat[-1], array):
                raise AssertionError(f"{name} is not contiguous: a copy would be read instead")
    return flat


def ways_to_read(flat):
    """Functions that read all numbers of these arrays, each with its number of bytes.

    Matrix-vector products are the fastest way to read memory in NumPy: BLAS uses all its threads, and two operations
    per number keep up with the memory. (np.sum, np.max and np.dot over the arrays, in one thread or two, took 1.4 to
    2.5 times as long.)
    """
    ways = []
    for width in READING_WIDTHS:
        matrices = [array[:array.size // width * width].reshape(-1, width) for array in flat if array.size >= width]
        n_bytes = sum(matrix.nbytes for matrix in matrices)
        if matrices:
            ones = np.ones(max(len(matrix) for matrix in matrices), dtype=flat[0].dtype)
            row = np.ones(width, dtype=flat[0].dtype)
            ways.append((lambda matrices=matrices, row=row: [matrix @ row for matrix in matrices], n_bytes))
            ways.append((lambda matrices=matrices, ones=ones: [ones[:len(m)] @ m for m in matrices], n_bytes))
    return ways


def product_shapes(config, n):
    """The matrix products of a block with n tokens: {name: (how many, rows, n_in, n_out)}."""
    width, inner = config.n_embd, config.n_inner
    return {
        "attn.c_attn": (1, n, width, 3 * width),
        "attn.scores": (config.n_head, n, config.d_head, n),
        "attn.z": (config.n_head, n, n, config.d_head),
        "attn.c_proj": (1, n, width, width),
        "mlp.c_fc": (1, n, width, inner),
        "mlp.c_proj": (1, n, inner, width),
    }
