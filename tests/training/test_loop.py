"""Laws of a training run: it learns, it goes on bit for bit, and it leaves alone what it should."""

import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import CheckpointError, GPT2Config, load, loss_and_gradients, named_parameters
from numpy_gpt2.training import loop, memory, saved_run
from numpy_gpt2.training.loop import (accumulated_gradients, best_step, frozen_names, initial_model, learn, moments_of,
                                      start, training_step)
from numpy_gpt2.training.memory import check_training_memory, training_memory
from numpy_gpt2.training.saved_run import check_folder, description, finish_run, is_finished, resume, save_run
from numpy_gpt2.training.settings import TrainingConfig
from numpy_gpt2.training.windows import windows_of_step
from numpy_gpt2.weights import parameter_shapes
from strategies import lively_model

TINY = GPT2Config(vocab_size=20, n_positions=16, n_embd=12, n_layer=2, n_head=3)
TEXT = np.random.default_rng(0).integers(20, size=200)
CONFIG = TrainingConfig(steps=6, batch_size=2, context=8)
NAMES = list(parameter_shapes(TINY))


def arrays_of(model):
    return {name: array.copy() for name, array in named_parameters(model)}


def trained(config, n_steps=None, model=None):
    run = start(model or initial_model(TINY, seed=1), config)
    for _ in range(config.steps if n_steps is None else n_steps):
        training_step(run, TEXT)
    return run


def assert_equal(arrays, others):
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)


# It learns ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_defaults_learn_a_repeated_sentence_within_25_steps(from_scratch):
    model, tokenizer = load("fairytale")
    ids = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog and runs away. " * 200))
    config = TrainingConfig(steps=25, batch_size=4, context=128)
    if from_scratch:
        model = initial_model(GPT2Config(tokenizer.vocab_size, 128, 128, 4, 4), seed=0)
        config = replace(config, rate=0.005, muon_rate=0.02)
    run = start(model, config)
    for _ in range(25):
        training_step(run, ids)
    assert run.losses[0] > 2
    assert run.losses[-1] < 0.3


def test_the_loss_of_a_step_is_that_before_it():
    run = start(initial_model(TINY, seed=1), CONFIG)
    loss = training_step(run, TEXT)
    assert run.losses == [loss]
    assert loss == pytest.approx(math.log(20), abs=0.1)  # nothing learnt: every token is as likely as the others


def test_every_parameter_that_is_not_frozen_moves():
    model = initial_model(TINY, seed=1)
    before = arrays_of(model)
    trained(CONFIG, 1, model)
    for name, array in named_parameters(model):
        assert (array != before[name]).any(), name


def test_a_run_depends_on_its_seed_and_on_nothing_else():
    assert_equal(arrays_of(trained(CONFIG).model), arrays_of(trained(CONFIG).model))
    other = arrays_of(trained(replace(CONFIG, seed=1)).model)
    assert any((array != other[name]).any() for name, array in named_parameters(trained(CONFIG).model))


# Gradients are accumulated --------------------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model = lively_model(TINY)
    windows = np.random.default_rng(0).integers(20, size=(6, 9))
    loss, gradients = accumulated_gradients(model, [windows])
    for n_parts, threads in ((3, 1), (3, 2), (6, 2), (1, 4)):
        loss_of_parts, of_parts = accumulated_gradients(model, np.split(windows, n_parts), threads)
        assert loss_of_parts == pytest.approx(loss, rel=1e-13)
        for name, array in of_parts.items():
            np.testing.assert_allclose(array, gradients[name], rtol=0, atol=1e-13 * np.abs(gradients[name]).max())


def test_threads_change_nothing_but_rounding_and_that_alike_each_time():
    runs = []
    for threads in (1, 2, 2):
        runs.append(start(initial_model(TINY, seed=1), CONFIG))
        for step in range(3):
            learn(runs[-1], np.split(windows_of_step(TEXT, step, 8, 8, seed=0), 4), 0.5, threads)
    assert runs[1].losses == runs[2].losses == pytest.approx(runs[0].losses, rel=1e-5)
    assert_equal(arrays_of(runs[1].model), arrays_of(runs[2].model))


def test_accumulation_is_a_larger_batch():
    one = trained(replace(CONFIG, batch_size=4), 3)
    two = trained(replace(CONFIG, batch_size=2, accumulate=2), 3)
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)


def test_each_token_of_a_window_but_the_first_is_a_target():
    model = lively_model(TINY)
    windows = np.random.default_rng(0).integers(20, size=(3, 9))
    loss, gradients = accumulated_gradients(model, [windows])
    expected, expected_gradients = loss_and_gradients(model, windows[:, :-1], windows[:, 1:])
    assert loss == expected
    assert_equal(gradients, dict(named_parameters(expected_gradients)))


@pytest.mark.parametrize("threads, asked", [(1, set()), (2, {2}), (3, {3})])
def test_so_many_threads_work_as_are_asked_for(threads, asked):
    with patch.object(loop, "ThreadPoolExecutor", side_effect=ThreadPoolExecutor) as pools:
        run = start(initial_model(TINY, seed=1), CONFIG)
        learn(run, np.split(windows_of_step(TEXT, 0, 8, 8, seed=0), 4), 0.5, threads)
    assert {call.args[0] for call in pools.call_args_list} == asked
    assert pools.call_count == (2 if asked else 0)  # to read, and to move the weights


@pytest.mark.parametrize("clip, length", [(0.25, 0.25), (0.0, None), (1e9, None)])
def test_the_gradients_that_adamw_sees_are_clipped_and_muons_are_not(clip, length):
    """After one step each average is a fixed part of the gradient."""
    _, gradients = accumulated_gradients(initial_model(TINY, seed=1), [windows_of_step(TEXT, 0, 2, 8, seed=0)])
    run = trained(replace(CONFIG, clip=clip), 1)
    of_adamw = {name: moments["mean"] / 0.1 for name, moments in run.moments.items() if "mean" in moments}
    whole = math.sqrt(sum(np.sum(gradients[name] ** 2, dtype=float) for name in of_adamw))
    found = math.sqrt(sum(np.sum(gradient ** 2, dtype=float) for gradient in of_adamw.values()))
    assert found == pytest.approx(length or whole, rel=1e-5)
    for name, moments in run.moments.items():
        if "average" in moments:
            np.testing.assert_allclose(moments["average"] / 0.05, gradients[name], rtol=1e-4, atol=1e-9)


def test_a_step_that_breaks_off_while_weights_move_leaves_a_run_that_says_so():
    run = start(initial_model(TINY, seed=1), CONFIG)
    training_step(run, TEXT)
    assert run.is_whole is True
    with patch.object(loop, "adamw", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        training_step(run, TEXT)
    assert run.is_whole is False


# Which optimizer, and what is frozen ----------------------------------------------------------------------------------


def test_muon_is_for_the_matrices_of_blocks_and_adamw_for_the_rest():
    shapes = parameter_shapes(TINY)
    of_muon = {name for name, shape in shapes.items() if moments_of(name, shape, CONFIG) == ("average",)}
    assert of_muon == {name for name in shapes if ".c_" in name and name.endswith("weight")}
    without = replace(CONFIG, muon_rate=0.0)
    assert {moments_of(name, shape, without) for name, shape in shapes.items()} == {("mean", "square")}


@pytest.mark.parametrize("muon_rate", [0.0, 0.01])
def test_only_the_matrices_of_blocks_decay(muon_rate):
    """With gradients of 0, what moves is what decays."""
    model = initial_model(TINY, seed=1)
    before = arrays_of(model)
    zeros = {name: np.zeros_like(array) for name, array in before.items()}
    with patch.object(loop, "accumulated_gradients", lambda *_: (1.0, {**zeros})):
        trained(replace(CONFIG, muon_rate=muon_rate, weight_decay=0.5, warmup=0, steps=1), model=model)
    rate = muon_rate or CONFIG.rate
    for name, array in named_parameters(model):
        is_matrix = ".c_" in name and name.endswith("weight")
        factor = 1 - rate * 0.5 * 0.5 if is_matrix else 1  # a run of one step begins, and ends, half way down
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-5, atol=0, err_msg=name)


@pytest.mark.parametrize("globs, expected", [
    (["wte"], {"wte.weight"}),
    (["h.0.ln_1.bias"], {"h.0.ln_1.bias"}),
    (["h.[0-3]"], {name for name in NAMES if name.startswith("h.")}),
    (["h.0.*", "wpe"], {name for name in NAMES if name.startswith("h.0.")} | {"wpe.weight"}),
    (["*.bias"], {name for name in NAMES if name.endswith(".bias")}),
    ([], set()),
])
def test_globs_freeze_what_they_name(globs, expected):
    assert frozen_names(NAMES, globs) == expected


def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments():
    model = initial_model(TINY, seed=1)
    before = arrays_of(model)
    run = trained(replace(CONFIG, freeze=("wte", "h.0.*")), model=model)
    for name, array in named_parameters(model):
        frozen = name == "wte.weight" or name.startswith("h.0.")
        assert np.array_equal(array, before[name]) == frozen, name
        assert (name in run.moments) != frozen


@pytest.mark.parametrize("globs, message", [
    (["h.0.ln_3.bias"], "which matches none; the nearest are h.0.ln_2.bias, h.0.ln_1.bias, h.1.ln_2.bias."),
    (["wtf"], "Got 'wtf', which matches none; the nearest are wte.weight"),
    (["wte", "h.7.*"], "Got 'h.7.*', which matches none; the nearest are h."),
    (["*"], "freeze must leave a parameter to train. Got globs that match all of them."),
])
def test_globs_that_freeze_nothing_or_everything_are_refused(globs, message):
    with pytest.raises(ValueError) as error:
        frozen_names(NAMES, globs)
    assert str(error.value).startswith("freeze must")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, message", [
    ({"steps": 0}, "steps must be a whole number, 1 or more. Got 0"),
    ({"batch_size": 0}, "batch_size must be"), ({"context": 0}, "context must be"), ({"accumulate": 0}, "accumulate"),
    ({"rate": 0.0}, "rate must be above 0 and finite. Got 0.0"), ({"rate": math.inf}, "rate must be above 0"),
    ({"muon_rate": -1.0}, "muon_rate must be 0"), ({"weight_decay": math.nan}, "weight_decay must be 0"),
    ({"clip": -0.1}, "clip must be 0"), ({"warmup": 1.1}, "warmup must be from 0 to 1"), ({"seed": -1}, "seed must be"),
])
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


def test_limits_themselves_are_allowed():
    assert TrainingConfig(warmup=1, clip=0, muon_rate=0, weight_decay=0).warmup == 1
    assert start(initial_model(TINY, seed=0), replace(CONFIG, context=16)).step == 0


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(ValueError, match="context must be at most the model's, 16. Got 17"):
        start(initial_model(TINY, seed=0), replace(CONFIG, context=17))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_a_weight_moves(bad):
    model = initial_model(TINY, seed=1)
    run = trained(CONFIG, 2, model)
    model.h[1].mlp.c_fc.bias[3] = bad
    before = arrays_of(model)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="step 3 of 6: the loss is nan, .* lower "):
        training_step(run, TEXT)
    assert_equal(arrays_of(model), before)
    assert run.step == len(run.losses) == 2


# It goes on, bit for bit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon_rate", [0.0, 0.01])
@pytest.mark.parametrize("stop_after", range(7))
def test_a_run_that_was_stopped_ends_with_the_same_weights_bit_for_bit(tmp_path, stop_after, muon_rate):
    config = replace(CONFIG, muon_rate=muon_rate, freeze=("h.0.ln_1",))
    whole = trained(config)
    first = trained(config, stop_after)
    first.held_out_losses[0] = 2.5
    save_run(first, tmp_path, description(first, TEXT, "tiny"))
    second = start(initial_model(TINY, seed=1), config)
    assert resume(second, tmp_path, description(second, TEXT, "tiny"))
    assert second.held_out_losses == {0: 2.5}
    while second.step < config.steps:
        training_step(second, TEXT)
    assert second.losses == whole.losses
    assert_equal(arrays_of(second.model), arrays_of(whole.model))
    for name, moments in whole.moments.items():
        assert_equal(second.moments[name], moments)


def test_without_a_saved_state_a_run_starts_anew(tmp_path):
    run = start(initial_model(TINY, seed=1), CONFIG)
    assert not resume(run, tmp_path, description(run, TEXT, "tiny"))
    assert run.step == 0


def test_a_saving_that_fails_leaves_the_last_state_as_it_was(tmp_path):
    run = trained(CONFIG, 2)
    save_run(run, tmp_path, {})
    before = (tmp_path / saved_run.FILE).read_bytes()
    training_step(run, TEXT)
    with patch.object(np, "savez", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError):
        save_run(run, tmp_path, {})
    assert (tmp_path / saved_run.FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [saved_run.FILE]


@pytest.mark.parametrize("changes, message", [
    ({"steps": 7}, "holds a run with steps 6. Got 7: use that run's settings, or another folder"),
    ({"seed": 5}, "holds a run with seed 0. Got 5"),
    ({"freeze": ("wte",)}, r"holds a run with freeze \[\]. Got \['wte'\]"),
])
def test_another_run_in_the_folder_is_refused(tmp_path, changes, message):
    run = trained(CONFIG, 1)
    save_run(run, tmp_path, description(run, TEXT, "tiny"))
    other = start(initial_model(TINY, seed=1), replace(CONFIG, **changes))
    before = arrays_of(other.model)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))} {message}"):
        resume(other, tmp_path, description(other, TEXT, "tiny"))
    assert_equal(arrays_of(other.model), before)


def test_a_run_on_another_text_or_from_another_model_is_refused(tmp_path):
    run = trained(CONFIG, 1)
    save_run(run, tmp_path, description(run, TEXT, "tiny"))
    with pytest.raises(ValueError, match="holds a run with text"):
        resume(run, tmp_path, description(run, TEXT[1:], "tiny"))
    with pytest.raises(ValueError, match="holds a run with start tiny. Got large"):
        resume(run, tmp_path, description(run, TEXT, "large"))


@given(st.integers(0, 10_000), st.booleans())
def test_a_damaged_file_is_refused_in_one_line(tmp_path_factory, place, cut):
    folder = tmp_path_factory.mktemp("damaged")
    run = trained(CONFIG, 1)
    save_run(run, folder, {})
    data = bytearray((folder / saved_run.FILE).read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 0xff
    (folder / saved_run.FILE).write_bytes(data)
    other = start(initial_model(TINY, seed=1), CONFIG)
    try:
        resume(other, folder, {})  # a byte that nobody reads may be another
    except CheckpointError as error:
        assert str(error).startswith(f"{folder / saved_run.FILE}: expected the state of a training run, found a damag")
        assert "\n" not in str(error)


CAUGHT = []


def spring(what):
    CAUGHT.append(what)


class Trap:
    """Unpickled, it calls a function."""

    def __reduce__(self):
        return spring, ("caught",)


def test_nothing_in_a_saved_state_is_ever_executed(tmp_path):
    np.savez(tmp_path / saved_run.FILE, facts=np.array(Trap(), dtype=object))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / saved_run.FILE))}: expected the state"):
        resume(start(initial_model(TINY, seed=1), CONFIG), tmp_path, {})
    assert not CAUGHT


def test_a_text_is_the_same_whatever_the_type_of_its_ids():
    run = trained(CONFIG, 0)
    assert description(run, TEXT.astype(np.int32), "tiny") == description(run, TEXT, "tiny")


def test_a_folder_must_be_new_or_that_of_a_run(tmp_path):
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    (tmp_path / saved_run.PARTIAL).write_bytes(b"killed while it was written")
    check_folder(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    folder = re.escape(repr(str(tmp_path)))
    with pytest.raises(ValueError, match=f"^--out must be a new folder, or .* resume. Got {folder}, .* something"):
        check_folder(tmp_path)
    with pytest.raises(ValueError, match=f"--out must be a folder. Got {folder[:-1]}.thesis.txt', which is a file"):
        check_folder(tmp_path / "thesis.txt")
    run = trained(CONFIG, 1)
    save_run(run, tmp_path, {})
    check_folder(tmp_path)
    finish_run(run, tmp_path, {"seed": 1})
    check_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["thesis.txt", saved_run.RECORD]
    assert json.loads((tmp_path / saved_run.RECORD).read_text())["losses"] == run.losses


def test_a_finished_run_is_known_by_what_it_was_told(tmp_path):
    run = trained(CONFIG, 1)
    assert not is_finished(tmp_path, {"seed": 1})
    save_run(run, tmp_path, {"seed": 1})
    assert not is_finished(tmp_path, {"seed": 1})
    finish_run(run, tmp_path, {"seed": 1})
    assert is_finished(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match="holds a finished run with seed 1. Got 2: to train further, use --model"):
        is_finished(tmp_path, {"seed": 2})
    (tmp_path / saved_run.RECORD).write_text("{")
    with pytest.raises(CheckpointError, match="training_run.json: expected the state of a training run, found a damag"):
        is_finished(tmp_path, {"seed": 1})


def test_the_best_step_is_the_latest_of_the_lowest_held_out_losses_after_the_start():
    run = trained(CONFIG, 0)
    assert best_step(run) is None
    run.held_out_losses = {0: 1.0}
    assert best_step(run) is None
    run.held_out_losses = {0: 1.0, 2: 3.0, 4: 2.0, 6: 2.0, 8: 2.5}
    assert best_step(run) == 6


def test_a_saved_state_says_what_the_run_depends_on(tmp_path):
    run = trained(CONFIG, 1)
    save_run(run, tmp_path, description(run, TEXT, "tiny"))
    with np.load(tmp_path / saved_run.FILE) as file:
        about = json.loads(str(file["facts"]))["about"]
    assert about["steps"] == 6
    assert about["start"] == "tiny"


# Memory ---------------------------------------------------------------------------------------------------------------


def test_memory_is_counted_by_kind():
    n = sum(array.size for _, array in named_parameters(initial_model(TINY, seed=0)))
    of_blocks = 2 * (12 * 36 + 12 * 12 + 2 * 12 * 48)
    found = training_memory(TINY, CONFIG)
    assert (found["weights"], found["gradients"]) == (4 * n, 4 * n)
    assert found["moments"] == 4 * (2 * n - of_blocks)
    assert training_memory(TINY, replace(CONFIG, muon_rate=0.0))["moments"] == 8 * n
    assert training_memory(TINY, replace(CONFIG, accumulate=3))["gradients"] == 8 * n
    assert training_memory(TINY, CONFIG, {"wte.weight"})["moments"] == found["moments"] - 8 * 20 * 12
    twice = training_memory(TINY, replace(CONFIG, batch_size=4))
    assert twice["activations"] == 2 * found["activations"]
    assert training_memory(TINY, replace(CONFIG, accumulate=2))["gradients"] == 8 * n


def test_activations_are_counted_number_by_number():
    """TINY has 2 blocks of width 12 with 48 neurons and 3 heads, and 20 tokens; CONFIG reads 2 windows of 8 tokens."""
    kept = 2 * (10 * 12 + 2 * 48) + 2 * 20
    temporary = 4 * 48 + 3 * 3 * 8 + 6 * 12
    assert training_memory(TINY, CONFIG)["activations"] == 4 * 2 * 8 * (kept + temporary)
    longer = replace(TINY, n_positions=1000), replace(CONFIG, context=1000)
    temporary = 4 * 48 + 3 * 3 * 512 + 6 * 12  # scores come in blocks
    assert training_memory(*longer)["activations"] == 4 * 2 * 1000 * (kept + temporary)


def test_too_little_memory_is_said_before_the_start_with_what_to_change():
    needed = training_memory(TINY, CONFIG)
    beside_weights = sum(needed.values()) - needed["weights"]
    with patch.object(memory, "available_memory", lambda: beside_weights):
        check_training_memory(TINY, CONFIG)
    with patch.object(memory, "available_memory", lambda: None):
        check_training_memory(TINY, CONFIG)
    with patch.object(memory, "available_memory", lambda: beside_weights - 1), pytest.raises(MemoryError) as error:
        check_training_memory(TINY, CONFIG)
    parts = r", ".join(rf"{name} \S+ GB" for name in ("weights", "gradients", "moments", "activations"))
    assert re.fullmatch(rf"training takes \S+ GB \({parts}\), and "
                        r"\S+ GB are available beside the weights: lower --batch-size or --context, --freeze a part of "
                        "the model, or use a smaller one", str(error.value))
    frozen = set(NAMES) - {"ln_f.bias"}
    with patch.object(memory, "available_memory", lambda: beside_weights - needed["moments"] + 8 * 12):
        check_training_memory(TINY, CONFIG, frozen)


# A new model ----------------------------------------------------------------------------------------------------------


def test_a_new_model_is_made_as_gpt2_was():
    config = GPT2Config(vocab_size=300, n_positions=200, n_embd=64, n_layer=8, n_head=4)
    for name, array in named_parameters(initial_model(config, seed=0)):
        assert array.dtype == np.float32
        if array.ndim == 1:
            assert (array == (1 if "ln_" in name and name.endswith("weight") else 0)).all(), name
        else:
            expected = {"wte.weight": 0.02, "wpe.weight": 0.01}.get(name, 0.005 if "c_proj" in name else 0.02)
            assert array.std() == pytest.approx(expected, rel=0.05), name
            assert abs(array.mean()) < expected / 20


def test_a_new_model_depends_on_its_seed():
    one, same, other = (arrays_of(initial_model(TINY, seed)) for seed in (0, 0, 1))
    assert_equal(one, same)
    assert (one["wte.weight"] != other["wte.weight"]).any()
