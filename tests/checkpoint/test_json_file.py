"""A config.json is read, or refused in one line that names the file."""

import pytest

from numpy_gpt2 import CheckpointError, GPT2Config
from numpy_gpt2.checkpoint.json_file import read_config


def file_refusal(tmp_path, content: bytes) -> str:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_config(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_file_says_what_it_holds(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": null, "vocab_size": 9}')
    assert read_config(path) == GPT2Config(vocab_size=9, n_embd=24, n_layer=2, n_head=3)


def test_a_refused_setting_is_refused_in_the_name_of_the_file(tmp_path):
    assert file_refusal(tmp_path, b'{"model_type": "gpt2", "add_cross_attention": true}') == (
        "add_cross_attention must be false. Got true.")
    assert file_refusal(tmp_path, b'{"model_type": "llama"}') == 'model_type must be "gpt2". Got "llama".'


def test_a_quantized_model_is_refused_with_the_way_out(tmp_path):
    settings = b'{"model_type": "gpt2", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}'
    assert file_refusal(tmp_path, settings).startswith("quantization_config: expected weights that are not quantized.")


def test_a_file_without_model_type_is_refused(tmp_path):
    assert 'no key "model_type"' in file_refusal(tmp_path, b'{"n_embd": 24}')


@pytest.mark.parametrize("content, kind", [(b"[]", "list"), (b'"gpt2"', "str"), (b"null", "NoneType"), (b"1", "int")])
def test_a_file_that_is_no_object_is_refused(tmp_path, content, kind):
    assert file_refusal(tmp_path, content) == f"expected a JSON object, found {kind}"


@pytest.mark.parametrize("content", [b"", b"{", b'{"model_type": "gpt2",}', b"gpt2", b'{"model_type": "gpt2"} {}'])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    assert file_refusal(tmp_path, content).startswith("not valid JSON: ")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    assert "utf-8" in file_refusal(tmp_path, b'{"model_type": "gpt2\xff"}')


@pytest.mark.parametrize("key", ["model_type", "n_embd", "anything"])
def test_a_file_nested_a_hundred_thousand_deep_is_refused(tmp_path, key):
    nested = b"[" * 100_000 + b"]" * 100_000
    assert file_refusal(tmp_path, b'{"%s": %s}' % (key.encode(), nested)) == "not valid JSON: nested too deeply"


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=f"^{tmp_path}[^:]*: cannot be read: "):
        read_config(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}[^:]*: cannot be read: "):
        read_config(tmp_path)
