"""What people do with the library, in a dozen lines each and without a loop of their own."""

from pathlib import Path

import numpy as np
import pytest

from numpy_gpt2 import (KVCache, Recorder, ablate, forward, generate_tokens, load, mean_ablate, patch, score_tokens,
                        stream_text)

STORY = Path(__file__).parents[1] / "scripts" / "experiments" / "story.txt"


@pytest.fixture(scope="module")
def model():
    return load()[0]


@pytest.fixture(scope="module")
def tokenizer():
    return load()[1]


@pytest.fixture(scope="module")
def story(tokenizer):
    return tokenizer.with_bos(tokenizer.encode(STORY.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def previous_token_head(model, story):
    """The layer and the head that look most at the previous token."""
    acts = Recorder("h.*.attn.pattern")
    forward(model, story[:200], tap=acts)
    patterns = acts.stack("h.*.attn.pattern")  # [n_layer, n_head, n_tokens, n_tokens]
    to_previous = np.diagonal(patterns, offset=-1, axis1=-2, axis2=-1).mean(axis=-1)  # [n_layer, n_head]
    layer, head = np.unravel_index(to_previous.argmax(), to_previous.shape)
    assert to_previous[layer, head] > 2 * np.median(to_previous)
    return int(layer), int(head)


def test_an_entropy_tap(model, story):
    entropy = {}

    def tap(name, value):
        if name.endswith("attn.pattern"):
            entropy[name] = -np.sum(value * np.log(np.maximum(value, 1e-30)), axis=-1)  # [n_head, n_tokens]

    forward(model, story[:50], tap=tap)
    assert list(entropy) == [f"h.{layer}.attn.pattern" for layer in range(model.config.n_layer)]
    most_even = np.log(np.arange(1, 51))  # of a head that attends to all tokens alike
    assert all(np.all(bits <= most_even + 1e-4) and bits[:, 1:].min() > 0 for bits in entropy.values())


def test_the_ablation_of_the_previous_token_head_costs_the_story_some_likelihood(model, story, previous_token_head):
    layer, head = previous_token_head
    loss = score_tokens(model, story).mean_loss
    without_it = score_tokens(model, story, tap=ablate(f"h.{layer}.attn.z", heads=head)).mean_loss
    without_what_it_varies = score_tokens(model, story, tap=mean_ablate(model, [story[:500]], f"h.{layer}.attn.z",
                                                                        heads=head)).mean_loss
    assert loss + 0.02 < min(without_it, without_what_it_varies)


def test_cached_against_uncached(model, story):
    cache = KVCache(model)
    first, rest = forward(model, story[:100], cache=cache), forward(model, story[100:300], cache=cache)
    uncached = forward(model, story[:300])
    assert np.allclose(np.concatenate([first, rest]), uncached, rtol=1e-4, atol=1e-3)


def test_a_sampler_of_ones_own_that_never_repeats_a_pair_of_tokens(model, tokenizer):
    def no_repeated_pair(ids, logits):
        follows = ids[1:][ids[:-1] == ids[-1]]  # what has followed the last token before
        logits[follows] = -np.inf
        return logits

    stream = stream_text(model, tokenizer, "The king said", 60, temperature=0, logits_processor=no_repeated_pair)
    assert "".join(stream)
    ids = [*tokenizer.encode("The king said"), *stream.ids]
    assert len(set(zip(ids, ids[1:]))) == len(ids) - 1
    free = stream_text(model, tokenizer, "The king said", 60, temperature=0)
    assert "".join(free) and len(set(zip(free.ids, free.ids[1:]))) < len(free.ids) - 1


def test_steering_with_a_residual_tap_in_a_generation(model, tokenizer):
    ids = tokenizer.encode("Once upon a time there was a")
    king, = tokenizer.encode(" king")
    towards = 12 * model.wte[king] / np.linalg.norm(model.wte[king])
    steer = patch(f"h.{model.config.n_layer - 1}.resid_post", lambda residual: residual + towards)
    options = dict(max_new_tokens=20, seed=0, num_return_sequences=8)
    plain = list(generate_tokens(model, ids, **options))
    steered = list(generate_tokens(model, ids, **options, tap=steer))
    assert np.mean(np.array(steered) == king) > 3 * np.mean(np.array(plain) == king) + 0.05
    only_one = list(generate_tokens(model, ids, **options, tap=patch("h.*.resid_post", lambda x: -x, positions=20)))
    first_read = 20 - len(ids) + 1  # position 20 is read after so many tokens
    assert np.array_equal(plain[:first_read], only_one[:first_read]) and not np.array_equal(plain, only_one)


def test_a_heat_list_of_a_texts_tokens(model, tokenizer):
    stream = stream_text(model, tokenizer, "Once upon a time", 30, seed=1, top_log_probs=1)
    text = "".join(stream)
    heat = list(zip(map(tokenizer.decode, stream.ids), stream.log_probs, np.ravel(stream.top_log_probs)))
    assert "".join(token for token, _, _ in heat) == text
    assert all(log_prob <= likeliest <= 0 for _, log_prob, likeliest in heat)
    token, log_prob, _ = min(heat, key=lambda item: item[1])
    assert token in text and log_prob < -3
