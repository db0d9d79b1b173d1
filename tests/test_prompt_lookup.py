"""Drafts change no token, only the number of passes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, Recorder, build_model, generate_tokens, load, named_parameters, stream_text
from numpy_gpt2.prompt_lookup import TRUSTED, draft, draft_length
from strategies import lively_model, made_caches, seeds

CONFIG = GPT2Config(vocab_size=7, n_positions=120, n_embd=12, n_layer=2, n_head=2)


def greedy(model, ids, n, **options):
    stream = generate_tokens(model, ids, n, temperature=0, **options)
    return list(stream), stream


def echo(config=CONFIG):
    """A model that goes on with the token after the last one, round and round: all blocks add nothing."""
    model = lively_model(config)
    arrays = {name: np.zeros_like(array) for name, array in named_parameters(model)}
    one_hot = np.eye(config.vocab_size, config.n_embd)
    arrays["wte.weight"] = one_hot
    arrays["ln_f.weight"] = np.ones(config.n_embd)
    arrays["lm_head.weight"] = np.roll(one_hot, 1, axis=0)
    return build_model(replace(config, tie_word_embeddings=False), arrays)


# The law --------------------------------------------------------------------------------------------------------------


@given(seed=seeds, prompt=st.lists(st.integers(0, 6), min_size=1, max_size=30), n=st.integers(0, 60),
       longest=st.integers(1, 20), penalty=st.sampled_from([1.0, 1.3]), eos=st.sampled_from([-1, 3]))
def test_drafts_change_no_token(seed, prompt, n, longest, penalty, eos):
    model = lively_model(CONFIG, seed)
    plain, plain_stream = greedy(model, prompt, n, repetition_penalty=penalty, eos_token_id=eos)
    drafted, stream = greedy(model, prompt, n, repetition_penalty=penalty, eos_token_id=eos,
                             prompt_lookup_num_tokens=longest)
    assert drafted == plain
    assert stream.finish_reason == plain_stream.finish_reason
    if drafted:
        assert stream.lookup.n_tokens == len(drafted)
        assert stream.lookup.n_passes + stream.lookup.n_accepted == len(drafted)


def test_drafts_go_to_the_end_of_the_context():
    model = echo()
    plain, _ = greedy(model, [0, 1, 2], None, eos_token_id=-1)
    drafted, stream = greedy(model, [0, 1, 2], None, eos_token_id=-1, prompt_lookup_num_tokens=10)
    assert drafted == plain and len(drafted) == CONFIG.n_positions - 2
    assert stream.finish_reason == "length"


def test_the_end_of_text_ends_it_even_inside_a_draft():
    model = echo(replace(CONFIG, vocab_size=12))
    ids = [*range(12), 0, 1]
    for eos_token_id in range(2, 12):
        drafted, stream = greedy(model, ids, 50, eos_token_id=eos_token_id, prompt_lookup_num_tokens=10)
        assert drafted == list(range(2, eos_token_id + 1)) and stream.finish_reason == "eos"
    assert stream.lookup.n_drafted > stream.lookup.n_accepted > 0


def test_a_text_that_repeats_needs_a_fraction_of_the_passes():
    _, stream = greedy(echo(), [0, 1, 2], 100, eos_token_id=-1, prompt_lookup_num_tokens=10)
    assert stream.lookup.n_passes < 100 / 4
    assert stream.lookup.n_drafted == stream.lookup.n_accepted == 100 - stream.lookup.n_passes


def test_the_last_draft_is_cut_to_what_is_left_and_the_cache_has_room_for_no_more(monkeypatch):
    """6 tokens until two of them stand for the second time, 4 guessed right, 1 pass for the 4 that are left."""
    caches = made_caches(monkeypatch, "numpy_gpt2.prompt_lookup")
    tokens, stream = greedy(echo(), [0, 1, 2], 14, eos_token_id=-1, prompt_lookup_num_tokens=10)
    assert tokens == [3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert (stream.lookup.n_passes, stream.lookup.n_drafted) == (11, 3)
    assert [cache.n_positions for cache in caches] == [3 + 14 - 1]  # the last token is not read


def test_drafts_keep_to_the_tokens_that_may_be_drawn():
    """Of 12 tokens that go round only 5 may be drawn: after the fifth, and all that are as unlikely, the first."""
    model = echo(replace(CONFIG, vocab_size=12))
    plain, _ = greedy(model, [0, 1], 40, vocab_size=5, eos_token_id=-1)
    drafted, stream = greedy(model, [0, 1], 40, vocab_size=5, eos_token_id=-1, prompt_lookup_num_tokens=6)
    assert drafted == plain and max(plain) == 4
    assert stream.lookup.n_drafted > 0


@pytest.mark.parametrize("n", [0, 1, 2])
def test_passes_are_counted_from_the_first_token_on_and_drafts_of_none_are_off(n):
    tokens, stream = greedy(echo(), [0, 1], n, eos_token_id=-1, prompt_lookup_num_tokens=6)
    assert len(tokens) == n
    assert (stream.lookup.n_passes if n else stream.lookup) == (n or None)
    tokens, stream = greedy(echo(), [0, 1], n, eos_token_id=-1, prompt_lookup_num_tokens=0)
    assert len(tokens) == n and stream.lookup is None


def test_text_is_the_same():
    model, tokenizer = load("fairytale")
    plain = "".join(stream_text(model, tokenizer, "The fox said", 60, temperature=0))
    stream = stream_text(model, tokenizer, "The fox said", 60, temperature=0, prompt_lookup_num_tokens=10)
    assert "".join(stream) == plain
    assert stream.lookup.n_tokens == 60


@pytest.mark.parametrize("options, message", [
    ({"temperature": 0.5}, "^prompt_lookup_num_tokens .*: temperature must be 0. Got 0.5, "),
    ({"temperature": 0, "num_return_sequences": 2}, "^prompt_lookup_num_tokens .* num_return_sequences=2.$"),
])
def test_what_cannot_be_drafted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate_tokens(echo(), [1], 5, prompt_lookup_num_tokens=3, **options)
    with pytest.raises(ValueError, match="0 or more. Got -1"):
        generate_tokens(echo(), [1], 5, prompt_lookup_num_tokens=-1, temperature=0)
    with pytest.raises(ValueError, match="one prompt"):
        generate_tokens(echo(), [[1], [2]], 5, prompt_lookup_num_tokens=1, temperature=0)


def test_a_tap_sees_the_passes_with_drafts():
    acts = Recorder(["wte", "logits"])
    greedy(echo(), [0, 1, 2], 3, tap=acts, prompt_lookup_num_tokens=2)
    assert list(acts) == ["wte", "logits"]


# The parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, length, expected", [
    ([1, 2, 3, 9, 1, 2, 3], 2, [9, 1]),  # after three tokens that were there before
    ([1, 2, 3, 9, 4, 2, 3], 2, [9, 4]),  # or two
    ([1, 2, 7, 1, 2, 8, 1, 2], 1, [8]),  # the latest occurrence
    ([5, 6, 5, 6, 5, 6], 5, [5, 6, 5, 6, 5]),  # beyond the end, as it would go on
    ([1, 2, 3, 4], 5, []),  # nothing was there before
    ([1], 5, []),
    ([4, 4], 3, []),
    ([4, 4, 4], 3, [4, 4, 4]),
    ([1, 2, 1, 2], 0, []),
])
def test_drafts_worked_by_hand(text, length, expected):
    np.testing.assert_array_equal(draft(np.array(text), length), expected)


def test_a_draft_is_made_when_guesses_were_right_and_grows_with_them():
    assert [draft_length(n_right, 12) for n_right in range(8)] == [0] * TRUSTED + [8, 10, 12, 12]
    assert draft_length(100, 3) == 3


def test_text_that_does_not_repeat_is_not_drafted():
    """A text in which the last two tokens never stand twice: no guess is ever made, and no pass is dearer."""
    model = echo(replace(CONFIG, vocab_size=120, n_embd=120, n_positions=200))
    drafted, stream = greedy(model, [0], 100, eos_token_id=-1, prompt_lookup_num_tokens=10)
    assert drafted == list(range(1, 101))
    assert (stream.lookup.n_passes, stream.lookup.n_drafted) == (100, 0)


def test_one_wrong_guess_ends_the_trust():
    """The prompt goes round at 5, the model at 6: the guess after the model's 5 is wrong, those before it are right."""
    model = echo()
    prompt = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]
    tokens, stream = greedy(model, prompt, 11, eos_token_id=-1, prompt_lookup_num_tokens=8)
    assert tokens == [2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]
    # the prompt's pass gives 2; 3, 4 and 5 are guessed right, 6 is not, and 0 follows nothing known; then the guesses
    # are right again, but never four in a row with a token left to draft
    assert (stream.lookup.n_passes, stream.lookup.n_drafted) == (11, 0)
