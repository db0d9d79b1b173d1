"""Laws of the forward pass, and the same pass written a second time, slowly, to compare with."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import (SIZES, STAGES, GPT2Config, KVCache, Recorder, build_model, forward, load, named_parameters,
                        pad_ids, parameter_shapes, random_model, transform, unembed)
from numpy_gpt2.model import merge_heads, split_heads
from numpy_gpt2.ops import activation
from numpy_gpt2.tap import stage_names, stage_of
from strategies import configs, lively_model, made_caches, passes, random_ids, seeds, splits

STORY = Path(__file__).parents[1] / "scripts" / "experiments" / "story.txt"
SMALLEST = GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2, n_inner=10)


def assert_close(actual, expected, tolerance: float) -> None:
    """Equal to within a tolerance that is relative to the largest number."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1, np.abs(expected).max())


# The same pass, slowly ------------------------------------------------------------------------------------------------


def slow_pass(model, ids: list[int]) -> dict[str, np.ndarray]:
    """Every stage of GPT-2 for one prompt, number by number where that can be read: no cache, no batch, no tricks."""
    config = model.config
    n_head, d_head = config.n_head, config.n_embd // config.n_head
    positions = range(len(ids))
    stages = {}

    def norm(x, weights):
        rows = []
        for row in x:
            mean = sum(row) / len(row)
            variance = sum((number - mean) ** 2 for number in row) / len(row)
            rows.append([(number - mean) / math.sqrt(variance + config.layer_norm_epsilon) for number in row])
        return np.array(rows) * weights.weight + weights.bias

    def gelu_of_one(x):
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    stages["wte"] = np.array([model.wte[token] for token in ids])
    stages["wpe"] = np.array([model.wpe[position] for position in positions])
    x = stages["wte"] + stages["wpe"]

    mask = np.array([[0.0 if key <= query else -math.inf for key in positions] for query in positions])
    for i, weights in enumerate(model.h):
        def stage(name, value):
            stages[f"h.{i}.{name}"] = np.array(value)
            return np.array(value)

        x = stage("resid_pre", x)
        normed = stage("ln_1", norm(x, weights.ln_1))
        qkv = stage("attn.qkv", normed @ weights.attn.c_attn.weight + weights.attn.c_attn.bias)

        all_q, all_k, all_v, all_scores, all_patterns, all_z = [], [], [], [], [], []
        for head in range(n_head):
            first = head * d_head  # this head's first channel among the queries
            q = qkv[:, first:first + d_head]
            k = qkv[:, config.n_embd + first:config.n_embd + first + d_head]
            v = qkv[:, 2 * config.n_embd + first:2 * config.n_embd + first + d_head]
            scores = np.array([[q[query] @ k[key] / math.sqrt(d_head) for key in positions] for query in positions])
            scores = scores + mask
            pattern = np.array([[math.exp(score) for score in row] for row in scores - scores.max(axis=1)[:, None]])
            pattern = pattern / pattern.sum(axis=1)[:, None]
            z = np.array([sum(pattern[query, key] * v[key] for key in positions) for query in positions])
            for everything, of_this_head in zip((all_q, all_k, all_v, all_scores, all_patterns, all_z),
                                                (q, k, v, scores, pattern, z)):
                everything.append(of_this_head)
        stage("attn.q", all_q)
        stage("attn.k", all_k)
        stage("attn.v", all_v)
        stage("attn.k_all", all_k)
        stage("attn.v_all", all_v)
        stage("attn.scores", all_scores)
        stage("attn.pattern", all_patterns)
        stage("attn.z", all_z)

        side_by_side = np.concatenate(all_z, axis=1)
        out = stage("attn.out", side_by_side @ weights.attn.c_proj.weight + weights.attn.c_proj.bias)
        x = stage("resid_mid", x + out)
        normed = stage("ln_2", norm(x, weights.ln_2))
        pre = stage("mlp.pre", normed @ weights.mlp.c_fc.weight + weights.mlp.c_fc.bias)
        post = stage("mlp.post", [[gelu_of_one(number) for number in row] for row in pre])
        out = stage("mlp.out", post @ weights.mlp.c_proj.weight + weights.mlp.c_proj.bias)
        x = stage("resid_post", x + out)

    stages["ln_f"] = norm(x, model.ln_f)
    unembedding = model.wte if config.tie_word_embeddings else model.lm_head
    stages["logits"] = np.array([[hidden @ row for row in unembedding] for hidden in stages["ln_f"]])
    return stages


@given(passes(batches=st.just(())))
def test_every_stage_equals_the_slow_pass(model_and_ids):
    model, ids = model_and_ids
    acts = Recorder()
    logits = forward(model, ids, tap=acts)
    expected = slow_pass(model, ids.tolist())
    assert list(acts) == list(expected)
    for name in acts:
        masked = np.isneginf(expected[name])
        np.testing.assert_array_equal(np.isneginf(acts[name]), masked)
        assert_close(np.where(masked, 0, acts[name]), np.where(masked, 0, expected[name]), 1e-10)
    np.testing.assert_array_equal(acts["logits"], logits)


def test_one_channel_worked_by_hand():
    # One channel: every layer norm gives its bias alone, for the channel is its own mean. With v = 1 + 2 = 3 and z = v,
    # attention adds 3 * 5 + 1 = 16; one neuron at gelu(0) = 0 adds the bias 7; the last norm's bias 4 meets wte.
    config = GPT2Config(vocab_size=2, n_positions=2, n_embd=1, n_layer=1, n_head=1, n_inner=1)
    values = {"wte.weight": [[2], [3]], "wpe.weight": [[0], [100]], "h.0.ln_1.bias": [1], "h.0.ln_2.bias": [2],
              "h.0.attn.c_attn.weight": [[8, 9, 1]], "h.0.attn.c_attn.bias": [-1, -2, 2],
              "h.0.attn.c_proj.weight": [[5]], "h.0.attn.c_proj.bias": [1],
              "h.0.mlp.c_fc.weight": [[3]], "h.0.mlp.c_fc.bias": [-6], "h.0.mlp.c_proj.weight": [[50]],
              "h.0.mlp.c_proj.bias": [7], "ln_f.bias": [4]}
    arrays = {name: np.full(shape, values.get(name, 1), np.float32) for name, shape in parameter_shapes(config).items()}
    model = build_model(config, arrays)
    acts = Recorder()
    logits = forward(model, [0, 1], tap=acts)
    np.testing.assert_array_equal(acts["h.0.attn.out"], [[16], [16]])
    np.testing.assert_array_equal(acts["h.0.resid_mid"], [[2 + 16], [103 + 16]])
    np.testing.assert_array_equal(acts["h.0.resid_post"], [[2 + 16 + 7], [103 + 16 + 7]])
    np.testing.assert_array_equal(logits, [[8, 12], [8, 12]])


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu"])
def test_neurons_go_through_the_activation_function_of_the_config(name):
    config = dataclasses.replace(SMALLEST, activation_function=name)
    acts = Recorder()
    forward(lively_model(config), [1, 2, 3], tap=acts)
    np.testing.assert_array_equal(acts["h.1.mlp.post"], activation(name, acts["h.1.mlp.pre"]))


# Shapes, names and types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_every_stage_has_the_name_shape_and_type_that_the_table_says(dtype, data):
    model, ids = data.draw(passes(dtype))
    *batch, n_all = ids.shape
    n_cached = data.draw(st.integers(0, n_all - 1))
    cache = KVCache(model, n_positions=n_all, batch=tuple(batch))
    if n_cached:
        forward(model, ids[..., :n_cached], cache=cache)
    acts = Recorder()
    n_new = n_all - n_cached
    logits = forward(model, ids[..., n_cached:], cache=cache, tap=acts)

    assert list(acts) == stage_names(model.config)
    for name in acts:
        expected = stage_of(name).concrete_shape(model.config, n_new, n_all, n_unembedded=n_new)
        leading = () if name == "wpe" else tuple(batch)
        assert acts[name].shape == leading + expected, name
        assert acts[name].dtype == dtype, name
    assert (logits.shape, logits.dtype) == ((*batch, n_new, model.config.vocab_size), dtype)


@given(passes(np.float32))
def test_forward_is_unembed_of_transform_and_the_last_position_can_be_unembedded_alone(model_and_ids):
    model, ids = model_and_ids
    acts = Recorder()
    logits = forward(model, ids)
    hidden = transform(model, ids)
    np.testing.assert_array_equal(unembed(model, hidden), logits)
    last = unembed(model, hidden[..., -1:, :], tap=acts)
    assert_close(last, logits[..., -1:, :], 1e-5)
    assert last.dtype == np.float32
    assert last.shape[-2:] == stage_of("logits").concrete_shape(model.config, ids.shape[-1], ids.shape[-1], 1)
    np.testing.assert_array_equal(acts["logits"], last)


def test_an_epsilon_of_numpys_own_type_does_not_widen_the_pass():
    # Under NumPy 2 a float64 scalar, unlike a Python float, makes float64 of the float32 it meets.
    config = dataclasses.replace(SMALLEST, layer_norm_epsilon=np.float64(1e-5))
    assert forward(lively_model(config, dtype=np.float32), [1, 2]).dtype == np.float32


def test_every_row_of_the_table_is_announced():
    announced = {stage_of(name).name for name in stage_names(SMALLEST)}
    assert announced == {stage.name for stage in STAGES}


# Parameters -----------------------------------------------------------------------------------------------------------


def closed_form(config: GPT2Config) -> int:
    """How many numbers a GPT-2 has, from its settings alone."""
    vocab, context, width, inner = config.vocab_size, config.n_positions, config.n_embd, config.n_inner
    attention = (width * 3 * width + 3 * width) + (width * width + width)
    mlp = (width * inner + inner) + (inner * width + width)
    norm = 2 * width
    embeddings = vocab * width + context * width
    untied = 0 if config.tie_word_embeddings else vocab * width
    return embeddings + config.n_layer * (attention + mlp + 2 * norm) + norm + untied


def count(shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


@given(configs())
def test_parameter_counts_equal_the_closed_form_and_the_sum_over_arrays(config):
    parameters = dict(named_parameters(random_model(config)))
    assert {name: array.shape for name, array in parameters.items()} == dict(parameter_shapes(config))
    assert list(parameters) == list(parameter_shapes(config))
    assert sum(array.size for array in parameters.values()) == closed_form(config) == count(
        parameter_shapes(config).values())


@given(configs().filter(lambda config: config.tie_word_embeddings and config.n_inner == 4 * config.n_embd))
def test_parameter_count_in_one_line(config):
    V, P, C, L = config.vocab_size, config.n_positions, config.n_embd, config.n_layer
    assert count(parameter_shapes(config).values()) == V*C + P*C + L*(12*C**2 + 13*C) + 2*C


@pytest.mark.parametrize("size, tied, untied, wte", [
    ("small", 124_439_808, 163_037_184, 38_597_376),
    ("medium", 354_823_168, 406_286_336, 51_463_168),
    ("large", 774_030_080, 838_359_040, 64_328_960),
    ("xl", 1_557_611_200, 1_638_022_400, 80_411_200),
])
def test_parameter_counts_of_the_four_sizes(size, tied, untied, wte):
    config = SIZES[size]
    without_tie = GPT2Config.from_dict({**config.to_dict(), "tie_word_embeddings": False})
    assert count(parameter_shapes(config).values()) == closed_form(config) == tied
    assert count(parameter_shapes(without_tie).values()) == closed_form(without_tie) == untied
    assert math.prod(parameter_shapes(config)["wte.weight"]) == wte


@given(configs())
def test_lm_head_is_wte_itself_where_tied_and_a_parameter_of_its_own_where_not(config):
    model = random_model(config)
    names = [name for name, _ in named_parameters(model)]
    assert len(names) == len(set(names))
    assert (model.lm_head is model.wte) == config.tie_word_embeddings == ("lm_head.weight" not in names)


# Cached and uncached --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
@given(data=st.data())
def test_cached_logits_equal_uncached(dtype, tolerance, data):
    model, ids = data.draw(passes(dtype))
    cache = KVCache(model, batch=ids.shape[:-1])
    chunks = data.draw(splits(ids))
    logits = np.concatenate([forward(model, chunk, cache=cache) for chunk in chunks], axis=-2)
    assert_close(logits, forward(model, ids), tolerance)
    assert cache.length == ids.shape[-1]


def test_a_pass_without_a_cache_sets_aside_room_for_its_own_tokens_only(monkeypatch):
    caches = made_caches(monkeypatch, "numpy_gpt2.model")
    config = GPT2Config(vocab_size=5, n_positions=9, n_embd=4, n_layer=1, n_head=2)
    forward(lively_model(config), random_ids(config, (2, 3)))
    assert [(cache.n_positions, cache.batch) for cache in caches] == [(3, (2,))]


@given(passes(np.float32))
def test_one_token_at_a_time_equals_all_at_once(model_and_ids):
    model, ids = model_and_ids
    cache = KVCache(model, n_positions=ids.shape[-1], batch=ids.shape[:-1])
    logits = np.concatenate([forward(model, ids[..., i:i + 1], cache=cache) for i in range(ids.shape[-1])], axis=-2)
    assert_close(logits, forward(model, ids), 1e-5)


# Rows and tokens that must not see each other -------------------------------------------------------------------------


@given(passes())
def test_batch_rows_equal_single_rows(model_and_ids):
    model, ids = model_and_ids
    logits = forward(model, ids)
    for row in np.ndindex(ids.shape[:-1]):
        assert_close(logits[row], forward(model, ids[row]), 1e-12)


@given(passes(np.float32, min_tokens=2), st.data())
def test_changing_later_tokens_never_changes_an_earlier_logit(model_and_ids, data):
    # Not by one bit: a later token's share is exactly 0, and to add 0 times its value changes nothing.
    model, ids = model_and_ids
    n_kept = data.draw(st.integers(1, ids.shape[-1] - 1))
    others = random_ids(model.config, ids.shape, data.draw(seeds))
    changed = np.concatenate([ids[..., :n_kept], others[..., n_kept:]], axis=-1)
    np.testing.assert_array_equal(forward(model, changed)[..., :n_kept, :], forward(model, ids)[..., :n_kept, :])


@given(passes(min_tokens=2), st.data())
def test_leaving_out_later_tokens_never_changes_an_earlier_logit(model_and_ids, data):
    model, ids = model_and_ids
    n_kept = data.draw(st.integers(1, ids.shape[-1] - 1))
    assert_close(forward(model, ids[..., :n_kept]), forward(model, ids)[..., :n_kept, :], 1e-12)


def test_changing_an_earlier_token_changes_every_later_logit():
    model = lively_model(SMALLEST)
    before = forward(model, [1, 2, 3, 4])
    after = forward(model, [1, 5, 3, 4])
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.abs(before[1:] - after[1:]).max(axis=-1) > 1e-3).all()


def test_the_same_token_at_another_position_gives_other_logits():
    model = lively_model(SMALLEST)
    logits = forward(model, [7, 7, 7])
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    assert np.abs(logits[1] - logits[2]).max() > 1e-3


# Heads ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_merge_heads_undoes_split_heads(batch, n_new, n_head, d_head):
    x = np.arange(math.prod((*batch, n_new, n_head, d_head))).reshape(*batch, n_new, n_head * d_head)
    heads = split_heads(x, n_head)
    assert heads.shape == (*batch, n_head, n_new, d_head)
    for head in range(n_head):
        np.testing.assert_array_equal(heads[..., head, :, :], x[..., head * d_head:(head + 1) * d_head])
    np.testing.assert_array_equal(merge_heads(heads), x)


# The boundary ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, name", [(Recorder(), "Recorder"), ({}, "dict"), (np.zeros(3), "ndarray"), (8, "int")])
def test_what_is_no_cache_is_refused_by_its_type(wrong, name):
    for function in (forward, transform):
        with pytest.raises(TypeError) as error:
            function(lively_model(SMALLEST), [1, 2], cache=wrong)
        assert str(error.value) == f"cache must be a KVCache. Got {name}; activations are recorded with tap=."


BOOLEANS = "ids must be integers. Got booleans among them; of `ids, mask = pad_ids(prompts)`, pass ids alone."


@pytest.mark.parametrize("ids, message", [
    ([0, -1], "ids must be from 0 to 10. Got -1."),
    ([0, 11, -3], "ids must be from 0 to 10. Got -3."),
    ([0, 11], "ids must be from 0 to 10. Got 11."),
    (np.array([2**64 - 1], np.uint64), "ids must be from 0 to 10. Got 18446744073709551615."),
    ([1.0, 2.0], "ids must be integers. Got float64."),
    ([True, False], "ids must be integers. Got bool."),
    (["Once"], "ids must be token ids: tokenizer.encode(text) gives them. Got text, ['Once']."),
    ("Once", "ids must be token ids: tokenizer.encode(text) gives them. Got text, 'Once'."),
    ("", "ids must be token ids: tokenizer.encode(text) gives them. Got text, ''."),
    ([2**70], "ids must be integers. Got object."),
    ([None], "ids must be integers. Got object."),
    ([], "ids must be a list of one token id or more. Got shape (0,)."),
    ([[], []], "ids must be a list of one token id or more. Got shape (2, 0)."),
    (np.zeros((0, 3), int), "ids must be a list of one token id or more. Got shape (0, 3)."),
    (5, "ids must be a list of one token id or more. Got int."),
    (None, "ids must be a list of one token id or more. Got NoneType."),
    (lively_model(SMALLEST), "ids must be a list of one token id or more. Got GPT2."),
    (pad_ids([[1, 2], [3]]), BOOLEANS),
    ([[1, True]], BOOLEANS),
    ((2, np.True_), BOOLEANS),
    ([[1, 2], [3]], "ids must be prompts of equal length: `ids, mask = pad_ids(prompts)` makes them. "
     "Got rows of different lengths."),
    ([1] * 9, "ids must be at most 8 tokens, the model's context. Got 9."),
    ([[1] * 9], "ids must be at most 8 tokens, the model's context. Got 9."),
])
def test_ids_that_are_no_tokens_are_refused_before_anything_is_written(ids, message):
    model = lively_model(SMALLEST)
    cache = KVCache(model)
    for refused in (lambda: forward(model, ids), lambda: transform(model, ids),
                    lambda: forward(model, ids, cache=cache)):
        with pytest.raises(ValueError) as error:
            refused()
        assert str(error.value) == message
    assert cache.length == 0
    assert not cache.k.any() and not cache.v.any()


def test_the_smallest_and_the_largest_id_and_a_full_context_are_taken():
    model = lively_model(SMALLEST)
    assert forward(model, [0, 10] * 4).shape == (8, 11)


def test_ids_of_any_integer_type_and_container_give_the_same_logits():
    model = lively_model(SMALLEST)
    expected = forward(model, [1, 2, 10])
    for dtype in (np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4"):
        np.testing.assert_array_equal(forward(model, np.array([1, 2, 10], dtype)), expected)
    np.testing.assert_array_equal(forward(model, (1, 2, 10)), expected)
    np.testing.assert_array_equal(forward(model, np.array([10, 2, 1])[::-1]), expected)


# Nothing is written to ------------------------------------------------------------------------------------------------


@given(passes(np.float32))
def test_a_pass_changes_neither_weights_nor_ids(model_and_ids):
    # lively_model and random_ids are read-only already: writing would raise. Here their values are looked at too.
    model, ids = model_and_ids
    before = [array.copy() for _, array in named_parameters(model)], ids.copy()
    forward(model, ids)
    for (name, array), copy in zip(named_parameters(model), before[0]):
        np.testing.assert_array_equal(array, copy, err_msg=name)
    np.testing.assert_array_equal(ids, before[1])


@given(passes(np.float32))
def test_the_same_pass_twice_gives_the_same_bits(model_and_ids):
    model, ids = model_and_ids
    np.testing.assert_array_equal(forward(model, ids), forward(model, ids))


def test_unembed_does_not_change_the_hidden_states():
    model = lively_model(SMALLEST)
    hidden = transform(model, [1, 2, 3])
    hidden.flags.writeable = False
    assert unembed(model, hidden).shape == (3, 11)


def test_a_model_shows_its_shapes_and_not_its_numbers():
    model = lively_model(SMALLEST)
    assert repr(model) == (f"GPT2(wte [11, 6], wpe [{model.config.n_positions}, 6], h: {len(model.h)} blocks, "
                           "ln_f=LayerNorm(weight [6], bias [6]), lm_head [11, 6])")  # and no block of n_layer
    assert repr(model.h[0].attn.c_attn) == "Conv1D(weight [6, 18], bias [18])"


@pytest.mark.parametrize("n_first", [1, 7, 200])
def test_cached_and_uncached_logits_agree_at_the_tolerance_that_forward_names(n_first):
    model, tokenizer = load()
    ids = tokenizer.encode(STORY.read_text(encoding="utf-8"))[:300]
    cache = KVCache(model)
    cached = [forward(model, ids[:n_first], cache=cache), forward(model, ids[n_first:], cache=cache)]
    assert "np.allclose(a, b, rtol=1e-4, atol=1e-3)" in forward.__doc__
    uncached = forward(model, ids)
    assert np.allclose(np.concatenate(cached), uncached, rtol=1e-4, atol=1e-3)
    assert not np.allclose(np.concatenate(cached), uncached)  # NumPy's defaults are too strict for sums of float32
