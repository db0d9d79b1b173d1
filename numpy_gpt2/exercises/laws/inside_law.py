"""Laws of chapter 7: looking inside. What the engine does not have is compared with the course's own solution."""

from typing import Any, Callable, Iterator

import numpy as np

from ... import lens
from ...model import forward
from ...ops import softmax
from ...tap import Recorder
from ..course import lookup, solutions
from .law import Args, Law, leading, normal, small_model

CHAPTER = "chapter_7_looking_inside"


def solution(name: str) -> Callable[..., Any]:
    function = lookup(solutions(CHAPTER), name)
    assert function is not None
    return function


def logit_lens_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, tied, layer in [((), True, 0), ((), True, 1), ((), False, 2), ((2,), False, 1), ((2, 3), True, 2)]:
        model = small_model(rng, tied)
        acts = Recorder()
        forward(model, rng.integers(0, 11, (*batch, 3)), tap=acts)
        yield model, acts.activations, layer


def ablate_cases(rng: np.random.Generator) -> Iterator[Args]:
    model = small_model(rng)
    for batch, name, heads in [((), "h.0.attn.z", 1), ((), "h.1.attn.z", 0), ((), "h.0.attn.pattern", 2),
                               ((2,), "h.1.attn.z", [0, 2]), ((2, 3), "h.0.attn.z", None)]:
        yield name, heads, None, model, rng.integers(0, 11, (*batch, 3))


def call_and_run(function: Callable[..., Any], args: Args) -> Any:
    """What a pass with the tap gives: its logits, and the ablated stage of both blocks."""
    name, heads, positions, model, ids = args
    made = function(name, heads, positions)
    if not callable(made):
        return made
    acts = Recorder()
    logits = forward(model, ids, tap=lens.chain(made, acts))
    return {"logits": logits, **{stage: acts[stage] for stage in ("h.0.attn.z", "h.1.attn.z")}}


def causal_pattern(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Attention patterns [..., n_tokens, n_tokens]."""
    later = np.triu(np.ones(shape[-2:], dtype=bool), 1)
    return softmax(np.where(later, np.float32(-np.inf), normal(rng, *shape, scale=2)))


def previous_token_cases(rng: np.random.Generator) -> Iterator[Args]:
    for n_layer, n_head, n_tokens in [(1, 2, 3), (2, 3, 4), (3, 2, 5), (4, 4, 6), (2, 5, 7)]:
        yield (causal_pattern(rng, n_layer, n_head, n_tokens, n_tokens),)


def induction_cases(rng: np.random.Generator) -> Iterator[Args]:
    for batch, period in [((), 2), ((), 3), ((2,), 4), ((2, 3), 3)]:
        yield causal_pattern(rng, *batch, 2, 2 * period, 2 * period), period


def noisy_queries_cases(rng: np.random.Generator) -> Iterator[Args]:
    for layer in (0, 1):
        for tied in (True, False):
            yield small_model(rng, tied), layer, int(rng.integers(100))


LAWS = {
    "logit_lens": Law(lens.logit_lens, logit_lens_cases),
    "ablate": Law(lens.ablate, ablate_cases, call_and_run, more_names=("model", "ids"),
                  batch_of=lambda args: args[-1].shape[:-1]),
    "previous_token_head": Law(solution("previous_token_head"), previous_token_cases),
    "induction_score": Law(solution("induction_score"), induction_cases, batch_of=leading(3)),
    "noisy_queries": Law(solution("noisy_queries"), noisy_queries_cases),
}
