"""Every form in which people publish a GPT-2 loads right, or is refused in one line; the README's table says which."""

import json
import re
import warnings
from pathlib import Path

import pytest
from published_forms import (END, FIVE, FORMS, GOLDENS, LINES, MARKERS, MERGES, PLAIN, REFUSED, Form, N, assert_same,
                             our_behaviour, texts, their_behaviour, tokenizer_json, write_form)

from numpy_gpt2 import CheckpointError, load, load_tokenizer, save, stream_text
from numpy_gpt2.cli.exits import exit_status
from numpy_gpt2.errors import CheckpointWarning

README = Path(__file__).resolve().parents[2] / "numpy_gpt2" / "checkpoint" / "README.md"
BEHAVIOURS = json.loads(GOLDENS.read_text())


@pytest.fixture(autouse=True)
def quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        yield


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form_does_what_it_does_in_transformers(tmp_path, name):
    assert_same(our_behaviour(FORMS[name], write_form(FORMS[name], tmp_path)), BEHAVIOURS[name])


@pytest.mark.parametrize("name", FORMS)
def test_what_is_loaded_and_saved_does_the_same_again(tmp_path, name):
    form = FORMS[name]
    model, tokenizer = load(write_form(form, tmp_path / "first"))
    save(model, tmp_path / "second", tokenizer=tokenizer)
    assert_same(our_behaviour(form, tmp_path / "second"), BEHAVIOURS[name])


@pytest.mark.parametrize("name", FORMS)
def test_what_begins_and_ends_a_text_is_what_the_files_say(tmp_path, name):
    tokenizer = load_tokenizer(write_form(FORMS[name], tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (FORMS[name].bos, FORMS[name].ends)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_match_here_is_refused_by_file_and_key(tmp_path, name):
    form, line = REFUSED[name]
    folder = write_form(form, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        load(folder)
    message = str(refused.value)
    assert message.removeprefix(f"{folder}/").startswith(line) and "\n" not in message and len(message) < 500


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_transformers_does_it_and_again_with_what_we_have_saved(tmp_path, name):
    pytest.importorskip("transformers")
    form = FORMS[name]
    folder = write_form(form, tmp_path / "first")
    assert_same(their_behaviour(form, folder), BEHAVIOURS[name])
    model, tokenizer = load(folder)
    save(model, tmp_path / "second", tokenizer=tokenizer)
    assert_same(their_behaviour(form, tmp_path / "second"), BEHAVIOURS[name])


# What is said, and what is plain text ---------------------------------------------------------------------------------


def test_a_special_marker_is_plain_text_unless_asked_for_and_an_ordinary_one_never_is(tmp_path):
    marked = load_tokenizer(write_form(FORMS["added tokens and a map"], tmp_path / "marked"))
    plain = load_tokenizer(write_form(FORMS["vocab and merges"], tmp_path / "plain"))
    ordinary = load_tokenizer(write_form(FORMS["added tokens, all ordinary"], tmp_path / "ordinary"))
    for text in texts(FORMS["vocab and merges"], 50):
        assert marked.encode(text) == plain.encode(text)
    text = f"a{MARKERS[0]}b{END}"
    assert marked.encode(text, [MARKERS[0]]) == [*plain.encode("a"), N, *plain.encode("b"), *plain.encode(END)]
    assert ordinary.encode(text) == [*plain.encode("a"), N, *plain.encode("b"), *plain.encode(END)]
    assert ordinary.decode(ordinary.encode(text, "all")) == text


def test_a_prompt_s_markers_are_read_as_markers_on_request(tmp_path):
    model, tokenizer = load(write_form(FORMS["added tokens and a map"], tmp_path))
    prompt = f"{MARKERS[0]}the cat{MARKERS[3]}"
    plain, marked = (list(stream_text(model, tokenizer, prompt, 9, temperature=0, allowed_special=allowed))
                     for allowed in ((), "all"))
    assert plain != marked


def test_without_a_token_that_begins_a_text_an_empty_prompt_says_what_to_do(tmp_path):
    form = Form({"vocab.json": {token: i for token, i in PLAIN.items() if token != END}},
                {"bos_token_id": None, "eos_token_id": None}, N - 1, ends=())
    model, tokenizer = load(write_form(form, tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, ())
    assert "".join(stream_text(model, tokenizer, "the cat", 5, temperature=0))
    for wants_one in (tokenizer.with_bos, lambda: stream_text(model, tokenizer, "")):
        with pytest.raises(ValueError, match="has no token that begins a text .*give a prompt that is not empty"):
            wants_one()


def test_ids_that_the_model_does_not_have_are_said(tmp_path):
    folder = write_form(FORMS["a pad token without an id"], tmp_path)
    with pytest.warns(CheckpointWarning, match=f"vocab_size {N}: the model has no rows for the tokenizer's ids {N} to"):
        load(folder)


def test_an_end_that_only_the_config_has_counts_beside_a_generation_config_without_one(tmp_path):
    form = Form({"vocab.json": PLAIN, "generation_config.json": {"temperature": 0.5}}, {"eos_token_id": 9})
    model, tokenizer = load(write_form(form, tmp_path))
    assert model.config.eos_token_id == 9 and tokenizer.eos_ids == (9,)


def test_warnings_point_to_the_line_that_loads(tmp_path):
    settings = {"suppress_tokens": [3]}
    form = Form({"vocab.json": PLAIN | {"no merge makes it": N}, "generation_config.json": settings},
                {"eos_token_id": N + 7})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(write_form(form, tmp_path))
    assert [(warning.category, warning.filename) for warning in caught] == [(CheckpointWarning, __file__)] * 5


def test_a_warning_is_one_line_on_a_command_line(tmp_path, capsys):
    folder = write_form(FORMS["a pad token without an id"], tmp_path)

    def main():
        warnings.simplefilter("always", CheckpointWarning)
        load(folder)

    assert exit_status(main) == 0
    assert re.fullmatch(r"note: .*/config.json: vocab_size \d+: the model has no rows .*\n", capsys.readouterr().err)


# The README's table ---------------------------------------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """The rows of the README's table under a heading, cell by cell."""
    section = README.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[2:]]


def test_every_row_of_what_loads_is_a_form_that_is_tried():
    rows = rows_of("What loads")
    assert {form for _, forms in rows for form in re.findall(r"`([^`]+)`", forms)} == set(FORMS)
    assert all(re.findall(r"`([^`]+)`", forms) for _, forms in rows)


def test_every_row_of_what_is_refused_is_a_form_that_is_tried():
    assert {name for _, forms in rows_of("What is refused") for name in re.findall(r"`([^`]+)`", forms)} == set(REFUSED)


def test_a_vocabulary_of_130_668_tokens_loads(tmp_path):
    made = {}
    letters = list(PLAIN)[:256]
    for left in letters:
        for right in letters:
            made[left + right] = (left, right)
    pairs = list(made.values())
    for left in letters[:130]:
        for right in list(made)[:502]:
            if len(made) + 257 < 130_668 and left + right not in made:
                made[left + right] = (left, right)
    pairs = list(made.values())
    vocab = {token: i for i, token in enumerate([*letters, *made, END])}
    assert len(vocab) == 130_668
    text = json.dumps(tokenizer_json(vocab, pairs), indent=2, ensure_ascii=False)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert load_tokenizer(tmp_path).vocab_size == 130_668


# Written by the libraries themselves ----------------------------------------------------------------------------------


def by_gpt2_tokenizer(transformers, tokenizers):
    return transformers.GPT2Tokenizer(vocab=PLAIN, merges=MERGES)


def with_added_tokens(transformers, tokenizers):
    tokenizer = transformers.GPT2Tokenizer(vocab=PLAIN, merges=MERGES, add_prefix_space=True)
    tokenizer.add_special_tokens({"bos_token": "<|BOS|>", "eos_token": "<|EOS|>", "pad_token": "<|PAD|>"})
    tokenizer.add_tokens(["người", tokenizers.AddedToken("<|SEP|>", rstrip=True), "\n\n"])
    return tokenizer


def trained(tokenizers, **options):
    tokenizer = tokenizers.ByteLevelBPETokenizer(**options)
    tokenizer.train_from_iterator(LINES, vocab_size=330, min_frequency=2, special_tokens=FIVE)
    return tokenizer


def as_it_was_trained(transformers, tokenizers):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained(tokenizers, add_prefix_space=True, unicode_normalizer="nfkc", lowercase=True),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def as_gpt2_s(transformers, tokenizers):
    tokenizer = trained(tokenizers)
    model = json.loads(tokenizer.to_str())["model"]
    return transformers.GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]],
                                      bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gpt2_tokenizer, with_added_tokens, as_it_was_trained, as_gpt2_s])
def test_what_the_libraries_write_does_what_it_does_there(tmp_path, make):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    tokenizer = make(transformers, tokenizers)
    tokenizer.save_pretrained(tmp_path)
    transformers.set_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=4, initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    model.save_pretrained(tmp_path)
    form = Form({}, {}, len(tokenizer))
    assert_same(our_behaviour(form, tmp_path), their_behaviour(form, tmp_path))
