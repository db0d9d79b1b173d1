"""How a gradient moves a weight: AdamW for any array, Muon for the matrices inside the blocks.

Both are functions over arrays that they change in place: a weight, and what is remembered of the gradients before. The
gradient itself stays as it is.
"""

import math
from typing import Iterator, Mapping

import numpy as np

STRIP_SIZE = 2 ** 16  # numbers at a time: 256 KB of each array, which stay in the processor's cache

# One Newton-Schulz step maps each singular value s to a s + b s^3 + c s^5. With these coefficients, five steps bring
# any s from 0.01 to 1 to between 0.7 and 1.2: near enough to 1 for the direction of a step, and soon.
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

    average: the moving average of the gradient, zeros at first. The update is the gradient moved towards it, as in
    Nesterov's momentum. Orthogonal, it moves each direction of the matrix as fast as the others, rare ones too.
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
    if matrix.shape[0] > matrix.shape[1]:  # the product with its own transpose is the smaller one the other way round
        return orthogonalize(matrix.T).T
    x = matrix / (float(np.linalg.norm(matrix)) + 1e-7)  # no singular value is larger than the norm, which becomes 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T  # [n_in, n_in]
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


def clip_by_global_norm(gradients: Mapping[str, np.ndarray], largest: float) -> float:
    """Shrink all gradients by one factor, in place, so that together they are no longer than `largest`.

    Returns the norm that they had, the root of the sum of all squares; infinite or NaN where a gradient is.
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
    """Views of the same places in arrays of one shape, about STRIP_SIZE numbers at a time, in the order of memory."""
    if arrays[0].strides[0] < arrays[0].strides[-1]:  # a matrix that lies in memory as its transpose
        arrays = tuple(array.T for array in arrays)
    n_rows = max(1, STRIP_SIZE * len(arrays[0]) // arrays[0].size)
    for start in range(0, len(arrays[0]), n_rows):
        yield tuple(array[start:start + n_rows] for array in arrays)
