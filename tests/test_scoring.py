"""Each token of a text is scored once, as the forward pass says, however long the text is."""

import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from numpy_gpt2 import (GPT2Config, Recorder, build_model, forward, load_model, named_parameters, random_model,
                        scoring)
from numpy_gpt2.scoring import Scores, join_scores, score_in_pieces, score_tokens

SMALL = GPT2Config(vocab_size=17, n_positions=8, n_embd=6, n_layer=2, n_head=2)


@st.composite
def texts(draw, max_windows: int = 4):
    """A model with a context of two tokens or more, a text of any length, and a stride."""
    config = draw(strategies.configs().filter(lambda config: config.n_positions >= 2))
    n_tokens = draw(st.integers(2, max_windows * config.n_positions))
    seed = draw(strategies.seeds)
    stride = draw(st.integers(1, config.n_positions - 1))
    return strategies.lively_model(config, seed), strategies.random_ids(config, (n_tokens,), seed), stride


def log_softmax(logits):
    """By the definition, in the highest precision there is."""
    exponentials = np.exp(logits.astype(np.longdouble) - logits.max())
    return np.log(exponentials / exponentials.sum())


def one_by_one(model, ids, stride):
    """What is to be found, by the definition: each token by itself, after what its window has before it."""
    n_positions = model.config.n_positions
    log_probs = []
    for position in range(1, len(ids)):
        windows_before = max(0, math.ceil((position - n_positions + 1) / stride))
        history = ids[windows_before * stride:position]
        log_probs.append(log_softmax(forward(model, history)[-1])[ids[position]])
    return np.array(log_probs, dtype=np.float64)


# Log-probabilities ----------------------------------------------------------------------------------------------------


@given(strategies.passes(min_tokens=2, batches=st.just(())))
def test_the_log_probs_of_a_text_within_the_context_are_those_of_the_forward_pass(model_and_ids):
    model, ids = model_and_ids
    logits = forward(model, ids)
    expected = [log_softmax(row)[token] for row, token in zip(logits[:-1], ids[1:])]
    scores = score_tokens(model, ids)
    np.testing.assert_allclose(scores.log_probs, np.array(expected, np.float64), rtol=1e-9, atol=1e-12)
    assert scores.log_probs.sum() == pytest.approx(float(sum(expected)), rel=1e-12, abs=1e-12)


@given(texts())
def test_the_log_probs_of_any_text_are_those_of_a_loop_over_its_tokens(case):
    model, ids, stride = case
    scores = score_tokens(model, ids, stride)
    np.testing.assert_allclose(scores.log_probs, one_by_one(model, ids, stride), rtol=1e-9, atol=1e-9)


@given(texts(max_windows=1))
def test_the_stride_changes_nothing_within_the_context(case):
    model, ids, stride = case
    ids = ids[:model.config.n_positions]
    np.testing.assert_array_equal(score_tokens(model, ids, stride).log_probs, score_tokens(model, ids).log_probs)


def test_the_default_stride_is_half_the_context():
    model, ids = strategies.lively_model(SMALL), strategies.random_ids(SMALL, (30,))
    np.testing.assert_array_equal(score_tokens(model, ids).log_probs, score_tokens(model, ids, 4).log_probs)
    assert not np.allclose(score_tokens(model, ids).log_probs, score_tokens(model, ids, 3).log_probs)


def test_float32_weights_are_scored_as_well_as_their_logits_are_known():
    config = GPT2Config(vocab_size=5000, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ids = strategies.random_ids(config, (64,))
    exact = score_tokens(strategies.lively_model(config), ids)
    scores = score_tokens(strategies.lively_model(config, dtype=np.float32), ids)
    assert scores.log_probs.dtype == np.float64
    np.testing.assert_allclose(scores.log_probs, exact.log_probs, rtol=0, atol=1e-4)
    assert scores.mean_loss == pytest.approx(exact.mean_loss, abs=1e-5)


def test_huge_logits_do_not_overflow():
    arrays = {name: array.astype(np.float64) for name, array in named_parameters(random_model(SMALL, seed=0))}
    arrays["ln_f.bias"] = 1e6 * np.ones(SMALL.n_embd)
    log_probs = score_tokens(build_model(SMALL, arrays), range(8)).log_probs
    assert np.isfinite(log_probs).all() and log_probs.min() < -1000


def test_logits_that_are_not_finite_are_an_error():
    arrays = {name: np.full_like(array, np.nan) for name, array in named_parameters(random_model(SMALL))}
    with pytest.raises(FloatingPointError, match="not finite"):
        score_tokens(build_model(SMALL, arrays), [1, 2])


# Windows --------------------------------------------------------------------------------------------------------------


def windows_of(n_tokens, n_positions, stride):
    """Begin, first scored token and end of each window, by the position of its tokens in the text."""
    model = random_model(GPT2Config(n_tokens, n_positions, n_embd=2, n_layer=1, n_head=1))
    windows = []

    def keep(model, ids, first_scored, *options):
        windows.append((ids[0], ids[first_scored], ids[-1] + 1))
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score_window", keep)
        assert not list(score_in_pieces(model, range(n_tokens), stride))
    return windows


@given(st.data(), st.integers(2, 40), st.integers(2, 300))
def test_each_token_is_scored_once_with_the_promised_number_of_tokens_before_it(data, n_positions, n_tokens):
    stride = data.draw(st.integers(1, n_positions - 1))
    windows = windows_of(n_tokens, n_positions, stride)
    scored = [token for _, first_scored, end in windows for token in range(first_scored, end)]
    assert scored == list(range(1, n_tokens))
    for number, (begin, first_scored, end) in enumerate(windows):
        assert begin == number * stride
        assert end - begin <= n_positions
        assert first_scored - begin == (1 if number == 0 else n_positions - stride)


def test_the_windows_of_the_docstring_s_picture():
    assert windows_of(14, 8, 4) == [(0, 1, 8), (4, 8, 12), (8, 12, 14)]


@pytest.mark.parametrize("n_tokens", [8, 9])
def test_a_text_that_just_fits_is_one_window_and_one_token_more_makes_two(n_tokens):
    assert len(windows_of(n_tokens, 8, 7)) == n_tokens - 7


# Memory and work ------------------------------------------------------------------------------------------------------


@given(texts(), st.integers(1, 5))
@settings(max_examples=15)
def test_each_row_of_logits_is_computed_once_and_only_a_few_are_held(case, rows_at_once):
    model, ids, stride = case
    rows, held = [], []

    def counting_unembed(model, hidden, *options):
        assert all(reference() is None for reference in held), "logits of an earlier piece are still there"
        logits = unembed(model, hidden, *options)
        rows.append(len(logits))
        held.append(weakref.ref(logits))
        return logits

    unembed = scoring.unembed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "unembed", counting_unembed)
        patch.setattr(scoring, "ROWS_AT_ONCE", rows_at_once)
        scores = score_tokens(model, ids, stride, n_top=1)
    assert sum(rows) == len(ids) - 1 == len(scores.log_probs)
    assert max(rows) <= rows_at_once


def test_a_window_s_logits_fit_in_the_memory_that_is_promised():
    assert scoring.ROWS_AT_ONCE <= 1024  # the context of every released size: never more than one window's logits


def test_no_more_tokens_are_read_than_the_windows_hold():
    n_read = []

    def counting_transform(model, ids, **options):
        n_read.append(len(ids))
        return transform(model, ids, **options)

    transform = scoring.transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "transform", counting_transform)
        score_tokens(strategies.lively_model(SMALL), strategies.random_ids(SMALL, (14,)), 4)
    assert n_read == [7, 7, 5]  # the last token of a window is predicted, not read


def test_a_piece_comes_before_the_next_window_is_read(monkeypatch):
    n_read = []
    transform = scoring.transform
    monkeypatch.setattr(scoring, "transform",
                        lambda model, ids, tap: n_read.append(len(ids)) or transform(model, ids, tap=tap))
    pieces = score_in_pieces(strategies.lively_model(SMALL), strategies.random_ids(SMALL, (14,)), 4)
    assert n_read == []
    next(pieces)
    assert n_read == [7]


@given(texts(), st.integers(0, 3))
def test_the_pieces_join_to_the_whole(case, n_top):
    model, ids, stride = case
    n_top = min(n_top, model.config.vocab_size)
    pieces = list(score_in_pieces(model, ids, stride, n_top))
    whole = score_tokens(model, ids, stride, n_top)
    for name in ("log_probs", "ranks", "top_ids", "top_log_probs"):
        np.testing.assert_array_equal(getattr(join_scores(pieces), name), getattr(whole, name))
    assert whole.top_ids.shape == whole.top_log_probs.shape == (len(ids) - 1, n_top)


# Ranks and alternatives -----------------------------------------------------------------------------------------------


def scores_of_logits(logits, target, n_top):
    """Scores in a model whose logits are these, whatever it reads: no block does anything, ln_f gives a constant."""
    config = GPT2Config(vocab_size=len(logits), n_positions=4, n_embd=2, n_layer=1, n_head=1)
    arrays = {name: np.zeros(array.shape) for name, array in named_parameters(random_model(config))}
    arrays["ln_f.bias"] = np.array([1.0, 0.0])
    arrays["wte.weight"] = np.array([[logit, 0.0] for logit in logits])
    return score_tokens(build_model(config, arrays), [0, target], n_top=n_top)


def test_ranks_alternatives_and_log_probs_by_hand():
    logits = [math.log(2), math.log(5), math.log(1), math.log(8)]  # probabilities 2/16, 5/16, 1/16, 8/16
    for token, rank, sixteenths in [(0, 3, 2), (1, 2, 5), (2, 4, 1), (3, 1, 8)]:
        scores = scores_of_logits(logits, token, n_top=3)
        assert scores.ranks.tolist() == [rank]
        assert scores.log_probs[0] == pytest.approx(math.log(sixteenths / 16))
        assert scores.top_ids.tolist() == [[3, 1, 0]]
        assert np.exp(scores.top_log_probs[0]) == pytest.approx([8 / 16, 5 / 16, 2 / 16])


def test_equally_likely_tokens_share_a_rank_and_are_listed_by_id():
    for token, rank in [(0, 4), (1, 1), (2, 3), (3, 1)]:
        scores = scores_of_logits([0.0, 2.0, 1.0, 2.0], token, n_top=4)
        assert scores.ranks.tolist() == [rank]
        assert scores.top_ids.tolist() == [[1, 3, 2, 0]]


@given(strategies.seeds, st.integers(1, 60))
def test_alternatives_are_those_of_a_stable_sort(seed, n_kinds):
    logits = np.random.default_rng(seed).integers(n_kinds, size=(3, 60)).astype(np.float32)
    whole_order = np.argsort(-logits, axis=-1, kind="stable")
    for n_top in (0, 1, 7, 60):
        np.testing.assert_array_equal(scoring.top_ids_of(logits, n_top), whole_order[:, :n_top])


@given(texts())
def test_the_likeliest_token_has_rank_1_and_its_own_log_prob(case):
    model, ids, stride = case
    scores = score_tokens(model, ids, stride, n_top=model.config.vocab_size)
    found = scores.top_ids == ids[1:, np.newaxis]
    np.testing.assert_array_equal(np.sort(scores.top_ids), np.tile(np.arange(model.config.vocab_size), (len(found), 1)))
    np.testing.assert_array_equal(scores.top_log_probs[found], scores.log_probs)
    np.testing.assert_array_equal(np.argmax(found, axis=-1) + 1, scores.ranks)
    np.testing.assert_allclose(np.exp(scores.top_log_probs).sum(axis=-1), 1)


# Measures -------------------------------------------------------------------------------------------------------------


def test_loss_perplexity_and_bits_per_byte_by_hand():
    log_probs = np.log([1 / 2, 1 / 8])  # 1 bit and 3 bits
    scores = Scores(log_probs, np.ones(2), np.zeros((2, 0)), np.zeros((2, 0)))
    assert scores.mean_loss == pytest.approx(2 * math.log(2))
    assert scores.perplexity == pytest.approx(4)  # as unsure as between four tokens
    assert scores.bits_per_byte(8) == pytest.approx(4 / 8)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    arrays = {name: np.zeros_like(array) for name, array in named_parameters(random_model(SMALL))}
    assert score_tokens(build_model(SMALL, arrays), range(17)).perplexity == pytest.approx(17)


def test_a_perplexity_beyond_any_float_is_infinite():
    assert Scores(np.array([-1e4]), np.ones(1), np.zeros((1, 0)), np.zeros((1, 0))).perplexity == math.inf


# Arguments ------------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = {
    "no tokens": ([[]], {}, "two tokens"),
    "one token": ([[3]], {}, "two tokens"),
    "an empty batch": (np.zeros((1, 0, 2), int), {}, "shape"),
    "texts of several lengths": ([[[1, 2], [3, 4, 5]]], {}, "pad_ids"),
    "a text that is not encoded": (["ab"], {}, "encode"),
    "a token beyond the vocabulary": ([[*range(16), 17]], {}, "0 to 16"),
    "a token below 0": ([[1, -1]], {}, "-1"),
    "tokens that are no integers": ([[1.0, 2.0]], {}, "integers"),
    "a stride of 0": ([[1, 2]], {"stride": 0}, "stride"),
    "a stride below 0": ([[1, 2]], {"stride": -1}, "stride"),
    "a stride of the whole context": ([[1, 2]], {"stride": 8}, "context.* a whole number from 1 to 7. Got 8"),
    "fewer than no alternatives": ([[1, 2]], {"n_top": -1}, "n_top"),
    "more alternatives than tokens": ([[1, 2]], {"n_top": 18}, "17"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
@pytest.mark.parametrize("function", [score_tokens, score_in_pieces])
def test_bad_arguments_are_refused_before_anything_is_computed(monkeypatch, function, case):
    arguments, options, clue = BAD_ARGUMENTS[case]
    monkeypatch.setattr(scoring, "transform", None)
    with pytest.raises(ValueError, match=clue) as error:
        function(strategies.lively_model(SMALL), *arguments, **options)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("n_bytes", [0, -1])
def test_bits_per_byte_of_no_bytes_are_refused(n_bytes):
    with pytest.raises(ValueError, match="n_bytes"):
        score_tokens(strategies.lively_model(SMALL), [1, 2]).bits_per_byte(n_bytes)


# transformers ---------------------------------------------------------------------------------------------------------


def sliding_window_loss(torch, model, ids, stride):
    """The mean loss as transformers' documentation measures it; each window's loss is weighted by what it scored."""
    total, n_scored, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + model.config.n_positions, len(ids))
        n_targets = end - previous_end
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, :-n_targets] = -100  # context only
        weight = int((labels[:, 1:] != -100).sum())  # the label of a window's first token has nothing to be scored with
        total += model(window, labels=labels).loss.item() * weight
        n_scored += weight
        previous_end = end
        if end == len(ids):
            break
    assert n_scored == len(ids) - 1
    return total / n_scored


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_is_that_of_transformers(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=48, n_embd=32, n_layer=3, n_head=4, bos_token_id=0,
                                     eos_token_id=0, initializer_range=0.3)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    theirs = theirs.to(getattr(torch, dtype))
    ours = load_model(tmp_path, dtype=dtype)
    ids = np.random.default_rng(0).integers(0, 300, 120).tolist()
    with torch.inference_mode():
        whole = torch.tensor([ids[:48]])
        expected = theirs(whole, labels=whole).loss.item()
        assert score_tokens(ours, ids[:48]).mean_loss == pytest.approx(expected, abs=1e-5)
        for stride in (7, 24, 47):
            expected = sliding_window_loss(torch, theirs, ids, stride)
            assert score_tokens(ours, ids, stride).mean_loss == pytest.approx(expected, abs=1e-5)


def test_a_tap_in_the_place_of_the_stride_is_refused_with_its_keyword():
    with pytest.raises(TypeError, match="^stride must be a whole number; a tap is given by keyword, tap="):
        score_tokens(strategies.lively_model(SMALL), [1, 2], Recorder())
