"""Laws of chapter 6: counting parameters. The references go by the engine's own counts and names."""

import math
from dataclasses import replace
from typing import Iterator

import numpy as np

from ...config import SIZES, GPT2Config
from ...summary.counting import count_parameters
from ...weights import GPT2, named_parameters, parameter_shapes
from .law import Args, Law, small_model


def block_parameters(config: GPT2Config) -> int:
    return count_parameters(config).per_block


def total_parameters(config: GPT2Config, tied: bool) -> int:
    shapes = parameter_shapes(replace(config, tie_word_embeddings=tied))
    return sum(math.prod(shape) for shape in shapes.values())


def weights_and_biases(config: GPT2Config) -> tuple[int, int, int]:
    roles = count_parameters(replace(config, tie_word_embeddings=True)).roles
    return roles["weights"], roles["biases"], roles["gains"]


def is_tied(model: GPT2) -> bool:
    return model.lm_head is model.wte


def dot_weight_parameters(model: GPT2) -> int:
    return sum(array.size for name, array in named_parameters(model) if name.endswith(".weight"))


SMALL = GPT2Config(vocab_size=10, n_positions=8, n_embd=4, n_layer=2, n_head=2)
WIDE = GPT2Config(vocab_size=7, n_positions=5, n_embd=6, n_layer=3, n_head=2, n_inner=10, tie_word_embeddings=False)
CONFIGS = (SMALL, WIDE, *SIZES.values())


def config_cases(rng: np.random.Generator) -> Iterator[Args]:
    for config in CONFIGS:
        yield (config,)


def total_cases(rng: np.random.Generator) -> Iterator[Args]:
    for config in CONFIGS:
        yield config, True
        yield config, False


def tied_cases(rng: np.random.Generator) -> Iterator[Args]:
    for tied in (True, False):
        yield (small_model(rng, tied),)
    model = small_model(rng)
    yield (replace(model, lm_head=model.wte.copy()),)  # equal numbers, but two arrays
    yield (replace(model, lm_head=1 + model.wte),)  # whatever the config says


def model_cases(rng: np.random.Generator) -> Iterator[Args]:
    for tied in (True, False):
        for n_layer in (1, 2):
            yield (small_model(rng, tied, n_layer),)


LAWS = {
    "block_parameters": Law(block_parameters, config_cases),
    "total_parameters": Law(total_parameters, total_cases),
    "weights_and_biases": Law(weights_and_biases, config_cases),
    "is_tied": Law(is_tied, tied_cases),
    "dot_weight_parameters": Law(dot_weight_parameters, model_cases),
}
