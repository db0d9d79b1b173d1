"""A model with some weights replaced shares all the others, and leaves the old model as it was."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import (GPT2Config, forward, load_model, named_parameters, parameter_shapes, random_model,
                        replace_weights, save)
from strategies import passes


@given(passes(), st.data())
def test_a_model_with_a_weight_replaced_shares_all_the_others(drawn, data):
    model, ids = drawn
    before = dict(named_parameters(model))
    name = data.draw(st.sampled_from(sorted(before)))
    new = before[name] + 1
    replaced = replace_weights(model, {name: new})
    after = dict(named_parameters(replaced))
    assert after.keys() == before.keys()
    assert after[name] is new
    assert all(after[other] is before[other] for other in before if other != name)
    assert (replaced.lm_head is replaced.wte) == (model.lm_head is model.wte)
    np.testing.assert_array_equal(forward(replace_weights(replaced, {name: before[name]}), ids), forward(model, ids))


@given(passes())
def test_what_does_not_fit_is_refused_by_name(drawn):
    model, _ = drawn
    with pytest.raises(ValueError) as error:
        replace_weights(model, {"h.0.attn.c_atn.weight": model.wte})
    assert str(error.value) == ("the model has no parameter 'h.0.attn.c_atn.weight'; the nearest is "
                                "'h.0.attn.c_attn.weight'.")
    with pytest.raises(ValueError, match="^the model has no parameter '~'; the nearest is '.*'.$"):
        replace_weights(model, {"~": model.wte})  # even for a name that is like none of them
    with pytest.raises(ValueError, match="ln_f.bias must have shape .*, float64. Got .*, float64"):
        replace_weights(model, {"ln_f.bias": model.wte})
    with pytest.raises(ValueError, match="ln_f.bias must have shape .*, float64. Got .*, float32"):
        replace_weights(model, {"ln_f.bias": model.ln_f.bias.astype(np.float32)})


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("is_one_array", [True, False])
def test_whatever_the_config_says_a_replaced_weight_and_a_saved_folder_keep_the_unembedding(
        tmp_path, tie_word_embeddings, is_one_array):
    config = GPT2Config(11, 8, 4, 1, 2, tie_word_embeddings=tie_word_embeddings)
    model = random_model(config)
    model = dataclasses.replace(model, lm_head=model.wte if is_one_array else model.wte + 1)
    replaced = replace_weights(model, {"ln_f.bias": model.ln_f.bias + 1})
    assert replaced.lm_head is model.lm_head and replaced.ln_f.bias is not model.ln_f.bias
    save(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).lm_head, model.lm_head)


def test_a_random_model_is_float32_and_that_of_seed_0_unless_another_is_given():
    config = GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2)
    by_default, of_seed_0, of_seed_1 = [dict(named_parameters(model)) for model in (
        random_model(config), random_model(config, 0), random_model(config, seed=1))]
    assert {name: array.shape for name, array in by_default.items()} == parameter_shapes(config)
    for name, array in by_default.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, of_seed_0[name])
        assert not np.any(array == of_seed_1[name])


def test_the_spread_of_random_weights_is_that_of_gpt2_s_initialisation():
    config = GPT2Config(vocab_size=200, n_positions=200, n_embd=64, n_layer=1, n_head=1)
    arrays = dict(named_parameters(random_model(config)))
    spread = {name: float(array.std()) for name, array in arrays.items() if array.size > 9000}
    assert spread.keys() == {"wte.weight", "wpe.weight", *(f"h.0.{part}.weight" for part in (
        "attn.c_attn", "mlp.c_fc", "mlp.c_proj"))}
    for name, value in spread.items():
        assert value == pytest.approx(0.01 if name == "wpe.weight" else 0.02, rel=0.05)
    assert arrays["ln_f.weight"].mean() == pytest.approx(1, abs=0.02)
