"""How matrix products call BLAS, and the two allocators that choose memory order: no shape or value depends on it."""

import re
from typing import Any

import numpy as np

# BLAS copies the matrices of a product into an order of its own before it multiplies them. For one row it does not, and
# for many the copy is cheap beside the arithmetic. For a few it is most of the time, and goes faster where the weight
# comes first, in slices whose copies stay in the processor's cache.
FEW_ROWS = 16
SLICE = 384  # outputs at a time


def matmul(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight, the one place that knows how to put it to BLAS: x [..., n_in], weight [n_in, n_out] -> [..., n_out].

    A weight's inputs lie side by side in memory, one output after another (`checkpoint.in_memory_order`).
    """
    if x.ndim > 2:  # one product for the whole batch reads each weight once
        rows = x.reshape(-1, x.shape[-1])  # [n_rows, n_in]
        return matmul(rows, weight).reshape(*x.shape[:-1], weight.shape[-1])  # [..., n_out]
    if x.ndim == 2 and 1 < len(x) <= FEW_ROWS:
        return matmul_few_rows(x, weight)
    return x @ weight


def matmul_few_rows(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight, for 2 to FEW_ROWS rows in 0.2 to 0.8 of the time: x [n_rows, n_in] -> [n_rows, n_out]."""
    y = np.empty((len(x), weight.shape[-1]), x.dtype)  # [n_rows, n_out]
    for i in range(0, weight.shape[-1], SLICE):
        outputs = weight.T[i:i + SLICE] @ x.T  # [SLICE, n_rows]
        y[:, i:i + SLICE] = outputs.T
    return y


def allocate_parameter(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Room for one parameter: the one place that chooses the memory order of the weights, which no result depends on.

    The matrix [n_in, n_out] of a linear layer lies as [n_out, n_in], an output's weights side by side, like the rows of
    `lm_head`: a product with one row reads it from end to end, and one with a few is up to twice as fast.
    """
    if re.search(r"\.c_\w+\.weight$", name):
        return np.empty(shape[::-1], dtype).T
    return np.empty(shape, dtype)


def allocate_channel_major(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros [..., n_positions, d_head] that lie in memory as [..., d_head, n_positions].

    One token's query meets a thousand keys in a product that only reads them. A channel's positions side by side make
    runs of thousands of bytes, read 1.4 times as fast as runs of d_head numbers. Shape and values know nothing of it.
    """
    *leading, n_positions, d_head = shape
    return np.swapaxes(np.zeros((*leading, d_head, n_positions), dtype), -1, -2)
