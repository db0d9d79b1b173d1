"""Files from strangers: whatever is wrong with a folder, it loads, or one line says what is wrong, at little cost."""

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoint_forms import CONFIG, INDEX, MERGES, SHARDS, TOKENS, as_bytes, as_text, good, headers_of, written
from hostile_changes import (LARGE_MEMBERS, MEMBERS, PLACES, a_directory, a_file, a_link, a_link_out_of_the_folder,
                             a_pipe)
from hostile_folders import folders, outcome, write_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from numpy_gpt2 import CheckpointError, GPT2Config, bpe, forward, generate_tokens, load, load_model, load_tokenizer
from numpy_gpt2.checkpoint.json_file import LARGEST_TEXT, MOST_VALUES, check_amount
from numpy_gpt2.checkpoint.vocabulary import DEEPEST, Vocabulary, build_tokenizer
from numpy_gpt2.errors import one_line, shown
from numpy_gpt2.tokenizer import END_OF_TEXT, AddedToken

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"whole": good(), "shards": good(is_sharded=True), "json": good(has_tokenizer_json=True)}


def files_of(kind="whole", **changed):
    """The bytes of a good folder's files, some `changed` (stem: bytes)."""
    said = GOOD[kind]
    files = as_bytes(written(said, headers_of(said)))
    for stem, content in changed.items():
        (name,) = [name for name in files if name.partition(".")[0] == stem]
        files[name] = content
    return files


def folder_of(place, files, places=()):
    """A folder with these files, some of them lying in another way: {name: a_pipe}."""
    return write_folder(place, {name: (dict(places).get(name, a_file), content) for name, content in files.items()})


def refusal(folder):
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    assert outcome(folder) == "refused"  # in one short line that names a file
    return str(raised.value)


def safetensors(header, data):
    text = header if isinstance(header, bytes) else as_text(header)
    return struct.pack("<Q", len(text)) + text + data


# Whatever is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GOOD)
def test_the_folders_to_start_from_are_good(tmp_path, kind):
    assert outcome(folder_of(tmp_path / "place", files_of(kind))) == "loaded"


@given(folders())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_folder_loads_or_is_refused_in_one_line(files):
    with tempfile.TemporaryDirectory() as place:
        assert outcome(write_folder(Path(place) / "place", files)) in ("loaded", "refused")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="time and memory are measured by means of Linux")
def test_time_memory_and_names_stay_within_their_bounds(tmp_path):
    command = [sys.executable, "scripts/verify/fuzz_checkpoints.py", "--folders", "40", "--state", str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr + child.stdout
    assert re.fullmatch(r"40 folders: \d+ loaded, \d+ refused, 0 failed; slowest .* s, largest .* MB\n", child.stdout)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("member", [*MEMBERS, *(pytest.param(member, marks=pytest.mark.slow)
                                                for member in LARGE_MEMBERS)],
                         ids=lambda member: ascii(member[:25]) + str(len(member)))
def test_a_strange_member_in_any_json_is_refused_or_read_past(tmp_path, kind, member):
    said = GOOD[kind]
    for name, text in written(said, headers_of(said)).texts.items():
        changed = written(said, headers_of(said))
        changed.texts[name] = text.replace(b"{", b"{" + member + b", ", 1)
        assert outcome(folder_of(tmp_path / "place", as_bytes(changed))) in ("loaded", "refused")


# The safetensors file -------------------------------------------------------------------------------------------------


def test_a_header_entry_without_names_is_refused(tmp_path):
    (header, data), = headers_of(GOOD["whole"]).values()
    header["wpe.weight"] = list(header["wpe.weight"].values())  # which safetensors reads as if the names were there
    message = refusal(folder_of(tmp_path / "place", files_of(model=safetensors(header, data))))
    assert message.partition("model.safetensors: ")[2].startswith(
        "tensor 'wpe.weight': expected a JSON object with dtype, shape and data_offsets in the header, found ['F32', ")


def test_a_header_of_a_hundred_megabytes_is_refused_before_it_is_parsed(tmp_path):
    (header, data), = headers_of(GOOD["whole"]).values()
    files = files_of(model=safetensors(as_text(header) + b" " * LARGEST_TEXT, data))
    assert "header: expected at most 8,388,608 bytes" in refusal(folder_of(tmp_path / "place", files))
    header["wpe.weight"]["more"] = [[]] * MOST_VALUES
    files = files_of(model=safetensors(header, data))
    assert "header: expected at most 500,000 values" in refusal(folder_of(tmp_path / "place", files))


def test_a_shape_of_ten_thousand_axes_makes_no_long_line(tmp_path):
    (header, data), = headers_of(GOOD["whole"]).values()
    header["wpe.weight"]["shape"] += [1] * 10_000
    message = refusal(folder_of(tmp_path / "place", files_of(model=safetensors(header, data))))
    assert message.endswith("tensor 'wpe.weight': expected shape (4, 4), from config.json, "
                            "found (4, 4, 1, 1, 1, 1, ...).")


def test_of_two_tensors_of_one_name_the_last_counts_for_the_check_and_the_reading(tmp_path):
    (header, data), = headers_of(GOOD["whole"]).values()
    twice = b'{"wte.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, ' + as_text(header)[1:]
    assert outcome(folder_of(tmp_path / "place", files_of(model=safetensors(twice, data)))) == "loaded"
    twice = as_text(header)[:-1] + b', "wte.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    refusal(folder_of(tmp_path / "place", files_of(model=safetensors(twice, data))))


def test_weights_that_are_not_finite_load_and_generation_says_so(tmp_path):
    said = good()
    dtype, shape, _ = said.tensors["ln_f.bias"]
    said.tensors["ln_f.bias"] = (dtype, shape, np.full(shape, np.nan, np.float32).tobytes())
    model, _ = load(folder_of(tmp_path / "place", as_bytes(written(said, headers_of(said)))))
    with pytest.raises(FloatingPointError, match="the logits are not finite"):
        next(generate_tokens(model, [0]))


@pytest.mark.parametrize("dtype, tied", [("F64", True), ("F32", True), ("F16", False), ("BF16", False)])
def test_no_second_copy_of_a_tensor_is_ever_in_memory(tmp_path, dtype, tied, monkeypatch):
    monkeypatch.setattr("numpy_gpt2.checkpoint.tensors.PIECE", 10_000)
    for module in ("json_file", "tensors"):  # so much is set aside to read a text
        monkeypatch.setattr(f"numpy_gpt2.checkpoint.{module}.LARGEST_TEXT", 10_000)
    config = GPT2Config(vocab_size=60_000, n_positions=2, n_embd=16, n_layer=1, n_head=1, tie_word_embeddings=tied)
    said = good(dtype, config=config)
    said.tensors.setdefault("lm_head.weight", said.tensors["wte.weight"])  # compared with wte, then left out
    folder = folder_of(tmp_path / "place", as_bytes(written(said, headers_of(said))))
    tracemalloc.start()
    try:
        model = load_model(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert model.config.tie_word_embeddings == tied
    assert peak < 1.15 * model.wte.nbytes * (1 if tied else 2)  # which are nearly all of the model


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, stem", [("whole", "config"), ("shards", "model"), ("whole", "vocab"),
                                        ("whole", "merges"), ("json", "tokenizer")])
@pytest.mark.parametrize("content, found", [(b" " * (2 * LARGEST_TEXT + 1), "bytes"), (b"[]," * MOST_VALUES, "values"),
                                            (b"{},\n" * MOST_VALUES, "values")], ids=["spaces", "lists", "objects"])
def test_a_text_far_larger_than_any_gpt2s_is_refused_before_it_is_parsed(tmp_path, kind, stem, content, found):
    files = files_of(kind)
    (name,) = [name for name in files if name.partition(".")[0] == stem and not name.endswith("tensors")]
    message = refusal(folder_of(tmp_path / "place", {**files, name: content}))
    assert re.search(rf"{name}: expected at most [0-9,]+ {found}, found more\.$", message)


@pytest.mark.parametrize("file_name, content, message", [
    ("added_tokens.json", {f"<{i}>": i for i in range(1_000_000)}, "json: expected at most 8,388,608 bytes"),
    ("added_tokens.json", {f"{i}": 0 for i in range(510_000)}, "json: expected at most 500,000 values"),
    ("added_tokens.json", {f"<{i}>": i for i in range(100_000)}, "expected at most 50,000 tokens. Got 100,000"),
    ("added_tokens.json", {"<x>": 2**31 + 5}, "added token '<x>': its id must be 260, the next, without a gap. Got"),
    ("added_tokens.json", {"<x>": -1}, "added token '<x>': its id must be 260"),
    ("added_tokens.json", {"": 260}, "added token must be a text that is not empty"),
    ("added_tokens.json", {"\ud800": 260}, "added_tokens.json: a token must be text"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 400: {"content": "x"}}}, "ids and their tokens"),
    ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder must be a JSON object"),
    ("tokenizer_config.json", {"add_prefix_space": "yes"}, "add_prefix_space must be true or false"),
    ("tokenizer_config.json", {"tokenizer_class": ["x" * 10_000]}, "tokenizer_class must be GPT2Tokenizer or"),
    ("special_tokens_map.json", {"bos_token": [1]}, "special_tokens_map.json: bos_token must be a token's name"),
    ("special_tokens_map.json", {"bos_token": "\ud800"}, "special_tokens_map.json: bos_token must be text"),
    ("special_tokens_map.json", {"additional_special_tokens": 7}, "additional_special_tokens must be a list of tokens"),
    ("generation_config.json", {"eos_token_id": "</s>"}, "generation_config.json: eos_token_id must be a token id"),
    ("generation_config.json", {"eos_token_id": [None]}, "eos_token_id must be a token id or null. Got [None]"),
    ("generation_config.json", [], "generation_config.json: expected a JSON object"),
], ids=lambda value: ascii(value)[:40])
def test_what_is_wrong_in_a_file_of_added_tokens_or_settings_is_said_of_it(tmp_path, file_name, content, message):
    folder = folder_of(tmp_path / "place", {**files_of(), file_name: as_text(content)})
    assert message in refusal(folder)


@pytest.mark.parametrize("name", ["x" * 8_000_000, "<" + "é" * 3_000_000 + ">"], ids=len)
def test_an_added_token_of_eight_megabytes_costs_its_bytes(tmp_path, name):
    folder = folder_of(tmp_path / "place", {**files_of(), "added_tokens.json": as_text({name: 260})})
    start = time.process_time()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the" + "x" * 1000) == load_tokenizer(folder_of(tmp_path / "plain", files_of())).encode(
        "the" + "x" * 1000)
    assert time.process_time() - start < 2


def test_fifty_thousand_added_tokens_are_found_at_once(tmp_path):
    def seconds(n_tokens):
        names = {f"<|{i}|>": 260 + i for i in range(n_tokens)}
        folder = folder_of(tmp_path / f"{n_tokens}", {**files_of(), "added_tokens.json": as_text(names)})
        start = time.process_time()
        tokenizer = load_tokenizer(folder)
        text = f"<|7|><<|{n_tokens - 1}|>" + "<|" * 1000
        assert tokenizer.encode(text)[:3] == [267, tokenizer.encode("<")[0], 260 + n_tokens - 1]
        return time.process_time() - start

    few = seconds(5_000)
    assert seconds(50_000) < 30 * few  # ten times the work; a scan for each token would be a hundred times


def test_the_largest_texts_that_are_parsed_are_within_the_bounds():
    check_amount(b" " * LARGEST_TEXT, "x.json")
    check_amount(b"," * MOST_VALUES, "x.json")
    with pytest.raises(CheckpointError, match="^x.json: expected at most 500,000 values, found more.$"):
        check_amount(b"," * (MOST_VALUES - 1) + b"[{", "x.json")


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "model.safetensors"])
def test_a_terabyte_of_holes_is_refused_at_once(tmp_path, name):
    folder = folder_of(tmp_path / "place", files_of())
    try:
        os.truncate(folder / name, 2**40)
    except OSError:
        pytest.skip("this file system has no files so large")
    start = time.process_time()
    assert name in refusal(folder)
    assert time.process_time() - start < 2


WIDE_AND_DEEP = [[[[["x" * 99] * 6] * 6] * 6] * 6]


@pytest.mark.parametrize("key", ["model_type", "activation_function", "n_embd", "layer_norm_epsilon", "eos_token_id",
                                 "bos_token_id", "tie_word_embeddings"])
@pytest.mark.parametrize("value", ["x" * 1_000_000, "\x1b[31m\u2028" * 1000, list(range(100_000)), WIDE_AND_DEEP,
                                   10**4299], ids=["text", "signs", "list", "deep", "number"])
def test_a_long_value_makes_no_long_line(tmp_path, key, value):
    if key.endswith("token_id"):
        value = {"any id would do": value}
    config = as_text({**GOOD["whole"].config, key: value})
    assert f"config.json: {key} must be " in refusal(folder_of(tmp_path / "place", files_of(config=config)))


@given(st.recursive(st.text() | st.integers() | st.floats(), lambda inner: st.lists(inner) | st.tuples(inner)))
def test_a_shown_value_is_one_short_line(value):
    assert shown(value).isprintable()
    assert len(shown(value)) < 1000


@given(st.text())
@example("x" * 1001)
def test_a_foreign_message_becomes_one_short_printable_line(text):
    line = one_line(ValueError(text))
    assert line.isprintable() and len(line) <= 1000
    assert line == " ".join(line.split())


# The index ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["a\rb.safetensors", "a\x1b[1m.safetensors", "a\u2028b.safetensors",
                                   "a\ud800.safetensors", "\0.safetensors", "x" * 300 + ".safetensors"], ids=ascii)
def test_a_shard_whose_name_would_spoil_the_line_is_refused(tmp_path, shard):
    files = files_of("shards")
    files[INDEX] = json.dumps({"weight_map": {"wte.weight": shard}}).encode()
    assert f"{INDEX}: tensor 'wte.weight': expected the bare name" in refusal(folder_of(tmp_path / "place", files))


@pytest.mark.parametrize("shard", ["../elsewhere/model.safetensors", "{place}/elsewhere/model.safetensors",
                                   "sub/../model.safetensors", "./" + SHARDS[0]])
def test_a_shard_outside_the_folder_is_refused_though_it_is_there(tmp_path, shard):
    files = {**files_of("shards"), "model.safetensors": files_of()["model.safetensors"]}
    shard = shard.format(place=tmp_path / "place")
    files[INDEX] = json.dumps({"weight_map": dict.fromkeys(GOOD["whole"].tensors, shard)}).encode()
    folder = folder_of(tmp_path / "place", files)
    (folder / "model.safetensors").unlink()
    assert "expected the bare name" in refusal(folder)


# What lies in the folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("put_there", PLACES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("kind", GOOD)
def test_what_lies_in_place_of_a_file_is_followed_if_a_link_and_else_refused(tmp_path, kind, put_there):
    files = files_of(kind)
    for name in files:
        folder = folder_of(tmp_path / "place", files, {name: put_there})
        expected = "loaded" if put_there in (a_link, a_link_out_of_the_folder) else "refused"
        assert outcome(folder) == expected, name


@pytest.mark.parametrize("put_there", [a_pipe, a_directory])
def test_a_tokenizer_json_that_is_no_file_does_not_matter_beside_a_vocabulary(tmp_path, put_there):
    files = files_of()
    folder = folder_of(tmp_path / "place", {**files, "tokenizer.json": b""}, {"tokenizer.json": put_there})
    assert outcome(folder) == "loaded"


def test_a_pickle_alone_is_no_checkpoint(tmp_path):
    files = files_of()
    (folder := tmp_path / "place").mkdir()
    (folder / "config.json").write_bytes(files["config.json"])
    (folder / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")  # which calls os.abort when it is opened
    with pytest.raises(CheckpointError, match=f"a file is missing: expected model.safetensors, or {INDEX}"):
        load_model(folder)


# The tokenizer --------------------------------------------------------------------------------------------------------


def with_special_tokens(names):
    ids = {token: i for i, token in enumerate([*TOKENS, *names])}
    return build_tokenizer(Vocabulary(ids, MERGES, {name: AddedToken(ids[name]) for name in (END_OF_TEXT, *names)}))


@pytest.mark.parametrize("names", [["<" + "日" * 300_000 + ">"], [f"<{i}>" for i in range(20_000)]],
                         ids=["long", "many"])
def test_special_tokens_cost_no_more_than_their_bytes(names):
    start = time.process_time()
    tokenizer = with_special_tokens(names)
    assert time.process_time() - start < 2
    assert tokenizer.decode([*tokenizer.encode("the"), len(TOKENS), tokenizer.eot_id]) == "the" + names[0] + END_OF_TEXT


def chain(n_merges):
    """A vocabulary in which each merge takes the token of the one before into it."""
    letters = TOKENS[:256]
    tokens, merges = [letters[0]], []
    for i in range(n_merges):
        merges.append(f"{letters[1 + i % 200]} {tokens[-1]}")
        tokens.append(merges[-1].replace(" ", ""))
    ids = {token: i for i, token in enumerate([*letters, *tokens[1:], END_OF_TEXT])}
    return Vocabulary(ids, merges, {END_OF_TEXT: AddedToken(ids[END_OF_TEXT])})


@pytest.mark.parametrize("n_merges", [DEEPEST, DEEPEST + 1, 2000])
def test_merges_may_lie_deep_in_one_another_and_cost_no_more_than_their_bytes(n_merges):
    start = time.process_time()
    tokenizer = build_tokenizer(chain(n_merges))
    assert tokenizer._ids_are_ranks == (n_merges <= DEEPEST)
    longest = tokenizer.token_bytes(255 + n_merges)
    assert bpe.merge(longest, tokenizer.merge_ranks) == [longest]
    assert time.process_time() - start < 5


def test_a_model_may_have_fewer_or_more_tokens_than_its_tokenizer(tmp_path):
    for n_tokens in (7, 300):
        config = GPT2Config(**{**vars(CONFIG), "vocab_size": n_tokens})
        said = good(config=config)
        folder = folder_of(tmp_path / "place", as_bytes(written(said, headers_of(said))))
        assert outcome(folder) == "loaded"
        assert load_tokenizer(folder).vocab_size == len(TOKENS)
        assert forward(load_model(folder), [0]).shape == (1, n_tokens)
