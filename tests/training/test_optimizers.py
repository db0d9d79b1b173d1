"""Laws of the optimizers: AdamW is its formula, Muon's step is orthogonal, and both change what they should only."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2.training import optimizers
from numpy_gpt2.training.optimizers import adamw, clip_by_global_norm, muon, orthogonalize, strips
from strategies import seeds

shapes = st.sampled_from([(1,), (7,), (300,), (3, 5), (40, 3), (2, 70)])


def random_array(rng, shape, transposed=False):
    """Of this shape, and perhaps in memory as its transpose, as the matrices of linear layers are."""
    return rng.standard_normal(shape[::-1]).T if transposed else rng.standard_normal(shape)


# AdamW ----------------------------------------------------------------------------------------------------------------


@given(seeds, shapes, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_adamw_is_its_formula_number_by_number(seed, shape, transposed, decay):
    rng = np.random.default_rng(seed)
    weight = random_array(rng, shape, transposed)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    expected, m, v = weight.copy(), np.zeros(shape), np.zeros(shape)
    for step in range(1, 5):
        gradient = random_array(rng, shape, transposed)
        adamw(weight, gradient, mean, square, step, rate=0.1, betas=(0.8, 0.95), epsilon=1e-3, decay=decay)
        m = 0.8 * m + 0.2 * gradient
        v = 0.95 * v + 0.05 * gradient ** 2
        step_taken = m / (1 - 0.8 ** step) / (np.sqrt(v / (1 - 0.95 ** step)) + 1e-3)
        expected = expected - 0.1 * (step_taken + decay * expected)
        np.testing.assert_allclose(weight, expected, rtol=1e-12, atol=1e-13)


def test_the_first_step_of_adamw_is_the_rate_whatever_the_gradients_size():
    weight = np.zeros(3)
    adamw(weight, np.array([1e-3, -5.0, 1e4]), np.zeros(3), np.zeros(3), step=1, rate=0.01)
    np.testing.assert_allclose(weight, [-0.01, 0.01, -0.01], rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-13)])
def test_adamw_equals_pytorchs_step_by_step(dtype, tolerance):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((30, 20)).astype(dtype)
    theirs = torch.tensor(weight, requires_grad=True)
    theirs_optimizer = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, 51):
        gradient = (rng.standard_normal(weight.shape) * 10.0 ** rng.integers(-6, 3)).astype(dtype)
        theirs.grad = torch.tensor(gradient)
        theirs_optimizer.step()
        adamw(weight, gradient, mean, square, step, rate=0.02, betas=(0.9, 0.95), epsilon=1e-8, decay=0.1)
        assert weight.dtype == dtype
        np.testing.assert_allclose(weight, theirs.detach().numpy(), rtol=0, atol=tolerance)


# Muon -----------------------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([(1, 1), (4, 4), (3, 20), (20, 3), (30, 32)]))
def test_orthogonalize_brings_singular_values_near_1_and_keeps_the_directions(seed, shape):
    rng = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    values = 10 ** rng.uniform(-1.5, 0, len(vt))
    result = orthogonalize(u * values @ vt)
    new_values = np.diag(u.T @ result @ vt.T)
    np.testing.assert_allclose(u * new_values @ vt, result, atol=1e-10)
    assert new_values.min() > 0.6
    assert new_values.max() < 1.3


def test_orthogonalize_does_not_see_how_large_the_matrix_is():
    matrix = np.random.default_rng(0).standard_normal((5, 8))
    np.testing.assert_allclose(orthogonalize(1e4 * matrix), orthogonalize(matrix), atol=1e-6)
    assert not orthogonalize(np.zeros((5, 8))).any()
    assert np.vdot(orthogonalize(1e-9 * matrix), matrix) > 0


@given(seeds, st.sampled_from([(6, 6), (4, 12), (12, 4)]), st.booleans())
def test_muon_is_its_formula(seed, shape, transposed):
    rng = np.random.default_rng(seed)
    weight = random_array(rng, shape, transposed)
    average = np.zeros_like(weight)
    expected, m = weight.copy(), np.zeros(shape)
    length = math.sqrt(max(1, shape[1] / shape[0]))
    for _ in range(3):
        gradient = random_array(rng, shape, transposed)
        muon(weight, gradient, average, rate=0.1, momentum=0.9, decay=0.2)
        m = 0.9 * m + 0.1 * gradient
        direction = orthogonalize(0.1 * gradient + 0.9 * m)
        expected = expected - 0.1 * (length * direction + 0.2 * expected)
        np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimizers_leave_the_gradient_and_every_type_as_they_are(dtype):
    rng = np.random.default_rng(0)
    weight, gradient = (rng.standard_normal((8, 6)).astype(dtype) for _ in range(2))
    before = gradient.copy()
    moments = [np.zeros_like(weight) for _ in range(3)]
    adamw(weight, gradient, moments[0], moments[1], 1, 0.1, decay=0.1)
    muon(weight, gradient, moments[2], 0.1, decay=0.1)
    np.testing.assert_array_equal(gradient, before)
    assert {array.dtype for array in (weight, *moments, orthogonalize(gradient))} == {np.dtype(dtype)}


def test_weights_decay_only_where_it_is_asked_for():
    for optimizer, n_moments in ((adamw, 2), (muon, 1)):
        weight = np.ones((2, 3))
        step = [1] if optimizer is adamw else []
        optimizer(weight, np.zeros((2, 3)), *np.zeros((n_moments, 2, 3)), *step, rate=0.1)
        np.testing.assert_array_equal(weight, 1)


def test_muon_averages_about_twenty_steps_by_default():
    average = np.zeros((2, 2))
    muon(np.zeros((2, 2)), np.eye(2), average, rate=0.1)
    np.testing.assert_allclose(average, 0.05 * np.eye(2))


# Clipping and strips --------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0.01, 100))
def test_clipping_shrinks_all_gradients_alike_and_only_if_they_are_too_long(seed, largest):
    rng = np.random.default_rng(seed)
    gradients = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    before = {name: array.copy() for name, array in gradients.items()}
    norm = clip_by_global_norm(gradients, largest)
    assert norm == pytest.approx(np.linalg.norm(np.concatenate([array.ravel() for array in before.values()])))
    for name, array in gradients.items():
        np.testing.assert_allclose(array, before[name] * min(1, largest / norm), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_norm_of_gradients_that_are_not_finite_is_not_finite(bad):
    assert not math.isfinite(clip_by_global_norm({"a": np.ones(3), "b": np.array([1, bad])}, math.inf))


@given(shapes, st.booleans(), st.integers(1, 100))
def test_strips_cover_every_place_once(shape, transposed, size):
    array = random_array(np.random.default_rng(0), shape, transposed)
    counts = np.zeros_like(array)
    whole = optimizers.STRIP_SIZE
    optimizers.STRIP_SIZE = size
    try:
        for strip, count in strips(array, counts):
            assert strip.shape == count.shape
            assert strip.size <= max(size, array.size // max(shape), max(shape))
            count += 1
    finally:
        optimizers.STRIP_SIZE = whole
    assert (counts == 1).all()
