"""Matrix products through BLAS, and the memory order of arrays, for speed: shapes and values do not depend on it."""

import ctypes
import re
import sys
from typing import Any

import numpy as np

# BLAS packs (copies) the matrices of a product into its own order before it multiplies them. For one row it does not,
# and for many rows packing is cheap compared with the arithmetic. For a few rows packing takes most of the time; it is
# faster with the weight as the first operand, in slices whose copies stay in the processor's cache.
FEW_ROWS = 16
SLICE = 384  # outputs at a time
COPY_BLOCK = 32  # positions at a time, in copies that change the memory order

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_LIMIT = 2**31 - 1  # bytes, of an int


def matrix_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight: x [..., n_in], weight [n_in, n_out] -> [..., n_out].

    Fastest if each output's weights are adjacent in memory, as `allocate_parameter` stores them.
    """
    if x.ndim > 2:  # one product for the whole batch reads each weight once
        rows = x.reshape(-1, x.shape[-1])  # [n_rows, n_in]
        return matrix_product(rows, weight).reshape(*x.shape[:-1], weight.shape[-1])  # [..., n_out]
    if x.ndim == 2 and 1 < len(x) <= FEW_ROWS:
        return product_of_few_rows(x, weight)
    return x @ weight


def product_of_few_rows(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight for 2 to FEW_ROWS rows, 1.2 to 5 times as fast: x [n_rows, n_in] -> [n_rows, n_out]."""
    y = np.empty((len(x), weight.shape[-1]), x.dtype)  # [n_rows, n_out]
    for i in range(0, weight.shape[-1], SLICE):
        outputs = weight.T[i:i + SLICE] @ x.T  # [SLICE, n_rows]
        y[:, i:i + SLICE] = outputs.T
    return y


def allocate_parameter(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array for one parameter of a checkpoint.

    The matrix [n_in, n_out] of a linear layer is stored as [n_out, n_in], each output's weights adjacent, like the rows
    of `lm_head`: a product with one row reads it sequentially, and one with a few rows is up to twice as fast.
    """
    if re.search(r"\.c_\w+\.weight$", name):
        return np.empty(shape[::-1], dtype).T
    return np.empty(shape, dtype)


def allocate_channel_major(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros [..., n_positions, d_head], stored in memory as [..., d_head, n_positions].

    In decoding, one query is multiplied by a thousand keys, which takes as long as reading them. With the positions of
    a channel adjacent, it reads runs of thousands of bytes, 1.4 times as fast as runs of d_head numbers.
    """
    *leading, n_positions, d_head = shape
    return np.swapaxes(np.zeros((*leading, d_head, n_positions), dtype), -1, -2)


def write_channel_major(buffer: np.ndarray, x: np.ndarray) -> None:
    """buffer[...] = x, for x [..., n_positions, d_head] in C order and a buffer in channel-major order.

    In blocks of positions, so that each cache line of x is fully used before it is evicted: 4 times as fast as at once.
    """
    for i in range(0, x.shape[-2], COPY_BLOCK):
        buffer[..., i:i + COPY_BLOCK, :] = x[..., i:i + COPY_BLOCK, :]


def reuse_freed_memory() -> None:
    """Let new arrays reuse the memory of freed ones, for the rest of the process: for loops over large arrays.

    By default glibc returns the memory of a large array to the system, which hands it out again page by page, zeroed:
    up to a third of the time of a backward pass. Other C libraries are left unchanged.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        for limit in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(limit, LARGEST_LIMIT)
