"""Whether a training run fits into memory, computed before it starts."""

from math import prod
from typing import Collection

from ..checkpoint.memory import available_memory, gigabytes
from ..config import GPT2Config
from ..weights import parameter_shapes
from .loop import moments_of
from .settings import TrainingConfig

N_BYTES = 4  # of a float32


def training_memory(model: GPT2Config, config: TrainingConfig, frozen: Collection[str] = ()) -> dict[str, int]:
    """Bytes of each kind of array at the peak of a step: weights, gradients, moments, activations."""
    shapes = parameter_shapes(model)
    n_parameters = sum(map(prod, shapes.values()))
    n_moments = sum(prod(shape) * len(moments_of(name, shape, config))
                    for name, shape in shapes.items() if name not in frozen)
    n_gradients = n_parameters * (2 if config.accumulate > 1 else 1)  # the sum, and those of the next pass
    return {"weights": N_BYTES * n_parameters, "gradients": N_BYTES * n_gradients, "moments": N_BYTES * n_moments,
            "activations": N_BYTES * config.batch_size * config.context * numbers_per_token(model, config.context)}


def numbers_per_token(model: GPT2Config, context: int) -> int:
    """Numbers per token that a forward pass keeps for the backward pass, and the temporary arrays at the peak.

    For each block: the residual stream twice, both layer norms' outputs, q, k and v, k and v once more in the cache, z,
    and the MLP's activations before and after the nonlinearity. Once: the logits and their gradient, and one block's
    largest temporary arrays.
    """
    of_block = 10 * model.n_embd + 2 * model.n_inner
    temporary = 4 * model.n_inner + 3 * model.n_head * min(context, 512) + 6 * model.n_embd
    return model.n_layer * of_block + 2 * model.vocab_size + temporary


def check_training_memory(model: GPT2Config, config: TrainingConfig, frozen: Collection[str] = ()) -> None:
    """Raise MemoryError, with advice, if a run needs more memory than is available; its weights are already loaded."""
    needed = training_memory(model, config, frozen)
    available = available_memory()
    still_needed = sum(needed.values()) - needed["weights"]
    if available is None or still_needed <= available:
        return
    parts = ", ".join(f"{name} {gigabytes(n_bytes)}" for name, n_bytes in needed.items())
    raise MemoryError(f"training takes {gigabytes(sum(needed.values()))} ({parts}), and {gigabytes(available)} are "
                      "available beside the weights: lower --batch-size or --context, --freeze a part of the model, "
                      "or use a smaller one")
