"""The log-probabilities on streams are the model's own, whatever the settings of the generation make of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import GPT2Config, Tokenizer, forward, generate_tokens, score_tokens, stream_samples, stream_text
from strategies import lively_model

TOKENS = [b"a", b"b", b"c", b"d", b" ", b".", b"the", b" a"]
TOKENIZER = Tokenizer({token: number for number, token in enumerate(TOKENS)}, {}, {"<|endoftext|>": len(TOKENS)})
CONFIG = GPT2Config(vocab_size=TOKENIZER.vocab_size + 2, n_positions=30, n_embd=8, n_layer=2, n_head=2,
                    bos_token_id=TOKENIZER.eot_id, eos_token_id=TOKENIZER.eot_id)
MODEL = lively_model(CONFIG, seed=1)
PROMPT = [3, 1, 4, 1, 5]

SETTINGS = [{}, {"temperature": 0}, {"temperature": 0.3, "top_k": 3}, {"top_p": 0.5, "repetition_penalty": 2.0},
            {"temperature": 0, "prompt_lookup_num_tokens": 5}, {"vocab_size": 4, "min_p": 0.2}]


def expected_log_probs(prompt, ids):
    """Those of `score_tokens` for the continuation."""
    return score_tokens(MODEL, [*prompt, *ids]).log_probs[len(prompt) - 1:]


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_probs_are_those_of_scoring_whatever_the_settings(settings):
    stream = generate_tokens(MODEL, PROMPT, 20, seed=0, eos_token_id=-1, **settings)
    assert (stream.ids, stream.log_probs) == ([], [])
    tokens = list(stream)
    assert stream.ids == tokens and len(tokens) == 20
    assert all(type(number) is float for number in stream.log_probs)
    np.testing.assert_allclose(stream.log_probs, expected_log_probs(PROMPT, tokens), rtol=1e-12)


@given(st.integers(0, 100), st.integers(0, CONFIG.vocab_size), st.sampled_from(SETTINGS))
def test_the_likeliest_others_are_those_of_scoring(seed, n_top, settings):
    stream = generate_tokens(MODEL, PROMPT, 6, seed=seed, eos_token_id=-1, top_log_probs=n_top, **settings)
    scores = score_tokens(MODEL, [*PROMPT, *stream], n_top=n_top)
    assert np.array_equal(stream.top_ids, scores.top_ids[len(PROMPT) - 1:])
    np.testing.assert_allclose(stream.top_log_probs, scores.top_log_probs[len(PROMPT) - 1:], rtol=1e-12)


def test_each_log_prob_is_there_with_its_token():
    stream = generate_tokens(MODEL, PROMPT, 5, seed=0, eos_token_id=-1, top_log_probs=2)
    for number, token in enumerate(stream, start=1):
        assert stream.ids[-1] == token
        assert [len(stream.ids), len(stream.log_probs), len(stream.top_ids), len(stream.top_log_probs)] == 4 * [number]


def test_log_probs_of_samples_and_batches_have_their_axes():
    prompts = np.array([PROMPT, PROMPT[::-1]])
    stream = generate_tokens(MODEL, prompts, 7, seed=0, eos_token_id=-1, num_return_sequences=3, top_log_probs=2)
    tokens = np.array(list(stream))  # [n_steps, n_samples, n_batch]
    assert np.array_equal(stream.ids, tokens)
    assert np.shape(stream.log_probs) == tokens.shape == (7, 3, 2)
    assert np.shape(stream.top_ids) == np.shape(stream.top_log_probs) == (7, 3, 2, 2)
    for sample in range(3):
        for row in range(2):
            np.testing.assert_allclose(np.array(stream.log_probs)[:, sample, row],
                                       expected_log_probs(prompts[row], tokens[:, sample, row]), rtol=1e-12)
            likeliest = np.argsort(-forward(MODEL, prompts[row])[-1], kind="stable")[:2]
            assert np.array_equal(stream.top_ids[0][sample, row], likeliest)


def test_an_ended_row_repeats_its_end_with_certainty():
    prompts = np.array([PROMPT, [0, 0, 0, 0, 2]])
    free = np.array(list(generate_tokens(MODEL, prompts, 8, temperature=0, eos_token_id=-1)))
    end = int(free[0, 0])
    assert free[0, 1] != end
    stream = generate_tokens(MODEL, prompts, 8, temperature=0, eos_token_id=end)
    tokens, log_probs = np.array(list(stream)), np.array(stream.log_probs)
    assert len(tokens) > 1 and np.all(tokens[:, 0] == end)
    assert log_probs[0, 0] < 0 and np.all(log_probs[1:, 0] == 0)
    assert np.all(log_probs[:, 1] < 0)


def test_writing_to_a_token_changes_nothing_that_the_stream_remembers():
    stream = generate_tokens(MODEL, [PROMPT, PROMPT], 3, seed=0, eos_token_id=-1)
    first = next(stream)
    before = first.copy()
    first[:] = 99
    assert np.array_equal(stream.ids[0], before)


def test_a_text_has_the_log_probs_of_all_its_tokens_also_of_those_a_stop_string_leaves_out():
    stream = stream_text(MODEL, TOKENIZER, "the a", 25, seed=4, stop_strings=["d"], eos_token_id=-1,
                         top_log_probs=3)
    text = "".join(stream)
    assert stream.finish_reason == "stop" and TOKENIZER.decode(stream.ids) != text
    np.testing.assert_allclose(stream.log_probs, expected_log_probs(TOKENIZER.encode("the a"), stream.ids), rtol=1e-12)
    assert np.shape(stream.top_ids) == np.shape(stream.top_log_probs) == (len(stream.ids), 3)


def test_each_of_several_texts_has_its_own_log_probs():
    streams = stream_samples(MODEL, TOKENIZER, "the a", 3, 10, seed=4, eos_token_id=-1, top_log_probs=2)
    for stream in streams[::-1]:
        list(stream)
        np.testing.assert_allclose(stream.log_probs, expected_log_probs(TOKENIZER.encode("the a"), stream.ids),
                                   rtol=1e-12)
        assert all(type(number) is float for number in stream.log_probs)
        assert np.shape(stream.top_ids) == (10, 2)


@pytest.mark.parametrize("wrong", [-1, CONFIG.vocab_size + 1, 1.0, True])
def test_no_more_of_the_likeliest_are_given_than_there_are(wrong):
    with pytest.raises(ValueError, match=f"top_log_probs must be a whole number from 0 to {CONFIG.vocab_size}"):
        generate_tokens(MODEL, PROMPT, 1, top_log_probs=wrong)


def test_a_text_is_a_heat_list_of_its_tokens():
    """What a user writes to see which tokens surprised the model, with the bundled checkpoint."""
    model, tokenizer = numpy_gpt2.load("fairytale")
    stream = stream_text(model, tokenizer, "Once upon a time", 12, seed=1, top_log_probs=3)
    text = "".join(stream)
    heat = [(tokenizer.decode([token]), -log_prob) for token, log_prob in zip(stream.ids, stream.log_probs)]
    assert "".join(token for token, _ in heat) == text and len(heat) == 12
    most_surprising = max(heat, key=lambda item: item[1])
    assert most_surprising[1] > 3 > min(surprise for _, surprise in heat)
