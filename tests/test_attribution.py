"""Attribution by gradients: saliency, attribution patching and integrated gradients against passes that are changed."""

import numpy as np
import pytest
from hypothesis import given

from numpy_gpt2 import (GPT2Config, Recorder, attribution_patching, forward, integrated_gradients, logit_difference,
                        named_parameters, patch, saliency)
from numpy_gpt2.tap import STAGES, stage_names, stage_of
from numpy_gpt2.weights import build_model
from strategies import lively_model, passes, random_ids, seeds

CONFIG = GPT2Config(vocab_size=13, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=10,
                    tie_word_embeddings=False)
IDS = random_ids(CONFIG, (6,))


def metric_at_position_2(logits):
    """A metric that is not linear: the log-probability of token 5 after the third token."""
    row = logits[..., 2, :]
    log_prob = row - np.log(np.sum(np.exp(row), axis=-1, keepdims=True))
    d_logits = np.zeros_like(logits)
    d_logits[..., 2, :] = -np.exp(log_prob)
    d_logits[..., 2, 5] += 1
    return float(np.sum(log_prob[..., 5])), d_logits


METRICS = {"logit difference": logit_difference(3, 7), "log-probability": metric_at_position_2}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


# Saliency -------------------------------------------------------------------------------------------------------------


@given(passes(), seeds)
def test_saliency_is_how_the_logit_changes_as_a_tokens_embedding_grows(pair, seed):
    model, ids = pair
    rng = np.random.default_rng(seed)
    n_tokens = ids.shape[-1]
    position = int(rng.integers(-n_tokens, n_tokens))
    token_id = int(rng.integers(model.config.vocab_size))
    found = saliency(model, ids, position, token_id)
    assert found.shape == ids.shape
    for i in range(n_tokens):
        def logits_with(factor):
            grown = forward(model, ids, tap=patch("wte", lambda x: factor * x, positions=i))
            return grown[..., position, token_id]

        slope = (logits_with(1 + 1e-5) - logits_with(1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(found[..., i], slope, atol=1e-5 * max(1, np.abs(found).max()))


def test_saliency_is_0_after_the_position():
    found = saliency(lively_model(CONFIG), IDS, 2, 4)
    assert found[:3].all()
    assert not found[3:].any()


# Attribution patching -------------------------------------------------------------------------------------------------


def nearly_equal_prompts(size):
    """A model and two prompts that differ in one token, whose embeddings differ by about `size`."""
    model = lively_model(CONFIG)
    arrays = dict(named_parameters(model))
    wte = arrays["wte.weight"].copy()
    wte[1] = wte[0] + size * np.random.default_rng(0).standard_normal(CONFIG.n_embd)
    clean = np.array([4, 0, 9, 2, 2, 11])
    return build_model(CONFIG, {**arrays, "wte.weight": wte}), clean, np.where(clean == 0, 1, clean)


def patched_metric(model, corrupted, metric, name, value, position, head):
    stage = stage_of(name)
    heads = head if "n_head" in stage.shape else None
    return metric(forward(model, corrupted, tap=patch(name, value, positions=position, heads=heads)))[0]


@each_metric
def test_attribution_patching_equals_real_patching_to_first_order(metric):
    """Where clean and corrupted differ by 1e-4, what is left out is of the order of its square."""
    model, clean, corrupted = nearly_equal_prompts(1e-4)
    found = attribution_patching(model, clean, corrupted, metric)
    clean_acts = Recorder()
    assert metric(forward(model, clean, tap=clean_acts))[0] == found.clean
    assert metric(forward(model, corrupted))[0] == pytest.approx(found.corrupted, abs=1e-12)
    assert list(found.effects) == stage_names(CONFIG)
    for name, effects in found.effects.items():
        heads = range(CONFIG.n_head) if "n_head" in stage_of(name).shape else [0]
        assert effects.shape == ((CONFIG.n_head, 6) if len(heads) > 1 else (6,)), name
        for head in heads:
            for position in range(6):
                value = clean_acts[name]
                real = patched_metric(model, corrupted, metric, name, value, position, head) - found.corrupted
                estimate = effects[head, position] if len(heads) > 1 else effects[position]
                assert abs(real - estimate) <= 1e-6, (name, head, position)
    assert max(np.abs(effects).max() for effects in found.effects.values()) > 1e-5


def test_the_error_of_attribution_patching_falls_with_the_square_of_the_difference():
    errors = []
    for size in (1e-2, 1e-3):
        model, clean, corrupted = nearly_equal_prompts(size)
        found = attribution_patching(model, clean, corrupted, logit_difference(3, 7))
        errors.append(abs(found.clean - found.corrupted - found.effects["wte"].sum()))
    assert 50 < errors[0] / errors[1] < 200


def test_attribution_patching_takes_batches():
    model, clean, corrupted = nearly_equal_prompts(1)
    metric = logit_difference(3, 7)
    both = attribution_patching(model, np.stack([clean, corrupted]), np.stack([corrupted, clean]), metric)
    there = attribution_patching(model, clean, corrupted, metric)
    back = attribution_patching(model, corrupted, clean, metric)
    assert both.clean == pytest.approx(there.clean + back.clean)
    for name in both.effects:
        if name != "wpe":  # which has no batch axes
            np.testing.assert_allclose(both.effects[name][0], there.effects[name], atol=1e-12)
            np.testing.assert_allclose(both.effects[name][1], back.effects[name], atol=1e-12)


def test_equal_prompts_have_no_effects():
    found = attribution_patching(lively_model(CONFIG), IDS, IDS, logit_difference(1, 2))
    assert found.clean == found.corrupted
    assert not any(effects.any() for effects in found.effects.values())
    assert {stage_of(name) for name in found.effects} == set(STAGES)


# Integrated gradients -------------------------------------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize("baseline", [0.0, "other tokens"])
def test_integrated_gradients_sum_to_the_difference_that_the_tokens_make(metric, baseline):
    model = lively_model(CONFIG)
    start = model.wte[random_ids(CONFIG, (6,), seed=1)] if baseline == "other tokens" else baseline
    found = integrated_gradients(model, IDS, metric, start, n_steps=200)
    assert found.shape == IDS.shape
    with_tokens, _ = metric(forward(model, IDS))
    without, _ = metric(forward(model, IDS, tap=patch("wte", start)))
    assert abs(with_tokens - without) > 0.1
    assert found.sum() == pytest.approx(with_tokens - without, abs=1e-6)


def test_integrated_gradients_of_a_baseline_near_the_tokens_are_gradient_times_difference():
    model = lively_model(CONFIG)
    near = model.wte[IDS] * (1 - 1e-6)
    found = integrated_gradients(model, IDS, lambda logits: (0.0, unit(logits, -1, 3)), near, n_steps=1)
    np.testing.assert_allclose(found, 1e-6 * saliency(model, IDS, -1, 3), rtol=1e-4, atol=1e-11)


def unit(logits, position, token_id):
    d_logits = np.zeros_like(logits)
    d_logits[position, token_id] = 1
    return d_logits


# The ready-made metric, and what is refused ---------------------------------------------------------------------------


def test_a_logit_difference_is_one_logit_less_another():
    logits = np.random.default_rng(0).standard_normal((2, 5, 13))
    value, d_logits = logit_difference(3, 7, position=1)(logits)
    assert value == pytest.approx((logits[:, 1, 3] - logits[:, 1, 7]).sum())
    assert value == pytest.approx(np.sum(d_logits * logits))
    assert np.abs(d_logits).sum() == 4
    assert not logit_difference(3, 3)(logits)[1].any()


def test_without_another_token_it_is_the_logit_alone():
    logits = forward(lively_model(CONFIG), IDS)
    value, d_logits = logit_difference(3, None)(logits)
    assert value == logits[-1, 3]
    assert d_logits[-1, 3] == d_logits.sum() == np.abs(d_logits).sum() == 1


@pytest.mark.parametrize("call, message", [
    (lambda model: saliency(model, IDS, 6, 0), "position must be a whole number from -6 to 5. Got 6"),
    (lambda model: saliency(model, IDS, -7, 0), "position must be a whole number from -6 to 5. Got -7"),
    (lambda model: saliency(model, IDS, 0, 13), "token_id must be a whole number from 0 to 12. Got 13"),
    (lambda model: saliency(model, IDS, 0, -1), "token_id must be a whole number from 0 to 12. Got -1"),
    (lambda model: attribution_patching(model, IDS, IDS[1:], logit_difference(1, 2)),
     r"clean and corrupted must be ids of the same shape. Got \(6,\) and \(5,\)"),
    (lambda model: attribution_patching(model, IDS, IDS, logit_difference(1, 13)), "token_id must be .* Got 13"),
    (lambda model: integrated_gradients(model, IDS, logit_difference(1, 2), n_steps=0),
     "n_steps must be a whole number, 1 or more. Got 0"),
])
def test_what_is_not_there_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(lively_model(CONFIG))
    assert "\n" not in str(error.value)
