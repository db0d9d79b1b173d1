"""The learning-rate schedule: linear warm-up, then cosine decay."""

import math


def warmup_and_cosine(step: int, steps: int, warmup: float) -> float:
    """The fraction of the peak learning rate at step 0, 1, ..., steps - 1: above 0, at most 1.

    It rises linearly over a fraction `warmup` of the steps, while the optimizers' averages still contain few gradients,
    then falls along half a cosine to nearly 0.
    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5.
    """
    n_warmup = math.ceil(warmup * steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup + 1) / (steps - n_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * done))
