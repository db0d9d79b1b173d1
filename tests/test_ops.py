"""Laws of the four operations, and values worked by hand."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from numpy_gpt2 import ops
from numpy_gpt2.ops import activation, erf, gelu, gelu_erf, in_strips, layer_norm, linear, softmax
from strategies import seeds

DTYPES = [np.float32, np.float64]
SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=5)


def numbers(dtype, largest: float):
    """Arrays of any shape, with numbers from -largest to largest."""
    bound = float(np.float32(largest))
    return arrays(dtype, SHAPES, elements=st.floats(-bound, bound, width=8 * np.dtype(dtype).itemsize))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# softmax --------------------------------------------------------------------------------------------------------------


@given(numbers(np.float32, 1e30) | numbers(np.float64, 1e30))
def test_softmax_rows_sum_to_one_whatever_their_size(x):
    shares = softmax(x)
    assert shares.shape == x.shape
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-6)


@given(numbers(np.float64, 10), st.floats(-100, 100))
def test_softmax_does_not_see_a_shift(x, shift):
    np.testing.assert_allclose(softmax(x + shift), softmax(x), atol=1e-12)


def test_softmax_of_equal_numbers_is_equal_shares():
    for number in (0.0, -1e30, 1e30):
        np.testing.assert_array_equal(softmax(np.full((2, 4), number)), np.full((2, 4), 0.25))


def test_softmax_worked_by_hand():
    # exp: 1, 2, 5; their sum: 8
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625], rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_gives_minus_infinity_exactly_nothing(dtype):
    x = np.array([[0, -np.inf, 0], [-np.inf, -1e30, -np.inf]], dtype)
    np.testing.assert_array_equal(softmax(x), [[0.5, 0, 0.5], [0, 1, 0]])


def test_softmax_of_far_apart_numbers_is_all_or_nothing():
    np.testing.assert_array_equal(softmax(np.array([1e30, -1e30, 0], np.float32)), [1, 0, 0])


@given(numbers(np.float32, 100))
def test_softmax_writes_into_the_array_it_is_given(x):
    expected = softmax(x)
    other = np.empty_like(x)
    for out in (other, x):
        assert softmax(x, out=out) is out
        np.testing.assert_array_equal(out, expected)


# gelu -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x, expected", [  # computed with 50 digits
    (0.0, 0.0),
    (0.5, 0.3457140098251439220377),
    (1.0, 0.8411919906082767047819),  # the form with erf gives 0.84134
    (-1.0, -0.158808009391723295218),
    (2.0, 1.9545976940877750187810),
    (3.0, 2.9963626079182269811621),
    (-3.0, -0.003637392081773018837),
])
def test_gelu_known_values(x, expected):
    assert gelu(np.array([x]))[0] == pytest.approx(expected, rel=1e-12, abs=1e-16)
    assert gelu(np.array([x], np.float32))[0] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(numbers(np.float64, 20))
def test_gelu_is_the_tanh_form_number_by_number(x):
    def gelu_of_one(x: float) -> float:
        return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    expected = np.reshape([gelu_of_one(number) for number in x.flat], x.shape)
    np.testing.assert_allclose(gelu(x), expected, atol=1e-13)


@given(numbers(np.float64, 1e30))
def test_gelu_parts_of_x_and_minus_x_differ_by_x(x):
    np.testing.assert_allclose(gelu(x) - gelu(-x), x, rtol=1e-12, atol=1e-12)


def test_gelu_lets_large_numbers_through_and_stops_large_negative_ones():
    np.testing.assert_array_equal(gelu(np.array([10, 1e6, 1e12, -10, -1e6, -1e12], np.float32)),
                                  np.array([10, 1e6, 1e12, 0, 0, 0], np.float32))


@given(st.lists(st.integers(1, 3), max_size=3), st.integers(1, 9))
def test_strips_are_whole_rows_each_given_once(leading, n):
    x = np.arange(math.prod(leading) * n, dtype=np.float64).reshape(*leading, n)
    strips = []

    def formula(rows):
        strips.append(rows)
        return 2 * rows

    with patch.object(ops, "STRIP", 2):
        np.testing.assert_array_equal(in_strips(formula, x), 2 * x)
    assert max(map(len, strips)) <= 2
    np.testing.assert_array_equal(np.concatenate(strips), x.reshape(-1, n))


# the other activations ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_erf_is_within_a_millionth_in_float32_and_exact_in_float64(values):
    x = np.array(values)
    expected = [math.erf(value) for value in values]
    assert erf(x).tolist() == expected
    np.testing.assert_allclose(erf(x.astype(np.float32)), expected, atol=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9), st.integers(1, 40))
def test_the_activations_are_their_formulas(values, n_rows):
    x = np.tile(np.array(values), (n_rows, 1))
    exact = np.array([[0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in values]] * n_rows)
    np.testing.assert_allclose(activation("gelu", x), exact, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(activation("gelu", x.astype(np.float32)), exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(activation("relu", x), np.where(x > 0, x, 0))
    np.testing.assert_array_equal(activation("gelu_new", x), gelu(x))
    for name in ("gelu", "relu", "gelu_new"):
        assert activation(name, x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu"])
def test_no_rows_have_no_activations(name, dtype):
    y = activation(name, np.empty((0, 3), dtype))
    assert (y.shape, y.dtype) == ((0, 3), dtype)


# layer_norm -----------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0.1, 1e3), st.floats(-100, 100), st.integers(4, 9))
def test_layer_norm_has_zero_mean_and_unit_variance_before_gain_and_bias(seed, spread, centre, n):
    x = centre + spread * np.random.default_rng(seed).standard_normal((2, 3, n))
    y = layer_norm(x, np.ones(n), np.zeros(n), epsilon=1e-20)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-8)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-8)


@given(seeds, st.floats(1e-5, 1))
def test_layer_norm_epsilon_is_added_to_the_variance(seed, epsilon):
    x = np.random.default_rng(seed).standard_normal((3, 5))
    variance = x.var(axis=-1)
    y = layer_norm(x, np.ones(5), np.zeros(5), epsilon)
    np.testing.assert_allclose(y.var(axis=-1), variance / (variance + epsilon), rtol=1e-12)


def test_layer_norm_worked_by_hand():
    # mean 2, variance 1; with epsilon 3 the root is 2, so that the normalised row is -1/2, 1/2
    y = layer_norm(np.array([[1.0, 3.0]]), weight=np.array([2.0, 4.0]), bias=np.array([10.0, 20.0]), epsilon=3.0)
    np.testing.assert_array_equal(y, [[9, 22]])


def test_layer_norm_of_equal_numbers_is_the_bias():
    y = layer_norm(np.full((2, 3), 7.0, np.float32), np.ones(3, np.float32), np.arange(3, dtype=np.float32), 1e-5)
    np.testing.assert_array_equal(y, [[0, 1, 2], [0, 1, 2]])


# linear ---------------------------------------------------------------------------------------------------------------


@given(seeds, st.lists(st.integers(1, 3), max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_linear_is_the_sum_over_inputs_for_any_leading_axes(seed, leading, n_in, n_out):
    rng = np.random.default_rng(seed)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((*leading, n_in), (n_in, n_out), n_out))
    y = linear(x, weight, bias)
    assert y.shape == (*leading, n_out)
    for index in np.ndindex(*leading):
        expected = [bias[j] + sum(x[index][i] * weight[i, j] for i in range(n_in)) for j in range(n_out)]
        np.testing.assert_allclose(y[index], expected, atol=1e-12)


def test_linear_reads_an_array_in_any_memory_order():
    x, weight, bias = np.arange(24.0).reshape(4, 3, 2).T, np.arange(12.0).reshape(4, 3), np.ones(3)
    np.testing.assert_array_equal(linear(x, weight, bias), linear(x.copy(), np.asfortranarray(weight), bias))


# all four -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, leading=st.lists(st.integers(1, 3), max_size=3))
def test_type_stays_and_arguments_stay(dtype, seed, leading):
    rng = np.random.default_rng(seed)
    x, vector, matrix = (read_only(rng.standard_normal(shape).astype(dtype)) for shape in ((*leading, 4), 4, (4, 4)))
    epsilon = 1e-5
    for y in (softmax(x), gelu(x), gelu_erf(x), layer_norm(x, vector, vector, epsilon), linear(x, matrix, vector)):
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert not np.shares_memory(y, x)
