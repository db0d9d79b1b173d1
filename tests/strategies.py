"""What the tests draw from: small configs, models, ids with any batch axes, and ways to cut an input into chunks.

Also a watch on the caches that a module makes.
"""

import numpy as np
from hypothesis import strategies as st

from numpy_gpt2 import GPT2, GPT2Config, KVCache, build_model, parameter_shapes

seeds = st.integers(0, 2**32 - 1)
batches = st.lists(st.integers(1, 3), max_size=2).map(tuple)  # (), (2,), (3, 1), ...


@st.composite
def configs(draw) -> GPT2Config:
    """Any GPT-2, as small as they come: one channel, one token and one neuron included."""
    n_head = draw(st.integers(1, 3))
    return GPT2Config(
        vocab_size=draw(st.integers(1, 20)),
        n_positions=draw(st.integers(1, 10)),
        n_embd=n_head * draw(st.integers(1, 4)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_inner=draw(st.none() | st.integers(1, 9)),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])),
        tie_word_embeddings=draw(st.booleans()),
    )


def lively_model(config: GPT2Config, seed: int = 0, dtype=np.float64) -> GPT2:
    """A model in which everything matters: no gain is 1, no bias 0, heads attend here and there, neurons saturate.

    Its arrays are read-only, so that every test that runs it also shows that nothing writes to a weight.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        array = rng.standard_normal(shape)
        if ".c_" in name and name.endswith(".weight"):
            array *= 1.5 / np.sqrt(shape[0])  # so that sums over many inputs stay near 1
        if "ln_" in name and name.endswith(".weight"):
            array = 1 + array / 4  # a gain
        arrays[name] = array.astype(dtype)
        arrays[name].flags.writeable = False
    return build_model(config, arrays)


def random_ids(config: GPT2Config, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=shape)
    ids.flags.writeable = False
    return ids


@st.composite
def passes(draw, dtype=np.float64, min_tokens: int = 1, batches=batches) -> tuple[GPT2, np.ndarray]:
    """A model, and ids [*batch, n_tokens] that it can read."""
    config = draw(configs().filter(lambda config: config.n_positions >= min_tokens))
    n_tokens = draw(st.integers(min_tokens, config.n_positions))
    seed = draw(seeds)
    return lively_model(config, seed, dtype), random_ids(config, (*draw(batches), n_tokens), seed)


@st.composite
def splits(draw, ids: np.ndarray) -> list[np.ndarray]:
    """The ids cut into chunks of one token or more: every way to do so can be drawn."""
    cuts = draw(st.sets(st.integers(1, ids.shape[-1] - 1))) if ids.shape[-1] > 1 else set()
    return np.split(ids, sorted(cuts), axis=-1)


def made_caches(monkeypatch, module: str) -> list[KVCache]:
    """A list to which every KVCache is added that this module makes from now on."""
    caches = []

    def recorded(*args, **options) -> KVCache:
        caches.append(KVCache(*args, **options))
        return caches[-1]

    monkeypatch.setattr(f"{module}.KVCache", recorded)
    return caches
