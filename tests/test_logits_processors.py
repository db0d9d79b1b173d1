"""A logits processor: a function of the user's own in every step of a generation, between the penalty and the rest."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import GPT2Config, forward, generate_tokens, stream_samples, stream_text
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import apply_repetition_penalty
from strategies import lively_model

CONFIG = GPT2Config(vocab_size=13, n_positions=30, n_embd=8, n_layer=2, n_head=2,
                    tie_word_embeddings=False)
LIVELY = lively_model(CONFIG, seed=1)
MODEL = replace(LIVELY, lm_head=LIVELY.lm_head / 3)  # not too sure of any token
PROMPT = [3, 1, 4, 1, 5]

SETTINGS = [{}, {"temperature": 0}, {"temperature": 0.3, "top_k": 3}, {"top_p": 0.5, "repetition_penalty": 2.0},
            {"temperature": 0, "prompt_lookup_num_tokens": 5}]


def run(processors, n=12, ids=PROMPT, **settings):
    return np.array(list(generate_tokens(MODEL, ids, n, seed=0, eos_token_id=-1, logits_processor=processors,
                                         **settings)))


def only_even(ids, logits):
    logits[..., 1::2] = -np.inf  # it may write to what it is given
    ids[...] = 0
    return logits


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_processor_that_changes_nothing_changes_nothing(settings):
    assert np.array_equal(run(lambda ids, logits: logits, **settings), run([], **settings))


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_a_processor_forbids_is_never_drawn_and_writing_to_its_arguments_does_no_harm(settings):
    assert np.any(run([], **settings) % 2)
    tokens = run(only_even, **settings)
    assert not np.any(tokens % 2)
    stream = generate_tokens(MODEL, PROMPT, 12, seed=0, eos_token_id=-1, logits_processor=only_even, **settings)
    assert np.isfinite(stream.log_probs).all() and np.array_equal(list(stream), tokens)


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("ids", [PROMPT, [PROMPT, PROMPT[::-1]]])
def test_a_processor_sees_all_ids_so_far_and_the_penalised_logits_of_every_row(ids, n_samples):
    seen = []

    def keep(previous_ids, logits):
        seen.append((previous_ids, logits.copy()))
        return logits

    tokens = run(keep, 4, ids, num_return_sequences=n_samples, repetition_penalty=1.5, temperature=0.5, vocab_size=11)
    rows = tokens.shape[1:]
    assert len(seen) == 4
    for step, (previous_ids, logits) in enumerate(seen):
        prompt = np.broadcast_to(ids, (*rows, len(PROMPT)))
        assert np.array_equal(previous_ids, np.concatenate([prompt, np.moveaxis(tokens[:step], 0, -1)], axis=-1))
        expected = apply_repetition_penalty(forward(MODEL, previous_ids)[..., -1, :11], previous_ids, 1.5)
        np.testing.assert_allclose(logits, expected, rtol=1e-9)


def test_several_processors_are_called_in_turn():
    def add_one_to_the_last(ids, logits):
        return np.where(np.arange(CONFIG.vocab_size) == 12, logits + 1, logits)

    def double(ids, logits):
        return 2 * logits

    def both(ids, logits):
        return double(ids, add_one_to_the_last(ids, logits))

    assert np.array_equal(run([add_one_to_the_last, double]), run(both))
    assert not np.array_equal(run([add_one_to_the_last, double]), run([double, add_one_to_the_last]))
    assert np.array_equal(run((double,)), run(temperature=0.5, processors=()))


@given(st.integers(0, 30), st.integers(2, 8))
def test_drafts_change_nothing_whatever_a_processor_does(seed, longest):
    bias = np.random.default_rng(seed).standard_normal((2, CONFIG.vocab_size))

    def biased(ids, logits):
        return logits + bias[ids[-1] % 2] - (len(ids) % 3) * bias[0]

    drafted = run(biased, 20, temperature=0, prompt_lookup_num_tokens=longest)
    assert np.array_equal(drafted, run(biased, 20, temperature=0))


def test_a_processor_of_a_text_forbids_a_token_in_every_sample():
    model, tokenizer = numpy_gpt2.load("fairytale")
    the = tokenizer.encode(" the")[0]

    def without_the(ids, logits):
        logits[..., the] = -np.inf
        return logits

    texts = ["".join(stream) for stream in stream_samples(model, tokenizer, "Once upon", 3, 30, seed=1)]
    assert any(" the " in text for text in texts)
    for stream in stream_samples(model, tokenizer, "Once upon", 3, 30, seed=1, logits_processor=without_the):
        assert " the " not in "".join(stream)
    assert " the " not in "".join(stream_text(model, tokenizer, "Once upon", 30, seed=1, logits_processor=without_the))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("wrong, message", [
    (lambda ids, logits: logits[..., 1:], r"return shape \(13,\), float64. Got \(12,\), float64.$"),
    (lambda ids, logits: logits.astype("float32"), r"return shape \(13,\), float64. Got \(13,\), float32.$"),
    (lambda ids, logits: logits.tolist(), r"return shape \(13,\), float64. Got list.$"),
    (lambda ids, logits: None, r"return shape \(13,\), float64. Got NoneType.$"),
    (lambda ids, logits: np.where(ids[-1] == ids[-1], np.nan, logits), "or -inf to forbid a token. Got NaN or .inf.$"),
    (lambda ids, logits: np.where(logits == logits.max(), np.inf, logits), "to forbid a token. Got NaN or .inf.$"),
    (lambda ids, logits: logits - np.inf, "leave a token that can be drawn. Got -inf for all of a row.$"),
])
def test_what_gives_no_distribution_is_refused_in_one_line(settings, wrong, message):
    with pytest.raises(ValueError, match="^a logits processor must .*" + message):
        run(wrong, **settings)


def test_a_row_without_a_token_to_draw_is_refused_though_others_have_some():
    def stop_row_1(ids, logits):
        logits[1] = -np.inf
        return logits

    with pytest.raises(ValueError, match="-inf for all of a row"):
        run(stop_row_1, ids=[PROMPT, PROMPT])


def test_an_error_inside_a_processor_is_raised_again_and_again():
    stream = generate_tokens(MODEL, PROMPT, 5, logits_processor=lambda ids, logits: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            next(stream)


# What a user writes ---------------------------------------------------------------------------------------------------


def typical(mass):
    """Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest to the entropy."""
    def processor(ids, logits):
        p = softmax(logits)
        surprise = -np.log(np.maximum(p, 1e-30))
        entropy = np.sum(p * surprise, axis=-1, keepdims=True)
        order = np.argsort(np.abs(surprise - entropy), axis=-1, kind="stable")
        before = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1) - np.take_along_axis(p, order, axis=-1)
        np.put_along_axis(logits, order, np.where(before < mass, np.take_along_axis(logits, order, -1), -np.inf), -1)
        return logits
    return processor


def test_typical_sampling_is_a_dozen_lines():
    allowed = []

    def watch(ids, logits):
        allowed.append(np.isfinite(logits))
        return logits

    tokens = run([typical(0.4), watch], n=20)
    assert all(kept[token] for kept, token in zip(allowed, tokens))
    assert 1 < np.mean(np.sum(allowed, axis=-1)) < CONFIG.vocab_size
    p = softmax(forward(MODEL, PROMPT)[-1])
    distance = np.abs(-np.log(p) + np.sum(p * np.log(p)))
    assert distance[allowed[0]].max() < distance[~allowed[0]].min()
    assert p[allowed[0]].sum() >= 0.4 > p[allowed[0]].sum() - p[allowed[0]][distance[allowed[0]].argmax()]


@pytest.mark.parity
def test_typical_sampling_keeps_what_transformers_keeps():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).standard_normal((20, 50)) * 3
    warper = transformers.TypicalLogitsWarper(mass=0.6)
    theirs = warper(None, torch.tensor(logits)).numpy()
    np.testing.assert_array_equal(np.isneginf(typical(0.6)(None, logits.copy())), np.isneginf(theirs))


def test_a_sampler_of_ones_own_forbids_all_but_its_choice():
    """Mirostat, nucleus with a budget, a human: whichever chooses, the processor leaves that token alone."""
    rng = np.random.default_rng(7)

    def gumbel_max(ids, logits):
        choice = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1, keepdims=True)
        return np.where(np.arange(logits.shape[-1]) == choice, logits, -np.inf)

    tokens = np.array(list(generate_tokens(MODEL, PROMPT, 1, num_return_sequences=4000, temperature=0,
                                           logits_processor=gumbel_max)))[0]
    p = softmax(forward(MODEL, PROMPT)[-1])
    np.testing.assert_allclose(np.bincount(tokens, minlength=CONFIG.vocab_size) / 4000, p, atol=0.03)
