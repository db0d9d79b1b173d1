"""Laws of the page's data: what it shows is what a Recorder saw."""

import base64
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import (STAGES, GPT2Config, Recorder, Tokenizer, ablate, chain, forward, named_parameters, patch,
                        random_model, replace_weights, score_tokens)
from numpy_gpt2.explore import page
from numpy_gpt2.explore.page import MAX_TOKENS, page_data, prompt_ids
from numpy_gpt2.lens import direct_logit_attribution, logit_lens, top_tokens
from strategies import lively_model, passes

MODEL, TOKENIZER = numpy_gpt2.load("fairytale")
one_prompt = passes(np.float32, batches=st.just(()))
NASTY = ('</script><script>alert("1")</script><!-- \' & \u2028 \u202eover\u2069 '
         '👩\u200d🚀 العربية\n\t{{data}} $& é')


def bytes_tokenizer(n_tokens):
    """A tokenizer with as many tokens as wanted: the 256 bytes, words of three letters, the end of text."""
    words = (bytes(letters) for letters in product(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", repeat=3))
    ranks = {bytes([i]): i for i in range(256)}
    for token_id in range(256, n_tokens - 1):
        ranks[next(words)] = token_id
    return Tokenizer(ranks, {}, {"<|endoftext|>": n_tokens - 1}, ids_are_ranks=True)


def recorded(model, ids):
    acts = Recorder()
    forward(model, ids, tap=acts)
    return acts


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def patterns(data, n_tokens):
    """The attention of the page as the Recorder has it: [n_layer, n_head, n_tokens, n_tokens]."""
    config = data["config"]
    rows, columns = np.tril_indices(n_tokens)
    all_patterns = np.zeros((config["n_layer"], config["n_head"], n_tokens, n_tokens))
    all_patterns[..., rows, columns] = unpacked(data["attention"], "<u2").reshape(*all_patterns.shape[:2], -1) / 65535
    return all_patterns


# The numbers ----------------------------------------------------------------------------------------------------------


@given(one_prompt)
def test_attention_is_the_recorder_s_to_the_precision_that_is_documented(model_and_ids):
    model, ids = model_and_ids
    acts = recorded(model, ids)
    found = patterns(page_data(model, TOKENIZER, ids.tolist(), "any"), len(ids))
    for layer in range(model.config.n_layer):
        np.testing.assert_allclose(found[layer], acts[f"h.{layer}.attn.pattern"], rtol=0, atol=1e-5)


@given(one_prompt)
def test_logits_are_those_of_the_last_position_bit_for_bit(model_and_ids):
    model, ids = model_and_ids
    data = page_data(model, TOKENIZER, ids.tolist(), "any")
    logits = unpacked(data["logits"], "<f4")
    np.testing.assert_array_equal(logits, recorded(model, ids)["logits"][-1])
    assert data["likeliest"] == np.argsort(-logits, kind="stable").tolist()


def test_logits_before_the_last_are_exact_at_the_top_and_give_the_same_probabilities_below(monkeypatch):
    monkeypatch.setattr(page, "N_EXACT", 50)
    monkeypatch.setattr(page, "N_GROUPS", 400)
    ids = TOKENIZER.encode("Once upon a time there was")
    logits = forward(MODEL, ids)[:-1].astype(np.float64)  # [n_tokens - 1, vocab_size]
    found = page_data(MODEL, TOKENIZER, ids, "fairytale")["next"]
    best = unpacked(found["ids"], "<u4").reshape(len(logits), 50)
    np.testing.assert_array_equal(best, np.argsort(-logits, axis=-1, kind="stable")[:, :50])
    exact = unpacked(found["logits"], "<f4").reshape(best.shape)
    np.testing.assert_array_equal(exact, np.take_along_axis(logits, best, -1))
    groups, counts = unpacked(found["groups"], "<f4").reshape(len(logits), 400), np.array(found["counts"])
    assert counts.sum() == MODEL.config.vocab_size - 50 and (np.diff(groups) <= 0).all()
    for temperature, tolerance in [(1, 1e-6), (0.5, 1e-3), (3, 1e-4)]:
        total = np.exp(exact / temperature).sum(-1) + (counts * np.exp(groups / temperature)).sum(-1)
        np.testing.assert_allclose(total, np.exp(logits / temperature).sum(-1), rtol=tolerance)


def test_named_heads_are_those_of_the_pass_with_its_taps():
    ids = TOKENIZER.encode("Once upon a time there was a king who had three daughters, and the king")
    previous = np.eye(len(ids), k=-1)
    previous[0, 0] = 1
    data = page_data(MODEL, TOKENIZER, ids, "fairytale", patch("h.4.attn.pattern", previous, heads=2))
    assert {"layer": 4, "head": 2, "kind": "previous token", "score": 1.0, "n_rows": len(ids) - 8} in data["heads"]


@given(one_prompt)
def test_losses_are_those_of_the_scores(model_and_ids):
    model, ids = model_and_ids
    found = page_data(model, TOKENIZER, ids.tolist(), "any")["losses"]
    expected = -score_tokens(model, ids).log_probs if len(ids) > 1 else []
    assert found == pytest.approx(list(expected), abs=2e-5)


def test_a_tap_changes_everything_that_is_shown_as_it_changes_the_pass():
    ids = TOKENIZER.encode("Once upon a time there was")
    tap = ablate("h.1.attn.z", heads=1)
    acts = Recorder()
    logits = forward(MODEL, ids, tap=chain(tap, acts))
    data = page_data(MODEL, TOKENIZER, ids, "fairytale", tap)
    np.testing.assert_array_equal(unpacked(data["logits"], "<f4"), logits[-1])
    np.testing.assert_allclose(patterns(data, len(ids))[2], acts["h.2.attn.pattern"], rtol=0, atol=1e-5)
    lens = top_tokens(logit_lens(MODEL, acts, 2), TOKENIZER, 5)
    assert data["lens"]["ids"][2] == [[token.id for token in tokens] for tokens in lens]
    head = data["attribution"]["parts"].index("h.1.attn.head.1")
    assert [values[head] for values in data["attribution"]["values"]] == [0] * len(ids)
    assert data["losses"] != page_data(MODEL, TOKENIZER, ids, "fairytale")["losses"]


def test_progress_is_reported_for_each_layer_of_the_lens():
    told = []
    page_data(MODEL, TOKENIZER, [1, 2], "fairytale", after_layer=lambda: told.append(True))
    assert len(told) == MODEL.config.n_layer + 1


@given(one_prompt)
def test_norms_are_those_of_the_residual_stream_before_and_after_every_block(model_and_ids):
    model, ids = model_and_ids
    acts = recorded(model, ids)
    found = page_data(model, TOKENIZER, ids.tolist(), "any")["norms"]
    assert np.shape(found) == (model.config.n_layer + 1, len(ids))
    for layer in range(model.config.n_layer):
        before = np.sqrt((acts[f"h.{layer}.resid_pre"] ** 2).sum(-1))
        after = np.sqrt((acts[f"h.{layer}.resid_post"] ** 2).sum(-1))
        np.testing.assert_allclose(found[layer], before, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[layer + 1], after, rtol=1e-5, atol=1e-5)


@given(one_prompt)
def test_the_lens_holds_the_top_tokens_of_the_logit_lens(model_and_ids):
    model, ids = model_and_ids
    lens = page_data(model, TOKENIZER, ids.tolist(), "any")["lens"]
    acts = recorded(model, ids)
    k = min(5, model.config.vocab_size)
    for layer in range(model.config.n_layer + 1):
        for position, tokens in enumerate(top_tokens(logit_lens(model, acts, layer), TOKENIZER, k)):
            assert lens["ids"][layer][position] == [token.id for token in tokens]
            assert lens["probabilities"][layer][position] == pytest.approx(
                [token.probability for token in tokens], abs=1e-6)


@given(one_prompt)
def test_attributions_are_the_library_s_and_sum_to_the_logit_of_the_predicted_token(model_and_ids):
    model, ids = model_and_ids
    data = page_data(model, TOKENIZER, ids.tolist(), "any")
    acts = recorded(model, ids)
    attribution = data["attribution"]
    for position, values in enumerate(attribution["values"]):
        token_id = data["lens"]["ids"][-1][position][0]
        expected = direct_logit_attribution(model, acts, token_id, position)
        assert (attribution["ids"][position], attribution["parts"]) == (token_id, expected.names)
        assert values == pytest.approx(expected.values.tolist(), abs=1e-5)
        assert attribution["logits"][position] == pytest.approx(float(acts["logits"][position, token_id]), abs=1e-5)
        assert sum(values) == pytest.approx(attribution["logits"][position], abs=1e-3)


def test_the_table_of_stages_is_tap_s_with_every_parameter_once():
    model = lively_model(GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2,
                                    tie_word_embeddings=False), dtype=np.float32)
    acts = recorded(model, [1, 2, 3])
    data = page_data(model, TOKENIZER, [1, 2, 3], "any")
    assert [row["name"] for row in data["stages"]] == [stage.name for stage in STAGES]
    for row, stage in zip(data["stages"], STAGES):
        assert (row["equation"], row["sentence"]) == (stage.equation, stage.sentence)
        assert row["shape"] == acts[stage.name.replace("h.i.", "h.1.")].shape
    of_stages = {name.replace("h.i.", "h.1."): shape for row in data["stages"] for name, shape in row["parameters"]}
    assert of_stages == {name: array.shape for name, array in named_parameters(model) if not name.startswith("h.0.")}
    assert data["n_parameters"] == sum(array.size for _, array in named_parameters(model))


def test_a_tied_unembedding_has_no_parameters_of_its_own():
    data = page_data(MODEL, TOKENIZER, [1], "fairytale")
    assert data["stages"][-1]["parameters"] == []


def test_values_that_are_not_finite_are_refused():
    model = random_model(GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1))
    model.ln_f.bias[0] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        page_data(model, TOKENIZER, [1, 2], "any")


# The tokens -----------------------------------------------------------------------------------------------------------


def test_every_id_in_the_page_has_its_text_or_where_it_is_half_a_character_its_bytes():
    ids = TOKENIZER.encode("Ωmega 👩 says: é")
    data = page_data(MODEL, TOKENIZER, ids, "fairytale")
    assert (data["ids"], data["prompt"]) == (ids, "Ωmega 👩 says: é")
    likely = np.argsort(-forward(MODEL, ids), axis=-1, kind="stable")[:, :page.N_NAMED]
    shown = {*ids, *np.ravel(likely).tolist(), *np.ravel(data["lens"]["ids"]).tolist()}
    assert shown >= {*data["likeliest"], *data["attribution"]["ids"]}
    assert data["names"].keys() == shown
    for token_id, name in data["names"].items():
        data_of_token = TOKENIZER.token_bytes(token_id)
        assert name.encode() == data_of_token if isinstance(name, str) else bytes(name) == data_of_token
    assert any(isinstance(data["names"][token_id], list) for token_id in ids)


def test_ids_that_the_tokenizer_does_not_know_are_not_to_be_drawn():
    model = random_model(GPT2Config(vocab_size=TOKENIZER.vocab_size + 9, n_positions=4, n_embd=4, n_layer=1, n_head=1))
    data = page_data(model, TOKENIZER, [1, 2], "any")
    assert len(unpacked(data["logits"], "<f4")) == TOKENIZER.vocab_size
    assert max(data["names"]) < TOKENIZER.vocab_size


def test_an_empty_prompt_starts_from_the_end_of_text():
    assert prompt_ids(MODEL, TOKENIZER, "") == [TOKENIZER.eot_id]
    data = page_data(MODEL, TOKENIZER, [TOKENIZER.eot_id], "fairytale")
    assert data["names"][TOKENIZER.eot_id] == "<|endoftext|>"


def test_a_prompt_longer_than_a_page_can_show_or_the_model_can_read_is_refused():
    word = TOKENIZER.decode([TOKENIZER.encode(" king")[0]])
    assert len(prompt_ids(MODEL, TOKENIZER, word * MAX_TOKENS)) == MAX_TOKENS
    with pytest.raises(ValueError) as error:
        prompt_ids(MODEL, TOKENIZER, word * (MAX_TOKENS + 1))
    assert str(error.value) == "the prompt must be at most 128 tokens, the page's limit. Got 129: shorten it."
    short = random_model(GPT2Config(vocab_size=4096, n_positions=4, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="at most 4 tokens, the model's context. Got 5"):
        prompt_ids(short, TOKENIZER, word * 5)


def test_a_pass_too_large_for_a_page_is_refused_before_the_work():
    deep = random_model(GPT2Config(vocab_size=4096, n_positions=128, n_embd=2, n_layer=4000, n_head=2))
    with pytest.raises(ValueError, match="at most 60,000,000 numbers of a pass. Got 134,144,000, for 128 tokens and 4"):
        prompt_ids(deep, TOKENIZER, " the" * MAX_TOKENS)
    assert len(prompt_ids(deep, TOKENIZER, " the" * 8)) == 8


def test_ids_that_the_model_does_not_have_are_the_user_s_mistake():
    few = random_model(GPT2Config(vocab_size=300, n_positions=16, n_embd=2, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="ids must be from 0 to 299"):
        prompt_ids(few, TOKENIZER, " princess")


# The form -------------------------------------------------------------------------------------------------------------


def test_of_equal_logits_the_lower_id_comes_first():
    wte = np.zeros_like(MODEL.wte)
    wte[:, 0] = np.arange(len(wte)) % 7
    model = replace_weights(MODEL, {"wte.weight": wte})
    logits = forward(model, [1, 2, 3])[-1].tolist()
    expected = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    assert page_data(model, TOKENIZER, [1, 2, 3], "any")["likeliest"] == expected[:page.N_NAMED]


def test_numbers_have_the_decimals_that_are_documented():
    data = page_data(MODEL, TOKENIZER, TOKENIZER.encode("Once upon a time there was"), "any")
    assert data["model"] == "any"
    numbers = {"norms": (5, data["norms"]), "losses": (6, data["losses"]),
               "probabilities": (6, data["lens"]["probabilities"]),
               "logits": (5, data["attribution"]["logits"]), "values": (5, data["attribution"]["values"])}
    for name, (decimals, values) in numbers.items():
        flat = [float(value) for value in np.ravel(values)]
        assert flat == [round(value, decimals) for value in flat], name
        assert flat != [round(value, decimals - 1) for value in flat], name


def test_each_stage_has_its_axes_and_its_shape():
    by_name = {stage.name: stage for stage in STAGES}
    for row in page_data(MODEL, TOKENIZER, [1, 2, 3], "any")["stages"]:
        assert row["axes"] == by_name[row["name"]].shape and len(row["axes"]) == len(row["shape"])


def test_a_special_token_in_a_prompt_counts_only_where_it_is_allowed():
    assert prompt_ids(MODEL, TOKENIZER, "<|endoftext|>", {"<|endoftext|>"}) == [TOKENIZER.eot_id]
    assert TOKENIZER.eot_id not in prompt_ids(MODEL, TOKENIZER, "<|endoftext|>")


def test_a_pass_of_as_many_numbers_as_a_page_may_hold_is_shown(monkeypatch):
    config = MODEL.config
    monkeypatch.setattr(page, "MOST_NUMBERS", config.n_layer * 3 * (3 * config.n_embd + config.n_head * 3))
    page.check_fits_page(MODEL, [1, 2, 3])
    with pytest.raises(ValueError, match="a page can hold at most"):
        page.check_fits_page(MODEL, [1, 2, 3, 4])


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_a_number_that_json_cannot_hold_is_refused(number):
    for refuse in (lambda: page.packed(np.array([0, number]), "<f4"), lambda: page.rounded([0, number], 5)):
        with pytest.raises(FloatingPointError, match="^the activations are not finite: they overflow$"):
            refuse()
