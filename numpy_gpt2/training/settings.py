"""The settings of a training run, checked once."""

import math
from dataclasses import dataclass

from ..errors import check_int


@dataclass(frozen=True)
class TrainingConfig:
    """Training settings. The defaults fine-tune a small model on a text of a few hundred kilobytes.

    steps: updates of the weights. batch_size: windows per pass, of `context` tokens each.
    accumulate: passes whose gradients are accumulated for one step: equivalent to a larger batch, in less memory.
    rate: AdamW's peak learning rate. muon_rate: Muon's, for the matrices inside the blocks; 0 uses AdamW for them too.
    weight_decay: each step shrinks the matrices inside the blocks by rate * weight_decay.
    warmup: the fraction of the steps over which the rates rise. clip: the maximum norm of AdamW's gradients; 0 is off.
        freeze: globs of parameters to keep fixed: "wte", "h.[0-3].*". seed: for the order of the windows.
    Raises ValueError for an invalid value.
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
            raise ValueError(f"warmup must be from 0 to 1, a fraction of the steps. Got {self.warmup}.")
