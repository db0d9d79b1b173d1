"""Laws of the hook: it sees every array, what it returns is used, and it cannot break what it is shown."""

from typing import Mapping

import numpy as np
import pytest
from hypothesis import given

from numpy_gpt2 import (STAGES, GPT2Config, KVCache, Recorder, ablate, chain, forward, generate_tokens,
                        named_parameters, no_tap, score_tokens, transform, unembed)
from numpy_gpt2.tap import CheckedTap, scoped, stage_names, stage_of, stages_of, tap_of_pass, watches
from strategies import lively_model, passes

CONFIG = GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2, n_inner=10)
MODEL = lively_model(CONFIG)
IDS = [[1, 2, 3], [4, 5, 6]]
NAMES = stage_names(CONFIG)


def patch(name, new):
    """A tap that replaces one array: new(array) stands in for it."""
    return lambda at, value: new(value) if at == name else value


def noise(value):
    """Another array of the same shape and type. (Not a mere shift: softmax and layer norm would not see it.)"""
    return value + np.random.default_rng(0).standard_normal(value.shape).astype(value.dtype)


# What it sees ---------------------------------------------------------------------------------------------------------


def test_names_stand_in_the_order_of_the_pass():
    seen = []
    forward(MODEL, IDS, tap=lambda name, value: seen.append(name) or value)
    assert seen == NAMES
    assert NAMES[:4] == ["wte", "wpe", "h.0.resid_pre", "h.0.ln_1"]
    assert NAMES[-3:] == ["h.1.resid_post", "ln_f", "logits"]
    assert len(NAMES) == 4 + 2 * 18 == len(set(NAMES))


def test_transform_announces_everything_but_the_logits():
    acts = Recorder()
    transform(MODEL, IDS, tap=acts)
    assert list(acts) == NAMES[:-1]


@given(passes(np.float32))
def test_identity_tap_leaves_logits_bit_identical(model_and_ids):
    model, ids = model_and_ids
    expected = forward(model, ids)
    for tap in (no_tap, Recorder(), lambda name, value: value):
        np.testing.assert_array_equal(forward(model, ids, tap=tap), expected)


def test_no_array_is_written_to_after_it_has_been_handed_out():
    handed_out, copies = {}, Recorder()

    def keep(name, value):
        handed_out[name] = value
        return copies(name, value)

    cache = KVCache(MODEL, batch=(2,))
    forward(MODEL, [[7, 8], [9, 10]], cache=cache)
    forward(MODEL, IDS, cache=cache, tap=keep)
    for name in NAMES:
        np.testing.assert_array_equal(handed_out[name], copies[name], err_msg=name)


def test_a_tap_that_returns_nothing_changes_nothing():
    def look(name, value):
        seen.append(name)

    seen = []
    np.testing.assert_allclose(forward(MODEL, IDS, tap=look), forward(MODEL, IDS), rtol=1e-12, atol=1e-14)
    assert seen == NAMES


def test_every_array_handed_to_a_tap_is_read_only():
    def write(name, value):
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0
        seen.append(name)

    seen = []
    logits = forward(MODEL, IDS, tap=chain(write, write))
    assert seen == [name for name in NAMES for _ in range(2)]
    logits[...] = 0  # what the caller gets is theirs


def test_a_pass_takes_read_only_arrays_from_a_tap():
    def locked(name, value):
        value = value.copy()
        value.flags.writeable = False
        return value

    # Not bit for bit: the copies have another memory order, and with it their products may add up in another one.
    np.testing.assert_allclose(forward(MODEL, IDS, tap=locked), forward(MODEL, IDS), rtol=1e-10, atol=1e-12)


def test_no_weight_is_handed_out_so_that_writing_in_place_spoils_no_model():
    def look(name, value):
        for weight_name, weight in named_parameters(MODEL):
            assert not np.shares_memory(value, weight), (name, weight_name)
        return value

    forward(MODEL, IDS, tap=look)
    forward(MODEL, [1], tap=look)


# What it changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_at_any_stage_changes_the_logits_and_nothing_before_it(name):
    # Two tokens or more: with one, its share of attention is 1, whatever queries, keys and scores are.
    before, after = Recorder(), Recorder()
    plain = forward(MODEL, IDS, tap=before)
    patched = forward(MODEL, IDS, tap=lambda at, value: after(at, noise(value) if at == name else value))
    assert np.abs(patched - plain).max() > 1e-3
    for earlier in NAMES[:NAMES.index(name)]:
        np.testing.assert_array_equal(after[earlier], before[earlier])
    np.testing.assert_array_equal(after[name], noise(before[name]))


@pytest.mark.parametrize("name", ["wte", "h.0.resid_pre", "h.0.resid_post", "h.1.resid_mid", "h.1.resid_post", "ln_f",
                                  "logits"])
def test_where_all_flows_through_one_array_another_prompts_array_gives_its_logits(name):
    acts = Recorder()
    expected = forward(MODEL, [7, 8, 9], tap=acts)
    np.testing.assert_array_equal(forward(MODEL, [1, 2, 3], tap=patch(name, lambda value: acts[name])), expected)


def test_ablating_what_a_block_adds_leaves_the_residual_stream_as_it_was():
    acts = Recorder()

    def ablate(name, value):
        return acts(name, np.zeros_like(value) if name in ("h.0.attn.out", "h.1.mlp.out") else value)

    forward(MODEL, IDS, tap=ablate)
    np.testing.assert_array_equal(acts["h.0.resid_mid"], acts["h.0.resid_pre"])
    np.testing.assert_array_equal(acts["h.1.resid_post"], acts["h.1.resid_mid"])


@pytest.mark.parametrize("part", ["k", "v"])
def test_a_patched_key_or_value_stays_in_the_cache_for_later_passes(part):
    name = f"h.0.attn.{part}"
    plain, patched = KVCache(MODEL, batch=(2,)), KVCache(MODEL, batch=(2,))
    acts = Recorder()
    forward(MODEL, IDS, cache=plain)
    forward(MODEL, IDS, cache=patched, tap=lambda at, value: acts(at, noise(value) if at == name else value))
    np.testing.assert_array_equal(getattr(patched, part)[0, ..., :3, :], acts[name])
    later = [[7], [8]]
    assert np.abs(forward(MODEL, later, cache=patched) - forward(MODEL, later, cache=plain)).max() > 1e-3


@pytest.mark.parametrize("part", ["k", "v"])
def test_a_patch_of_all_keys_or_values_lasts_for_one_pass(part):
    plain, patched = KVCache(MODEL, batch=(2,)), KVCache(MODEL, batch=(2,))
    forward(MODEL, IDS, cache=plain)
    forward(MODEL, IDS, cache=patched, tap=patch(f"h.1.attn.{part}_all", noise))
    np.testing.assert_array_equal(forward(MODEL, [[7], [8]], cache=patched), forward(MODEL, [[7], [8]], cache=plain))


# What it may not return -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new, seen", [
    (lambda value: value.tolist(), "Got list."),
    (lambda value: value[..., :-1], "float64."),
    (lambda value: value[np.newaxis], "float64."),
    (lambda value: value.astype(np.float32), "float32."),
    (lambda value: value.astype(np.int64), "int64."),
], ids=["list", "shape", "axis", "float32", "int"])
def test_another_kind_of_return_is_refused_with_the_name_of_the_stage(new, seen):
    for name in NAMES:
        with np.errstate(invalid="ignore"), pytest.raises(ValueError) as error:
            forward(MODEL, IDS, tap=patch(name, new))
        assert str(error.value).startswith("the tap must return ")
        assert f"at {name!r}. Got " in str(error.value)
        assert seen in str(error.value)


def test_a_refusal_says_what_was_expected_and_what_was_seen():
    with pytest.raises(ValueError) as error:
        forward(MODEL, [1, 2, 3], tap=patch("h.1.mlp.pre", lambda value: value[:2].astype(np.float32)))
    assert str(error.value) == "the tap must return shape (3, 10), float64 at 'h.1.mlp.pre'. Got (2, 10), float32."


def test_a_tap_of_the_unembedding_alone_is_checked_and_one_of_a_pass_is_bound_to_its_position():
    hidden = np.ones((2, CONFIG.n_embd))
    expected = unembed(MODEL, hidden)
    for wrong in (ablate("h.2.ln_1"), ablate("logits", positions=8), lambda name, value: value.tolist()):
        with pytest.raises(ValueError, match="tap|positions"):
            unembed(MODEL, hidden, wrong)
    with pytest.raises(TypeError, match="a tap must be a callable"):
        unembed(MODEL, hidden, [Recorder()])
    for first_position in (0, 3):
        tap = ablate("logits", positions=first_position + 1)
        logits = unembed(MODEL, hidden, tap_of_pass(tap, CONFIG, first_position))
        np.testing.assert_array_equal(logits, [expected[0], np.zeros(CONFIG.vocab_size)])
    np.testing.assert_array_equal(unembed(MODEL, hidden, ablate("logits", positions=1)), logits)


def test_a_pass_that_its_tap_stops_adds_nothing_to_the_cache():
    def stop(name, value):
        if name == "h.1.mlp.out":
            raise RuntimeError("seen enough")
        return value

    cache = KVCache(MODEL)
    forward(MODEL, [1, 2], cache=cache)
    with pytest.raises(RuntimeError, match="seen enough"):
        forward(MODEL, [3, 4, 5], cache=cache, tap=stop)
    assert cache.length == 2
    np.testing.assert_allclose(forward(MODEL, [6], cache=cache), forward(MODEL, [1, 2, 6])[2:], rtol=1e-10)


# Recorder -------------------------------------------------------------------------------------------------------------


def test_recorder_keeps_copies_that_no_later_writing_changes():
    acts, cache = Recorder(), KVCache(MODEL, batch=(2,))
    logits = forward(MODEL, IDS, cache=cache, tap=acts)
    before = {name: acts[name].copy() for name in acts}
    logits[...] = 99
    cache.crop(1)
    forward(MODEL, [[7, 8], [9, 10]], cache=cache)
    cache.k[...] = cache.v[...] = 99
    for name in acts:
        np.testing.assert_array_equal(acts[name], before[name], err_msg=name)


def test_recorder_returns_the_very_array():
    value = np.ones(3)
    acts = Recorder()
    assert acts("wte", value) is value
    assert acts["wte"] is not value


def test_of_several_passes_the_last_one_is_recorded():
    acts, last = Recorder(), Recorder()
    forward(MODEL, [1, 2, 3], tap=acts)
    forward(MODEL, [4, 5], tap=acts)
    forward(MODEL, [4, 5], tap=last)
    assert list(acts) == NAMES
    for name in NAMES:
        np.testing.assert_array_equal(acts[name], last[name])


def test_recorder_reads_like_a_mapping_until_it_is_cleared():
    acts = Recorder()
    assert (len(acts), list(acts), "wte" in acts) == (0, [], False)
    forward(MODEL, IDS, tap=acts)
    assert (len(acts), list(acts), "wte" in acts, "h.2.ln_1" in acts) == (len(NAMES), NAMES, True, False)
    acts.clear()
    assert (len(acts), list(acts), "wte" in acts) == (0, [], False)


def test_recorder_is_a_mapping_that_says_what_it_holds():
    acts = Recorder(["wte", "h.*.ln_1", "ln_f"])
    assert repr(acts) == "Recorder(0 arrays: none yet)" and acts != {} and acts == acts
    forward(MODEL, IDS, tap=acts)
    assert isinstance(acts, Mapping) and list(acts.keys()) == ["wte", "h.0.ln_1", "h.1.ln_1", "ln_f"]
    assert all(acts[name] is array for name, array in acts.items()) and acts.get("h.2.ln_1") is None
    assert repr(acts) == "Recorder(4 arrays: 'wte', 'h.0.ln_1', 'h.1.ln_1', ...)"
    assert acts != Recorder() and len({acts, acts}) == 1


def test_stack_makes_one_array_of_a_stage_of_all_blocks():
    acts = Recorder(["h.*.attn.pattern", "h.1.ln_1"])
    forward(MODEL, IDS, tap=acts)
    pattern = acts.stack("h.*.attn.pattern")
    assert pattern.shape == (CONFIG.n_layer, *acts["h.0.attn.pattern"].shape)
    assert all(np.array_equal(pattern[i], acts[f"h.{i}.attn.pattern"]) for i in range(CONFIG.n_layer))
    assert np.array_equal(acts.stack("*ln_1"), acts["h.1.ln_1"][np.newaxis])
    with pytest.raises(KeyError, match="'ln_f' matches none of the 3 stages recorded"):
        acts.stack("ln_f")
    with pytest.raises(ValueError, match="the nearest are"):
        acts.stack("h.*.attn.paterns")


@pytest.mark.parametrize("names, expected", [
    ("*", NAMES),
    ("logits", ["logits"]),
    ("h.1.attn.[qk]", ["h.1.attn.q", "h.1.attn.k"]),
    (["h.*.resid_pre", "ln_f", "ln_*"], ["h.0.resid_pre", "h.1.resid_pre", "ln_f"]),
    ([], []),
])
def test_recorder_copies_only_what_it_was_asked_for(names, expected):
    whole, acts = Recorder(), Recorder(names)
    logits = forward(MODEL, IDS, tap=acts)
    np.testing.assert_array_equal(logits, forward(MODEL, IDS, tap=whole))
    assert list(acts) == expected
    for name in expected:
        np.testing.assert_array_equal(acts[name], whole[name])


def test_a_name_that_was_not_recorded_is_refused_by_name():
    acts = Recorder()
    acts("wte", np.ones(3))
    with pytest.raises(KeyError) as error:
        acts["h.0.attn.patern"]
    assert error.value.args[0] == (
        "'h.0.attn.patern' is not among the 1 stages recorded; the nearest is 'wte'")


@pytest.mark.parametrize("name, instead", [
    ("h.1.pattern", "the nearest is 'h.1.attn.pattern'"),
    ("h.6.attn.pattern", "the nearest is 'h.[01].attn.pattern'"),
    ("h.*.attn.pattern", r"stack\(glob\) takes a glob"),
    (3, "the nearest is "),
])
def test_of_a_name_that_was_not_recorded_the_nearest_is_told(name, instead):
    acts = Recorder()
    with pytest.raises(KeyError, match="0 stages recorded; record a pass first"):
        acts[name]
    forward(MODEL, IDS, tap=acts)
    with pytest.raises(KeyError, match=instead):
        acts[name]


@pytest.mark.parametrize("tap", [None, "h.0.attn.z", [Recorder()], Recorder])
def test_what_is_no_tap_is_refused_with_what_one_is(tap):
    refusal = r"^a tap must be a callable \(name, value\), such as Recorder\(\); chain\(a, b\) joins several. Got .*\.$"
    for refused in (lambda: forward(MODEL, IDS, tap=tap), lambda: chain(Recorder(), tap),
                    lambda: score_tokens(MODEL, IDS, tap=tap), lambda: generate_tokens(MODEL, IDS, 0, tap=tap)):
        with pytest.raises(TypeError, match=refusal):
            refused()


# The table ------------------------------------------------------------------------------------------------------------


def test_scoped_puts_the_prefix_before_the_name():
    names = []
    scoped(CheckedTap(lambda name, value: names.append(name), "*"), "h.3.")("attn.q", np.ones(5))
    assert names == ["h.3.attn.q"]


def test_no_tap_costs_nothing_on_its_way_down():
    class OfTheFirstPass:
        def at_position(self, first_position):
            return Recorder("ln_f") if first_position == 0 else no_tap

    assert tap_of_pass(no_tap, CONFIG, 0) is no_tap
    assert tap_of_pass(OfTheFirstPass(), CONFIG, 1) is no_tap
    assert not watches(tap_of_pass(OfTheFirstPass(), CONFIG, 0), "h.0.attn.scores")
    assert scoped(no_tap, "h.3.") is no_tap


def test_each_row_of_the_table_is_found_by_its_announced_name():
    assert stage_of("h.11.attn.pattern").name == "h.i.attn.pattern"
    assert [stage_of(name).name for name in stage_names(GPT2Config(n_layer=1))] == [stage.name for stage in STAGES]


def test_a_glob_fits_the_rows_whose_names_some_model_announces():
    assert stages_of("*") == list(STAGES)
    assert [stage.name for stage in stages_of("h.3.attn.[qk]*")] == [
        "h.i.attn.qkv", "h.i.attn.q", "h.i.attn.k", "h.i.attn.k_all"]
    for name in [*NAMES, "h.150.attn.q"]:
        assert stages_of(name) == [stage_of(name)]


@pytest.mark.parametrize("name", ["", "h", "h.0", "h.0.attn", "attn.q", "h.0.wte", "ln_f.bias"])
def test_a_name_outside_the_table_is_refused(name):
    with pytest.raises(KeyError):
        stage_of(name)


def test_every_row_says_what_it_is():
    for stage in STAGES:
        assert stage.equation and stage.shape and stage.sentence.endswith("."), stage.name
