"""Drafts change no token, only the number of passes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import GPT2Config, build_model, generate_tokens, load, named_parameters, stream_text
from numpy_gpt2.prompt_lookup import FIRST_CREDIT, LARGEST_CREDIT, DraftBudget, draft
from strategies import lively_model, seeds

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
    prompt = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    drafted, stream = greedy(echo(), prompt, 50, eos_token_id=5, prompt_lookup_num_tokens=10)
    assert drafted == [3, 4, 5] and stream.finish_reason == "eos"
    assert stream.lookup.n_passes < 3


def test_a_text_that_repeats_needs_a_fraction_of_the_passes():
    _, stream = greedy(echo(), [0, 1, 2], 100, eos_token_id=-1, prompt_lookup_num_tokens=10)
    assert stream.lookup.n_passes < 100 / 4
    assert stream.lookup.n_accepted == 100 - stream.lookup.n_passes


def test_one_sample_comes_as_a_batch_of_one():
    plain, _ = greedy(echo(), [0, 1], 9, num_return_sequences=1)
    drafted, stream = greedy(echo(), [0, 1], 9, num_return_sequences=1, prompt_lookup_num_tokens=4)
    np.testing.assert_array_equal(drafted, plain)
    assert stream.finish_reason == ["length"]


def test_text_is_the_same():
    model, tokenizer = load("fairytale")
    plain = "".join(stream_text(model, tokenizer, "The fox said", 60, temperature=0))
    stream = stream_text(model, tokenizer, "The fox said", 60, temperature=0, prompt_lookup_num_tokens=10)
    assert "".join(stream) == plain
    assert stream.lookup.n_tokens == 60


@pytest.mark.parametrize("options, message", [
    ({"temperature": 0.5}, "temperature must be 0"), ({"temperature": 0, "num_return_sequences": 2}, "one sample"),
])
def test_what_cannot_be_drafted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate_tokens(echo(), [1], 5, prompt_lookup_num_tokens=3, **options)
    with pytest.raises(ValueError, match="0 or more. Got -1"):
        generate_tokens(echo(), [1], 5, prompt_lookup_num_tokens=-1, temperature=0)
    with pytest.raises(ValueError, match="one prompt"):
        generate_tokens(echo(), [[1], [2]], 5, prompt_lookup_num_tokens=1, temperature=0)


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


def test_text_that_does_not_repeat_loses_a_few_passes_at_most():
    """Every draft is wrong, the worst there is: a pass with n drafted tokens counts as 2 + n / 8."""
    for n_tokens in (40, 200, 1000):
        budget = DraftBudget(longest=10)
        wasted = 0.0
        for _ in range(n_tokens):
            n_drafted = budget.length()
            wasted += 1 + n_drafted / 8 if n_drafted else 0
            budget.settle(n_drafted, 0)
            assert budget.credit >= 0
        assert wasted <= FIRST_CREDIT + n_tokens * 0.02
    assert wasted / n_tokens < 0.05


def test_a_draft_grows_with_success_up_to_the_longest():
    budget = DraftBudget(longest=12)
    lengths = []
    for _ in range(6):
        lengths.append(budget.length())
        budget.settle(lengths[-1], lengths[-1])
    assert lengths == sorted(lengths) and lengths[0] < 12 and lengths[-1] == 12
    assert budget.credit <= LARGEST_CREDIT
