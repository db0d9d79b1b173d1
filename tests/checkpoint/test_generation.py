"""What a checkpoint says of generation: its ends count, and what else would change a text is said."""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from outside import writable_copy

from numpy_gpt2 import (CheckpointError, GPT2Config, generate_tokens, load, load_model, named_parameters, random_model,
                        replace_weights, save)
from numpy_gpt2.checkpoint import json_file
from numpy_gpt2.checkpoint.generation import NOT_APPLIED, text_ids
from numpy_gpt2.checkpoint.hub import BUNDLED
from numpy_gpt2.checkpoint.json_file import read_configs
from numpy_gpt2.errors import CheckpointWarning, shown

RANDOM = random_model(GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=10), 289)
MODEL = replace_weights(RANDOM, {name: 10 * array for name, array in named_parameters(RANDOM) if name.startswith("h.")})
PROMPT = [1, 2, 3]
GREEDY = list(generate_tokens(MODEL, PROMPT, max_new_tokens=6, temperature=0))  # some different tokens
CHANGING: dict[str, Any] = {  # setting -> a value with which it changes the greedy text
    "repetition_penalty": 2.0, "no_repeat_ngram_size": 1, "bad_words_ids": [GREEDY[:1]],
    "sequence_bias": [[GREEDY[:1], -100.0]], "suppress_tokens": GREEDY[:1], "begin_suppress_tokens": GREEDY[:1],
    "min_length": 9, "min_new_tokens": 5, "forced_bos_token_id": 7, "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 5.0], "stop_strings": ["a"], "guidance_scale": 3.0, "num_beams": 3,
    "penalty_alpha": 0.6}


def write(folder: Path, in_config: dict[str, Any], in_generation_config: "dict[str, Any] | None") -> Path:
    save(MODEL, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | in_config))
    if in_generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(in_generation_config))
    return folder


def said_of(folder: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(folder)
    assert {warning.category for warning in caught} <= {CheckpointWarning}
    return [str(warning.message).removeprefix(f"{folder}/") for warning in caught]


# Ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation, expected", [
    (None, {"eos_token_id": 5}), ({}, {"eos_token_id": 5}), ({"eos_token_id": None}, {"eos_token_id": 5}),
    ({"eos_token_id": 7, "bos_token_id": 6}, {"bos_token_id": 6, "eos_token_id": 7}),
    ({"eos_token_id": [7, 8], "temperature": 0.1}, {"eos_token_id": [7, 8]})])
def test_the_ends_are_those_for_generation_and_where_it_has_none_those_of_the_config(tmp_path, generation, expected):
    files = {"config.json": {"model_type": "gpt2", "eos_token_id": 5}, "generation_config.json": generation}
    paths = {name: tmp_path / name for name, content in files.items() if content is not None}
    for name, path in paths.items():
        path.write_text(json.dumps(files[name]))
    assert text_ids(paths, read_configs(paths)) == expected


def test_an_end_for_generation_that_is_no_id_is_refused_in_the_name_of_its_file(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="generation_config.json: eos_token_id must be a token id or null. Got"):
        text_ids({"generation_config.json": path}, read_configs({"generation_config.json": path}))


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": None}])
def test_an_end_that_only_config_json_knows_is_said(tmp_path, settings):
    write(tmp_path, {}, settings)
    assert said_of(tmp_path) == ["generation_config.json: no eos_token_id, so texts end at config.json's, 10; in "
                                 "transformers they would end at the length alone."]
    with pytest.warns(CheckpointWarning):
        assert load_model(tmp_path).config.eos_token_id == 10


@pytest.mark.parametrize("end, said", [
    (11, ["config.json: eos_token_id 11: the model has the ids 0 to 10, so no text ends with it."]), (10, []),
    (50256, []), (None, [])])
def test_an_end_that_the_model_does_not_have_is_said(tmp_path, end, said):
    assert said_of(write(tmp_path, {"eos_token_id": end}, None)) == said


# Settings that are not applied ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", NOT_APPLIED)
def test_a_setting_that_is_not_applied_is_said_and_its_neutral_values_are_not(tmp_path, key):
    said = f"ignored, though transformers' generate applies it by default: {key} {shown(CHANGING[key])}."
    assert said_of(write(tmp_path, {key: CHANGING[key]}, None)) == [f"config.json: {said}"]
    ends = {"eos_token_id": 10}
    assert said_of(write(tmp_path, {}, ends | {key: CHANGING[key]})) == [f"generation_config.json: {said}"]
    for neutral in (None, *NOT_APPLIED[key]):
        assert said_of(write(tmp_path, {}, ends | {key: neutral})) == []
    assert said_of(write(tmp_path, {key: CHANGING[key]}, ends)) == []  # there config.json's do not count


def test_several_are_said_in_one_line(tmp_path):
    settings = {"eos_token_id": 10, "suppress_tokens": [7], "min_new_tokens": 5, "temperature": 0.5, "do_sample": True}
    assert said_of(write(tmp_path, {}, settings)) == [
        "generation_config.json: ignored, though transformers' generate applies it by default: suppress_tokens [7], "
        "min_new_tokens 5."]


@pytest.mark.parity
@pytest.mark.parametrize("key", NOT_APPLIED)
def test_what_is_said_not_to_be_applied_does_change_transformers_greedy_text(tmp_path, key):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    prompt = PROMPT[:1] if key == "forced_bos_token_id" else PROMPT

    def text(settings: dict[str, Any]) -> Any:
        write(tmp_path, {}, {"eos_token_id": GREEDY[2] if key.startswith("min_") else 10} | settings)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        try:
            return model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
        except ValueError as error:
            return str(error)  # it wants more than the checkpoint's files

    plain = text({})
    assert all(text({key: neutral}) == plain for neutral in NOT_APPLIED[key])
    assert text({key: CHANGING[key]}) != plain
    assert key.startswith(("min_", "forced_bos")) or plain == [PROMPT + GREEDY]


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_load_reads_each_file_of_settings_once(tmp_path, monkeypatch):
    writable_copy(BUNDLED["fairytale"], tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    n_read: Counter[str] = Counter()
    read = json_file.read_text_file
    monkeypatch.setattr(json_file, "read_text_file", lambda path: n_read.update([path.name]) or read(path))
    load(tmp_path)
    assert n_read == {"config.json": 1, "generation_config.json": 1, "vocab.json": 1}
