"""However a product calls BLAS, and whatever the memory order, shapes and values are the same.

No time is measured, only counted what noise cannot move.
"""

import platform
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, KVCache, forward, matmul, model, ops, parameter_shapes, random_model
from numpy_gpt2.matmul import FEW_ROWS, allocate_channel_major, allocate_parameter, matrix_product
from strategies import random_ids, seeds

CONFIG = GPT2Config(vocab_size=20, n_positions=200, n_embd=8, n_layer=2, n_head=2)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@given(n_rows=st.integers(1, FEW_ROWS + 2), n_out=st.integers(1, 9), seed=seeds, by_output=st.booleans())
def test_a_product_is_the_same_however_it_calls_blas(dtype, tolerance, n_rows, n_out, seed, by_output):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, 4)).astype(dtype)
    weight = rng.standard_normal((4, n_out)).astype(dtype, order="F" if by_output else "C")
    with patch.object(matmul, "SLICE", 2):
        y = matrix_product(x, weight)
    assert y.flags.c_contiguous and y.dtype == dtype
    np.testing.assert_allclose(y, np.einsum("ri,io->ro", x, weight), rtol=tolerance, atol=10 * tolerance)


class Read(np.ndarray):
    """A weight that notes the shape of every part of it that is multiplied."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        self.notes.extend(part.shape for part in inputs if ufunc is np.matmul and isinstance(part, Read))
        return getattr(ufunc, method)(*map(np.asarray, inputs), **options)


@given(st.integers(2, FEW_ROWS), st.integers(1, 9))
def test_few_rows_read_each_part_of_a_weight_once(n_rows, n_out):
    Read.notes = []
    with patch.object(matmul, "SLICE", 4):
        matrix_product(np.ones((n_rows, 3)), np.ones((3, n_out)).view(Read))
    assert Read.notes == [(min(4, n_out - start), 3) for start in range(0, n_out, 4)]


@given(st.integers(1, 5), st.integers(1, 6))
def test_a_batch_reads_each_weight_once(n_batch, n_new):
    gpt2 = random_model(CONFIG)
    with (patch.object(model, "matrix_product", side_effect=matrix_product) as unembedding,
          patch.object(ops, "matrix_product", side_effect=matrix_product) as linear,
          patch.object(matmul, "matrix_product", side_effect=matrix_product) as folded):
        forward(gpt2, random_ids(CONFIG, (n_batch, n_new)))
    assert (unembedding.call_count, linear.call_count) == (1, 4 * CONFIG.n_layer)  # four linear layers in each block
    assert [len(call.args[0]) for call in folded.call_args_list] == [n_batch * n_new] * (4 * CONFIG.n_layer + 1)


@pytest.mark.parametrize("shape, expected", [((1,), 0), ((1, 1), 0), ((2, 1), 1), ((FEW_ROWS, 1), 1), ((FEW_ROWS,), 1),
                                             ((FEW_ROWS + 1,), 0)])
def test_a_product_of_few_rows_takes_the_weight_first(shape, expected):
    gpt2 = random_model(CONFIG)
    few_rows = matmul.product_of_few_rows
    with patch.object(matmul, "product_of_few_rows", side_effect=few_rows) as products:
        forward(gpt2, random_ids(CONFIG, shape))
    assert products.call_count == expected * (4 * CONFIG.n_layer + 1)


def test_weights_of_linear_layers_are_stored_output_by_output():
    gpt2 = random_model(CONFIG)
    for block in gpt2.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert layer.weight.T.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_parameter_has_the_shape_and_type_asked_for(dtype):
    for name, shape in parameter_shapes(CONFIG).items():
        array = allocate_parameter(name, shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)


def test_a_channel_s_positions_are_adjacent_in_the_cache():
    cache = KVCache(random_model(CONFIG), n_positions=9, batch=(3,))
    for array in (cache.k, cache.v):
        assert array.strides[-2] == array.itemsize
    assert not allocate_channel_major((2, 3), np.float32).any()


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 10))
def test_a_copy_in_blocks_copies_everything(n_positions, d_head, n_at_once):
    x = np.arange(2.0 * n_positions * d_head).reshape(2, n_positions, d_head)
    buffer = allocate_channel_major((2, n_positions + 1, d_head), np.float64)
    with patch.object(matmul, "COPY_BLOCK", n_at_once):
        matmul.write_channel_major(buffer[:, :-1], x)
    np.testing.assert_array_equal(buffer[:, :-1], x)
    assert not buffer[:, -1].any()


COUNT_FRESH_PAGES = """
import resource, sys
import numpy as np
from numpy_gpt2.matmul import reuse_freed_memory
if "reuse" in sys.argv:
    reuse_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(10_000_000)  # 80 MB, freed at once
before = pages()
for _ in range(5):
    np.ones(10_000_000)
print(pages() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc",
                    reason="glibc has the setting, on Linux")
def test_freed_memory_is_reused():
    fresh, reused = (int(subprocess.run([sys.executable, "-c", COUNT_FRESH_PAGES, *arguments], capture_output=True,
                                        check=True, timeout=60).stdout) for arguments in ((), ("reuse",)))
    assert reused < fresh / 10
