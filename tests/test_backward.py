"""Gradients are what finite differences say; taps of the backward pass; what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, KVCache, Recorder, ablate, forward, named_parameters, random_model
from numpy_gpt2 import backward as backward_module
from numpy_gpt2 import ops
from numpy_gpt2.backward import activation_backward, backpropagate, loss_and_gradients
from numpy_gpt2.scoring import LEFT_OUT, cross_entropy
from numpy_gpt2.tap import STAGES, no_tap, stage_names
from numpy_gpt2.weights import build_model
from strategies import lively_model, passes, random_ids, seeds

CONFIG = GPT2Config(vocab_size=11, n_positions=9, n_embd=12, n_layer=2, n_head=3, n_inner=10)
UNTIED = GPT2Config(vocab_size=11, n_positions=9, n_embd=12, n_layer=2, n_head=3, n_inner=10,
                    tie_word_embeddings=False)
IDS = random_ids(CONFIG, (2, 7))


def difference_quotient(function, size=3e-5):
    """The derivative of function(t) at t = 0, by differences of fourth order."""
    near, far = (function(size) - function(-size)) / 2, (function(2 * size) - function(-2 * size)) / 4
    return (4 * near - far) / 3 / size


def assert_close(slope, expected, scale=1.0):
    assert abs(slope - expected) <= 1e-6 * max(scale, abs(expected)) + 1e-10  # the rounding of the losses


def random_targets(model, ids, seed):
    """Any targets, some of them left out, but not all."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(model.config.vocab_size, size=ids.shape)
    targets[rng.random(ids.shape) < 0.3] = LEFT_OUT
    targets[..., -1] = 0
    return targets


def moved(model, name, direction):
    """The model with one parameter moved."""
    arrays = dict(named_parameters(model))
    return build_model(model.config, {**arrays, name: arrays[name] + direction})


# Exact ----------------------------------------------------------------------------------------------------------------


@given(passes(), seeds)
def test_the_gradient_of_every_parameter_is_its_finite_difference(pair, seed):
    model, ids = pair
    targets = random_targets(model, ids, seed)
    _, gradients = loss_and_gradients(model, ids, targets)
    rng = np.random.default_rng(seed)
    for (name, gradient), (_, array) in zip(named_parameters(gradients), named_parameters(model)):
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)
        slope = difference_quotient(
            lambda t: loss_and_gradients(moved(model, name, t * direction), ids, targets)[0])
        assert_close(slope, np.sum(gradient * direction), np.abs(gradient * direction).sum())


@given(passes(), seeds)
def test_the_gradient_of_every_stage_is_its_finite_difference(pair, seed):
    model, ids = pair
    targets = random_targets(model, ids, seed)
    seen = Recorder()
    loss_and_gradients(model, ids, targets, gradient_tap=seen)
    assert sorted(seen) == sorted(stage_names(model.config))
    rng = np.random.default_rng(seed)
    for name in seen:
        direction = rng.standard_normal(seen[name].shape)

        def loss_at(t):
            return loss_and_gradients(model, ids, targets, tap=lambda at, x: x + t * direction if at == name else x)[0]

        products = seen[name] * direction
        assert_close(difference_quotient(loss_at), np.sum(products), np.abs(products).sum())


@pytest.mark.parametrize("config", [CONFIG, UNTIED, replace(CONFIG, activation_function="gelu"),
                                    replace(CONFIG, activation_function="relu")])
def test_every_single_number_of_every_gradient_is_its_finite_difference(config):
    model = lively_model(config)
    _, gradients = loss_and_gradients(model, IDS)
    for (name, gradient), (_, array) in zip(named_parameters(gradients), named_parameters(model)):
        rng = np.random.default_rng(len(name))
        for place in rng.permutation(array.size)[:6]:
            at = np.unravel_index(place, array.shape)
            direction = np.zeros(array.shape)
            direction[at] = 1
            slope = difference_quotient(lambda t: loss_and_gradients(moved(model, name, t * direction), IDS)[0])
            assert_close(slope, gradient[at])


@given(seeds, st.sampled_from([np.float32, np.float64]))
def test_the_loss_is_the_mean_of_the_negative_log_probabilities(seed, dtype):
    rng = np.random.default_rng(seed)
    logits = (10 * rng.standard_normal((3, 20, 7))).astype(dtype)
    targets = rng.integers(7, size=(3, 20))
    targets[0, ::2] = LEFT_OUT
    loss, d_logits = cross_entropy(logits, targets)
    exact = logits.astype(np.float64)
    log_probs = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    counted = targets != LEFT_OUT
    chosen = np.take_along_axis(log_probs, np.where(counted, targets, 0)[..., np.newaxis], axis=-1)[..., 0]
    assert loss == pytest.approx(-chosen[counted].mean(), rel=1e-5 if dtype == np.float32 else 1e-13)
    assert d_logits.dtype == dtype
    expected = np.exp(log_probs) - np.eye(7)[np.where(counted, targets, 0)]
    expected[~counted] = 0
    np.testing.assert_allclose(d_logits, expected / counted.sum(), atol=1e-7 if dtype == np.float32 else 1e-15)


def test_the_loss_of_a_target_that_is_next_to_impossible_is_finite():
    loss, d_logits = cross_entropy(np.array([[0, 1000]], np.float32), np.array([0]))
    assert loss == 1000
    np.testing.assert_array_equal(d_logits, [[-1, 1]])


# The same, computed otherwise -----------------------------------------------------------------------------------------


def assert_same(gradients, expected, tolerance=1e-12):
    for (name, array), (_, other) in zip(named_parameters(gradients), named_parameters(expected)):
        assert array.dtype == other.dtype, name
        np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=name)


@pytest.mark.parametrize("n_tokens", [1, 3, 4, 5, 9])
def test_queries_in_blocks_and_all_at_once_give_the_same_gradients(monkeypatch, n_tokens):
    model = lively_model(CONFIG)
    ids = random_ids(CONFIG, (2, n_tokens))
    targets = random_targets(model, ids, 0)
    _, expected = loss_and_gradients(model, ids, targets, gradient_tap=lambda name, value: value)
    monkeypatch.setattr(backward_module, "QUERY_BLOCK", 4)
    assert_same(loss_and_gradients(model, ids, targets)[1], expected)


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu"])
def test_rows_in_strips_and_one_by_one_have_the_same_slopes(monkeypatch, name):
    rng = np.random.default_rng(0)
    x, d_y = rng.standard_normal((2, 3, 5, 4))
    expected = [[activation_backward(name, d_y[i, j], x[i, j]) for j in range(5)] for i in range(3)]
    monkeypatch.setattr(backward_module, "STRIP", 4)
    monkeypatch.setattr(ops, "STRIP", 4)
    np.testing.assert_allclose(activation_backward(name, d_y, x), expected, rtol=1e-13)
    one_channel = activation_backward(name, d_y[..., :1], x[..., :1])
    np.testing.assert_allclose(one_channel, np.array(expected)[..., :1], rtol=1e-13)


def test_relu_has_no_slope_at_0():
    np.testing.assert_array_equal(activation_backward("relu", np.full(3, 5.0), np.array([-1.0, 0.0, 1.0])), [0, 0, 5])


def test_a_batch_has_the_mean_gradient_of_its_rows():
    model = lively_model(CONFIG)
    loss, gradients = loss_and_gradients(model, IDS)
    losses, of_rows = zip(*[loss_and_gradients(model, row) for row in IDS])
    assert loss == pytest.approx(np.mean(losses), rel=1e-13)
    means = {name: (a + b) / 2 for (name, a), (_, b) in zip(*map(named_parameters, of_rows))}
    assert_same(gradients, build_model(CONFIG, means))


def test_targets_default_to_the_next_token():
    model = lively_model(CONFIG)
    loss, gradients = loss_and_gradients(model, IDS)
    targets = np.concatenate([IDS[:, 1:], np.full((2, 1), LEFT_OUT)], axis=-1)
    loss_of_targets, of_targets = loss_and_gradients(model, IDS, targets)
    loss_of_shorter, of_shorter = loss_and_gradients(model, IDS[:, :-1], IDS[:, 1:])
    assert loss == loss_of_targets == pytest.approx(loss_of_shorter, rel=1e-13)
    assert_same(gradients, of_targets)
    assert_same(gradients, of_shorter)


def test_tied_weights_have_the_sum_of_both_gradients():
    model = lively_model(CONFIG)
    arrays = {**dict(named_parameters(model)), "lm_head.weight": model.wte.copy()}
    untied = build_model(UNTIED, arrays)
    _, tied_gradients = loss_and_gradients(model, IDS)
    _, untied_gradients = loss_and_gradients(untied, IDS)
    assert tied_gradients.lm_head is tied_gradients.wte
    both = untied_gradients.wte + untied_gradients.lm_head
    np.testing.assert_allclose(tied_gradients.wte, both, rtol=0, atol=1e-12 * np.abs(both).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_type_the_names_and_the_memory_order_of_the_weights(dtype):
    model = random_model(CONFIG)
    model = build_model(CONFIG, {name: array.astype(dtype, order="K") for name, array in named_parameters(model)})
    seen = Recorder()
    loss, gradients = loss_and_gradients(model, IDS, gradient_tap=seen)
    assert isinstance(loss, float)
    assert [name for name, _ in named_parameters(gradients)] == [name for name, _ in named_parameters(model)]
    for (name, gradient), (_, array) in zip(named_parameters(gradients), named_parameters(model)):
        assert (gradient.dtype, gradient.strides) == (array.dtype, array.strides), name
    assert {seen[name].dtype for name in seen} == {np.dtype(dtype)}


def test_nothing_that_was_given_is_changed():
    model = lively_model(CONFIG)  # its arrays are read-only
    acts = Recorder()
    logits = forward(model, IDS, tap=acts)
    before = {name: acts[name].copy() for name in acts}
    d_logits = np.ones_like(logits)
    backpropagate(model, IDS, acts, d_logits)
    assert (d_logits == 1).all()
    for name in acts:
        np.testing.assert_array_equal(acts[name], before[name], err_msg=name)


# From other numbers than the loss -------------------------------------------------------------------------------------


def test_backpropagate_from_one_logit_gives_the_gradient_of_that_logit():
    model = lively_model(CONFIG)
    ids = IDS[0]
    acts = Recorder()
    d_logits = np.zeros_like(forward(model, ids, tap=acts))
    d_logits[-1, 3] = 1
    gradients = backpropagate(model, ids, acts, d_logits)
    for (name, gradient), (_, array) in zip(named_parameters(gradients), named_parameters(model)):
        direction = np.random.default_rng(1).standard_normal(array.shape)
        slope = difference_quotient(lambda t: forward(moved(model, name, t * direction), ids)[-1, 3])
        assert_close(slope, np.sum(gradient * direction), np.abs(gradient * direction).sum())


def test_scores_and_pattern_need_not_be_kept():
    model = lively_model(CONFIG)
    acts = Recorder()
    d_logits = np.random.default_rng(0).standard_normal(forward(model, IDS, tap=acts).shape)
    expected = backpropagate(model, IDS, acts, d_logits)
    fewer = {name: acts[name] for name in acts if not name.endswith(("scores", "pattern"))}
    assert_same(backpropagate(model, IDS, fewer, d_logits), expected)


@pytest.mark.parametrize("tap, kept", [(no_tap, False), (Recorder("h.*.attn.q"), False),
                                       (Recorder("h.*.attn.pattern"), True), (lambda name, value: None, True)])
def test_scores_and_pattern_are_kept_only_for_a_tap_that_wants_them(monkeypatch, tap, kept):
    names = set()
    backpropagate_all = backward_module.backpropagate

    def look(model, ids, activations, d_logits, **taps):
        names.update(activations)
        return backpropagate_all(model, ids, activations, d_logits, **taps)

    monkeypatch.setattr(backward_module, "backpropagate", look)
    loss_and_gradients(lively_model(CONFIG), IDS, tap=tap)
    assert ("h.1.attn.scores" in names, "h.1.attn.pattern" in names) == (kept, kept)


@pytest.mark.parametrize("taps, at_once", [
    ({}, [4, 4, 1]), ({"gradient_tap": ablate("h.*.attn.z")}, [4, 4, 1]),
    ({"gradient_tap": ablate("h.*.attn.scores")}, [9]), ({"gradient_tap": ablate("h.*.attn.pattern")}, [9]),
    ({"tap": Recorder("h.*.attn.pattern")}, [9]),
])
def test_queries_come_in_blocks_unless_a_tap_wants_all_their_scores(monkeypatch, taps, at_once):
    counts = []
    attend_backward = backward_module.attend_backward

    def look(d_z, *arguments):
        counts.append(d_z.shape[-2])
        return attend_backward(d_z, *arguments)

    monkeypatch.setattr(backward_module, "attend_backward", look)
    monkeypatch.setattr(backward_module, "QUERY_BLOCK", 4)
    loss_and_gradients(lively_model(CONFIG), random_ids(CONFIG, 9), **taps)
    assert counts == at_once * CONFIG.n_layer


# Taps -----------------------------------------------------------------------------------------------------------------


def test_gradient_taps_fire_under_the_forward_names_from_the_last_to_the_first():
    model = lively_model(CONFIG)
    forth, back = Recorder(), Recorder()
    loss_and_gradients(model, IDS, tap=forth, gradient_tap=back)
    assert sorted(back) == sorted(forth)
    assert {name: back[name].shape for name in back} == {name: forth[name].shape for name in forth}
    blocks = [name.split(".")[1] for name in back if name.startswith("h.")]
    assert blocks == sorted(blocks, reverse=True)
    assert list(back)[0] == "logits"


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_a_gradient_that_is_stopped_flows_no_further(stage):
    """With a whole stage stopped, the loss does not depend on what only reaches it through that stage."""
    name = stage.replace("h.i.", "h.1.")
    model = lively_model(CONFIG)
    _, gradients = loss_and_gradients(model, IDS, gradient_tap=ablate(name))

    def stopped(at, value):
        return np.zeros_like(value) if at == name else value

    _, same = loss_and_gradients(model, IDS, gradient_tap=stopped)
    _, whole = loss_and_gradients(model, IDS)
    assert_same(gradients, same)
    assert any((a != b).any() for (_, a), (_, b) in zip(named_parameters(gradients), named_parameters(whole)))
    if stage in ("logits", "ln_f", "h.i.resid_post"):
        assert not gradients.h[0].attn.c_attn.weight.any()
    if stage.startswith("h.i.mlp"):
        assert not gradients.h[1].mlp.c_fc.weight.any()
        assert gradients.h[1].attn.c_attn.weight.any()
    if stage in ("h.i.attn.z", "h.i.attn.out", "h.i.attn.qkv", "h.i.ln_1"):
        assert not gradients.h[1].ln_1.weight.any()


def test_the_gradient_passes_straight_through_what_a_forward_tap_put_in_place():
    model = lively_model(CONFIG)
    rng = np.random.default_rng(0)
    for stage in stage_names(CONFIG):
        def shifted(name, value):
            return value + rng.standard_normal(value.shape) / 10 if name == stage else value

        tap_seen = Recorder()
        rng = np.random.default_rng(5)
        _, gradients = loss_and_gradients(model, IDS, tap=shifted, gradient_tap=tap_seen)
        for name, array in named_parameters(model):
            direction = np.random.default_rng(1).standard_normal(array.shape)

            def loss_at(t):  # the shift itself stays what it is
                nonlocal rng
                rng = np.random.default_rng(5)
                return loss_and_gradients(moved(model, name, t * direction), IDS, tap=shifted)[0]

            gradient = dict(named_parameters(gradients))[name]
            assert_close(difference_quotient(loss_at), np.sum(gradient * direction),
                         np.abs(gradient * direction).sum())


def test_a_tap_that_only_looks_changes_no_gradient():
    model = lively_model(CONFIG)
    _, expected = loss_and_gradients(model, IDS)
    _, gradients = loss_and_gradients(model, IDS, tap=lambda *_: None, gradient_tap=lambda *_: None)
    assert_same(gradients, expected)


def test_a_gradient_tap_must_return_the_gradients_shape():
    with pytest.raises(ValueError, match=r"the tap must return shape .* at 'h.1.mlp.out'"):
        loss_and_gradients(lively_model(CONFIG), IDS, gradient_tap=lambda name, value:
                           value[..., :1] if name == "h.1.mlp.out" else value)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets, message", [
    (np.zeros((2, 6), int), r"targets must be integers of the shape of ids, \(2, 7\). Got int64, \(2, 6\)"),
    (np.zeros((2, 7)), r"targets must be integers .* Got float64"),
    (np.full((2, 7), LEFT_OUT), "targets must have an id to predict.* Got only -100"),
    (np.full((2, 7), 11), "targets must be from 0 to 10, or -100. Got 11"),
    (np.full((2, 7), -1), "targets must be from 0 to 10, or -100. Got -1"),
])
def test_targets_that_are_none_are_refused_in_one_line(targets, message):
    with pytest.raises(ValueError, match=message) as error:
        loss_and_gradients(lively_model(CONFIG), IDS, targets)
    assert "\n" not in str(error.value)


def test_one_token_has_no_next_one():
    with pytest.raises(ValueError, match="ids of one token have no next one"):
        loss_and_gradients(lively_model(CONFIG), [3])


def test_ids_that_are_no_tokens_are_refused_as_in_the_forward_pass():
    with pytest.raises(ValueError, match="ids must be from 0 to 10. Got 11"):
        loss_and_gradients(lively_model(CONFIG), [11, 2])


def test_activations_of_a_cached_pass_are_refused():
    model = lively_model(CONFIG)
    cache = KVCache(model)
    forward(model, [1, 2], cache=cache)
    acts = Recorder()
    logits = forward(model, [3, 4, 5], cache=cache, tap=acts)
    with pytest.raises(ValueError, match=r"from a pass over ids without a cache: \(3, 3, 4\) at 'h.0.attn.k_all'. "
                                         r"Got \(3, 5, 4\)"):
        backpropagate(model, [3, 4, 5], acts, np.zeros_like(logits))


def test_gradients_of_other_logits_are_refused():
    model = lively_model(CONFIG)
    acts = Recorder()
    logits = forward(model, IDS, tap=acts)
    with pytest.raises(ValueError, match=r"\(2, 7, 11\) at 'logits'. Got \(2, 1, 11\)"):
        backpropagate(model, IDS, acts, logits[:, -1:])
