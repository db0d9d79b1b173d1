"""Prompts and texts of several lengths together: each row is what it would be alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpy_gpt2 import (GPT2Config, Recorder, ablate, forward, generate_tokens, loss_and_gradients, pad_ids, patch,
                        score_tokens, scoring, transform)
from strategies import lively_model, made_caches

CONFIG = GPT2Config(vocab_size=13, n_positions=14, n_embd=8, n_layer=2, n_head=2, eos_token_id=5,
                    tie_word_embeddings=False)
LIVELY = lively_model(CONFIG, seed=4)
MODEL = replace(LIVELY, lm_head=LIVELY.lm_head / 3)  # not too sure of any token, and fond of the end
PROMPTS = [[3, 1, 4], [1, 9, 2, 6, 8], [7], [2, 7, 1]]

ragged = st.lists(st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=10), min_size=1, max_size=5)


@pytest.mark.parametrize("function", [forward, score_tokens, generate_tokens, transform])
def test_padded_ids_with_their_mask_are_no_batch(function):
    with pytest.raises(ValueError, match="pass ids alone"):
        function(MODEL, pad_ids([[1, 2], [3]]))


# pad_ids --------------------------------------------------------------------------------------------------------------


@given(ragged)
def test_padded_ids_hold_every_prompt_and_the_mask_says_where(prompts):
    ids, mask = pad_ids(prompts)
    assert ids.shape == mask.shape == (len(prompts), max(map(len, prompts)))
    assert ids.dtype == np.int64 and mask.dtype == bool
    assert [row[counts].tolist() for row, counts in zip(ids, mask)] == prompts
    assert [row[:len(prompt)].tolist() for row, prompt in zip(ids, prompts)] == prompts


@given(ragged)
def test_a_padded_row_has_the_logits_of_the_prompt_alone(prompts):
    ids, mask = pad_ids([np.array(prompt) for prompt in prompts])
    logits = forward(MODEL, ids)
    for row, counts, prompt in zip(logits, mask, prompts):
        np.testing.assert_allclose(row[counts], forward(MODEL, prompt), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(row[counts.sum() - 1], forward(MODEL, prompt)[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prompts, message", [
    ([], "prompts must be one or more lists of token ids. Got none."),
    ([[1], []], "prompts must be lists of token ids, none empty. Got float64, shape (0,)."),
    ([[1], 2], "ids must be a list of one token id or more. Got int."),
    ([[1], [[2]]], "prompts must be lists of token ids, none empty. Got int64, shape (1, 1)."),
    ([[1], [0.5]], "prompts must be lists of token ids, none empty. Got float64, shape (1,)."),
    (["Once"], "ids must be token ids: tokenizer.encode(text) gives them. Got text, 'Once'."),
])
def test_what_are_no_prompts_is_refused_in_one_line(prompts, message):
    with pytest.raises(ValueError) as error:
        pad_ids(prompts)
    assert str(error.value) == message


@pytest.mark.parametrize("function", [forward, score_tokens, loss_and_gradients])
def test_ragged_ids_are_refused_with_the_function_that_pads_them(function):
    with pytest.raises(ValueError, match=r"`ids, mask = pad_ids\(prompts\)` makes them. Got rows of different lengths"):
        function(MODEL, PROMPTS)


# Generation -----------------------------------------------------------------------------------------------------------


@given(ragged.filter(lambda prompts: len(set(map(len, prompts))) > 1), st.integers(0, 9),
       st.sampled_from([None, 1, 3]), st.sampled_from([{}, {"temperature": 0}, {"top_k": 3}]))
@settings(max_examples=40)
def test_each_prompt_goes_on_as_it_would_alone(prompts, seed, n_samples, options):
    options = {**options, "seed": seed, "num_return_sequences": n_samples, "top_log_probs": 2}
    n_steps = CONFIG.n_positions + 1 - max(map(len, prompts))
    stream = generate_tokens(MODEL, prompts, **options)
    tokens = np.array(list(stream))  # [n_steps, (n_samples,) n_prompts]
    assert tokens.shape[1:] == ((len(prompts),) if n_samples is None else (n_samples, len(prompts)))
    for row, prompt in enumerate(prompts):
        # Row by row the same draws: those of that row of a batch of this prompt alone.
        alone = generate_tokens(MODEL, [prompt] * len(prompts), n_steps, **options)
        n_alone = len(list(alone))
        of_row = np.array(alone.ids)[..., row]
        both = min(n_alone, len(tokens))
        assert np.array_equal(tokens[:both, ..., row], of_row[:both])
        assert np.all(tokens[both:, ..., row] == tokens[both - 1, ..., row])  # it repeats its end
        np.testing.assert_allclose(np.array(stream.log_probs)[:both, ..., row],
                                   np.array(alone.log_probs)[:both, ..., row], rtol=1e-9, atol=1e-12)
        assert np.all(np.array(stream.log_probs)[both:, ..., row] == 0)
        going_on = np.array(alone.log_probs)[:both, ..., row] != 0
        assert np.array_equal(np.array(stream.top_ids)[:both, ..., row, :][going_on],
                              np.array(alone.top_ids)[:both, ..., row, :][going_on])
        assert np.array_equal(np.array(stream.finish_reason)[..., row], np.array(alone.finish_reason)[..., row])


def test_a_length_whose_rows_have_all_ended_repeats_their_ends_with_certainty_until_the_others_end():
    stream = generate_tokens(MODEL, PROMPTS, 4, temperature=0)
    assert np.transpose(list(stream)).tolist() == [[5, 5, 5, 5], [8, 5, 5, 5], [9, 2, 9, 2], [9, 2, 5, 5]]
    assert stream.finish_reason == ["eos", "eos", "length", "eos"]
    certain = np.transpose(stream.log_probs) == 0
    assert certain.tolist() == [[False, True, True, True], [False, False, True, True], [False] * 4,
                                [False, False, False, True]]


def test_prompts_of_equal_length_are_read_together(monkeypatch):
    caches = made_caches(monkeypatch, "numpy_gpt2.decoding")
    list(generate_tokens(MODEL, PROMPTS, 4, seed=0))
    assert [(cache.batch, cache.n_positions) for cache in caches] == [((1,), 4), ((2,), 6), ((1,), 8)]


def test_all_end_where_the_context_of_the_longest_does_and_none_before():
    stream = generate_tokens(MODEL, PROMPTS, seed=0, eos_token_id=-1)
    assert len(list(stream)) == CONFIG.n_positions + 1 - 5
    assert stream.finish_reason == ["length"] * 4


def test_no_new_tokens_of_several_prompts_end_at_once():
    stream = generate_tokens(MODEL, PROMPTS, 0)
    assert list(stream) == [] and stream.finish_reason == ["length"] * 4


def test_a_processor_and_a_tap_see_the_rows_of_one_length_at_a_time():
    shapes, acts = [], []

    def processor(ids, logits):
        shapes.append(ids.shape)
        return logits

    list(generate_tokens(MODEL, PROMPTS, 2, seed=0, eos_token_id=-1, logits_processor=processor,
                         tap=lambda name, value: acts.append(value.shape) if name == "ln_f" else None))
    assert shapes == [(1, 1), (2, 3), (1, 5), (1, 2), (2, 4), (1, 6)]
    assert acts == [(1, 1, 8), (2, 3, 8), (1, 5, 8), (1, 1, 8), (2, 1, 8), (1, 1, 8)]


# Scoring --------------------------------------------------------------------------------------------------------------

texts = st.lists(st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=2, max_size=40), min_size=1, max_size=4)


@given(texts, st.integers(1, CONFIG.n_positions - 1), st.integers(0, 3))
def test_each_text_is_scored_as_it_would_be_alone(prompts, stride, n_top):
    ids, mask = pad_ids(prompts)
    scores = score_tokens(MODEL, ids, stride, n_top, mask=mask)
    assert scores.log_probs.shape == (len(prompts), ids.shape[-1] - 1)
    total, n_scored = 0.0, 0
    for row, prompt in enumerate(prompts):
        alone = score_tokens(MODEL, prompt, stride, n_top)
        n = len(prompt) - 1
        np.testing.assert_allclose(scores.log_probs[row, :n], alone.log_probs, rtol=1e-9, atol=1e-12)
        assert np.all(scores.log_probs[row, n:] == 0) and not scores.mask[row, n:].any() and scores.mask[row, :n].all()
        assert np.array_equal(scores.ranks[row, :n], alone.ranks)
        assert np.array_equal(scores.top_ids[row, :n], alone.top_ids)
        np.testing.assert_allclose(scores.top_log_probs[row, :n], alone.top_log_probs, rtol=1e-9, atol=1e-12)
        total += alone.log_probs.sum()
        n_scored += n
    np.testing.assert_allclose(scores.mean_loss, -total / n_scored)
    np.testing.assert_allclose(scores.perplexity, np.exp(-total / n_scored))
    np.testing.assert_allclose(scores.bits_per_byte(7), -total / np.log(2) / 7)


def test_the_logits_of_a_batch_take_no_more_memory_than_those_of_a_text(monkeypatch):
    n_rows = []
    unembed = scoring.unembed
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 6)
    monkeypatch.setattr(scoring, "unembed",
                        lambda model, x, *rest: n_rows.append(x[..., 0].size) or unembed(model, x, *rest))
    score_tokens(MODEL, np.ones((2, 14), int))
    assert n_rows == [6, 6, 6, 6, 2]


def test_a_mask_leaves_out_any_tokens_and_a_batch_without_one_counts_all():
    ids = np.arange(12).reshape(2, 2, 3)
    whole = score_tokens(MODEL, ids)
    assert whole.log_probs.shape == (2, 2, 2) and whole.mask is None
    np.testing.assert_allclose(whole.mean_loss, -whole.log_probs.mean())
    mask = np.zeros(ids.shape, bool)
    mask[0, 1, 2] = True
    one = score_tokens(MODEL, ids, mask=mask)
    assert one.mean_loss == -whole.log_probs[0, 1, 1] and np.count_nonzero(one.log_probs) == 1


@pytest.mark.parametrize("mask", [np.ones((2, 2), bool), np.ones((2, 3)), [[True, True, True]],
                                  [[True, False, False], [True, False, False]]])
def test_a_mask_that_does_not_fit_or_leaves_nothing_is_refused_before_anything_is_computed(monkeypatch, mask):
    monkeypatch.setattr("numpy_gpt2.scoring.transform", None)
    with pytest.raises(ValueError, match=r"mask must be booleans of the shape of ids, \(2, 3\), true for a token"):
        score_tokens(MODEL, [[1, 2, 3], [4, 5, 6]], mask=mask)


# Taps in scoring ------------------------------------------------------------------------------------------------------


def test_a_tap_sees_and_changes_every_window():
    ids = np.random.default_rng(0).integers(13, size=40)
    shapes = []
    tap = ablate("h.1.attn.z", heads=0)
    ablated = score_tokens(MODEL, ids, 6, tap=tap)
    as_it_is = score_tokens(MODEL, ids, 6,
                            tap=lambda name, z: shapes.append(z.shape) if name == "h.1.attn.z" else None)
    assert shapes == [(2, 13, 4)] * 5 + [(2, 9, 4)]
    assert np.abs(ablated.log_probs - as_it_is.log_probs).max() > 0.01
    whole = ids[:14]
    logits = forward(MODEL, whole, tap=tap)[:-1]
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(ablated.log_probs[:13], expected[np.arange(13), whole[1:]], rtol=1e-9)


@given(st.integers(0, 13), st.sampled_from(["wte", "h.1.resid_pre", "ln_f", "logits"]))
def test_a_position_in_scoring_is_that_in_each_window(position, name):
    ids = np.random.default_rng(1).integers(13, size=24)
    scores = score_tokens(MODEL, ids, 5, tap=patch(name, lambda array: -array, positions=position))
    expected = []
    for begin, first, end in [(0, 1, 14), (5, 14, 19), (10, 19, 24)]:  # what the docstring of scoring.py says
        logits = forward(MODEL, ids[begin:end], tap=patch(name, lambda array: -array, positions=position))
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected += [log_probs[i - 1 - begin, ids[i]] for i in range(first, end)]
    np.testing.assert_allclose(scores.log_probs, expected, rtol=1e-9)


def test_a_tap_gets_the_logits_that_a_window_scores_at_once(monkeypatch):
    monkeypatch.setattr("numpy_gpt2.scoring.ROWS_AT_ONCE", 2)
    ids, acts = np.arange(13), Recorder("logits")
    score_tokens(MODEL, ids, tap=acts)
    np.testing.assert_allclose(acts["logits"], forward(MODEL, ids)[:-1])
