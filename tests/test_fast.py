"""The less readable twins equal the readable forms, and run when they should.

No time is measured, only counted what noise cannot move.
"""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, KVCache, Recorder, fast, forward, model, ops, random_model, transform
from numpy_gpt2 import matmul as products_module
from numpy_gpt2.matmul import FEW_ROWS, matmul
from numpy_gpt2.ops import gelu
from strategies import lively_model, passes, random_ids, seeds, splits

TOLERANCES = [(np.float64, 1e-12), (np.float32, 1e-5)]


def looked_at(name, value):
    """A tap that does nothing, and yet somebody looks: the readable lines run."""
    return value


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@given(data=st.data(), query_block=st.integers(1, 4), strip=st.integers(1, 4))
def test_the_fast_block_equals_the_readable_one_for_any_chunking(dtype, tolerance, data, query_block, strip):
    gpt2, ids = data.draw(passes(dtype))
    batch = ids.shape[:-1]
    readable_cache, fast_cache = KVCache(gpt2, batch=batch), KVCache(gpt2, batch=batch)
    with patch.multiple(fast, LONG_PROMPT=1, QUERY_BLOCK=query_block, STRIP=strip):
        for chunk in data.draw(splits(ids)):
            readable = transform(gpt2, chunk, readable_cache, tap=looked_at)
            quick = transform(gpt2, chunk, fast_cache)
            assert quick.dtype == dtype
            assert np.abs(quick - readable).max() <= tolerance * max(1, np.abs(readable).max())
    for quick, readable in ((fast_cache.k, readable_cache.k), (fast_cache.v, readable_cache.v)):
        assert np.abs(quick - readable).max() <= tolerance * max(1, np.abs(readable).max())


@given(passes(np.float32))
def test_the_fast_block_writes_to_no_argument(model_and_ids):
    gpt2, ids = model_and_ids
    cache = KVCache(gpt2, batch=ids.shape[:-1])
    x = model.embed(gpt2, ids, 0)
    x.flags.writeable = False
    fast.block(x, gpt2.h[0], gpt2.config, cache, 0)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), seeds)
def test_each_query_mixes_the_values_up_to_its_own_position(n_new, d_head, first_position, seed):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, n_new, d_head))
    k_all, v_all = rng.standard_normal((2, 2, first_position + n_new, d_head))
    with patch.object(fast, "QUERY_BLOCK", 4):
        z = fast.mix_in_query_blocks(q, k_all, v_all, first_position)
    for head, i in np.ndindex(2, n_new):
        visible = first_position + i + 1
        weights = np.exp(k_all[head, :visible] @ q[head, i] / np.sqrt(d_head))
        expected = weights @ v_all[head, :visible] / weights.sum()
        np.testing.assert_allclose(z[head, :, i], expected, rtol=1e-9, atol=1e-9)


def test_scores_beyond_the_exponential_s_range_do_not_overflow():
    q = np.full((1, 3, 1), 1e3, np.float32)
    z = fast.mix_in_query_blocks(q, q, q, 0)
    np.testing.assert_array_equal(z, np.full((1, 1, 3), 1e3, np.float32))


def test_a_query_s_shares_do_not_hang_on_another_s_scores():
    q, k_all, v_all = (np.array([[[x], [y]]], np.float32) for x, y in [(1e4, 1), (1, 2), (3, 5)])
    z = fast.mix_in_query_blocks(q, k_all, v_all, 0)  # beside the first query's score, exp of the second's would be 0
    np.testing.assert_allclose(z[0, 0], [3, (3 * np.exp(1) + 5 * np.exp(2)) / (np.exp(1) + np.exp(2))], rtol=1e-6)


@given(st.integers(1, 9), st.integers(0, 5))
def test_each_query_block_is_multiplied_once_and_in_the_weights_type(n_new, first_position):
    q = np.ones((2, n_new, 3), np.float32)
    k_all = np.ones((2, first_position + n_new, 3), np.float32)
    with patch.object(fast, "QUERY_BLOCK", 4), patch.object(np, "matmul", side_effect=np.matmul) as products:
        fast.mix_in_query_blocks(q, k_all, k_all, first_position)
    assert products.call_count == -(-n_new // 4)  # of scores; that with the values is an operator
    assert {array.dtype for call in products.call_args_list for array in (*call.args, call.kwargs["out"])} == {q.dtype}


@given(st.integers(1, 40), st.integers(1, 5), seeds)
def test_bias_and_gelu_in_strips_equal_gelu(n_rows, n_inner, seed):
    rng = np.random.default_rng(seed)
    x, bias = 3 * rng.standard_normal((n_rows, n_inner)), rng.standard_normal(n_inner)
    expected = gelu(x + bias)
    fast.add_bias_and_gelu(x, bias)
    np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@given(n_rows=st.integers(1, FEW_ROWS + 2), n_out=st.integers(1, 9), seed=seeds, by_output=st.booleans())
def test_a_product_is_the_same_however_it_is_put_to_blas(dtype, tolerance, n_rows, n_out, seed, by_output):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, 4)).astype(dtype)
    weight = rng.standard_normal((4, n_out)).astype(dtype, order="F" if by_output else "C")
    with patch.object(products_module, "SLICE", 2):
        y = matmul(x, weight)
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
    with patch.object(products_module, "SLICE", 4):
        matmul(np.ones((n_rows, 3)), np.ones((3, n_out)).view(Read))
    assert Read.notes == [(min(4, n_out - start), 3) for start in range(0, n_out, 4)]


# Which form runs, and how often the weights are read ------------------------------------------------------------------


CONFIG = GPT2Config(vocab_size=20, n_positions=200, n_embd=8, n_layer=2, n_head=2)


@pytest.mark.parametrize("n_new, tap, expected", [
    (fast.LONG_PROMPT, None, CONFIG.n_layer), (fast.LONG_PROMPT - 1, None, 0), (1, None, 0),
    (fast.LONG_PROMPT, looked_at, 0), (fast.LONG_PROMPT, Recorder(), 0),
])
def test_the_fast_block_runs_for_a_long_prompt_without_a_tap(n_new, tap, expected):
    gpt2 = lively_model(CONFIG)
    options = {} if tap is None else {"tap": tap}
    with patch.object(fast, "block", side_effect=fast.block) as block:
        forward(gpt2, random_ids(CONFIG, (n_new,)), **options)
    assert block.call_count == expected


@given(st.integers(1, 5), st.integers(1, 6))
def test_a_batch_reads_each_weight_once(n_batch, n_new):
    gpt2 = random_model(CONFIG)
    with patch.object(model, "matmul", side_effect=matmul), patch.object(ops, "matmul", side_effect=matmul) as products:
        forward(gpt2, random_ids(CONFIG, (n_batch, n_new)))
    rows = [len(call.args[0]) for call in products.call_args_list if call.args[0].ndim == 2]
    assert rows == [n_batch * n_new] * (4 * CONFIG.n_layer + 1)  # four linear layers in each block, and the unembedding


@pytest.mark.parametrize("shape, expected", [((1,), 0), ((1, 1), 0), ((2, 1), 1), ((FEW_ROWS, 1), 1), ((FEW_ROWS,), 1),
                                             ((FEW_ROWS + 1,), 0)])
def test_few_rows_are_put_to_blas_weight_first(shape, expected):
    gpt2 = random_model(CONFIG)
    with patch.object(products_module, "matmul_few_rows", side_effect=products_module.matmul_few_rows) as products:
        forward(gpt2, random_ids(CONFIG, shape))
    assert products.call_count == expected * (4 * CONFIG.n_layer + 1)


def test_weights_of_linear_layers_lie_output_by_output():
    gpt2 = random_model(CONFIG)
    for block in gpt2.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert layer.weight.T.flags.c_contiguous
    assert gpt2.wte.flags.c_contiguous and gpt2.wpe.flags.c_contiguous
