"""Laws of the KV cache: what it holds, what it forgets, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, KVCache, forward
from strategies import lively_model, passes, random_ids, seeds, splits

CONFIG = GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2, n_inner=10)
MODEL = lively_model(CONFIG)


def contents(cache: KVCache) -> tuple[int, bytes, bytes]:
    """All that a refused call must leave as it was."""
    return cache.length, cache.k.tobytes(), cache.v.tobytes()


def assert_close(actual, expected, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# What it holds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_a_new_cache_is_empty_and_has_the_asked_room_in_the_weights_type(dtype, data):
    model, ids = data.draw(passes(dtype))
    config, batch = model.config, ids.shape[:-1]
    n_positions = data.draw(st.integers(1, config.n_positions))
    cache = KVCache(model, n_positions, batch)
    assert (cache.length, cache.n_positions, cache.batch) == (0, n_positions, batch)
    for array in (cache.k, cache.v):
        assert array.shape == (config.n_layer, *batch, config.n_head, n_positions, config.d_head)
        assert array.dtype == dtype


def test_the_room_is_the_models_context_unless_asked_otherwise():
    assert KVCache(MODEL).n_positions == 8
    assert KVCache(MODEL).batch == ()


@given(passes(), st.data())
def test_length_counts_the_tokens_read_once_for_each_pass(model_and_ids, data):
    model, ids = model_and_ids
    cache = KVCache(model, batch=ids.shape[:-1])
    n_read = 0
    for chunk in data.draw(splits(ids)):
        forward(model, chunk, cache=cache)
        n_read += chunk.shape[-1]
        assert cache.length == n_read


@given(passes(min_tokens=2), st.data())
def test_nothing_past_the_filled_part_is_read(model_and_ids, data):
    model, ids = model_and_ids
    first, rest = np.split(ids, [data.draw(st.integers(1, ids.shape[-1] - 1))], axis=-1)
    clean, dirty = (KVCache(model, batch=ids.shape[:-1]) for _ in range(2))
    dirty.k[...] = np.nan
    dirty.v[...] = np.nan
    for chunk in (first, rest):
        np.testing.assert_array_equal(forward(model, chunk, cache=clean), forward(model, chunk, cache=dirty))


def test_the_room_that_is_left_does_not_change_the_logits():
    roomy, tight = KVCache(MODEL), KVCache(MODEL, n_positions=5)
    for chunk in ([1, 2, 3], [4], [5]):
        assert_close(forward(MODEL, chunk, cache=roomy), forward(MODEL, chunk, cache=tight))


@given(seeds, st.integers(0, 4), st.integers(1, 4))
def test_append_writes_at_length_and_returns_views_of_all_so_far(seed, length, n_new):
    cache = KVCache(MODEL, batch=(3,))
    cache.k[...] = cache.v[...] = 7
    cache.length = length
    k, v = np.random.default_rng(seed).standard_normal((2, 3, 2, n_new, 3))
    k_all, v_all = cache.append(1, k, v)
    for whole, of_layer, new in ((k_all, cache.k, k), (v_all, cache.v, v)):
        assert whole.shape == (3, 2, length + n_new, 3)
        assert np.shares_memory(whole, of_layer)
        np.testing.assert_array_equal(whole[..., length:, :], new)
        np.testing.assert_array_equal(whole[..., :length, :], 7)
        assert (of_layer[0] == 7).all() and (of_layer[1][..., length + n_new:, :] == 7).all()
    assert cache.length == length


# crop -----------------------------------------------------------------------------------------------------------------


@given(passes(min_tokens=2), st.data())
def test_crop_then_other_tokens_equals_a_fresh_pass(model_and_ids, data):
    model, ids = model_and_ids
    cache = KVCache(model, batch=ids.shape[:-1])
    forward(model, ids, cache=cache)
    n_kept = data.draw(st.integers(0, ids.shape[-1] - 1))
    others = random_ids(model.config, ids.shape, data.draw(seeds))[..., n_kept:]
    cache.crop(n_kept)
    assert cache.length == n_kept
    logits = forward(model, others, cache=cache)
    fresh = forward(model, np.concatenate([ids[..., :n_kept], others], axis=-1))
    assert_close(logits, fresh[..., n_kept:, :])


def test_crop_keeps_what_it_does_not_forget_and_may_forget_nothing():
    cache = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=cache)
    before = contents(cache)
    cache.crop(3)
    assert contents(cache) == before
    kept = cache.k[..., :2, :].copy(), cache.v[..., :2, :].copy()
    cache.crop(2)
    np.testing.assert_array_equal((cache.k[..., :2, :], cache.v[..., :2, :]), kept)


def test_a_cache_that_has_forgotten_everything_is_a_fresh_one():
    cache = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=cache)
    cache.crop(0)
    np.testing.assert_array_equal(forward(MODEL, [4, 5], cache=cache), forward(MODEL, [4, 5]))


# repeat ---------------------------------------------------------------------------------------------------------------


@given(passes(min_tokens=2), st.integers(1, 3), st.data())
def test_repeated_rows_go_on_as_single_ones_would(model_and_ids, n, data):
    model, ids = model_and_ids
    first, rest = np.split(ids, [data.draw(st.integers(1, ids.shape[-1] - 1))], axis=-1)
    one = KVCache(model, batch=ids.shape[:-1])
    forward(model, first, cache=one)
    many = one.repeat(n)
    assert (many.batch, many.length, many.n_positions) == ((n, *one.batch), one.length, one.n_positions)
    assert (many.k.dtype, many.k.shape) == (one.k.dtype, (model.config.n_layer, n, *one.k.shape[1:]))
    others = random_ids(model.config, (n, *rest.shape), data.draw(seeds))
    logits = forward(model, others, cache=many)
    for row in range(n):
        whole = np.concatenate([first, others[row]], axis=-1)
        assert_close(logits[row], forward(model, whole)[..., first.shape[-1]:, :])


def test_repeat_copies_so_that_no_row_sees_another_being_written():
    one = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=one)
    many = one.repeat(3)
    before = contents(one)
    many.k[:, 0] = 99
    many.v[:, 0] = 99
    many.crop(1)
    assert contents(one) == before
    for row in (1, 2):
        np.testing.assert_array_equal(many.k[:, row, :, :3], one.k[:, :, :3])
        np.testing.assert_array_equal(many.v[:, row, :, :3], one.v[:, :, :3])
    forward(MODEL, [4], cache=one)
    assert many.length == 1


def test_repeat_of_an_empty_cache_is_empty():
    many = KVCache(MODEL, n_positions=3, batch=(2,)).repeat(4)
    assert (many.length, many.batch, many.n_positions) == (0, (4, 2), 3)
    ids = random_ids(CONFIG, (4, 2, 3))
    np.testing.assert_array_equal(forward(MODEL, ids, cache=many), forward(MODEL, ids))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_positions", [0, -1, 9])
def test_room_beyond_the_context_or_for_nothing_is_refused(n_positions):
    with pytest.raises(ValueError) as error:
        KVCache(MODEL, n_positions)
    assert str(error.value) == f"n_positions must be a whole number from 1 to 8. Got {n_positions}."


@pytest.mark.parametrize("batch", [(0,), (2, 0), (-1,)])
def test_a_batch_of_nothing_is_refused(batch):
    with pytest.raises(ValueError) as error:
        KVCache(MODEL, batch=batch)
    assert str(error.value) == f"batch must be a whole number, 1 or more. Got {batch[-1]}."


def test_sizes_that_are_no_whole_numbers_are_refused():
    cache = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=cache)
    before = contents(cache)
    for refused in (lambda: KVCache(MODEL, 2.0), lambda: KVCache(MODEL, batch=(2.0,)), lambda: cache.crop(1.0),
                    lambda: cache.repeat(2.0)):
        with pytest.raises((TypeError, ValueError)):
            refused()
    assert contents(cache) == before


@pytest.mark.parametrize("length", [-1, 4, 8])
def test_crop_to_more_than_there_is_or_less_than_nothing_is_refused(length):
    cache = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=cache)
    before = contents(cache)
    with pytest.raises(ValueError) as error:
        cache.crop(length)
    assert str(error.value) == f"length must be a whole number from 0 to 3. Got {length}."
    assert contents(cache) == before


@pytest.mark.parametrize("n", [0, -1])
def test_repeat_to_nothing_is_refused(n):
    with pytest.raises(ValueError) as error:
        KVCache(MODEL).repeat(n)
    assert str(error.value) == f"n must be a whole number, 1 or more. Got {n}."


@pytest.mark.parametrize("ids", [[4, 5, 6], [4] * 8])
def test_tokens_that_do_not_fit_are_refused_before_anything_is_written(ids):
    cache = KVCache(MODEL, n_positions=5)
    forward(MODEL, [1, 2, 3], cache=cache)
    before = contents(cache)
    with pytest.raises(ValueError) as error:
        forward(MODEL, ids, cache=cache)
    assert str(error.value) == (f"{len(ids)} new tokens do not fit: the cache holds 3 of 5. "
                                "Make a larger one (at most the model's context), or crop it.")
    assert contents(cache) == before
    forward(MODEL, [4, 5], cache=cache)  # exactly what fits
    assert cache.length == 5


@pytest.mark.parametrize("batch, ids", [((), [[1, 2]]), ((2,), [1, 2]), ((2,), [[1]]), ((2,), [[[1], [2]]]),
                                        ((1,), [[1], [2]])])
def test_ids_of_another_batch_are_refused_before_anything_is_written(batch, ids):
    cache = KVCache(MODEL, batch=batch)
    before = contents(cache)
    with pytest.raises(ValueError) as error:
        forward(MODEL, ids, cache=cache)
    assert str(error.value) == f"ids must have the cache's leading axes {batch}. Got {np.shape(ids)[:-1]}."
    assert contents(cache) == before


@pytest.mark.parametrize("ids", [[11], [-1], [0.5], [], [[1, 2], [3]]])
def test_ids_that_are_no_tokens_leave_a_filled_cache_as_it_was(ids):
    cache = KVCache(MODEL)
    forward(MODEL, [1, 2, 3], cache=cache)
    before = contents(cache)
    with pytest.raises(ValueError):
        forward(MODEL, ids, cache=cache)
    assert contents(cache) == before


def test_repr_says_how_full_it_is():
    cache = KVCache(MODEL, n_positions=5, batch=(2,))
    forward(MODEL, [[1, 2], [3, 4]], cache=cache)
    assert repr(cache) == "KVCache(length=2, n_positions=5, batch=(2,), dtype=float64)"


@pytest.mark.parametrize("change", [{"n_layer": 1}, {"n_layer": 3}, {"n_head": 3}, {"n_embd": 12}])
def test_another_model_s_cache_is_refused(change):
    other = lively_model(GPT2Config(**{"vocab_size": 11, "n_positions": 8, "n_embd": 6, "n_layer": 2, "n_head": 2,
                                       **change}))
    cache = KVCache(other)
    before = contents(cache)
    with pytest.raises(ValueError, match="the cache must be of a model of the same layers"):
        forward(MODEL, [1, 2], cache=cache)
    assert contents(cache) == before


def test_a_cache_of_another_type_is_refused():
    with pytest.raises(ValueError, match="float32.*Got.*float64"):
        forward(lively_model(CONFIG, dtype=np.float32), [1], cache=KVCache(MODEL))


def test_a_longer_model_s_cache_has_only_this_model_s_context():
    longer = lively_model(GPT2Config(vocab_size=11, n_positions=20, n_embd=6, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="9 new tokens do not fit|ids must be at most 8"):
        forward(MODEL, [1] * 9, cache=KVCache(longer))
    cache = KVCache(longer)
    forward(MODEL, [1] * 8, cache=cache)
    with pytest.raises(ValueError, match="holds 8 of 8"):
        forward(MODEL, [1], cache=cache)


@pytest.mark.parametrize("stage", ["h.0.attn.k", "h.1.mlp.out", "ln_f"])
def test_a_pass_that_fails_leaves_the_length_where_it_was(stage):
    def failing(name, value):
        return "nonsense" if name == stage else None

    cache = KVCache(MODEL)
    forward(MODEL, [1, 2], cache=cache)
    with pytest.raises(ValueError, match=stage):
        forward(MODEL, [3], cache=cache, tap=failing)
    assert cache.length == 2


@given(passes(), st.integers(1, 3))
def test_the_positions_of_a_channel_lie_side_by_side_in_memory(model_and_ids, n):
    model, ids = model_and_ids
    cache = KVCache(model, batch=ids.shape[:-1])
    for one in (cache, cache.repeat(n)):
        for array in (one.k, one.v):
            assert np.swapaxes(array, -1, -2).flags.c_contiguous


@pytest.mark.parametrize("batch", [3, np.int64(3), "3"])
def test_a_batch_that_is_no_tuple_is_refused_with_one(batch):
    with pytest.raises(ValueError, match=r"^batch must be a tuple, the leading axes of the ids, such as \(3,\). Got "):
        KVCache(MODEL, batch=batch)
