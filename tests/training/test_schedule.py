"""Laws of the learning rate and of the windows of a batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2.training.schedule import warmup_and_cosine
from numpy_gpt2.training.windows import split_tail, windows_of_step
from strategies import seeds


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_then_falls_and_is_never_0(steps, warmup):
    factors = [warmup_and_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = int(np.argmax(factors))
    assert factors[:peak + 1] == sorted(factors[:peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_warm_up_is_in_proportion_to_the_steps():
    assert [warmup_and_cosine(step, 20, 0.2) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert [warmup_and_cosine(step, 40, 0.2) for step in (1, 3, 5, 7)] == [0.25, 0.5, 0.75, 1]
    assert warmup_and_cosine(0, 1000, 0) > 0.999
    assert warmup_and_cosine(999, 1000, 0.1) < 1e-5
    assert warmup_and_cosine(4, 9, 0) == pytest.approx(0.5)


# Windows --------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 12), st.integers(2, 400))
def test_every_window_is_a_piece_of_the_text(seed, context, n_tokens):
    ids = np.arange(n_tokens)
    if n_tokens <= context:
        with pytest.raises(ValueError, match=f"context \\+ 1 tokens, {context + 1}, or more. Got {n_tokens}"):
            windows_of_step(ids, 0, 3, context, seed)
        return
    windows = windows_of_step(ids, 5, 3, context, seed)
    assert windows.shape == (3, context + 1)
    np.testing.assert_array_equal(np.diff(windows), 1)


@given(seeds, st.integers(2, 12), st.integers(40, 400), st.integers(1, 5))
def test_an_epoch_reads_no_token_twice_and_nearly_all_of_them(seed, context, n_tokens, n_windows):
    per_epoch = (n_tokens - 1) // context - 1
    steps = range(-(-per_epoch // n_windows))
    windows = np.concatenate([windows_of_step(np.arange(n_tokens), step, n_windows, context, seed) for step in steps])
    read = windows[:per_epoch, :-1].ravel()
    assert len(np.unique(read)) == len(read) > n_tokens - 1 - 2 * context


def test_windows_depend_on_step_and_seed_and_on_nothing_else():
    ids = np.arange(1000)
    one = windows_of_step(ids, 3, 4, 10, seed=0)
    windows_of_step(ids, 700, 4, 10, seed=0)
    np.testing.assert_array_equal(windows_of_step(ids, 3, 4, 10, seed=0), one)
    assert (windows_of_step(ids, 4, 4, 10, seed=0) != one).any()
    assert (windows_of_step(ids, 3, 4, 10, seed=1) != one).any()
    np.testing.assert_array_equal(windows_of_step(ids, 1, 8, 10, seed=0)[4:], one)


def test_the_windows_of_two_epochs_begin_at_other_places():
    starts = [set(windows_of_step(np.arange(1000), step, 98, 10, seed=0)[:, 0]) for step in range(3)]
    assert len({start % 10 for epoch in starts for start in epoch}) > 1


@pytest.mark.parametrize("fraction, expected", [(0, 0), (0.1, 10), (0.999, 99)])
def test_the_tail_is_held_out(fraction, expected):
    ids = np.arange(100)
    train, held_out = split_tail(ids, fraction)
    assert len(held_out) == expected
    np.testing.assert_array_equal(np.concatenate([train, held_out]), ids)
    assert len(split_tail(np.arange(10_000), 0.5, largest=7)[1]) == 7
    assert len(split_tail(np.arange(40_000), 0.5)[1]) == 16_384


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match=f"--held-out must be from 0 to less than 1. Got {fraction}"):
        split_tail(np.arange(100), fraction)


def test_a_text_of_one_window_is_enough_and_a_shorter_one_is_not():
    np.testing.assert_array_equal(windows_of_step(np.arange(9), 0, 1, context=8, seed=0), [np.arange(9)])
    with pytest.raises(ValueError, match=r"^the training text must have context \+ 1 tokens, 1,201, or more. Got 7"):
        windows_of_step(np.arange(7), 0, 1, context=1200, seed=0)
    with pytest.raises(ValueError, match="9, or more. Got 8"):
        windows_of_step(np.arange(8), 0, 1, context=8, seed=0)
