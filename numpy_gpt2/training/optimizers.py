"""How a gradient moves a weight: AdamW for any array, Muon for the matrices inside the blocks.

Both are functions over arrays, which they change in place: the weights, and what the optimizer remembers of earlier gradients.
"""

import math
from typing import Sequence

import numpy as np

# The coefficients of one Newton-Schulz step of fifth order, chosen for speed: five steps bring a singular value from
# anywhere between 0.001 and 1 into 0.7 to 1.2, near enough to 1 for an update.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def adamw(weight: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, step: int, rate: float,
          betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8, decay: float = 0.0) -> None:
    """One step of AdamW: weight -= rate * mean / (sqrt(square) + epsilon), in place, after weight *= 1 - rate * decay.

    mean and square are the moving averages of the gradient and of its square, of the weight's shape, zeros before the first step; both
    are divided by 1 - beta ** step, since they start at 0. step: 1 for the first. The gradient is left as it is.
    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", algorithm 1; Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization", algorithm 2.
    """
    beta_mean, beta_square = betas
    buffer = gradient * (1 - beta_mean)
    mean *= beta_mean
    mean += buffer
    np.multiply(gradient, gradient, out=buffer)
    buffer *= 1 - beta_square
    square *= beta_square
    square += buffer
    np.sqrt(square, out=buffer)
    buffer /= math.sqrt(1 - beta_square ** step)
    buffer += epsilon
    np.divide(mean, buffer, out=buffer)
    buffer *= rate / (1 - beta_mean ** step)
    if decay:
        weight *= 1 - rate * decay
    weight -= buffer


def muon(weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray], momenta: Sequence[np.ndarray], rate: float,
         momentum: float = 0.95, decay: float = 0.0) -> None:
    """One step of Muon for matrices of one shape, in place: weight -= rate * orthogonalize(update).

    The update is the gradient moved towards the moving average of all gradients (Nesterov's look ahead).
    """
    updates = np.empty((len(weights), *weights[0].T.shape), weights[0].dtype)  # [n_matrices, n_out, n_in]
    for gradient, average, update in zip(gradients, momenta, updates):
        average *= momentum
        average += (1 - momentum) * gradient
        np.multiply(gradient.T, 1 - momentum, out=update)
        update += momentum * average.T
    directions = orthogonalize(updates)
    n_in, n_out = weights[0].shape
    length = rate * math.sqrt(max(1, n_out / n_in))
    for weight, direction in zip(weights, directions):
        weight *= 1 - rate * decay
        direction *= length
        weight -= direction.T


def orthogonalize(matrices: np.ndarray) -> np.ndarray:
    """[n, n_rows, n_columns], every singular value of each matrix brought near 1, its directions kept.

    Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = NEWTON_SCHULZ
    norms = np.sqrt(np.sum(matrices * matrices, axis=(-2, -1), keepdims=True))  # [n, 1, 1]
    x = matrices / (norms + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the product with the transpose is the smaller of the two
        x = np.ascontiguousarray(np.swapaxes(x, -1, -2))
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ np.swapaxes(x, -1, -2)
        polynomial = c * (square @ square)
        polynomial += b * square
        x = a * x + polynomial @ x
    return np.swapaxes(x, -1, -2) if tall else x
