"""The generation loop: what is drawn, when it ends and why, what it costs; and the text made of it."""

import inspect
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_gpt2.decoding
from numpy_gpt2 import (GenerationConfig, GPT2Config, Recorder, Tokenizer, forward, generate_tokens, patch,
                        stream_samples, stream_text)
from numpy_gpt2.config import GENERATION_PARAMETERS
from numpy_gpt2.decoding import as_ids
from numpy_gpt2.streams import longest_beginning, until_stop
from strategies import lively_model, made_caches

# Few tokens, one of them in two bytes of which each is a token of its own; the model has three ids that are no token.
TOKENS = [b"a", b"b", b"c", b"d", b" ", b".", b"the", b" a", b"\xc3", b"\xa9"]
IDS = {token: number for number, token in enumerate(TOKENS)}
TOKENIZER = Tokenizer(IDS, {}, {"<|endoftext|>": len(TOKENS)}, ids_are_ranks=True)
EOT = TOKENIZER.eot_id
CONFIG = GPT2Config(vocab_size=TOKENIZER.vocab_size + 3, n_positions=40, n_embd=8, n_layer=2, n_head=2,
                    bos_token_id=EOT, eos_token_id=EOT)
MODEL = lively_model(CONFIG, seed=1, dtype="float32")
PROMPT = [3, 1, 4, 1, 5]
PROMPTS = np.array([[3, 1, 4], [1, 5, 9], [2, 6, 5], [0, 0, 0]])
NO_END = -1

many_examples = settings(max_examples=max(200, settings.default.max_examples))


def drawn(*args, **options):
    """All tokens of a run as one array [n_steps, ...], and why it ended."""
    stream = generate_tokens(MODEL, *args, **options)
    tokens = np.array(list(stream))
    return tokens, stream.finish_reason


class Calls(list):
    """The shapes of the ids of every pass, and the shapes of what was unembedded."""

    def __init__(self, monkeypatch):
        self.unembedded = []
        transform, unembed = numpy_gpt2.decoding.transform, numpy_gpt2.decoding.unembed

        def counted_transform(model, ids, **options):
            self.append(np.shape(ids))
            return transform(model, ids, **options)

        def counted_unembed(model, hidden, *args):
            self.unembedded.append(hidden.shape)
            return unembed(model, hidden, *args)

        monkeypatch.setattr(numpy_gpt2.decoding, "transform", counted_transform)
        monkeypatch.setattr(numpy_gpt2.decoding, "unembed", counted_unembed)


# What is drawn


def test_greedy_tokens_are_the_likeliest_of_the_whole_text_each_time():
    ids = list(PROMPT)
    for token in generate_tokens(MODEL, PROMPT, 20, temperature=0, eos_token_id=NO_END):
        assert token == np.argmax(forward(MODEL, ids)[-1])
        ids.append(token)
    assert len(ids) == len(PROMPT) + 20


def test_the_repetition_penalty_sees_the_prompt_and_all_that_was_drawn():
    tokens, _ = drawn(PROMPT, 8, temperature=0, repetition_penalty=1e6, eos_token_id=NO_END)
    ids = list(PROMPT)
    for token in tokens.tolist():
        logits = forward(MODEL, ids)[-1]
        expected = np.where(np.isin(np.arange(CONFIG.vocab_size), ids),
                            np.where(logits > 0, logits / 1e6, logits * 1e6), logits)
        assert token == np.argmax(expected)
        ids.append(token)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    first, _ = drawn(PROMPT, 30, seed=5, eos_token_id=NO_END)
    again, _ = drawn(PROMPT, 30, seed=5, eos_token_id=NO_END)
    other, _ = drawn(PROMPT, 30, seed=6, eos_token_id=NO_END)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_seed_each_run_draws_other_tokens():
    first, _ = drawn(PROMPT, 30, eos_token_id=NO_END)
    second, _ = drawn(PROMPT, 30, eos_token_id=NO_END)
    assert not np.array_equal(first, second)


def test_sample_0_does_not_depend_on_how_many_samples_there_are():
    alone, _ = drawn(PROMPT, 20, seed=3, eos_token_id=NO_END)
    for n in (1, 2, 5):
        samples, _ = drawn(PROMPT, 20, seed=3, eos_token_id=NO_END, num_return_sequences=n)
        assert samples.shape == (20, n)
        assert np.array_equal(samples[:, 0], alone)


def test_sample_0_of_a_batch_does_not_depend_on_how_many_samples_there_are():
    alone, _ = drawn(PROMPTS, 20, seed=3, eos_token_id=NO_END)
    samples, _ = drawn(PROMPTS, 20, seed=3, eos_token_id=NO_END, num_return_sequences=3)
    assert np.array_equal(samples[:, 0], alone)


def test_samples_differ_from_each_other():
    samples, _ = drawn(PROMPT, 20, seed=3, eos_token_id=NO_END, num_return_sequences=4)
    assert len({tuple(sample) for sample in samples.T.tolist()}) == 4


def test_tokens_are_drawn_as_often_as_the_model_says():
    n = 4000
    samples, _ = drawn(PROMPT, 1, seed=0, num_return_sequences=n, temperature=0.1)
    logits = forward(MODEL, PROMPT)[-1].astype("float64") / 0.1
    expected = n * np.exp(logits) / np.exp(logits).sum()
    chi_square = np.sum((np.bincount(samples[0], minlength=CONFIG.vocab_size) - expected) ** 2 / expected)
    assert chi_square < 34.5  # exceeded by chance once in a thousand seeds (13 degrees of freedom)


def test_each_row_of_a_batch_goes_on_as_it_would_alone():
    together, reasons = drawn(PROMPTS, 15, temperature=0, eos_token_id=NO_END)
    assert together.shape == (15, 4)
    assert reasons == ["length"] * 4
    for row, prompt in enumerate(PROMPTS):
        alone, _ = drawn(prompt, 15, temperature=0, eos_token_id=NO_END)
        assert np.array_equal(together[:, row], alone)


def test_the_repetition_penalty_of_a_row_of_a_batch_is_its_own():
    together, _ = drawn(PROMPTS, 10, temperature=0, repetition_penalty=5.0, eos_token_id=NO_END)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = drawn(prompt, 10, temperature=0, repetition_penalty=5.0, eos_token_id=NO_END)
        assert np.array_equal(together[:, row], alone)


def test_samples_of_a_batch_stand_before_its_axes():
    samples, reasons = drawn(PROMPTS.reshape(2, 2, 3), 4, temperature=0, num_return_sequences=3, eos_token_id=NO_END)
    once, _ = drawn(PROMPTS, 4, temperature=0, eos_token_id=NO_END)
    assert samples.shape == (4, 3, 2, 2)
    assert np.array_equal(samples, np.broadcast_to(once.reshape(4, 1, 2, 2), samples.shape))
    assert reasons == [[["length"] * 2] * 2] * 3


def test_every_row_of_a_batch_draws_by_itself():
    samples, _ = drawn(np.tile(PROMPT, (3, 1)), 20, seed=0, eos_token_id=NO_END)
    assert len({tuple(sample) for sample in samples.T.tolist()}) == 3


def test_vocab_size_limits_what_is_drawn():
    samples, _ = drawn(PROMPT, 20, seed=0, vocab_size=6, temperature=100.0, num_return_sequences=10,
                       eos_token_id=NO_END)
    assert set(samples.ravel().tolist()) == set(range(6))
    greedy, _ = drawn(PROMPT, 20, vocab_size=2, temperature=0, eos_token_id=NO_END)
    assert set(greedy.tolist()) <= {0, 1}


def test_the_prompt_is_not_mutated_and_may_be_read_only():
    prompt = np.array(PROMPTS)
    prompt.setflags(write=False)
    drawn(prompt, 5, seed=0, num_return_sequences=2)
    assert np.array_equal(prompt, PROMPTS)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint64"])
def test_a_prompt_may_be_of_any_integer_type(dtype):
    expected, _ = drawn(PROMPT, 5, seed=0, repetition_penalty=1.5, eos_token_id=NO_END)
    ours, _ = drawn(np.array(PROMPT, dtype=dtype), 5, seed=0, repetition_penalty=1.5, eos_token_id=NO_END)
    assert np.array_equal(ours, expected)


def test_a_single_prompt_gives_python_ints_and_a_batch_gives_integer_arrays():
    assert type(next(generate_tokens(MODEL, PROMPT, 1))) is int
    tokens = next(generate_tokens(MODEL, PROMPTS, 1))
    assert tokens.shape == (4,)
    assert np.issubdtype(tokens.dtype, np.integer)


def test_whatever_is_done_to_the_tokens_handed_out_the_next_ones_are_the_same():
    expected, _ = drawn(PROMPTS, 6, temperature=0, eos_token_id=NO_END)
    stream = generate_tokens(MODEL, PROMPTS, 6, temperature=0, eos_token_id=NO_END)
    ours = []
    for tokens in stream:
        ours.append(tokens.copy())
        tokens[:] = 0
    assert np.array_equal(ours, expected)


def test_whatever_is_done_to_the_prompt_after_the_call_the_tokens_are_the_same():
    expected, _ = drawn(PROMPTS, 6, temperature=0, eos_token_id=NO_END)
    prompt = PROMPTS.copy()
    stream = generate_tokens(MODEL, prompt, 6, temperature=0, eos_token_id=NO_END)
    prompt[:] = 0
    assert np.array_equal(list(stream), expected)


# When it ends, and why


def test_the_finish_reason_is_told_once_the_run_has_ended():
    stream = generate_tokens(MODEL, PROMPT, 3, eos_token_id=NO_END)
    for _ in stream:
        assert stream.finish_reason is None
    assert stream.finish_reason == "length"
    assert list(stream) == []
    assert stream.finish_reason == "length"


def test_the_end_token_is_given_and_ends_the_run():
    tokens, reason = drawn(PROMPT, 20, seed=0, eos_token_id=NO_END)
    assert reason == "length"
    for end in set(tokens.tolist()):
        until_end, reason = drawn(PROMPT, 20, seed=0, eos_token_id=end)
        assert until_end.tolist() == tokens[:tokens.tolist().index(end) + 1].tolist()
        assert reason == "eos"


def test_token_0_may_be_the_end():
    tokens, reason = drawn(PROMPT, 5, vocab_size=1, eos_token_id=0)  # nothing but 0 can be drawn
    assert (tokens.tolist(), reason) == ([0], "eos")


def test_an_end_token_in_the_prompt_ends_nothing():
    tokens, _ = drawn([EOT, 1, EOT], 5, seed=0, vocab_size=EOT)
    assert len(tokens) == 5


def test_the_end_tokens_are_those_of_the_config_unless_others_are_given():
    tokens, _ = drawn(PROMPT, 10, seed=0, eos_token_id=NO_END)
    ends = tokens[[3, 5]].tolist()
    n_until_end = min(tokens.tolist().index(end) for end in ends) + 1
    model = replace(MODEL, config=replace(CONFIG, eos_token_id=ends[0]))
    assert list(generate_tokens(model, PROMPT, 10, seed=0)) == tokens[:tokens.tolist().index(ends[0]) + 1].tolist()
    assert len(drawn(PROMPT, 10, seed=0, eos_token_id=ends)[0]) == n_until_end
    endless = replace(MODEL, config=replace(CONFIG, eos_token_id=None))
    assert len(list(generate_tokens(endless, PROMPT, 10, seed=0))) == 10


@pytest.mark.parametrize("seed", range(8))
def test_ended_rows_repeat_their_end_until_all_have_ended(seed):
    ends = [2, 7, 11]
    endless, _ = drawn(PROMPTS, 12, seed=seed, eos_token_id=NO_END)
    tokens, reasons = drawn(PROMPTS, 12, seed=seed, eos_token_id=ends)

    first_end = [next((step for step, token in enumerate(row) if token in ends), None) for row in endless.T]
    n_steps = 12 if None in first_end else max(first_end) + 1
    expected = endless[:n_steps].copy()
    for row, step in enumerate(first_end):
        if step is not None:
            expected[step:, row] = endless[step, row]
    # An ended row reads other tokens than the endless one, but its neighbours never see that.
    assert np.array_equal(tokens, expected)
    assert reasons == ["length" if step is None else "eos" for step in first_end]


def test_a_prompt_that_fills_the_context_gets_one_token():
    prompt = np.arange(CONFIG.n_positions) % CONFIG.vocab_size
    for max_new_tokens in (None, 1, 100):
        tokens, reason = drawn(prompt, max_new_tokens, temperature=0, eos_token_id=NO_END)
        assert tokens.tolist() == [np.argmax(forward(MODEL, prompt)[-1])]
        assert reason == "length"


def test_a_run_without_a_limit_goes_on_to_one_token_after_the_context():
    tokens, reason = drawn(PROMPT, seed=0, eos_token_id=NO_END)
    assert len(PROMPT) + len(tokens) == CONFIG.n_positions + 1
    assert reason == "length"


def test_no_new_tokens_cost_nothing(monkeypatch):
    calls = Calls(monkeypatch)
    assert drawn(PROMPT, 0)[1] == "length"
    assert drawn(PROMPTS, 0)[1] == ["length"] * 4
    assert drawn(PROMPT, 0, num_return_sequences=2)[1] == ["length"] * 2
    assert calls == []


def test_an_end_at_the_last_step_counts_as_an_end():
    last = drawn(PROMPT, 4, seed=0, eos_token_id=NO_END)[0].tolist()
    n_until_end = last.index(last[-1]) + 1
    assert drawn(PROMPT, n_until_end, seed=0, eos_token_id=last[-1])[1] == "eos"


# What it costs


def test_the_prompt_is_read_once_and_then_one_token_a_step(monkeypatch):
    calls = Calls(monkeypatch)
    drawn(PROMPT, 6, seed=0, eos_token_id=NO_END)
    assert calls == [(5,)] + [(1,)] * 5
    assert calls.unembedded == [(1, 8)] * 6


def test_a_token_is_given_before_the_next_one_is_computed(monkeypatch):
    calls = Calls(monkeypatch)
    for n_given, _ in enumerate(generate_tokens(MODEL, PROMPT, 6, seed=0, eos_token_id=NO_END), start=1):
        assert len(calls) == n_given


def test_nothing_is_computed_after_the_end(monkeypatch):
    first = drawn(PROMPT, 1, seed=0)[0][0]
    calls = Calls(monkeypatch)
    assert drawn(PROMPT, 6, seed=0, eos_token_id=first)[1] == "eos"
    assert len(calls) == 1


def test_samples_share_the_reading_of_the_prompt(monkeypatch):
    calls = Calls(monkeypatch)
    drawn(PROMPT, 3, seed=0, num_return_sequences=4, eos_token_id=NO_END)
    assert calls == [(5,), (4, 1), (4, 1)]
    calls.clear()
    drawn(PROMPTS, 3, seed=0, num_return_sequences=2, eos_token_id=NO_END)
    assert calls == [(4, 3), (2, 4, 1), (2, 4, 1)]


def test_the_cache_has_room_for_exactly_what_is_read(monkeypatch):
    caches = made_caches(monkeypatch, "numpy_gpt2.decoding")
    drawn(PROMPT, 6, seed=0, eos_token_id=NO_END)
    drawn(PROMPT, seed=0, eos_token_id=NO_END)
    rooms = [cache.n_positions for cache in caches]
    assert rooms == [len(PROMPT) + 5, CONFIG.n_positions]  # the last token is not read


# What is refused


BAD_ARGUMENTS = [
    (dict(ids=[]), "ids must be a list of one token id or more"),
    (dict(ids=3), "ids must be a list of one token id or more"),
    (dict(ids=[0.5]), "ids must be integers"),
    (dict(ids=[CONFIG.vocab_size]), "ids must be from 0"),
    (dict(ids=[-1]), "ids must be from 0"),
    (dict(ids=[[1, 2], []]), "prompts must be lists of token ids, none empty"),
    (dict(ids=[[1, 2], [[3]]]), "prompts must be lists of token ids, none empty"),
    (dict(ids=[[1, 2], [-1, 2, 3]]), "ids must be from 0"),
    (dict(ids=[[1], [0] * 41]), "ids must be at most 40 tokens"),
    (dict(ids=[[1, 2], [3]], temperature=0, prompt_lookup_num_tokens=1), r"Got a batch of \(2,\)\.$"),
    (dict(logits_processor=3), "logits_processor must be a function, or a list of functions. Got 3."),
    (dict(logits_processor=[max, "min"]), "logits_processor must be a function, or a list of functions."),
    (dict(ids=[0] * 41), "ids must be at most 40 tokens"),
    (dict(max_new_tokens=-1), "max_new_tokens must be a whole number, 0 or more. Got -1"),
    (dict(num_return_sequences=0), "num_return_sequences must be a whole number, 1 or more"),
    (dict(seed=-1), "seed must be a whole number, 0 or more"),
    (dict(temperature=-1), "temperature must be"),
    (dict(top_k=-1), "top_k must be"),
    (dict(top_p=0), "top_p must be"),
    (dict(min_p=2), "min_p must be"),
    (dict(repetition_penalty=0), "repetition_penalty must be"),
    (dict(vocab_size=0), "vocab_size must be"),
    (dict(vocab_size=-1), "vocab_size must be"),
    (dict(vocab_size=10**6), "vocab_size must be"),
    (dict(eos_token_id=1.5), "eos_token_id must be"),
    (dict(eos_token_id=[1, "."]), "eos_token_id must be"),
    (dict(max_new_tokens=2.5), "max_new_tokens must be a whole number, 0 or more. Got 2.5."),
    (dict(num_return_sequences=True), "num_return_sequences must be a whole number, 1 or more. Got True."),
    (dict(seed="one"), "seed must be a whole number, 0 or more. Got 'one'."),
    (dict(stop_strings=["."]), "stop_strings need a tokenizer: stream_text takes them."),
    (dict(ids=np.zeros((2, 3, 4), int), temperature=0, prompt_lookup_num_tokens=1), r"Got a batch of \(2, 3\)\.$"),
]


@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_tokens(MODEL, **{"ids": PROMPT, "max_new_tokens": 3, **arguments})


def test_ends_of_text_are_a_list_of_one_several_or_none():
    assert [as_ids(3), as_ids([3, 5]), as_ids(None)] == [[3], [3, 5], []]


def test_an_unknown_setting_is_a_type_error_that_names_the_nearest():
    for refused in (lambda: generate_tokens(MODEL, PROMPT, temprature=1),
                    lambda: stream_text(MODEL, TOKENIZER, "a", temprature=1)):
        with pytest.raises(TypeError, match="^unknown generation setting 'temprature'; the nearest is 'temperature'$"):
            refused()


@pytest.mark.parametrize("name, nearest", [
    ("max_tokens", "max_new_tokens"), ("taps", "tap"), ("top_logprobs", "top_log_probs"), ("vocabsize", "vocab_size"),
    ("logits_processors", "logits_processor"), ("generationconfig", "generation_config"), ("xyzzy", None),
])
def test_the_nearest_to_an_unknown_setting_may_be_any_parameter_or_none(name, nearest):
    known = inspect.signature(generate_tokens).parameters
    assert set(GENERATION_PARAMETERS) == known.keys() - {"model", "ids", "max_new_tokens", "settings"}
    with pytest.raises(TypeError) as error:
        generate_tokens(MODEL, PROMPT, **{name: 1})
    told = f"; the nearest is {nearest!r}" if nearest else ""
    assert str(error.value) == f"unknown generation setting {name!r}{told}"


@pytest.mark.parametrize("options", [
    {"num_return_sequences": 2}, {"num_return_sequences": 1},
    {"generation_config": GenerationConfig(num_return_sequences=2)},
])
def test_one_text_is_not_several(options):
    with pytest.raises(ValueError, match=r"stream_samples\(..., num_return_sequences=n\) makes several"):
        stream_text(MODEL, TOKENIZER, "a", 3, **options)


def test_a_generation_config_of_one_sequence_makes_one_text():
    config = GenerationConfig(num_return_sequences=1, seed=0)
    assert list(stream_text(MODEL, TOKENIZER, "a", 3, generation_config=config)) == list(
        stream_text(MODEL, TOKENIZER, "a", 3, seed=0))


def test_a_dict_is_no_generation_config():
    for refused in (lambda: generate_tokens(MODEL, PROMPT, generation_config={"seed": 0}),
                    lambda: stream_text(MODEL, TOKENIZER, "a", generation_config={"seed": 0})):
        with pytest.raises(TypeError, match="^generation_config must be a GenerationConfig, .* by keyword. Got dict.$"):
            refused()


def test_settings_by_keyword_win_over_those_of_a_generation_config():
    config = GenerationConfig(max_new_tokens=9, temperature=0.5, seed=3)
    assert drawn(PROMPT, 4, generation_config=config)[0].size == 4
    for settings_by_keyword, temperature in (({}, 0.5), ({"temperature": 2.0}, 2.0)):
        tokens, _ = drawn(PROMPT, generation_config=config, **settings_by_keyword)
        np.testing.assert_array_equal(tokens, drawn(PROMPT, 9, temperature=temperature, seed=3)[0])


def test_a_tap_sees_and_changes_every_pass_of_a_generation():
    acts = []
    greedy = dict(temperature=0, eos_token_id=NO_END)
    drawn(PROMPT, 4, **greedy, tap=lambda name, value: acts.append(value.shape) if name == "ln_f" else None)
    assert [n_new for n_new, _ in acts] == [len(PROMPT), 1, 1, 1]

    def only_7(name, value):
        return np.eye(CONFIG.vocab_size, dtype=value.dtype)[[7]] if name == "logits" else None

    assert drawn(PROMPT, 4, **greedy, tap=only_7)[0].tolist() == [7] * 4


@pytest.mark.parametrize("lookup", [0, 5])
@pytest.mark.parametrize("name", ["wte", "h.1.resid_post", "logits"])
@pytest.mark.parametrize("position", [0, 4, 5, 11])
def test_a_patch_of_a_position_works_in_whichever_pass_reads_it(name, position, lookup):
    tap = patch(name, lambda array: -array, positions=position)
    ids = list(PROMPT)
    for token in generate_tokens(MODEL, PROMPT, 15, temperature=0, eos_token_id=NO_END, tap=tap,
                                 prompt_lookup_num_tokens=lookup):
        assert token == np.argmax(forward(MODEL, ids, tap=tap)[-1])
        ids.append(token)
    assert len(ids) == len(PROMPT) + 15
    if name == "logits" and position >= len(PROMPT) - 1:  # then it decides the token after that position
        assert ids[position + 1] == np.argmin(forward(MODEL, ids[:position + 1])[-1])


def test_threads_that_read_samples_together_get_what_one_reader_gets():
    def read(i):
        texts[i] = "".join(streams[i])

    options = dict(max_new_tokens=30, seed=5, eos_token_id=NO_END)
    expected = ["".join(stream) for stream in stream_samples(MODEL, TOKENIZER, "abc", 4, **options)]
    streams, texts = stream_samples(MODEL, TOKENIZER, "abc", 4, **options), {}
    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [texts[i] for i in range(4)] == expected


@pytest.mark.parametrize("arguments, message", [
    (dict(max_new_tokens=-1), "max_new_tokens"), (dict(temperature=-1), "temperature"),
    (dict(stop_strings=[""]), "stop_strings"), (dict(stop_strings=""), "stop_strings"),
    (dict(stop_strings=[3]), "stop_strings"),
])
def test_a_bad_argument_of_the_text_is_refused_at_the_call(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        stream_text(MODEL, TOKENIZER, "a", **arguments)


def test_a_prompt_longer_than_the_context_is_refused_at_the_call():
    with pytest.raises(ValueError, match="at most 40 tokens"):
        stream_text(MODEL, TOKENIZER, "a" * 41)


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_not_finite_are_an_error_that_says_so(temperature):
    broken = replace(MODEL, lm_head=MODEL.lm_head * np.float32(np.nan))
    with pytest.raises(FloatingPointError, match="not finite"):
        next(generate_tokens(broken, PROMPT, 1, temperature=temperature))


# Stop strings


def text_before_stop(text, stop_strings):
    """The plain definition: read on letter by letter; the first end of a stop string ends the text (of several that
    end there, the longest is left out). Returns the text before it, and whether there was one."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if ending:
            return text[:end - max(map(len, ending))], True
    return text, False


def undecided(text, stop_strings):
    """The length of the longest end of the text that may yet become a stop string."""
    return max([n for n in range(len(text) + 1) for stop in stop_strings if len(stop) > n and text.endswith(stop[:n])],
               default=0)


def run_until_stop(pieces, stop_strings):
    """What until_stop gives, and what it returns."""
    stopped = []

    def steps():
        stopped.append((yield from until_stop(pieces, stop_strings)))

    return list(steps()), stopped[0]


few_letters = st.text("ab.", max_size=14)
stops = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)


@many_examples
@given(st.lists(few_letters, max_size=8), stops)
def test_text_ends_before_the_stop_string_that_is_complete_first_however_it_is_cut(pieces, stop_strings):
    expected, expected_stopped = text_before_stop("".join(pieces), stop_strings)
    given_pieces, stopped = run_until_stop(pieces, stop_strings)
    assert "".join(given_pieces) == expected
    assert stopped == expected_stopped
    assert "" not in given_pieces


@many_examples
@given(few_letters, stops)
def test_only_what_may_begin_a_stop_string_is_held_back(text, stop_strings):
    text, _ = text_before_stop(text, stop_strings)
    n_read = 0

    def letters():
        nonlocal n_read
        for n_read, letter in enumerate(text, start=1):
            yield letter

    n_given = 0
    for piece in until_stop(letters(), stop_strings):
        n_given += len(piece)
        assert n_given >= n_read - undecided(text[:n_read], stop_strings)
    assert n_given == len(text)


def test_every_letter_that_is_decided_comes_at_once():
    assert run_until_stop(list("the end."), [".."]) == ([*"the end", "."], False)


def test_nothing_is_read_after_a_stop_string():
    pieces = iter(["ab", "cd", "ef"])
    assert run_until_stop(pieces, ["bc"]) == (["a"], True)
    assert next(pieces) == "ef"


def test_what_was_held_back_comes_out_at_the_end():
    assert run_until_stop(["so, the", " En"], [" End"]) == (["so, the", " En"], False)


@pytest.mark.parametrize("text, stop_strings, length", [
    ("xa", ["abc"], 1), ("xab", ["abc"], 2), ("x", ["abc"], 0), ("a", [], 0),
    ("xbc", ["bc", "wxyz"], 0),  # a whole stop string is no beginning
])
def test_the_longest_beginning_of_a_stop_string_is_shorter_than_it(text, stop_strings, length):
    assert longest_beginning(text, stop_strings) == length


# Text


def text_of(**options):
    stream = stream_text(MODEL, TOKENIZER, "the a", **{"max_new_tokens": 30, "seed": 2, "eos_token_id": NO_END,
                                                       **options})
    return "".join(stream), stream


@pytest.mark.parametrize("seed", range(10))
def test_streamed_text_is_the_decoded_ids_without_the_end(seed):
    text, stream = text_of(seed=seed, eos_token_id=None)
    ids = [token for token in stream.ids if token != EOT]
    assert text == TOKENIZER.decode(ids)
    assert stream.ids in (ids, ids + [EOT])
    assert stream.finish_reason == ("length" if len(ids) == 30 else "eos")


def test_streamed_text_is_what_generate_tokens_draws_even_beyond_an_end_of_text():
    options = {"seed": 2, "temperature": 10.0, "eos_token_id": NO_END}  # all tokens about as likely
    _, stream = text_of(**options)
    tokens, _ = drawn(TOKENIZER.encode("the a"), 30, vocab_size=TOKENIZER.vocab_size, **options)
    assert stream.ids == tokens.tolist()
    assert EOT in stream.ids[:-1] and stream.ids[-1] != EOT


def test_ids_that_are_no_token_are_never_drawn():
    _, stream = text_of(temperature=1000.0)
    assert max(stream.ids) < TOKENIZER.vocab_size


def test_both_ends_of_text_end_a_text_the_tokenizers_and_the_configs():
    other_end = 5
    model = replace(MODEL, config=replace(CONFIG, eos_token_id=other_end))
    seen = set()
    for seed in range(12):
        stream = stream_text(model, TOKENIZER, "the", 30, seed=seed, temperature=10.0)  # all tokens about as likely
        assert "." not in "".join(stream)
        assert stream.finish_reason == ("eos" if stream.ids[-1] in (EOT, other_end) else "length")
        assert not {EOT, other_end} & set(stream.ids[:-1])
        seen.add(stream.ids[-1])
    assert {EOT, other_end} <= seen


def test_an_empty_prompt_starts_from_the_end_of_text():
    stream = stream_text(MODEL, TOKENIZER, "", 10, temperature=0, eos_token_id=NO_END)
    list(stream)
    texts = [drawn([start], 10, temperature=0, vocab_size=TOKENIZER.vocab_size, eos_token_id=NO_END)[0].tolist()
             for start in range(TOKENIZER.vocab_size)]
    assert stream.ids == texts[EOT]
    assert texts.count(texts[EOT]) == 1


def test_a_stop_string_ends_the_text_before_it():
    whole, _ = text_of()
    for start in range(len(whole) - 2):
        stop = whole[start:start + 2]
        text, stream = text_of(stop_strings=[stop])
        assert text == whole[:whole.index(stop)]
        assert stream.finish_reason == "stop"


def test_a_text_that_a_stop_string_ends_draws_no_further_token():
    whole, _ = text_of()
    stop = next(letter for letter in whole[3:] if letter.isascii())
    _, stream = text_of(stop_strings=[stop])
    assert stop in TOKENIZER.decode(stream.ids)
    assert stop not in TOKENIZER.decode(stream.ids[:-1])


def test_a_single_stop_string_may_stand_without_a_list():
    assert text_of(stop_strings="the")[0] == text_of(stop_strings=["the"])[0]


def test_a_stop_string_that_never_comes_changes_nothing():
    text, stream = text_of(stop_strings=["never"])
    assert text == text_of()[0]
    assert stream.finish_reason == "length"


def test_a_stop_string_counts_only_in_what_is_drawn():
    whole, _ = text_of()
    for stop in ("the a", "a" + whole[0]):  # the prompt, and what stands across its end
        assert text_of(stop_strings=[stop])[0] == text_before_stop(whole, [stop])[0] != ""


# Several texts


def samples(n=3):
    return stream_samples(MODEL, TOKENIZER, "the a", n, 25, seed=4, stop_strings=["a."])


def test_each_text_is_a_sample_of_its_own():
    tokens, _ = drawn(TOKENIZER.encode("the a"), 25, seed=4, num_return_sequences=3, eos_token_id=NO_END,
                      vocab_size=TOKENIZER.vocab_size)
    streams = stream_samples(MODEL, TOKENIZER, "the a", 3, 25, seed=4, eos_token_id=NO_END)
    assert ["".join(stream) for stream in streams] == [TOKENIZER.decode(sample) for sample in tokens.T.tolist()]
    assert [stream.ids for stream in streams] == tokens.T.tolist()


def test_sample_0_is_the_text_of_a_run_alone():
    alone = stream_text(MODEL, TOKENIZER, "the a", 25, seed=4, stop_strings=["a."])
    assert "".join(samples()[0]) == "".join(alone)


@pytest.fixture(scope="module")
def read_one_after_another():
    return [("".join(stream), stream.finish_reason, stream.ids) for stream in samples()]


@given(data=st.data())
def test_several_texts_are_the_same_in_whatever_order_they_are_read(read_one_after_another, data):
    streams = samples()
    texts = [""] * len(streams)
    unfinished = set(range(len(streams)))
    while unfinished:
        number = data.draw(st.sampled_from(sorted(unfinished)))
        try:
            texts[number] += next(streams[number])
        except StopIteration:
            unfinished.remove(number)
    assert [(text, stream.finish_reason, stream.ids) for text, stream in zip(texts, streams)] \
        == read_one_after_another


def test_several_texts_are_drawn_together(monkeypatch):
    calls = Calls(monkeypatch)
    streams = stream_samples(MODEL, TOKENIZER, "the a", 3, 10, seed=4, eos_token_id=NO_END)
    for stream in streams:
        list(stream)
    assert calls == [(2,)] + [(3, 1)] * 9


def test_an_error_reaches_every_stream():
    broken = replace(MODEL, lm_head=MODEL.lm_head * np.float32(np.nan))
    for stream in stream_samples(broken, TOKENIZER, "the a", 2, 10):
        with pytest.raises(FloatingPointError):
            list(stream)


def test_a_penalty_takes_a_prompt_with_ids_that_are_not_to_be_drawn():
    tokens, _ = drawn([13, 1], 5, temperature=0, vocab_size=4, repetition_penalty=1.5, eos_token_id=NO_END)
    assert max(tokens) < 4


def test_what_is_held_back_of_a_very_long_stop_string_costs_no_more_than_its_text():
    tracemalloc.start()
    assert longest_beginning("x" * 5_000, ["x" * 100_000]) == 5_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_two_texts_are_two_samples():
    one, two = ("".join(stream) for stream in stream_samples(MODEL, TOKENIZER, "the a", 2, 25, seed=4))
    assert one == "".join(stream_text(MODEL, TOKENIZER, "the a", 25, seed=4)) != two


def test_no_text_at_all_is_refused_by_name():
    with pytest.raises(ValueError, match="^num_return_sequences must be .*Got 0"):
        stream_samples(MODEL, TOKENIZER, "the a", 0)


def test_a_text_ends_where_its_own_end_of_text_comes():
    ids = stream_text(MODEL, TOKENIZER, "the a", 9, seed=4, eos_token_id=NO_END)
    list(ids)
    end = ids.ids[5]
    stream = stream_text(MODEL, TOKENIZER, "the a", 9, seed=4, eos_token_id=end)
    assert "".join(stream) == TOKENIZER.decode(ids.ids[:ids.ids.index(end)])
    assert stream.finish_reason == "eos"


def test_a_tap_sees_the_passes_of_a_text():
    acts = Recorder("wte")
    list(stream_text(MODEL, TOKENIZER, "the a", 1, tap=acts))
    np.testing.assert_array_equal(acts["wte"], MODEL.wte[TOKENIZER.encode("the a")])


def test_a_special_token_that_is_allowed_is_read_as_one():
    prompt = "the<|endoftext|>a"
    stream = stream_text(MODEL, TOKENIZER, prompt, 5, temperature=0, eos_token_id=NO_END, allowed_special="all")
    list(stream)
    expected, _ = drawn(TOKENIZER.encode(prompt, "all"), 5, temperature=0, eos_token_id=NO_END,
                        vocab_size=TOKENIZER.vocab_size)
    assert stream.ids == expected.tolist()
