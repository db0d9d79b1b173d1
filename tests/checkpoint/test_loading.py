"""Folders in, models out: every variant of the format loads to the same numbers, and every flaw is said in one line."""

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import as_typed, writable_copy
from safetensors.numpy import load_file, save_file

from numpy_gpt2.checkpoint import loading
from numpy_gpt2.checkpoint.hub import BUNDLED, look_up
from numpy_gpt2.checkpoint.loading import load, load_model, load_tokenizer
from numpy_gpt2.checkpoint.saving import save
from numpy_gpt2.checkpoint.tensors import read_rows, stored_tensors, widen_bfloat16
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet
from numpy_gpt2.config import SIZES, GPT2Config
from numpy_gpt2.errors import CheckpointError
from numpy_gpt2.model import forward
from numpy_gpt2.weights import GPT2, build_model, named_parameters, parameter_shapes, random_model

TINY = GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=2, n_head=2)
UNTIED = replace(TINY, tie_word_embeddings=False)
INDEX = "model.safetensors.index.json"


@st.composite
def configs(draw: st.DrawFn) -> GPT2Config:
    n_head = draw(st.integers(1, 3))
    return GPT2Config(vocab_size=draw(st.integers(1, 20)), n_positions=draw(st.integers(1, 9)), n_head=n_head,
                      n_embd=n_head * draw(st.integers(1, 4)), n_layer=draw(st.integers(1, 3)),
                      n_inner=draw(st.none() | st.integers(1, 9)), tie_word_embeddings=draw(st.booleans()))


def arrays_of(model: GPT2) -> dict[str, np.ndarray]:
    return dict(named_parameters(model))


def assert_equal_models(model: GPT2, expected: GPT2) -> None:
    assert model.config == expected.config
    assert (model.lm_head is model.wte) == model.config.tie_word_embeddings
    found, wanted = arrays_of(model), arrays_of(expected)
    assert list(found) == list(wanted)
    for name, array in found.items():
        assert array.dtype == np.float32 and array.shape == wanted[name].shape, name
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


# A writer of its own for the format, which can also write what safetensors would refuse to -------------------------


def bfloat16_bits(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) >> 16).astype(np.uint16)  # truncated, which is enough here


ENCODERS: dict[str, Any] = {
    "F64": lambda array: array.astype(np.float64),
    "F32": lambda array: array,
    "F16": lambda array: array.astype(np.float16),
    "BF16": bfloat16_bits,
}


def safetensors_bytes(tensors: dict[str, np.ndarray], dtype: str = "F32", **flaws: Any) -> bytes:
    """The bytes of a file. flaws: `header` is merged into the header, `length` stands in place of its length."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, array in tensors.items():
        is_float = array.dtype == np.float32
        encoded = ENCODERS[dtype](array) if is_float else array
        stored = dtype if is_float else {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64"}[array.dtype.name]
        end = len(data) + encoded.nbytes
        header[name] = {"dtype": stored, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += encoded.tobytes()  # in place, which bytes would not be
    for name, entry in flaws.get("header", {}).items():
        header[name] = {**header.get(name, {}), **entry}
    text = json.dumps(header).encode()
    return struct.pack("<Q", flaws.get("length", len(text))) + text + data


def write_folder(folder: Path, model: GPT2, **changes: Any) -> Path:
    """The model as a folder, `config` changed by some keys, and with other `tensors` (None: without that one)."""
    folder.mkdir(exist_ok=True)
    config = {**model.config.to_dict(), **changes.get("config", {})}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {**arrays_of(model), **changes.get("tensors", {})}
    present = {name: array for name, array in tensors.items() if array is not None}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(present, changes.get("dtype", "F32")))
    return folder


def masks(config: GPT2Config) -> dict[str, np.ndarray]:
    triangle = np.tril(np.ones((config.n_positions, config.n_positions), np.float32))[np.newaxis, np.newaxis]
    found: dict[str, np.ndarray] = {}
    for i in range(config.n_layer):
        found[f"h.{i}.attn.bias"] = triangle.astype(np.uint8) if i % 2 else triangle
        found[f"h.{i}.attn.masked_bias"] = np.float32(-1e4).reshape(())
    return found


def refusal(folder: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as raised:
        load_model(folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


# What loads -----------------------------------------------------------------------------------------------------------


@given(configs(), st.integers(0, 99), st.sampled_from(["float32", "float16"]))
@settings(max_examples=25, deadline=None)
def test_a_saved_model_loads_as_it_was(config, seed, dtype):
    model = random_model(config, seed)
    if dtype == "float16":  # what float16 can hold comes back exactly
        model = build_model(config, {name: array.astype(np.float16).astype(np.float32)
                                     for name, array in arrays_of(model).items()})
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, dtype)
        assert_equal_models(load_model(folder), model)
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@given(configs(), st.sampled_from(list(ENCODERS)), st.booleans(), st.booleans(), st.integers(0, 3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_every_variant_of_the_layout_loads_the_same_numbers(config, dtype, has_prefix, has_masks, n_shards, random):
    model = random_model(config)
    rounded = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in arrays_of(model).items()}
    if dtype == "F16":
        rounded = {name: array.astype(np.float16).astype(np.float32) for name, array in rounded.items()}
    tensors = {**rounded, **(masks(config) if has_masks else {})}
    names = list(tensors)
    random.shuffle(names)
    prefix = "transformer." if has_prefix else ""
    stored = {name if name == "lm_head.weight" else prefix + name: tensors[name] for name in names}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        if n_shards == 0:
            (folder / "model.safetensors").write_bytes(safetensors_bytes(stored, dtype))
        else:
            write_shards(folder, stored, n_shards, dtype)
        assert_equal_models(load_model(folder), build_model(config, rounded))


def write_shards(folder: Path, tensors: dict[str, np.ndarray], n_shards: int, dtype: str = "F32") -> None:
    weight_map = {name: f"model-{i % n_shards + 1:05}-of-{n_shards:05}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        part = {name: array for name, array in tensors.items() if weight_map[name] == shard}
        (folder / shard).write_bytes(safetensors_bytes(part, dtype))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("piece", [1, 9, 13])
def test_the_numbers_of_a_tensor_do_not_hang_on_how_many_are_read_at_a_time(tmp_path, monkeypatch, dtype, piece):
    write_folder(tmp_path, random_model(TINY), dtype=dtype)
    at_once = load_model(tmp_path)
    monkeypatch.setattr("numpy_gpt2.checkpoint.tensors.PIECE", piece)
    assert_equal_models(load_model(tmp_path), at_once)
    wte = stored_tensors({"model.safetensors": tmp_path / "model.safetensors"})["wte.weight"]
    assert {len(rows) for rows in list(read_rows(wte))[:-1]} == {max(1, piece // TINY.n_embd)}  # a row of 4 at least


def test_a_file_that_shrinks_between_header_and_tensor_is_refused(tmp_path):
    write_folder(tmp_path, random_model(TINY))
    path = tmp_path / "model.safetensors"
    wte = stored_tensors({"model.safetensors": path})["wte.weight"]
    os.truncate(path, wte.offset + 8)
    with pytest.raises(CheckpointError) as error:
        list(read_rows(wte))
    assert str(error.value) == (f"{path}: tensor {wte.name!r}: cannot be read: "
                                "the file has changed since its header was read")


@given(st.integers(0, 0xFFFF))
def test_widened_bfloat16_has_the_value_of_its_bits(bits):
    sign, exponent, fraction = -1 if bits >> 15 else 1, bits >> 7 & 0xFF, bits & 0x7F
    found = widen_bfloat16(np.array([bits], np.uint16))[0]
    if exponent == 0xFF:
        assert np.isnan(found) if fraction else found == sign * np.inf
    else:
        expected = 2.0**(exponent - 127) * (1 + fraction / 128) if exponent else 2.0**-126 * fraction / 128
        assert found == sign * expected


def test_a_file_without_metadata_loads(tmp_path):
    model = random_model(TINY)
    write_folder(tmp_path, model)
    save_file({name: np.ascontiguousarray(array) for name, array in named_parameters(model)},
              tmp_path / "model.safetensors")
    assert b"__metadata__" not in (tmp_path / "model.safetensors").read_bytes()
    assert_equal_models(load_model(tmp_path), model)


def test_float64_is_what_float32_was_and_runs(tmp_path):
    model = random_model(TINY)
    save(model, tmp_path)
    exact = load_model(tmp_path, dtype="float64")
    for name, array in arrays_of(exact).items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, arrays_of(model)[name])
    assert forward(exact, [1, 2]).dtype == np.float64


def test_float64_file_keeps_its_digits_in_float64(tmp_path):
    model = random_model(TINY)
    write_folder(tmp_path, model, dtype="F64")
    assert_equal_models(load_model(tmp_path), model)


def test_loaded_arrays_are_contiguous_aligned_and_writable(tmp_path):
    save(random_model(TINY), tmp_path)
    for name, array in named_parameters(load_model(tmp_path)):
        assert array.flags.forc and array.flags.aligned and array.flags.writeable, name


def test_weights_that_are_not_finite_load(tmp_path):
    odd = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)
    for dtype in ("F32", "F64", "BF16"):
        write_folder(tmp_path, random_model(TINY), tensors={"ln_f.bias": odd}, dtype=dtype)
        found = load_model(tmp_path).ln_f.bias
        np.testing.assert_array_equal(np.isfinite(found), [False, False, False, True])


def test_a_signalling_nan_loads_as_a_nan(tmp_path):
    write_folder(tmp_path, random_model(TINY), dtype="F64")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<Q", 0x7FF0_0000_0000_0001))
    assert np.isnan(load_model(tmp_path).ln_f.bias[-1])


def test_a_number_too_large_for_float32_loads_as_infinity(tmp_path):
    write_folder(tmp_path, random_model(TINY), dtype="F64")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<d", 1e300))
    assert load_model(tmp_path).ln_f.bias[-1] == np.inf


def test_a_tied_head_that_is_stored_too_is_tied_if_equal_and_else_taken(tmp_path):
    model = random_model(TINY)
    write_folder(tmp_path, model, tensors={"lm_head.weight": model.wte})
    assert_equal_models(load_model(tmp_path), model)
    own_head = random_model(UNTIED)
    write_folder(tmp_path, own_head, config={"tie_word_embeddings": True})
    assert_equal_models(load_model(tmp_path), own_head)


def test_heads_for_other_tasks_are_left_out(tmp_path):
    model = random_model(TINY)
    write_folder(tmp_path, model, tensors={"score.weight": np.zeros((2, 4), np.float32)})
    assert_equal_models(load_model(tmp_path), model)


def test_links_are_followed(tmp_path):
    model = random_model(TINY)
    save(model, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert_equal_models(load_model(tmp_path / "snapshot"), model)


def test_load_gives_model_and_tokenizer(tmp_path):
    files = tmp_path / "tokenizer"
    files.mkdir()
    vocabulary = {letter: i for i, letter in enumerate(byte_alphabet())} | {"<|endoftext|>": 256}
    (files / "vocab.json").write_text(json.dumps(vocabulary))
    (files / "merges.txt").write_text("#version: 0.2\n")
    model = random_model(replace(TINY, vocab_size=257))
    folder = tmp_path / as_typed("with a space, é")
    save(model, folder, tokenizer=load_tokenizer(files))
    loaded, tokenizer = load(str(folder))
    assert_equal_models(loaded, model)
    assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    assert load_tokenizer(folder).vocab_size == 257


# Shapes, random models, saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, tied, untied", [
    ("small", 124_439_808, 163_037_184), ("medium", 354_823_168, 406_286_336),
    ("large", 774_030_080, 838_359_040), ("xl", 1_557_611_200, 1_638_022_400)])
def test_the_released_sizes_have_as_many_parameters_as_published(size, tied, untied):
    for config, expected in [(SIZES[size], tied), (replace(SIZES[size], tie_word_embeddings=False), untied)]:
        assert sum(int(np.prod(shape)) for shape in parameter_shapes(config).values()) == expected


@given(configs())
@settings(max_examples=20, deadline=None)
def test_parameter_shapes_are_those_of_the_model_in_the_same_order(config):
    model = random_model(config)
    assert {name: array.shape for name, array in named_parameters(model)} == parameter_shapes(config)
    assert list(arrays_of(model)) == list(parameter_shapes(config))


def test_random_model_depends_on_the_seed_alone():
    assert_equal_models(random_model(TINY, 5), random_model(TINY, 5))
    assert not np.array_equal(random_model(TINY, 5).wte, random_model(TINY, 6).wte)


def test_random_model_is_spread_as_gpt2_was_but_nothing_is_constant():
    arrays = arrays_of(random_model(GPT2Config(vocab_size=500, n_positions=200, n_embd=64, n_layer=1, n_head=4)))
    for name, array in arrays.items():
        is_gain = bool(re.search(r"ln_\w\.weight", name))
        assert array.std() == pytest.approx(0.01 if name == "wpe.weight" else 0.02, rel=0.35), name
        assert array.mean() == pytest.approx(1 if is_gain else 0, abs=0.01), name
        assert array.dtype == np.float32


def test_the_saved_file_is_in_the_official_layout(tmp_path):
    save(random_model(TINY), tmp_path, "float16")
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == set(parameter_shapes(TINY)) and "lm_head.weight" not in tensors
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float16)}
    header = (tmp_path / "model.safetensors").read_bytes()[8:200]
    assert b'"__metadata__":{"format":"pt"}' in header
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]


def test_saved_files_have_the_usual_mode(tmp_path):
    save(random_model(TINY), tmp_path)
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_arrays_in_another_memory_order_are_saved_by_value(tmp_path):
    model = random_model(UNTIED)
    transposed = build_model(UNTIED, {name: np.asfortranarray(array) for name, array in arrays_of(model).items()})
    save(transposed, tmp_path)
    assert_equal_models(load_model(tmp_path), model)


def test_saving_refuses_what_float16_cannot_hold(tmp_path):
    model = random_model(TINY)
    model.ln_f.bias[1] = 70000
    with pytest.raises(ValueError, match="'ln_f.bias' must be at most 65504.* Got 70000"):
        save(model, tmp_path / "new", "float16")
    assert not (tmp_path / "new").exists()
    model.ln_f.bias[1] = np.inf  # which float16 can hold
    save(model, tmp_path / "new", "float16")


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    old = random_model(TINY, 1)
    save(old, tmp_path)

    def full_disk(arrays: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy_gpt2.checkpoint.saving.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(random_model(TINY, 2), tmp_path)
    assert_equal_models(load_model(tmp_path), old)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_saving_in_another_type_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="dtype must be"):
        save(random_model(TINY), tmp_path, dtype)


# What is refused: arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "gpt3", "no/such/folder", "./nowhere", "/nowhere", "owner/", "~/x", "a\0b",
                                  "-owner/repo", "owner/repo\n", "x" * 5000])
def test_an_unknown_name_is_refused_without_the_network(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # to import it is now an error
    with pytest.raises(ValueError, match="fairytale.*gpt2-xl.*owner/repo"):
        load(name)


@pytest.mark.parametrize("load_it", [load, load_model, load_tokenizer])
def test_a_folder_has_no_revision(tmp_path, load_it):
    with pytest.raises(ValueError, match="revision"):
        load_it(tmp_path, revision="main")


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(random_model(TINY), "owner/repo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_equal_models(load_model("owner/repo"), random_model(TINY))


def test_a_built_in_name_comes_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "fairytale"):
        save(random_model(TINY), name)
        assert look_up(name) != Path(name)
        assert look_up(f"./{name}") == Path(name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "nonsense", 7, None])
def test_another_type_in_memory_is_refused_before_anything_is_read(dtype):
    with pytest.raises(ValueError, match="dtype must be"):
        load("gpt3", dtype=dtype)
    with pytest.raises(ValueError, match="dtype must be"):
        load_model("gpt3", dtype=dtype)


# What is refused: files -----------------------------------------------------------------------------------------------


def test_an_empty_folder_lacks_files(tmp_path):
    assert "config.json" in refusal(tmp_path)


def test_missing_weights_name_the_alternatives(tmp_path):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert re.search(f"model.safetensors, or {INDEX}", refusal(tmp_path))
    (tmp_path / "model.safetensors").mkdir()
    assert re.search(f"model.safetensors, or {INDEX}", refusal(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "Found pytorch_model.bin, a pickle, which can run code and is not opened: " in refusal(tmp_path)


def test_a_missing_tokenizer_names_the_alternatives(tmp_path):
    save(random_model(TINY), tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer.json, or vocab.json and merges.txt"):
        load(tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"short", struct.pack("<Q", 2) + b"{}x", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**6) + b"{}",
    struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 100_000) + b"[" * 100_000, bytes(1000), b"\xff" * 1000,
], ids=range(9))
def test_a_file_that_is_not_safetensors_is_named(tmp_path, content):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert str(tmp_path / "model.safetensors") in refusal(tmp_path)


def test_a_file_that_ends_inside_its_header_is_refused_as_such(tmp_path):
    save(random_model(TINY), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 9, 300):
        path.write_bytes(whole[:size])
        assert refusal(tmp_path) == f"{path}: not a whole safetensors file: it ends inside its header."


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_truncated_or_extended_file_never_loads(data):
    with tempfile.TemporaryDirectory() as place:
        folder = write_folder(Path(place), random_model(GPT2Config(3, 2, 2, 1, 1)))
        path = folder / "model.safetensors"
        content = path.read_bytes()
        n_bytes = data.draw(st.integers(0, len(content) + 20).filter(lambda n: n != len(content)))
        path.write_bytes((content + bytes(20))[:n_bytes])
        assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize("entry", [
    {"data_offsets": [0, 8]}, {"data_offsets": [4, 20]}, {"data_offsets": [16, 0]}, {"data_offsets": [-4, 12]},
    {"data_offsets": [0, 2**63]}, {"shape": [2**40, 2**40]}, {"shape": [-4]}, {"shape": [4.0]}, {"shape": "4"},
    {"dtype": "F128"}, {"dtype": 5}, {"shape": [2]}, {"data_offsets": None},
], ids=str)
def test_a_header_that_lies_about_a_tensor_is_refused(tmp_path, entry):
    model = random_model(TINY)
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"ln_f.bias": model.ln_f.bias, **arrays_of(model)}, header={"ln_f.bias": entry}))
    assert str(path) in refusal(tmp_path)


def test_a_line_break_in_a_tensor_name_does_not_break_the_line(tmp_path):
    save(random_model(TINY), tmp_path)
    content = safetensors_bytes({"line\nbreak": np.zeros(4, np.float32)},
                                header={"line\nbreak": {"data_offsets": [4, 20]}})
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "line break" in refusal(tmp_path)


def test_a_missing_tensor_is_named_with_its_shape(tmp_path):
    message = refusal(write_folder(tmp_path, random_model(TINY), tensors={"h.1.mlp.c_fc.weight": None}))
    assert message == (f"{tmp_path / 'model.safetensors'}: tensor 'h.1.mlp.c_fc.weight': "
                       "expected shape (4, 16), from config.json, found no such tensor.")


def test_a_wrong_shape_is_named_with_both(tmp_path):
    wrong = np.zeros((12, 4), np.float32)
    message = refusal(write_folder(tmp_path, random_model(TINY), tensors={"h.0.attn.c_attn.weight": wrong}))
    assert message == (f"{tmp_path / 'model.safetensors'}: tensor 'h.0.attn.c_attn.weight': "
                       "expected shape (4, 12), as GPT-2 stores it (inputs first), found (12, 4): transpose the "
                       "c_attn, c_proj and c_fc weights.")


def test_a_wrong_type_is_named(tmp_path):
    wrong = np.zeros((8, 4), np.int64)
    message = refusal(write_folder(tmp_path, random_model(TINY), tensors={"wpe.weight": wrong}))
    assert message == (f"{tmp_path / 'model.safetensors'}: tensor 'wpe.weight': "
                       "expected type F64, F32, F16, BF16, found I64.")


def test_an_untied_model_needs_its_head(tmp_path):
    message = refusal(write_folder(tmp_path, random_model(TINY), config={"tie_word_embeddings": False}))
    assert "'lm_head.weight'" in message and "(11, 4)" in message


def test_a_stored_head_of_a_wrong_shape_is_refused_even_if_tied(tmp_path):
    wrong = np.zeros((4, 11), np.float32)
    assert "'lm_head.weight'" in refusal(write_folder(tmp_path, random_model(TINY), tensors={"lm_head.weight": wrong}))


@pytest.mark.parametrize("name", ["h.2.ln_1.weight", "h.0.crossattention.c_attn.weight", "h.0.attn.c_attn.bias_scale",
                                  "wte.scale", "ln_f.scale"])
def test_a_surplus_tensor_that_would_change_the_numbers_is_refused(tmp_path, name):
    message = refusal(write_folder(tmp_path, random_model(TINY), tensors={name: np.zeros(4, np.float32)}))
    assert repr(name) in message and "2 layers" in message


@pytest.mark.parametrize("name, dtype, words", [
    ("h.0.attn.c_attn.lora_A.weight", np.float32, "a LoRA adapter, expected a whole GPT-2. In PEFT, merge_and_unload"),
    ("base_model.model.h.0.attn.c_attn.lora_B.weight", np.float32, "a LoRA adapter"),
    ("h.0.mlp.c_fc.weight.absmax", np.float32, "quantized (F32)"), ("h.0.mlp.c_fc.SCB", np.float32, "quantized (F32)"),
    ("h.0.attn.c_attn.qweight", np.int32, "quantized (I32), expected type F64, F32, F16, BF16."),
    ("h.0.attn.c_attn.weight", np.int8, "quantized (I8)"), ("h.1.mlp.c_proj.weight", np.uint8, "quantized (U8)"),
])
def test_weights_that_need_another_step_first_are_refused_with_it(tmp_path, name, dtype, words):
    message = refusal(write_folder(tmp_path, random_model(TINY), tensors={name: np.zeros(4, dtype)}))
    assert repr(name) in message and words in message


@pytest.mark.parametrize("settings, scales", [
    ({"scale_attn_weights": False}, [2**0.5, 2**0.5]), ({"scale_attn_by_inverse_layer_idx": True}, [1, 1 / 2]),
    ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, [2**0.5, 2**0.5 / 2])])
def test_how_attention_scales_its_scores_is_put_into_q_and_saved_with_it(tmp_path, settings, scales):
    stored = random_model(TINY)  # heads of 2 channels
    model = load_model(write_folder(tmp_path, stored, config=settings), dtype="float64")
    arrays, expected = arrays_of(model), arrays_of(stored)
    for layer, scale in enumerate(scales):
        for part in ("weight", "bias"):
            name = f"h.{layer}.attn.c_attn.{part}"
            expected[name] = np.concatenate([expected[name][..., :4] * np.float64(scale), expected[name][..., 4:]], -1)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-15, err_msg=name)
    save(model, tmp_path / "again")
    assert not settings.keys() & json.loads((tmp_path / "again" / "config.json").read_text()).keys()
    np.testing.assert_array_equal(load_model(tmp_path / "again").h[1].attn.c_attn.weight,
                                  model.h[1].attn.c_attn.weight.astype(np.float32))


@pytest.mark.parametrize("end, is_said", [(10, False), (11, True), ([3, 99], True), (None, False), (50256, False)])
def test_an_end_that_the_model_cannot_draw_is_said(tmp_path, end, is_said):
    folder = write_folder(tmp_path, random_model(TINY), config={"eos_token_id": end})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(folder)
    assert [bool(re.search(r"config.json: eos_token_id \d+: the model has the ids 0 to 10", str(one.message)))
            for one in caught] == [True] * is_said


@pytest.mark.parametrize("name, place", [("distilgpt2", "distilbert/distilgpt2"), ("gpt2", "openai-community/gpt2")])
def test_a_name_without_an_owner_has_one(name, place):
    assert look_up(name) == place


@pytest.mark.parametrize("name, message", [
    ("DialoGPT-medium", "on the hub it is microsoft/DialoGPT-medium."), ("biomedlm", "it is stanford-crfm/BioMedLM.")])
def test_a_name_that_is_known_with_an_owner_gets_that_answer(name, message):
    with pytest.raises(ValueError, match=message):
        look_up(name)


OTHER_FORMATS = {
    "adapter_config.json": "a LoRA adapter", "model-q4.gguf": "a file of llama.cpp",
    "model.ckpt.index": "OpenAI's own TensorFlow format",
    "encoder.json": "OpenAI's own TensorFlow format"}


@pytest.mark.parametrize("file_name, words", OTHER_FORMATS.items())
def test_a_folder_of_another_kind_is_named_with_the_way_out(tmp_path, file_name, words):
    (tmp_path / file_name).write_bytes(b"x")
    message = refusal(tmp_path)
    assert f"expected config.json. Found {file_name}, {words}" in message


@pytest.mark.parametrize("file_name, words", [
    ("tf_model.h5", "save_pretrained"), ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
    ("adapter_model.safetensors", "merge_and_unload"), ("flax_model.msgpack", "from_flax=True")])
def test_weights_of_another_kind_are_named_with_the_way_out(tmp_path, file_name, words):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / file_name)
    message = refusal(tmp_path)
    assert f"Found {file_name}, " in message and words in message


@pytest.mark.parametrize("file_name, words", [("vocab.txt", "WordPiece"), ("spiece.model", "SentencePiece"),
                                              ("encoder.json", "rename encoder.json")])
def test_a_tokenizer_of_another_kind_is_named(tmp_path, file_name, words):
    save(random_model(TINY), tmp_path)
    (tmp_path / file_name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"Found {file_name}, .*{words}"):
        load(tmp_path)


def test_a_path_to_a_file_is_refused_with_what_is_expected(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="model.gguf: a file: expected the folder"):
        load_model(tmp_path / "model.gguf")


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n"


@pytest.mark.parametrize("file_name", ["model.safetensors", "config.json", "vocab.json", "merges.txt"])
def test_a_git_lfs_pointer_is_said_to_be_one(tmp_path, file_name):
    writable_copy(BUNDLED["fairytale"], tmp_path)
    (tmp_path / file_name).write_bytes(LFS_POINTER)
    with pytest.raises(CheckpointError, match=f"{file_name}.*: a git-lfs pointer, .*git lfs pull"):
        load(tmp_path)


def test_a_tensor_stored_twice_is_refused(tmp_path):
    model = random_model(TINY)
    message = refusal(write_folder(tmp_path, model, tensors={"transformer.wte.weight": model.wte}))
    assert "'wte.weight'" in message and "twice" in message


@pytest.mark.parametrize("setting", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"])
def test_a_huge_setting_is_refused_before_anything_is_allocated(tmp_path, setting):
    write_folder(tmp_path, random_model(TINY), config={setting: 2**31 - 2})
    assert "expected shape" in refusal(tmp_path)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "",
                                   "a\\b.safetensors", "C:x.safetensors", "pytorch_model.bin", 5, None,
                                   ["x.safetensors"]],
                         ids=["above", "root", "below", "dots", "empty", "backslash", "drive", "pickle", "number",
                              "null", "list"])
def test_an_index_may_name_nothing_but_files_beside_it(tmp_path, shard):
    folder = tmp_path / "checkpoint"
    save(random_model(TINY), folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"wte.weight": shard}}))
    message = refusal(folder)
    assert INDEX in message and "'wte.weight'" in message and repr(shard) in message


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": None}])
def test_an_index_without_a_map_is_refused(tmp_path, index):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert INDEX in refusal(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, arrays_of(random_model(TINY)), 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(tmp_path)


def test_a_tensor_that_no_shard_has_is_named(tmp_path):
    save(random_model(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = arrays_of(random_model(TINY))
    del tensors["wpe.weight"]
    write_shards(tmp_path, tensors, 2)
    message = refusal(tmp_path)
    assert "'wpe.weight'" in message and INDEX in message


def test_a_file_that_shrinks_while_it_is_read_is_said(tmp_path, monkeypatch):
    save(random_model(TINY), tmp_path)
    monkeypatch.setattr("numpy_gpt2.checkpoint.tensors.np.fromfile", lambda *_, **__: np.zeros(3, np.float32))
    message = refusal(tmp_path)
    assert "'wte.weight'" in message and "cannot be read" in message


def write_again(folder: Path) -> None:
    """Another model of the same shapes, as `save` writes it."""
    save(random_model(TINY, 2), folder)


def write_in_place(folder: Path) -> None:
    """Other weights in the same file, as `cp` writes them."""
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def take_away(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("change", [write_again, write_in_place, take_away])
@pytest.mark.parametrize("moment", ["allocate_parameter", "stored_tensors", "build_model"])
def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change, moment):
    save(random_model(TINY, 1), tmp_path)
    original, changes = getattr(loading, moment), [change]

    def meanwhile(*arguments: Any) -> Any:
        while changes:
            changes.pop()(tmp_path)
        return original(*arguments)

    monkeypatch.setattr(loading, moment, meanwhile)
    assert re.search(r"^[^:]*: changed while the checkpoint was read: load it again", refusal(tmp_path))
    load_model(tmp_path) if change is not take_away else None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_no_fault_of_a_file_is_said_though_a_file_has_changed(tmp_path, monkeypatch, error):
    def interrupted(*arguments: Any) -> Any:
        write_again(tmp_path)
        raise error

    save(random_model(TINY, 1), tmp_path)
    monkeypatch.setattr(loading, "build_model", interrupted)
    with pytest.raises(error):
        load_model(tmp_path)


def test_a_vocabulary_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    writable_copy(BUNDLED["fairytale"], tmp_path)
    original = loading.tokenizer_from_files
    monkeypatch.setattr(loading, "tokenizer_from_files",
                        lambda files, *configs: os.utime(files["merges.txt"]) or original(files, *configs))
    for load_it in (load, load_tokenizer):
        with pytest.raises(CheckpointError, match="merges.txt: changed while"):
            load_it(tmp_path)


def test_a_bad_config_names_file_and_key(tmp_path):
    write_folder(tmp_path, random_model(TINY), config={"n_head": 3})
    message = refusal(tmp_path)
    assert str(tmp_path / "config.json") in message and "n_head" in message


# Against transformers, and memory -------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("config", [TINY, UNTIED, replace(TINY, n_inner=7)], ids=["tied", "untied", "n_inner"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_reads_what_is_saved_and_the_other_way_round(tmp_path, config, dtype):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = replace(config, bos_token_id=0, eos_token_id=0)
    save(random_model(config), tmp_path / "ours", dtype)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    model = load_model(tmp_path / "ours")
    state = {name.removeprefix("transformer."): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for name, array in named_parameters(model):
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_equal_models(load_model(tmp_path / "theirs"), model)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size=300)
    assert (tmp_path / "sharded" / INDEX).exists()
    rounded = load_model(tmp_path / "sharded")
    for name, array in named_parameters(rounded):
        np.testing.assert_allclose(array, state[name], rtol=1e-2, err_msg=name)


@pytest.mark.parity
def test_a_stored_head_beside_a_tied_config_is_taken_as_transformers_takes_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = replace(TINY, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
    write_folder(tmp_path, random_model(config), config={"tie_word_embeddings": True})
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path).lm_head, theirs.lm_head.weight.detach().numpy())


PEAK = """
import sys
from numpy_gpt2.checkpoint import loading
model = loading.load_model(sys.argv[1])
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "masks", "head"])
def test_loading_small_peaks_at_little_more_than_its_weights(tmp_path, dtype):
    config = SIZES["small"]
    model = random_model(config)
    if dtype in ("float32", "float16"):
        save(model, tmp_path, dtype)
    else:
        extra = {"masks": {f"h.{i}.attn.bias": np.ones((1, 1, 1024, 1024), np.float32) for i in range(config.n_layer)},
                 "head": {"lm_head.weight": model.wte}}.get(dtype, {})
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        path = tmp_path / "model.safetensors"
        if dtype == "bfloat16":
            path.write_bytes(safetensors_bytes(arrays_of(model), "BF16"))
        else:
            save_file({**arrays_of(model), **extra}, path, metadata={"format": "pt"})
    weights = 4 * sum(array.size for _, array in named_parameters(model))
    del model
    child = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[2])
    assert int(child.stdout) <= 1.15 * weights + 120e6


def test_without_a_name_the_bundled_checkpoint_is_loaded():
    model, tokenizer = load()
    named = dict(named_parameters(load_model("fairytale")))
    for loaded in (model, load_model()):
        assert all(np.array_equal(array, named[name]) for name, array in named_parameters(loaded))
    assert tokenizer.encode("Once upon") == load_tokenizer().encode("Once upon") == \
        load_tokenizer("fairytale").encode("Once upon")
