"""The class of laws, and helpers to draw their cases."""

from dataclasses import dataclass
from typing import Any, Callable, Iterator

import numpy as np

from ...config import GPT2Config
from ...weights import GPT2, random_model

BATCHES: tuple[tuple[int, ...], ...] = ((), (), (2,), (2, 3))  # leading axes: one sequence, a batch, a batch of batches

Args = tuple[Any, ...]


def call_it(function: Callable[..., Any], args: Args) -> Any:
    return function(*args)


@dataclass(frozen=True)
class Law:
    """A function obeys a law if, in every case, it gives the result of the reference or, if given, of `expected`."""

    reference: Callable[..., Any]  # the engine's function
    cases: Callable[[np.random.Generator], Iterator[Args]]  # arguments, the smallest first
    call: Callable[[Callable[..., Any], Args], Any] = call_it
    expected: Callable[..., Any] | None = None  # another way to the right result, where there is one
    more_names: tuple[str, ...] = ()  # of arguments that are not the function's own, but `call` uses
    without_self: bool = False  # a method whose object `call` makes
    own_errors: tuple[type, ...] = ()  # errors that the function itself is to raise, with a message of its own
    batch_of: Callable[[Args], tuple[int, ...]] = lambda args: ()  # the leading axes of a case

    def seeded_cases(self, name: str) -> list[Args]:
        """The same cases each time."""
        return list(self.cases(np.random.default_rng(list(name.encode()))))

    def has_batch(self, args: Args) -> bool:
        return self.batch_of(args) != ()


def leading(n_axes: int) -> Callable[[Args], tuple[int, ...]]:
    """Of a case whose first argument has `n_axes` axes of its own: the axes before these."""
    return lambda args: np.shape(args[0])[:-n_axes]


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32 [*shape]"""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def small_model(rng: np.random.Generator, tied: bool = True, n_layer: int = 2) -> GPT2:
    """Two blocks of three heads of four channels, with weights large enough for every part to matter."""
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=n_layer, n_head=3, n_inner=20,
                        layer_norm_epsilon=1e-3, tie_word_embeddings=tied)
    model = random_model(config, seed=int(rng.integers(2**31)))
    arrays = [model.wte, model.wpe, model.ln_f.bias] + ([] if tied else [model.lm_head])
    for block in model.h:
        arrays += [block.ln_1.bias, block.ln_2.bias]
        for conv in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            arrays += [conv.weight, conv.bias]
    for array in arrays:
        array[...] = normal(rng, *array.shape, scale=0.5)
    return model
