"""The optimizers: AdamW for any array, Muon for the matrices inside the blocks.

Both are functions that update a weight and its optimizer state in place, and leave the gradient unchanged.
"""

import math
from typing import Iterator, Mapping

import numpy as np

STRIP_SIZE = 2 ** 16  # numbers at a time: 256 KB of each array, which stay in the processor's cache

# One Newton-Schulz step maps each singular value s to a s + b s^3 + c s^5. With these coefficients, five steps bring
# any s from 0.01 to 1 to between 0.7 and 1.2, which is close enough to 1 for an update.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def adamw(weight: np.ndarray, gradient: np.ndarray, mean: np.ndarray, square: np.ndarray, step: int, rate: float,
          betas: tuple[float, float] = (0.9, 0.95), epsilon: float = 1e-8, decay: float = 0.0) -> None:
    """weight -= rate (mean / (sqrt(square) + epsilon) + decay weight): one step of AdamW, in place.

    mean, square: the moving averages of the gradient and of its square, of the weight's shape, zeros at first. Since
    they start at 0, they are divided by 1 - beta^step before use. step: 1, 2, 3, ...
    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", algorithm 1; Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization", algorithm 2.
    """
    beta_mean, beta_square = betas
    for w, g, m, s in strips(weight, gradient, mean, square):
        m *= beta_mean
        m += (1 - beta_mean) * g
        s *= beta_square
        s += (1 - beta_square) * (g * g)
        deviation = np.sqrt(s)
        deviation /= math.sqrt(1 - beta_square ** step)
        deviation += epsilon
        w *= 1 - rate * decay
        w -= rate / (1 - beta_mean ** step) * (m / deviation)


def muon(weight: np.ndarray, gradient: np.ndarray, average: np.ndarray, rate: float, momentum: float = 0.95,
         decay: float = 0.0) -> None:
    """weight -= rate (orthogonalize(update) + decay weight): one step of Muon for a matrix [n_in, n_out], in place.

    average: the moving average of the gradient, zeros at first. The update interpolates between it and the gradient
    (Nesterov momentum). Orthogonalized, it moves all directions of the matrix at the same rate, rare ones too.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """
    n_in, n_out = weight.shape
    average *= momentum
    average += (1 - momentum) * gradient
    update = (1 - momentum) * gradient
    update += momentum * average
    direction = orthogonalize(update)
    direction *= rate * math.sqrt(max(1, n_out / n_in))
    weight *= 1 - rate * decay
    weight -= direction


def orthogonalize(matrix: np.ndarray) -> np.ndarray:
    """The matrix with every singular value brought near 1, its singular vectors kept: [n_in, n_out] -> [n_in, n_out].

    Source: Jordan et al., as above; the iteration is Newton and Schulz's, of fifth order.
    """
    a, b, c = NEWTON_SCHULZ
    if matrix.shape[0] > matrix.shape[1]:  # so that x @ x.T below is the smaller of the two products
        return orthogonalize(matrix.T).T
    x = matrix / (float(np.linalg.norm(matrix)) + 1e-7)  # singular values are at most the Frobenius norm, now 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T  # [n_in, n_in]
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


def clip_by_global_norm(gradients: Mapping[str, np.ndarray], largest: float) -> float:
    """Scale all gradients by one factor, in place, so that their global norm is at most `largest`.

    Returns the norm before, the root of the sum of all squares; infinite or NaN if a gradient is.
    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", section 3.2.
    """
    norm = math.sqrt(sum(squared_norm(gradient) for gradient in gradients.values()))
    if norm > largest:
        for gradient in gradients.values():
            gradient *= largest / norm
    return norm


def squared_norm(x: np.ndarray) -> float:
    """The sum of squares, strip by strip in float64."""
    return sum(float(np.vdot(strip, strip)) for strip, in strips(x))


def strips(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Corresponding views of arrays of one shape, about STRIP_SIZE numbers at a time, in memory order."""
    if arrays[0].strides[0] < arrays[0].strides[-1]:  # stored in Fortran order
        arrays = tuple(array.T for array in arrays)
    n_rows = max(1, STRIP_SIZE * len(arrays[0]) // arrays[0].size)
    for start in range(0, len(arrays[0]), n_rows):
        yield tuple(array[start:start + n_rows] for array in arrays)
