"""What a training run can be told, checked once."""

import math
from dataclasses import dataclass

from ..errors import check_int


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults fine-tune a small model on a text of a few hundred kilobytes.

    steps: updates of the weights. batch_size: windows read in one pass, of `context` tokens each.
    accumulate: passes whose gradients make up one step. More of them is as good as a larger batch, in less memory.
    rate: AdamW's peak learning rate. muon_rate: Muon's, for the matrices inside the blocks; 0 gives them to AdamW too.
    weight_decay: of the matrices inside the blocks, each step shrinks them by rate * weight_decay.
    warmup: the fraction of the steps in which the rates rise. clip: the largest norm of the gradients that AdamW sees;
        0 is off.
    freeze: globs of parameters that stay as they are, "wte", "h.[0-3].*". seed: of the order of the windows.
    Raises ValueError for a value that makes no sense.
    """

    steps: int = 200
    batch_size: int = 8
    context: int = 256
    accumulate: int = 1
    rate: float = 1e-3
    muon_rate: float = 0.01
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    freeze: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "context", "accumulate"):
            check_int(name, getattr(self, name), 1)
        check_int("seed", self.seed, 0)
        for name in ("muon_rate", "weight_decay", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 (off) or a larger finite number. Got {getattr(self, name)}.")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be above 0 and finite. Got {self.rate}.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be from 0 to 1, a part of the steps. Got {self.warmup}.")
