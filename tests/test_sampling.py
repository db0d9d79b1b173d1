"""From logits to a token: which tokens each setting allows, and how often each allowed one is drawn."""

import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from numpy_gpt2.ops import softmax
from numpy_gpt2 import GenerationConfig
from numpy_gpt2.errors import shown
from numpy_gpt2.sampling import (apply_repetition_penalty, apply_temperature, keep_min_p, keep_top_k, keep_top_p,
                                 process_logits, sample)

JUST_BELOW_1 = math.nextafter(1.0, 0.0)
NONE_BEFORE = np.zeros(0, dtype=int)
EVERYTHING = GenerationConfig(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
EACH_SETTING = [GenerationConfig(**settings) for settings in (
    {}, {"temperature": 0}, {"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.3},
    {"repetition_penalty": 1.5})] + [EVERYTHING]

# Logits from a coarse grid, so that ties are common.
logit_rows = st.lists(st.integers(-24, 24), min_size=1, max_size=12).map(lambda row: np.array(row) / 4)


def random_logits(*shape, dtype="float32"):
    return (3 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


def probabilities_of(logits):
    """The plain definition, in Python floats."""
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [exponential / math.fsum(exponentials) for exponential in exponentials]


def allowed_tokens(logits):
    return set(np.flatnonzero(logits > -np.inf).tolist())


# Which tokens are allowed


@given(logit_rows, st.integers(1, 15))
def test_top_k_keeps_exactly_the_tokens_that_fewer_than_k_exceed(logits, k):
    expected = {token for token, logit in enumerate(logits) if sum(logits > logit) < k}
    assert allowed_tokens(keep_top_k(logits, k)) == expected


@given(logit_rows, st.floats(0.001, 0.999))
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(logits, p):
    descending = sorted(probabilities_of(logits), reverse=True)
    reached = [math.fsum(descending[:n]) for n in range(1, len(logits) + 1)]
    assume(min(abs(total - p) for total in reached) > 1e-9)  # not a matter of rounding
    n_expected = 1 + sum(total < p for total in reached[:-1])

    kept = allowed_tokens(keep_top_p(logits, p))
    assert len(kept) == n_expected
    dropped = set(range(len(logits))) - kept
    assert all(logits[token] >= logits[other] for token in kept for other in dropped)


@given(logit_rows, st.floats(0.001, 1.0))
def test_min_p_keeps_exactly_the_tokens_at_least_that_share_of_the_likeliest(logits, min_p):
    probabilities = probabilities_of(logits)
    limit = min_p * max(probabilities)
    assume(min(abs(probability - limit) for probability in probabilities) > 1e-9 or min_p == 1)
    expected = {token for token, probability in enumerate(probabilities) if probability >= limit}
    assert allowed_tokens(keep_min_p(logits, min_p)) == expected


@given(logit_rows, st.integers(1, 12), st.floats(0.001, 0.999), st.floats(0.001, 1.0))
def test_what_is_allowed_keeps_its_logit(logits, k, p, min_p):
    for kept in (keep_top_k(logits, k), keep_top_p(logits, p), keep_min_p(logits, min_p)):
        assert np.array_equal(kept, np.where(kept > -np.inf, logits, -np.inf))


@given(logit_rows, st.integers(1, 12), st.floats(0.001, 0.999), st.floats(0.0, 1.0), st.floats(0.05, 50.0))
def test_a_likeliest_token_is_always_allowed(logits, k, p, min_p, temperature):
    sampling = GenerationConfig(temperature=temperature, top_k=k, top_p=p, min_p=min_p)
    processed = process_logits(logits, NONE_BEFORE, sampling)
    assert logits[np.argmax(processed)] == logits.max()


@pytest.mark.parametrize("k", [5, 6, 1000])
def test_a_top_k_of_the_vocabulary_or_more_keeps_everything(k):
    logits = random_logits(3, 5)
    assert np.array_equal(keep_top_k(logits, k), logits)


def test_all_tokens_as_likely_as_the_kth_are_kept():
    logits = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    assert allowed_tokens(keep_top_k(logits, 2)) == {0, 1, 2, 3}


@pytest.mark.parametrize("p", [1e-12, 1e-300])
def test_a_tiny_top_p_keeps_one_token_even_where_all_are_equal(p):
    assert len(allowed_tokens(keep_top_p(np.zeros(7), p))) == 1


def test_tokens_that_reach_top_p_exactly_are_enough():
    assert len(allowed_tokens(keep_top_p(np.zeros(4), 0.5))) == 2


def test_top_p_keeps_the_right_share_of_as_many_tokens_as_gpt2_has():
    allowed = keep_top_p(np.zeros(50257, dtype="float32"), 0.5) > -np.inf
    assert abs(allowed.sum() - 0.5 * 50257) <= 1


def test_of_equally_likely_tokens_top_p_keeps_the_last_on_every_machine():
    logits = np.arange(1000) % 2 / 4  # sorting must leave equals in their order
    unlikely_and_allowed = keep_top_p(logits, 0.9)[0::2] > -np.inf
    assert np.array_equal(unlikely_and_allowed, np.sort(unlikely_and_allowed))
    assert 0 < unlikely_and_allowed.sum() < 500


def test_a_min_p_of_1_keeps_all_of_the_likeliest():
    assert allowed_tokens(keep_min_p(np.array([1.0, 3.0, 3.0, 2.0]), 1.0)) == {1, 2}


def test_top_p_counts_only_what_top_k_has_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    processed = process_logits(logits, NONE_BEFORE, GenerationConfig(top_k=2, top_p=0.5))
    assert allowed_tokens(processed) == {0}  # 0.4 / 0.7 of what is left; of everything it would be 0.4 only


def test_temperature_comes_before_top_p():
    logits = np.log([0.5, 0.3, 0.2])
    assert allowed_tokens(process_logits(logits, NONE_BEFORE, GenerationConfig(top_p=0.4))) == {0}
    assert allowed_tokens(process_logits(logits, NONE_BEFORE, GenerationConfig(top_p=0.4, temperature=10))) == {0, 1}


# Repetition


@given(logit_rows, st.data(), st.floats(0.1, 10))
def test_the_penalty_changes_exactly_the_tokens_seen_before(logits, data, penalty):
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=20))
    expected = [logit if token not in seen else logit / penalty if logit > 0 else logit * penalty
                for token, logit in enumerate(logits)]
    assert apply_repetition_penalty(logits, np.array(seen, dtype=int), penalty).tolist() == expected


def test_a_penalty_makes_a_seen_token_less_likely_whatever_the_sign_of_its_logit():
    for logits in (np.array([1.0, 2.0]), np.array([-1.0, -2.0])):
        before = softmax(logits)
        after = softmax(apply_repetition_penalty(logits, np.array([0]), 1.5))
        assert after[0] < before[0]


@pytest.mark.parametrize("penalty", [0.5, 1, 2])
def test_a_penalty_is_one_of_the_settings_that_are_applied(penalty):
    logits = random_logits(9)
    processed = process_logits(logits, np.array([3, 4]), GenerationConfig(repetition_penalty=penalty))
    assert np.array_equal(processed, apply_repetition_penalty(logits, np.array([3, 4]), penalty))


def test_each_row_is_penalised_for_its_own_tokens():
    penalised = apply_repetition_penalty(np.ones((2, 3)), np.array([[0, 0], [2, 1]]), 2.0)
    assert penalised.tolist() == [[0.5, 1, 1], [1, 0.5, 0.5]]


def test_a_seen_token_that_is_not_to_be_drawn_changes_nothing():
    logits = np.array([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(apply_repetition_penalty(logits, np.array([0, 7]), 2.0), [0.5, -2.0, 3.0])


# Temperature


def test_neutral_settings_leave_the_logits_alone():
    logits = random_logits(2, 9)
    assert np.array_equal(process_logits(logits, np.zeros((2, 0), dtype=int), GenerationConfig()), logits)


@given(logit_rows, st.floats(0.1, 10))
def test_temperature_raises_probabilities_to_its_inverse_as_power(logits, temperature):
    powers = np.array(probabilities_of(logits)) ** (1 / temperature)
    assert np.allclose(softmax(apply_temperature(logits, temperature)), powers / powers.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1e-30, 1e-40])
def test_a_tiny_temperature_leaves_only_the_likeliest_tokens(temperature, dtype):
    logits = np.array([-80.0, 80.0, 79.9, 80.0], dtype=dtype)
    processed = process_logits(logits, NONE_BEFORE, GenerationConfig(temperature=temperature))
    assert softmax(processed).tolist() == [0, 0.5, 0, 0.5]


def test_a_temperature_too_small_for_float32_leaves_only_the_likeliest_token():
    logits = np.array([-80.0, 80.0, 79.9], dtype="float32")
    with np.errstate(all="ignore"):
        processed = process_logits(logits, NONE_BEFORE, GenerationConfig(temperature=1e-50))
    assert softmax(processed).tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_huge_temperature_makes_all_tokens_equally_likely(temperature, dtype):
    logits = np.array([-80.0, 80.0, 0.0, 3.0], dtype=dtype)
    processed = process_logits(logits, NONE_BEFORE, GenerationConfig(temperature=temperature))
    assert softmax(processed).tolist() == [0.25] * 4


def test_temperature_0_ignores_what_cannot_change_the_likeliest_token():
    logits = random_logits(4, 9)
    previous_ids = np.tile([1, 5], (4, 1))
    greedy = GenerationConfig(temperature=0, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5)
    expected = apply_repetition_penalty(logits, previous_ids, 1.5)
    assert np.array_equal(process_logits(logits, previous_ids, greedy), expected)


# Drawing


@given(logit_rows, st.floats(0, JUST_BELOW_1))
def test_the_token_drawn_is_the_one_whose_share_of_the_line_holds_the_draw(logits, draw):
    cumulative = np.cumsum(probabilities_of(logits))
    assume(np.abs(cumulative[:-1] - draw).min(initial=1) > 1e-9)
    expected = int((cumulative[:-1] <= draw).sum())
    assert sample(logits, np.array(draw)) == expected


def test_frequencies_match_the_probabilities():
    logits = np.array([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0], dtype="float32")
    n_draws = 50_000
    draws = np.random.default_rng(7).random(n_draws)
    tokens = sample(np.broadcast_to(logits, (n_draws, 8)), draws)
    expected = n_draws * np.array(probabilities_of(logits.tolist()))
    chi_square = np.sum((np.bincount(tokens, minlength=8) - expected) ** 2 / expected)
    assert chi_square < 24.3  # exceeded by chance once in a thousand seeds (7 degrees of freedom)


def test_evenly_spread_draws_give_each_token_its_share():
    logits = random_logits(6)
    n_draws = 10_000
    draws = (np.arange(n_draws) + 0.5) / n_draws
    counts = np.bincount(sample(np.broadcast_to(logits, (n_draws, 6)), draws), minlength=6)
    assert np.abs(counts - n_draws * softmax(logits)).max() <= 1.01


@pytest.mark.parametrize("draw", [0.0, 0.5, JUST_BELOW_1])
def test_a_token_of_probability_0_is_never_drawn(draw):
    for allowed in ([2], [1, 3], [0, 4]):
        logits = np.full(5, -np.inf, dtype="float32")
        logits[allowed] = 1.0
        assert int(sample(logits, np.array(draw))) in allowed


def test_the_extreme_draws_give_the_first_and_the_last_token():
    logits = np.zeros(50257, dtype="float32")  # as many as GPT-2 has: the sum of so many shares is not exactly 1
    assert sample(logits, np.array(0.0)) == 0
    assert sample(logits, np.array(JUST_BELOW_1)) == 50256


def test_many_tokens_too_unlikely_to_move_a_float32_sum_are_drawn_all_the_same():
    logits = np.full(50257, -18, dtype="float32")  # each 2e-8, together one in a thousand
    logits[0] = 0
    assert sample(logits, np.array(0.9996)) > 10_000
    assert sample(logits, np.array(JUST_BELOW_1)) == 50256


# Any leading axes, nothing mutated, float32 kept, errors


@pytest.mark.parametrize("sampling", EACH_SETTING, ids=str)
def test_every_row_is_processed_and_drawn_by_itself(sampling):
    logits = random_logits(2, 3, 30)
    previous_ids = np.random.default_rng(1).integers(0, 30, (2, 3, 8))
    draws = np.random.default_rng(2).random((2, 3))
    processed = process_logits(logits, previous_ids, sampling)
    tokens = sample(processed, draws)
    assert tokens.shape == (2, 3)
    for row in np.ndindex(2, 3):
        alone = process_logits(logits[row], previous_ids[row], sampling)
        assert np.array_equal(alone, processed[row])
        assert sample(alone, draws[row]) == tokens[row]
        assert np.argmax(alone) == np.argmax(processed, axis=-1)[row]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", EACH_SETTING, ids=str)
def test_nothing_is_mutated_and_the_type_is_kept(sampling, dtype):
    logits = random_logits(3, 30, dtype=dtype)
    previous_ids = np.random.default_rng(1).integers(0, 30, (3, 8))
    draws = np.random.default_rng(2).random(3)
    for array in (logits, previous_ids, draws):
        array.setflags(write=False)
    processed = process_logits(logits, previous_ids, sampling)
    assert processed.dtype == dtype
    assert np.array_equal(logits, random_logits(3, 30, dtype=dtype))
    processed.setflags(write=False)
    sample(processed, draws)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_a_setting_given_as_a_numpy_number_keeps_float32(name):
    sampling = GenerationConfig(**{name: np.float64(1.5)})
    assert process_logits(random_logits(30), np.array([3]), sampling).dtype == "float32"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", EACH_SETTING, ids=str)
def test_logits_that_are_not_finite_are_an_error_that_says_so(sampling, wrong):
    logits = random_logits(2, 9)
    logits[1, 4] = wrong
    with pytest.raises(FloatingPointError) as error:
        process_logits(logits, np.zeros((2, 1), dtype=int), sampling)
    assert str(error.value) == ("the logits are not finite: the checkpoint's weights are not, or they overflow, "
                                "or a tap returned such numbers")


@pytest.mark.parametrize("name, value", [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
    ("top_k", -1),
    ("top_p", 0), ("top_p", -0.5), ("top_p", 1.01), ("top_p", math.nan),
    ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", math.nan),
    ("repetition_penalty", math.inf),
])
def test_a_setting_that_makes_no_sense_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* Got {value}"):
        GenerationConfig(**{name: value})


@pytest.mark.parametrize("name, value", [("temperature", "hot"), ("top_k", 2.5), ("top_p", True), ("min_p", None),
                                         ("temperature", np.complex64(1)), ("temperature", 10**400)])
def test_a_setting_of_the_wrong_type_is_refused_too(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* Got {re.escape(shown(value))}"):
        GenerationConfig(**{name: value})


@pytest.mark.parametrize("scalar", [np.float16, np.float32, np.float64, np.longdouble])
def test_an_infinite_setting_is_refused_in_every_type_of_numpy(scalar):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GenerationConfig(temperature=scalar(0.5)).temperature == 0.5
        with pytest.raises(ValueError, match="temperature must be .* finite number. Got .*inf"):
            GenerationConfig(temperature=scalar(math.inf))


@pytest.mark.parametrize("settings", [
    {"temperature": 0}, {"top_k": 0}, {"top_p": 1}, {"top_p": 1e-9}, {"min_p": 0}, {"min_p": 1},
    {"repetition_penalty": 0.01}, {"top_k": np.int64(3)},
])
def test_the_limits_of_each_setting_are_allowed(settings):
    GenerationConfig(**settings)


@pytest.mark.parametrize("penalty", [1e-40, 1e300])
def test_a_penalty_that_overflows_is_said(penalty):
    with pytest.raises(FloatingPointError) as error:
        config = GenerationConfig(repetition_penalty=penalty)
        process_logits(np.array([3.0, -3.0], np.float32), np.array([0, 1]), config)
    assert str(error.value) == "the logits are not finite: the repetition penalty makes them overflow"


def test_a_logit_of_0_is_divided_so_that_an_infinite_penalty_leaves_it():
    logits = np.array([0, 3, 2], np.float32)
    assert apply_repetition_penalty(logits, np.array([0, 1]), 1e39).tolist() == [0, 0, 2]  # 1e39 is infinite in float32
