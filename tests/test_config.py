"""The settings: defaults, and refusals by key and value."""

import dataclasses
import json

import pytest
from hypothesis import given

from numpy_gpt2 import SIZES, GPT2Config
from strategies import configs


def refusal(**settings) -> str:
    with pytest.raises(ValueError) as refused:
        GPT2Config.from_dict(settings)
    return str(refused.value)


# Values ---------------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_small():
    assert GPT2Config() == GPT2Config.from_dict({}) == SIZES["small"]
    assert GPT2Config().layer_norm_epsilon == 1e-5
    assert GPT2Config().tie_word_embeddings is True


@pytest.mark.parametrize("size, n_layer, n_head, n_embd", [
    ("small", 12, 12, 768), ("medium", 24, 16, 1024), ("large", 36, 20, 1280), ("xl", 48, 25, 1600)])
def test_the_four_sizes(size, n_layer, n_head, n_embd):
    config = SIZES[size]
    assert (config.n_layer, config.n_head, config.n_embd) == (n_layer, n_head, n_embd)
    assert (config.vocab_size, config.n_positions, config.n_inner) == (50257, 1024, 4 * n_embd)


def test_heads_are_64_wide_in_all_four_sizes_and_divide_the_width():
    assert list(SIZES) == ["small", "medium", "large", "xl"]
    for config in SIZES.values():
        assert config.d_head == 64
        assert config.n_head * config.d_head == config.n_embd


def test_n_inner_absent_or_null_is_four_times_the_width():
    assert GPT2Config(n_embd=24).n_inner == 96
    assert GPT2Config.from_dict({"n_embd": 24, "n_inner": None}).n_inner == 96
    assert GPT2Config.from_dict({"n_embd": 24, "n_inner": 7}).n_inner == 7


def test_a_config_cannot_be_changed():
    config = GPT2Config()
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)


@given(configs())
def test_a_config_comes_back_from_its_own_dict(config):
    settings = config.to_dict()
    assert GPT2Config.from_dict(json.loads(json.dumps(settings))) == config
    assert (settings["model_type"], settings["activation_function"]) == ("gpt2", "gelu_new")
    assert (settings["architectures"], settings["n_ctx"]) == (["GPT2LMHeadModel"], config.n_positions)


def test_settings_that_change_no_logit_are_let_through():
    config = GPT2Config.from_dict({
        "model_type": "gpt2", "activation_function": "gelu_pytorch_tanh", "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "pruned_heads": {}, "tokenizer_class": None,
        "add_cross_attention": False, "reorder_and_upcast_attn": True,
        "n_ctx": 1024, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "task_specific_params": {"text-generation": {}}})
    assert config == GPT2Config()


@pytest.mark.parametrize("alias, name", [("num_attention_heads", "n_head"), ("hidden_size", "n_embd"),
                                         ("num_hidden_layers", "n_layer"), ("max_position_embeddings", "n_positions")])
def test_an_alias_counts_and_beats_the_name(alias, name):
    assert getattr(GPT2Config.from_dict({alias: 24}), name) == 24
    assert getattr(GPT2Config.from_dict({alias: 24, name: 12}), name) == 24
    assert refusal(**{alias: 0}).startswith(f"{name} must be a whole number")


@pytest.mark.parametrize("name, canonical", [
    ("gelu_pytorch_tanh", "gelu_new"), ("gelu_fast", "gelu_new"), ("gelu_python_tanh", "gelu_new"),
    ("gelu_accurate", "gelu_new"), ("gelu", "gelu"), ("gelu_python", "gelu"), ("relu", "relu")])
def test_an_activation_has_one_name_here_whatever_it_is_called_there(name, canonical):
    config = GPT2Config.from_dict({"activation_function": name})
    assert config.activation_function == config.to_dict()["activation_function"] == canonical


def test_token_ids_may_be_null():
    config = GPT2Config.from_dict({"bos_token_id": None, "eos_token_id": None})
    assert (config.bos_token_id, config.eos_token_id) == (None, None)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key, value", [
    ("model_type", "llama"), ("model_type", None), ("model_type", ["gpt2"]),
    ("scale_attn_weights", None), ("scale_attn_weights", 1), ("scale_attn_by_inverse_layer_idx", 0),
    ("pruned_heads", {"0": [1]}),
    ("add_cross_attention", True), ("add_cross_attention", "no"),
])
def test_another_arithmetic_is_refused_by_key_and_value(key, value):
    message = refusal(**{key: value})
    assert message.startswith(f"{key} must be ")
    assert message.endswith(f"Got {json.dumps(value)}.")


@pytest.mark.parametrize("value", ["silu", "gelu_10", "GELU", "", None, ["gelu_new"]])
def test_another_activation_is_refused_with_the_names_of_those_there_are(value):
    message = refusal(activation_function=value)
    assert message == ("activation_function must be one of gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_python_tanh, "
                       f"gelu_accurate, gelu, gelu_python, relu. Got {value!r}.")


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, [8], 2**31, float("nan")])
def test_a_size_that_is_no_count_is_refused_by_key_and_value(key, value):
    assert refusal(**{key: value}) == f"{key} must be a whole number from 1 to 2147483647. Got {value!r}."


def test_only_n_inner_may_be_null():
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        for value in (None, {}):
            assert refusal(**{key: value}) == f"{key} must be a whole number from 1 to 2147483647. Got {value!r}."


def test_the_smallest_and_the_largest_size_are_taken():
    ones = GPT2Config(vocab_size=1, n_positions=1, n_embd=1, n_layer=1, n_head=1, n_inner=1)
    assert ones.d_head == 1
    assert GPT2Config(vocab_size=2**31 - 1).vocab_size == 2**31 - 1


def test_a_width_that_the_heads_do_not_divide_is_refused():
    assert refusal(n_embd=10, n_head=3) == "n_embd must be a multiple of n_head. Got n_embd 10, n_head 3."


@pytest.mark.parametrize("value", [0, 0.0, -1e-5, 1, 1.0, True, "1e-5", None, float("nan"), float("inf")])
def test_an_epsilon_out_of_range_is_refused(value):
    assert refusal(layer_norm_epsilon=value) == f"layer_norm_epsilon must be a number between 0 and 1. Got {value!r}."


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_tying_is_true_or_false(value):
    assert refusal(tie_word_embeddings=value) == f"tie_word_embeddings must be true or false. Got {value!r}."


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [True, 1.0, "0", ["0"]])
def test_a_token_id_is_a_whole_number_or_null(key, value):
    assert refusal(**{key: value}) == f"{key} must be a token id or null. Got {value!r}."


def test_several_ends_of_text_are_taken_and_written_as_a_list():
    config = GPT2Config.from_dict({"model_type": "gpt2", "eos_token_id": [1, 2]})
    assert config.eos_token_id == (1, 2)
    assert json.loads(json.dumps(config.to_dict()))["eos_token_id"] == [1, 2]
