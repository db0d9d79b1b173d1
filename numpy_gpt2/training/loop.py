"""The training loop: windows -> gradients -> a step of the optimizers.

    run = start(model, TrainingConfig(steps=100))
    while run.step < run.config.steps:
        loss = training_step(run, ids)

A run is data: the model, the optimizer state, and the number of steps taken. `training_step` changes it in place, model
included, and depends on nothing else, so a run that is saved to a file resumes as if it had never stopped
(saved_run.py).
"""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Callable, Iterable, Sequence

import numpy as np

from ..backward import loss_and_gradients
from ..config import GPT2Config
from ..matmul import allocate_parameter, reuse_freed_memory
from ..weights import GPT2, build_model, named_parameters, parameter_shapes
from .optimizers import adamw, clip_by_global_norm, muon
from .schedule import warmup_and_cosine
from .settings import TrainingConfig
from .windows import windows_of_step

ADAMW_MOMENTS = ("mean", "square")
MUON_MOMENTS = ("average",)


@dataclass
class Run:
    """A training run between two steps."""

    model: GPT2
    config: TrainingConfig
    moments: dict[str, dict[str, np.ndarray]]  # the optimizer state of each parameter that is not frozen
    step: int = 0  # steps taken
    losses: list[float] = field(default_factory=list)  # of each step, in nats per token
    held_out_losses: dict[int, float] = field(default_factory=dict)  # by the number of steps taken before
    is_whole: bool = True  # False if a step was interrupted while it updated the weights


def start(model: GPT2, config: TrainingConfig) -> Run:
    """A run at step 0. It takes over the model's arrays: every step changes them.

    From here on the process keeps freed memory for reuse by the next step. Raises ValueError for a context longer than
    the model's, and for globs that freeze nothing, or everything.
    """
    if config.context > model.config.n_positions:
        raise ValueError(f"context must be at most the model's, {model.config.n_positions}. Got {config.context}.")
    arrays = dict(named_parameters(model))
    frozen = frozen_names(list(arrays), config.freeze)
    reuse_freed_memory()
    moments = {name: {moment: np.zeros_like(array) for moment in moments_of(name, array.shape, config)}
               for name, array in arrays.items() if name not in frozen}
    return Run(model, config, moments)


def moments_of(name: str, shape: Sequence[int], config: TrainingConfig) -> tuple[str, ...]:
    """The names of a parameter's optimizer state: Muon's for the matrices inside the blocks, AdamW's for the rest."""
    return MUON_MOMENTS if is_matrix_of_block(name, shape) and config.muon_rate > 0 else ADAMW_MOMENTS


def is_matrix_of_block(name: str, shape: Sequence[int]) -> bool:
    return name.startswith("h.") and len(shape) == 2


def frozen_names(names: Sequence[str], globs: Sequence[str]) -> set[str]:
    """The parameters that match globs, by full name ("h.0.ln_1.bias") or by a prefix ("wte", "h.[0-3]").

    Raises ValueError for a glob that matches none, naming similar ones, and if no parameter is left to train.
    """
    frozen = set()
    for glob in globs:
        fitting = [name for name in names if fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*")]
        if not fitting:
            nearest = ", ".join(get_close_matches(glob, names, n=3, cutoff=0))
            raise ValueError(f"freeze must be globs of parameters, such as 'wte' or 'h.[0-3].*'. "
                             f"Got {glob!r}, which matches none; the nearest are {nearest}.")
        frozen.update(fitting)
    if len(frozen) == len(names):
        raise ValueError("freeze must leave a parameter to train. Got globs that match all of them.")
    return frozen


def training_step(run: Run, ids: np.ndarray) -> float:
    """Update the weights on one batch of windows of the text ids [n_tokens]; returns the loss before, in nats.

    Raises FloatingPointError, before any change, for a loss or a gradient that is not finite.
    """
    config = run.config
    windows = windows_of_step(ids, run.step, config.accumulate * config.batch_size, config.context, config.seed)
    factor = warmup_and_cosine(run.step, config.steps, config.warmup)
    return learn(run, np.split(windows, config.accumulate), factor)


def learn(run: Run, parts: Sequence[np.ndarray], factor: float, threads: int = 1) -> float:
    """Take one step on equal parts of a batch, each [n_windows, context + 1]; returns the loss before, in nats.

    factor: the fraction of the peak learning rates. threads: how many parts are processed, and weights updated, at a
    time. With single-threaded BLAS (OPENBLAS_NUM_THREADS=1), two are 1.5 times as fast as one: apart from matrix
    products, NumPy runs on one core.
    """
    config = run.config
    loss, gradients = accumulated_gradients(run.model, parts, threads)
    learning = {name: gradients[name] for name in run.moments}
    of_adamw = {name: gradient for name, gradient in learning.items() if "square" in run.moments[name]}
    norm = clip_by_global_norm(of_adamw, config.clip or math.inf)
    if not math.isfinite(loss + norm):
        raise diverged(run, f"the loss is {loss:.4g}, the norm of its gradient {norm:.4g}")
    run.is_whole = False
    run.step += 1
    run.losses.append(loss)
    weights = dict(named_parameters(run.model))

    def move(name: str) -> None:
        moments = run.moments[name]
        decay = config.weight_decay if is_matrix_of_block(name, weights[name].shape) else 0.0
        if "square" in moments:
            adamw(weights[name], learning[name], moments["mean"], moments["square"], run.step, config.rate * factor,
                  decay=decay)
        else:
            muon(weights[name], learning[name], moments["average"], config.muon_rate * factor, decay=decay)

    map_in_threads(move, learning, threads)
    run.is_whole = True
    return loss


def best_step(run: Run) -> int | None:
    """The evaluated step with the lowest held-out loss, the latest on ties; None before any."""
    losses = {step: loss for step, loss in run.held_out_losses.items() if step > 0}
    return min(losses, key=lambda step: (losses[step], -step)) if losses else None


def diverged(run: Run, what: str) -> FloatingPointError:
    """The error for a non-finite value: in which step, and what to do."""
    return FloatingPointError(f"step {run.step + 1} of {run.config.steps}: {what}: restart with lower rates "
                              f"than {run.config.rate:g} and {run.config.muon_rate:g} (Muon's), or other weights")


def accumulated_gradients(model: GPT2, parts: Sequence[np.ndarray],
                          threads: int = 1) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss over equal parts of a batch, each [n_windows, context + 1], and their mean gradients by name."""
    loss = 0.0
    gradients: dict[str, np.ndarray] = {}

    def add(loss_of_part: float, gradients_of_part: Iterable[tuple[str, np.ndarray]], weight: float) -> None:
        nonlocal loss
        loss += weight * loss_of_part
        for name, gradient in gradients_of_part:
            gradient *= weight  # in place: nothing else refers to it
            if name in gradients:
                gradients[name] += gradient
            else:
                gradients[name] = gradient

    if threads > 1:
        groups = [parts[i::threads] for i in range(min(threads, len(parts)))]
        results = map_in_threads(partial(accumulated_gradients, model), groups, threads)
        for group, (loss_of_group, of_group) in zip(groups, results):
            add(loss_of_group, of_group.items(), len(group) / len(parts))
    else:
        for part in parts:
            loss_of_part, of_part = loss_and_gradients(model, part[:, :-1], part[:, 1:])
            add(loss_of_part, named_parameters(of_part), 1 / len(parts))
    return loss, gradients


def map_in_threads(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """[function(item) for item in items], in a pool of threads; with threads=1, in the current one."""
    if threads == 1:
        return list(map(function, items))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def initial_model(config: GPT2Config, seed: int) -> GPT2:
    """An untrained model, initialised as GPT-2 was, float32.

    Weights are normal with standard deviation 0.02, positions with 0.01; gains are 1, biases 0. The output projections
    are divided by sqrt(2 n_layer), since 2 n_layer of them add to the residual stream.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3, and OpenAI's gpt-2.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        array = allocate_parameter(name, shape, np.float32)
        if len(shape) == 2:
            deviation = 0.01 if name == "wpe.weight" else 0.02
            if "c_proj" in name:
                deviation /= math.sqrt(2 * config.n_layer)
            array[...] = rng.standard_normal(shape, dtype=np.float32)
            array *= deviation
        else:
            array[...] = 1 if re.search(r"ln_\w\.weight", name) else 0
        arrays[name] = array
    return build_model(config, arrays)
