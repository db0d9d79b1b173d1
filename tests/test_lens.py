"""Laws of what is built on the hook: a patch changes what was chosen, nothing else; readings add up to the logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import (STAGES, GPT2Config, KVCache, Recorder, ablate, chain, direct_logit_attribution, forward,
                        logit_lens, loss_and_gradients, mean_ablate, no_tap, patch, residual_logits, top_tokens,
                        unembed)
from numpy_gpt2.lens import Attribution, TopToken
from numpy_gpt2.ops import softmax
from numpy_gpt2.tap import stage_names, stage_of
from strategies import lively_model, passes, random_ids, splits

CONFIG = GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2, n_inner=10)
MODEL = lively_model(CONFIG)
IDS = [[1, 2, 3], [4, 5, 6]]
NAMES = stage_names(CONFIG)
WITH_HEADS = [name for name in NAMES if "n_head" in stage_of(name).shape]


def recorded(model, ids, tap=no_tap):
    """What a pass holds, once the tap has seen it."""
    acts = Recorder()
    forward(model, ids, tap=chain(tap, acts))
    return acts


def noise(value):
    return value + np.random.default_rng(0).standard_normal(value.shape).astype(value.dtype)


def assert_close(actual, expected, dtype=np.float64):
    """Equal up to the rounding of sums, measured by the largest number."""
    tolerance = {np.float64: 1e-10, np.float32: 1e-4}[dtype]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * (1 + np.abs(expected).max()))


# patch ----------------------------------------------------------------------------------------------------------------


@given(passes(), st.data())
def test_a_patch_with_what_was_recorded_changes_nothing(model_and_ids, data):
    model, ids = model_and_ids
    name = data.draw(st.sampled_from(stage_names(model.config)))
    acts = Recorder()
    expected = forward(model, ids, tap=acts)
    assert_close(forward(model, ids, tap=patch(name, acts[name])), expected)


@given(passes(np.float32), st.data())
def test_a_patch_changes_the_chosen_heads_and_positions_and_no_other_bit(model_and_ids, data):
    model, ids = model_and_ids
    names = stage_names(model.config)
    name = data.draw(st.sampled_from(names))
    n_tokens, n_head = ids.shape[-1], model.config.n_head
    positions = data.draw(st.none() | st.integers(-n_tokens, n_tokens - 1)
                          | st.lists(st.integers(-n_tokens, n_tokens - 1)))
    heads = None
    if "n_head" in stage_of(name).shape:
        heads = data.draw(st.none() | st.integers(-n_head, n_head - 1) | st.lists(st.integers(-n_head, n_head - 1)))
    before, after = recorded(model, ids), recorded(model, ids, patch(name, 7, positions, heads))

    expected = before[name].copy()
    for position in range(n_tokens) if positions is None else np.ravel(positions).astype(int):
        if heads is None:
            expected[..., position, :] = 7
        else:
            for head in np.ravel(heads).astype(int):
                expected[..., head, position, :] = 7
    np.testing.assert_array_equal(after[name], expected)
    assert after[name].dtype == np.float32
    for earlier in names[:names.index(name)]:
        np.testing.assert_array_equal(after[earlier], before[earlier])


@pytest.mark.parametrize("name", NAMES)
def test_an_array_a_number_and_a_function_say_the_same(name):
    by_function = recorded(MODEL, IDS, patch(name, lambda array: np.full_like(array, 0.5), positions=1))
    shape = by_function[name].shape
    for value in (0.5, np.float64(0.5), np.full(shape, 0.5), np.full(shape[-1], 0.5), [[0.5]]):
        by_value = recorded(MODEL, IDS, patch(name, value, positions=1))
        for at in NAMES:
            np.testing.assert_array_equal(by_value[at], by_function[at])


def test_a_glob_patches_every_stage_that_it_fits():
    after = recorded(MODEL, IDS, patch("h.*.ml[p].out", 3))
    assert [name for name in NAMES if np.all(after[name] == 3)] == ["h.0.mlp.out", "h.1.mlp.out"]


def test_a_function_is_given_the_whole_array_and_may_write_to_it():
    kept = {}

    def keep(name, value):
        kept[name] = (value, value.copy())
        return value

    def spoil(array):
        kept["given"] = array.shape
        array[...] = 5
        return array

    after = recorded(MODEL, IDS, chain(keep, patch("h.1.attn.z", spoil, heads=0, positions=2)))
    given_array, as_it_was = kept["h.1.attn.z"]
    assert kept["given"] == (2, 2, 3, 3)
    np.testing.assert_array_equal(given_array, as_it_was)
    np.testing.assert_array_equal(after["h.1.attn.z"][:, 0, 2], 5)
    np.testing.assert_array_equal(after["h.1.attn.z"][:, 0, :2], as_it_was[:, 0, :2])


def test_the_array_to_patch_with_is_not_written_to():
    value = np.ones((2, 3, 6))
    value.flags.writeable = False
    acts = recorded(MODEL, IDS, patch("h.0.resid_mid", value))
    np.testing.assert_array_equal(acts["h.0.resid_mid"], value)


@given(passes(np.float32))
def test_float32_stays_float32_whatever_the_value_s_type(model_and_ids):
    model, ids = model_and_ids
    for value in (1, 0.5, np.float64(0.5), np.float64([0.5]), lambda array: array.astype(np.float64) / 3):
        assert forward(model, ids, tap=patch("h.*.resid_pre", value)).dtype == np.float32


@pytest.mark.parametrize("part", ["k", "v"])
def test_a_patched_key_or_value_stays_in_the_cache_for_later_decode(part):
    tap, first, later = patch(f"h.0.attn.{part}", noise, positions=1, heads=0), Recorder(), Recorder()
    cache = KVCache(MODEL)
    forward(MODEL, IDS[0], cache=cache, tap=chain(tap, first))
    decoded = forward(MODEL, [7], cache=cache, tap=later)
    patched = first[f"h.0.attn.{part}"]
    assert np.abs(patched - recorded(MODEL, IDS[0])[f"h.0.attn.{part}"]).max() > 1e-3
    np.testing.assert_array_equal(later[f"h.0.attn.{part}_all"][:, :3], patched)
    both = np.concatenate([patched, later[f"h.0.attn.{part}"]], axis=-2)
    assert_close(decoded, forward(MODEL, [*IDS[0], 7], tap=patch(f"h.0.attn.{part}", both))[3:])


@given(passes(min_tokens=2), st.data())
def test_a_patch_of_positions_is_the_same_however_the_text_is_cut_into_passes(model_and_ids, data):
    model, ids = model_and_ids
    names = [name for name in stage_names(model.config) if not name.endswith(("_all", "scores", "pattern"))]
    name = data.draw(st.sampled_from(names))
    positions = data.draw(st.lists(st.integers(0, model.config.n_positions - 1), max_size=3))
    tap = chain(patch(name, lambda array: array + 1, positions=positions), ablate(name, positions=positions[:1]))
    whole, tokens_changed = Recorder(name), Recorder(name)
    expected = forward(model, ids, tap=chain(tap, whole))
    cache, logits = KVCache(model, batch=ids.shape[:-1]), []
    for chunk in data.draw(splits(ids)):
        logits.append(forward(model, chunk, cache=cache, tap=chain(tap, tokens_changed)))
    assert_close(np.concatenate(logits, axis=-2), expected)
    assert_close(tokens_changed[name], whole[name][..., -chunk.shape[-1]:, :])


def test_with_4_tokens_cached_position_4_is_the_fifth_token_and_position_3_is_left_alone():
    cache, acts = KVCache(MODEL), Recorder()
    forward(MODEL, [1, 2, 3, 4], cache=cache)
    forward(MODEL, [5, 6], cache=cache, tap=chain(
        patch("h.*.attn.[qz]", 9, positions=4), ablate("h.*.mlp.out", positions=-1), ablate("ln_f", positions=[2, 3]),
        patch("h.1.attn.k_all", 7, positions=3), patch("wpe", np.zeros((99, 6)), positions=0), acts))
    assert np.all(acts["h.1.attn.q"][:, 0] == 9) and not np.any(acts["h.1.attn.q"][:, 1] == 9)
    assert np.all(acts["h.1.mlp.out"][1] == 0) and not np.any(acts["h.1.mlp.out"][0] == 0)
    assert not np.any(acts["ln_f"] == 0)
    assert (acts["h.1.attn.k_all"] == 7).all(axis=(0, 2)).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("position", [CONFIG.n_positions, -CONFIG.n_positions - 1])
def test_a_position_that_the_model_does_not_have_is_refused_before_the_pass(position):
    for tap in (ablate("wte", positions=[0, position]), chain(Recorder(), patch("logits", 0, positions=position))):
        cache = KVCache(MODEL)
        with pytest.raises(ValueError, match=f"^positions must be a whole number from -8 to 7. Got {position}.$"):
            forward(MODEL, [1, 2], cache=cache, tap=tap)
        assert cache.length == 0 and not cache.k.any()
        with pytest.raises(ValueError, match="^positions must be a whole number"):
            loss_and_gradients(MODEL, [1, 2], gradient_tap=tap)


def test_a_tap_of_ones_own_is_told_where_each_pass_begins():
    begins = []

    class Steering:
        def at_position(self, first_position):
            begins.append(first_position)
            return lambda name, value: value + first_position if name == "h.1.resid_post" else None

    cache, acts = KVCache(MODEL), Recorder("h.1.resid_post")
    forward(MODEL, [1, 2, 3], cache=cache)
    expected = forward(MODEL, [4], cache=cache, tap=patch("h.1.resid_post", lambda array: array + 3))
    cache.crop(3)
    assert_close(forward(MODEL, [4], cache=cache, tap=chain(Steering(), acts)), expected)
    assert begins[-1] == 3
    plain = np.zeros((2, 6), np.float32)
    assert np.array_equal(chain(Steering())("h.1.resid_post", plain), plain)  # called as it is: from position 0
    assert begins[-1] == 0


# ablate and chain -----------------------------------------------------------------------------------------------------


@given(passes(), st.data())
def test_without_all_heads_attention_gives_its_bias_alone(model_and_ids, data):
    model, ids = model_and_ids
    layer = data.draw(st.integers(0, model.config.n_layer - 1))
    name = f"h.{layer}.attn.z"
    one_by_one = chain(*(ablate(name, heads=head) for head in range(model.config.n_head)))
    after = recorded(model, ids, one_by_one)
    bias = model.h[layer].attn.c_proj.bias
    np.testing.assert_array_equal(after[f"h.{layer}.attn.out"], np.broadcast_to(bias, (*ids.shape, len(bias))))
    for same in (ablate(name), patch(name, 0), ablate(name, heads=range(model.config.n_head))):
        np.testing.assert_array_equal(forward(model, ids, tap=same), forward(model, ids, tap=one_by_one))


@given(passes(), st.data())
def test_an_ablated_head_is_a_head_whose_rows_of_c_proj_are_left_out(model_and_ids, data):
    model, ids = model_and_ids
    head = data.draw(st.integers(0, model.config.n_head - 1))
    before, after = recorded(model, ids), recorded(model, ids, ablate("h.0.attn.z", heads=head))
    rows = np.split(model.h[0].attn.c_proj.weight, model.config.n_head)[head]  # [d_head, n_embd]
    lost = before["h.0.attn.z"][..., head, -1, :] @ rows
    assert_close(before["h.0.attn.out"][..., -1, :] - lost, after["h.0.attn.out"][..., -1, :])


@given(passes(), st.data())
def test_mean_ablation_puts_the_mean_over_all_tokens_of_the_texts_in_place(model_and_ids, data):
    model, ids = model_and_ids
    texts = [random_ids(model.config, (n,), seed=n)
             for n in data.draw(st.lists(st.integers(1, model.config.n_positions), min_size=1, max_size=3))]
    names = [name for name in stage_names(model.config) if stage_of(name).shape[-1] != "n_all"]
    name = data.draw(st.sampled_from(names))
    has_heads = "n_head" in stage_of(name).shape
    heads = data.draw(st.none() | st.integers(0, model.config.n_head - 1)) if has_heads else None
    position = data.draw(st.none() | st.integers(0, ids.shape[-1] - 1))
    before, after = recorded(model, ids), recorded(model, ids, mean_ablate(model, texts, name, heads, position))
    mean = np.mean(np.concatenate([recorded(model, text)[name] for text in texts], axis=-2), axis=-2, keepdims=True)
    assert_close(after[name], recorded(model, ids, patch(name, mean, position, heads))[name])
    if heads is None and position is None:
        assert_close(after[name], np.broadcast_to(mean, before[name].shape))


def test_each_stage_that_a_glob_matches_has_its_own_mean():
    acts = recorded(MODEL, IDS, mean_ablate(MODEL, [IDS[0], IDS], "h.*.attn.z"))
    alone, both = recorded(MODEL, IDS[0]), recorded(MODEL, IDS)
    for name in ("h.0.attn.z", "h.1.attn.z"):
        tokens = np.concatenate([alone[name], *both[name]], axis=-2)  # [n_head, 9, d_head]
        assert_close(acts[name], np.broadcast_to(tokens.mean(axis=-2, keepdims=True), (2, *alone[name].shape)))


@pytest.mark.parametrize("texts, name, message", [
    ([[1]], "h.0.attn.pattern", r"with a mean over texts. Got 'h.i.attn.pattern', \[n_head, n_new, n_all\]\.$"),
    ([[1]], "h.*.attn.*", r"with a mean over texts. Got 'h.i.attn.scores', \[n_head, n_new, n_all\]\.$"),
    ([], "ln_f", "texts must be one or more lists of token ids. Got none."),
    ([[1] * 9], "ln_f", "ids must be at most 8 tokens"),
    ([[1]], "h.2.ln_1", "matches no stage of this model"),
])
def test_what_has_no_mean_is_refused(texts, name, message):
    with pytest.raises(ValueError, match=message):
        mean_ablate(MODEL, texts, name)


def test_a_chain_gives_each_tap_what_the_one_before_returned():
    order = []

    def times(factor):
        def tap(name, value):
            order.append(factor)
            return factor * value
        return tap

    def plus_one(name, value):
        return value + 1

    value = np.full(3, 2.0)
    np.testing.assert_array_equal(chain(times(3), plus_one, times(10))("wte", value), [70, 70, 70])
    assert order == [3, 10]
    np.testing.assert_array_equal(value, 2)
    assert chain()("wte", value) is value
    assert chain(no_tap, Recorder())("wte", value) is value


def test_a_chain_names_the_stage_at_which_one_of_its_taps_returns_no_array():
    with pytest.raises(ValueError, match=r"must return an array or None at 'wte'. Got int."):
        forward(MODEL, IDS, tap=chain(lambda name, value: 0, Recorder()))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda name: patch(name, 0), ablate, Recorder, lambda name: Recorder(["wte", name])])
@pytest.mark.parametrize("name, nearest", [
    ("h.3.attn.patern", "h.3.attn.pattern"), ("attn.q", "h.*.attn.q"), ("h.i.mlp.out", "h.*.mlp.out"),
    ("h.03.ln_1", "h.*.ln_1"), ("logit", "logits"), ("h.[0-3].mpl.post", "h.[0-3].mlp.post"), ("", "wte"),
    ("h.-1.ln_2", "h.*.ln_2")])
def test_a_name_that_fits_no_stage_is_refused_with_the_nearest_in_one_line(make, name, nearest):
    with pytest.raises(ValueError) as error:
        make(name)
    text = str(error.value)
    assert text.startswith(f"a name must be a stage, or a glob that matches one. Got {name!r}; the nearest are ")
    nearest_three = text.split("nearest are ")[1].split("; ")[0].split(", ")
    assert "\n" not in text and nearest in nearest_three and len(nearest_three) == 3


@pytest.mark.parametrize("name", ["*", "*.attn.[qk]", "ln_f", "wte", "h.*", "h.[13-5].ln_?"])
def test_a_glob_that_fits_some_stage_of_the_model_is_taken(name):
    assert np.any(forward(MODEL, IDS, tap=patch(name, 0.5)) != forward(MODEL, IDS))


@pytest.mark.parametrize("name", ["wte", "h.1.resid_pre", "h.1.attn.qkv", "h.*.attn.*", "*", "logits"])
def test_heads_of_a_stage_without_heads_are_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^heads must be left out for a stage without heads. Got 1 for '[^\n]*$"):
        patch(name, 0, heads=1)


@pytest.mark.parametrize("tap, expected", [
    (patch("h.0.attn.z", 0, heads=2), "heads at 'h.0.attn.z' must be a whole number from -2 to 1. Got 2."),
    (patch("h.0.attn.z", 0, heads=[0, -3]), "heads at 'h.0.attn.z' must be a whole number from -2 to 1. Got -3."),
    (patch("wpe", np.zeros((2, 3, 6))), "the value must broadcast to (3, 6) at 'wpe'. Got (2, 3, 6)."),
    (patch("h.1.mlp.pre", np.zeros(6)), "the value must broadcast to (2, 3, 10) at 'h.1.mlp.pre'. Got (6,)."),
    (patch("ln_f", lambda array: None), "the value must be an array or a number at 'ln_f'. Got NoneType."),
    (patch("ln_f", "loud"), "the value must be an array or a number at 'ln_f'. Got str."),
    (patch("ln_f", 1j), "the value must be an array or a number at 'ln_f'. Got complex."),
    (patch("ln_f", 10**400), "the value must be an array or a number at 'ln_f'. Got int."),
    (patch("wpe", np.zeros((1, 3, 6))), "the value must broadcast to (3, 6) at 'wpe'. Got (1, 3, 6)."),
])
def test_what_cannot_be_patched_is_refused_with_the_name_of_the_stage(tap, expected):
    with pytest.raises(ValueError) as error:
        forward(MODEL, IDS, tap=tap)
    assert str(error.value) == expected


# The logit lens -------------------------------------------------------------------------------------------------------


@given(passes())
def test_after_the_last_block_the_lens_sees_the_logits(model_and_ids):
    model, ids = model_and_ids
    acts = Recorder()
    logits = forward(model, ids, tap=acts)
    assert_close(logit_lens(model, acts, model.config.n_layer), logits)


@given(passes(), st.data())
def test_the_lens_sees_the_logits_of_a_model_that_ends_there(model_and_ids, data):
    model, ids = model_and_ids
    layer = data.draw(st.integers(0, model.config.n_layer))
    acts = Recorder()
    forward(model, ids, tap=acts)
    # A block that adds nothing might as well not be there.
    shorter = chain(*(ablate(f"h.{i}.{part}") for i in range(layer, model.config.n_layer)
                      for part in ("attn.out", "mlp.out")))
    assert_close(logit_lens(model, acts, layer), forward(model, ids, tap=shorter))


@given(passes(np.float32))
def test_the_lens_keeps_float32_and_any_leading_axes(model_and_ids):
    model, ids = model_and_ids
    acts = Recorder()
    forward(model, ids, tap=acts)
    for layer in range(model.config.n_layer + 1):
        logits = logit_lens(model, acts, layer)
        assert (logits.dtype, logits.shape) == (np.float32, (*ids.shape, model.config.vocab_size))
    one = residual_logits(model, acts["h.0.resid_pre"][..., -1, :])
    assert_close(one, logit_lens(model, acts, 0)[..., -1, :], np.float32)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(ValueError, match=rf"^layer must be a whole number from 0 to 2. Got {layer}.$"):
        logit_lens(MODEL, Recorder(), layer)


class Letters:
    """A tokenizer that knows a few ids, each a letter."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def token_text(self, token_id):
        return "abcdefghijkl"[token_id]


def test_top_tokens_are_the_likeliest_with_a_name_and_count_all_probabilities():
    logits = np.log(np.array([0.1, 0.2, 0.05, 0.15, 0.5], dtype=np.float32))
    best = top_tokens(logits, Letters(4), k=3)
    assert [(token.id, token.text) for token in best] == [(1, "b"), (3, "d"), (0, "a")]
    np.testing.assert_allclose([token.probability for token in best], [0.2, 0.15, 0.1], rtol=1e-6)
    assert [type(part) for part in best[0]] == [int, str, float] and isinstance(best[0], TopToken)


@given(passes(), st.data())
def test_top_tokens_nest_as_the_logits_do(model_and_ids, data):
    model, ids = model_and_ids
    known = Letters(min(12, model.config.vocab_size))
    k = data.draw(st.integers(1, known.vocab_size))
    logits = forward(model, ids)
    found = top_tokens(logits, known, k)
    nested = np.array(found, dtype=object)
    assert nested.shape == (*ids.shape, k, 3)
    best = np.argsort(-logits[..., :known.vocab_size], axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(nested[..., 0].astype(int), best)
    np.testing.assert_allclose(nested[..., 2].astype(float), np.take_along_axis(softmax(logits), best, axis=-1))


def test_a_token_that_is_no_whole_character_shows_its_bytes():
    model, tokenizer = numpy_gpt2.load("fairytale")
    token_id = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xc3")
    logits = np.zeros(model.config.vocab_size, dtype=np.float32)
    logits[token_id] = 50
    assert top_tokens(logits, tokenizer, 1) == [TopToken(token_id, r"\xc3", 1.0)]


@pytest.mark.parametrize("k", [0, 5])
def test_more_tokens_than_have_a_name_are_refused(k):
    with pytest.raises(ValueError, match=rf"^k must be a whole number from 1 to 4. Got {k}.$"):
        top_tokens(np.zeros(11), Letters(4), k)


# Attribution ----------------------------------------------------------------------------------------------------------


def check_attribution(model, ids, token_id, position, dtype):
    acts = Recorder()
    logits = forward(model, ids, tap=acts)
    attribution = direct_logit_attribution(model, acts, token_id, position)
    assert isinstance(attribution, Attribution)
    assert attribution.values.shape == (*ids.shape[:-1], len(attribution.names))
    assert attribution.values.dtype == dtype
    largest = np.abs(attribution.values).max()
    tolerance = {np.float64: 1e-10, np.float32: 1e-4}[dtype] * (1 + largest)
    np.testing.assert_allclose(attribution.values.sum(axis=-1), logits[..., position, token_id], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(st.data())
def test_the_parts_of_an_attribution_sum_to_the_logit(dtype, data):
    model, ids = data.draw(passes(dtype))
    n_tokens = ids.shape[-1]
    check_attribution(model, ids, data.draw(st.integers(0, model.config.vocab_size - 1)),
                      data.draw(st.integers(-n_tokens, n_tokens - 1)), dtype)


def test_the_parts_of_an_attribution_sum_to_the_bundled_model_s_logit():
    model, tokenizer = numpy_gpt2.load("fairytale")
    ids = np.array(tokenizer.encode("The old woman went into the forest. Then"))
    for position in (0, 4, -1):
        check_attribution(model, ids, tokenizer.encode(" she")[0], position, np.float32)


def test_the_parts_are_named_in_the_order_of_the_pass():
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    block = ["attn.head.0", "attn.head.1", "attn.c_proj.bias", "mlp.out"]
    assert direct_logit_attribution(MODEL, acts, 3).names == (
        "wte", "wpe", *(f"h.{i}.{part}" for i in range(2) for part in block), "ln_f.bias")


@given(passes(), st.data())
def test_each_part_is_what_the_logit_loses_without_it_at_the_frozen_scale(model_and_ids, data):
    model, ids = model_and_ids
    token_id = data.draw(st.integers(0, model.config.vocab_size - 1))
    position = data.draw(st.integers(0, ids.shape[-1] - 1))
    acts = Recorder()
    forward(model, ids, tap=acts)
    names, values = direct_logit_attribution(model, acts, token_id, position)
    final = acts[f"h.{model.config.n_layer - 1}.resid_post"][..., position, :]
    scale = np.sqrt(final.var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)

    def frozen_logit(stream):
        normed = (stream - stream.mean(axis=-1, keepdims=True)) / scale * model.ln_f.weight + model.ln_f.bias
        return unembed(model, normed)[..., token_id]

    whole = frozen_logit(final)
    d_head = model.config.d_head
    for i, block in enumerate(model.h):
        without_mlp = frozen_logit(final - acts[f"h.{i}.mlp.out"][..., position, :])
        assert_close(values[..., names.index(f"h.{i}.mlp.out")], whole - without_mlp)
        for head in range(model.config.n_head):
            rows = block.attn.c_proj.weight[head * d_head:(head + 1) * d_head]
            added = acts[f"h.{i}.attn.z"][..., head, position, :] @ rows
            assert_close(values[..., names.index(f"h.{i}.attn.head.{head}")], whole - frozen_logit(final - added))
        without_bias = frozen_logit(final - block.attn.c_proj.bias)
        assert_close(values[..., names.index(f"h.{i}.attn.c_proj.bias")], whole - without_bias)
    for name in ("wte", "wpe"):
        assert_close(values[..., names.index(name)], whole - frozen_logit(final - acts[name][..., position, :]))


def test_attribution_of_a_pass_with_a_silenced_head_gives_that_head_0():
    acts = Recorder()
    logits = forward(MODEL, IDS, tap=chain(ablate("h.1.attn.z", heads=1), acts))
    names, values = direct_logit_attribution(MODEL, acts, 5)
    np.testing.assert_array_equal(values[:, names.index("h.1.attn.head.1")], 0)
    np.testing.assert_allclose(values.sum(axis=-1), logits[:, -1, 5])


def test_attribution_of_a_decode_step_is_that_of_the_whole_pass():
    ids = random_ids(CONFIG, (6,), seed=3)
    cache, acts, whole = KVCache(MODEL), Recorder(), Recorder()
    forward(MODEL, ids[:-1], cache=cache)
    forward(MODEL, ids[-1:], cache=cache, tap=acts)
    forward(MODEL, ids, tap=whole)
    assert_close(direct_logit_attribution(MODEL, acts, 2).values, direct_logit_attribution(MODEL, whole, 2).values)


def test_attribution_needs_no_more_than_the_stages_it_names():
    needed = Recorder(["wte", "wpe", "h.*.attn.z", "h.*.mlp.out", "h.1.resid_post"])
    acts = Recorder()
    forward(MODEL, IDS, tap=chain(needed, acts))
    assert len(needed) == 2 + 2 * 2 + 1
    found = direct_logit_attribution(MODEL, dict(needed.activations), 3).values
    np.testing.assert_array_equal(found, direct_logit_attribution(MODEL, acts, 3).values)


@pytest.mark.parametrize("token_id, position, expected", [
    (11, -1, "token_id must be a whole number from 0 to 10. Got 11."),
    (-1, -1, "token_id must be a whole number from 0 to 10. Got -1."),
    (0, 3, "position must be a whole number from -3 to 2. Got 3."),
    (0, -4, "position must be a whole number from -3 to 2. Got -4."),
])
def test_a_token_or_a_position_that_is_not_there_is_refused(token_id, position, expected):
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    with pytest.raises(ValueError) as error:
        direct_logit_attribution(MODEL, acts, token_id, position)
    assert str(error.value) == expected


def test_every_stage_of_the_table_with_heads_takes_heads():
    assert {stage_of(name).name for name in WITH_HEADS} == {stage.name for stage in STAGES if "n_head" in stage.shape}
    for name in WITH_HEADS:
        after = recorded(MODEL, IDS, patch(name, 0.25, heads=-1))
        assert np.all(after[name][:, 1] == 0.25) and not np.all(after[name][:, 0] == 0.25), name


@pytest.mark.parametrize("tap", [ablate("h.30.attn.z"), patch("h.[7-9].mlp.*", 0), Recorder("h.2.attn.q"),
                                 patch("h.1?.attn.z", 0), chain(Recorder(), ablate("h.2.ln_1"))],
                         ids=["ablate", "patch", "record", "two_digits", "chain"])
def test_a_tap_for_a_block_that_is_not_there_is_refused_before_the_pass(tap):
    cache = KVCache(MODEL, batch=(2,))
    with pytest.raises(ValueError, match=r"^the tap names 'h\..*', which matches no stage of this model with 2 blocks"):
        forward(MODEL, IDS, cache=cache, tap=tap)
    assert cache.length == 0 and not cache.k.any()


@pytest.mark.parametrize("glob", ["h.2.attn.z", "*9*z"])
def test_a_block_that_is_not_there_is_refused_with_the_three_nearest_stages(glob):
    with pytest.raises(ValueError) as error:
        forward(MODEL, IDS, tap=ablate(glob))
    nearest = str(error.value).removesuffix(".").split("nearest are ")[1].split(", ")
    assert len(nearest) == 3 and set(nearest) <= set(stage_names(CONFIG))


@pytest.mark.parametrize("mask", [[True, False], np.array([True, False])])
def test_a_boolean_mask_of_positions_or_heads_is_refused(mask):
    for options in ({"positions": mask}, {"heads": mask}):
        with pytest.raises(ValueError, match="(positions|heads at .*) must be a whole number"):
            forward(MODEL, IDS, tap=ablate("h.1.attn.z", **options))
