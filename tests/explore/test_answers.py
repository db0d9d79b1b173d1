"""Laws of what a served page is answered: every figure is the library's for the same taps, and so is the code's."""

import contextlib
import copy
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import (GPT2Config, Recorder, attribution_patching, forward, generate_tokens, logit_difference, patch,
                        random_model)
from numpy_gpt2.config import GenerationConfig
from numpy_gpt2.explore import answers
from numpy_gpt2.explore.answers import compare, continue_text, run_prompt, server_data, tokenize
from numpy_gpt2.explore.interventions import CHANGEABLE
from numpy_gpt2.explore.page import page_data
from numpy_gpt2.explore.prompts import Engine
from numpy_gpt2.explore.turns import Job, Turns
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import process_logits
from test_page import NASTY, unpacked

MODEL, TOKENIZER = numpy_gpt2.load("fairytale")
CONFIG = MODEL.config
ENGINE = Engine(MODEL, TOKENIZER, "fairytale")
PROMPT, OTHER = "The king said to his daughter that she", "The queen said to her son that he"
IDS, OTHER_IDS = TOKENIZER.encode(PROMPT), TOKENIZER.encode(OTHER)
N_TOKENS = len(IDS)


def answered(answer, engine=ENGINE, **asked):
    """An answer as the page gets it, and the tokens before it."""
    lines = []
    with Job(Turns(), "page", lines.append) as job:
        done = answer(engine, as_json(asked), job)
    return as_json(done), [line for line in lines if "token" in line]


def as_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


def executed(code):
    """What is printed, and the names, after a reader has pasted the code."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue(), names


# Interventions --------------------------------------------------------------------------------------------------------


@st.composite
def interventions(draw):
    name = draw(st.sampled_from(list(CHANGEABLE)))
    stage = CHANGEABLE[name]
    asked = {"kind": draw(st.sampled_from(["zero", "mean", "scale", "from"])), "stage": name}
    if stage.name.startswith("h.i."):
        asked["layer"] = draw(st.integers(0, CONFIG.n_layer - 1))
    if "n_head" in stage.shape and draw(st.booleans()):
        asked["heads"] = draw(st.lists(st.integers(0, CONFIG.n_head - 1), min_size=1, unique=True))
    if draw(st.booleans()):
        asked["positions"] = draw(st.lists(st.integers(0, N_TOKENS - 1), min_size=1, max_size=4, unique=True))
    if asked["kind"] == "scale":
        asked["factor"] = draw(st.floats(-2, 2, width=16) | st.integers(-2, 2))
    if asked["kind"] == "from":
        asked |= draw(st.sampled_from([{"prompt": OTHER}, {"ids": OTHER_IDS}, {"ids": OTHER_IDS[::-1]}]))
    return asked


def by_hand(asked):
    """The tap that a list of interventions asks for, without this package's own: plain loops over plain arrays."""
    others = {}
    for each in asked:
        if each["kind"] == "from":
            acts = others[id(each)] = Recorder()
            forward(MODEL, each.get("ids", OTHER_IDS), tap=acts)

    def tap(name, array):
        for each in asked:
            layer = each.get("layer")
            if name != (each["stage"] if layer is None else f"h.{layer}.{each['stage']}"):
                continue
            new = {"zero": lambda: np.zeros_like(array), "scale": lambda: np.float32(each["factor"]) * array,
                   "mean": lambda: np.broadcast_to(array[..., :N_TOKENS, :].mean(-2, keepdims=True), array.shape),
                   "from": lambda: others[id(each)][name]}[each["kind"]]()
            changed = array.copy()
            for head in each.get("heads", range(CONFIG.n_head)) if array.ndim == 3 else [...]:
                n = N_TOKENS if each["kind"] in ("mean", "from") else array.shape[-2]
                for position in each.get("positions", range(n)):
                    changed[head, position, :] = new[head, position, :]
            array = changed
        return array

    return tap


@settings(max_examples=15)
@given(st.lists(interventions(), min_size=1, max_size=4))
def test_a_page_with_interventions_is_the_library_s_for_the_same_tap_and_the_code_gives_the_same_logits(asked):
    done, _ = answered(run_prompt, prompt=PROMPT, interventions=asked)
    assert done["page"] == as_json(page_data(MODEL, TOKENIZER, IDS, "fairytale", by_hand(asked)))
    assert done["before"] == as_json(page_data(MODEL, TOKENIZER, IDS, "fairytale"))
    _, names = executed(done["code"])
    np.testing.assert_array_equal(unpacked(done["page"]["logits"], "<f4"), names["logits"][-1])


@pytest.mark.parametrize("asked, ids", [
    ({"prompt": PROMPT}, IDS), ({"ids": OTHER_IDS}, OTHER_IDS), ({"prompt": ""}, [TOKENIZER.bos_id]),
    ({"prompt": "<|endoftext|>"}, TOKENIZER.encode("<|endoftext|>")), ({"prompt": NASTY}, TOKENIZER.encode(NASTY)),
])
def test_without_interventions_the_page_is_the_static_one_and_there_is_nothing_before_it(asked, ids):
    done, _ = answered(run_prompt, **asked)
    assert done["page"] == as_json(page_data(MODEL, TOKENIZER, ids, "fairytale"))
    assert done["before"] is None
    printed, names = executed(done["code"])
    np.testing.assert_array_equal(unpacked(done["page"]["logits"], "<f4"), names["logits"][-1])
    assert printed.count("TopToken") == 5


def test_special_tokens_mean_themselves_where_the_command_says_so_in_the_code_too():
    engine = Engine(MODEL, TOKENIZER, "fairytale", "all")
    done, _ = answered(run_prompt, engine, prompt="<|endoftext|>Once", interventions=[
        {"kind": "from", "stage": "wte", "prompt": "The<|endoftext|>"}])
    assert done["page"]["ids"] == TOKENIZER.encode("<|endoftext|>Once", "all")
    np.testing.assert_array_equal(unpacked(done["page"]["logits"], "<f4"), executed(done["code"])[1]["logits"][-1])


def test_the_page_without_interventions_is_computed_once_for_the_last_few_prompts(monkeypatch):
    computed = []

    def counted(model, tokenizer, ids, *rest):
        computed.append(list(ids))
        return page_data(model, tokenizer, ids, *rest)

    monkeypatch.setattr(answers, "page_data", counted)
    engine = Engine(MODEL, TOKENIZER, "fairytale")
    zero = [{"kind": "zero", "stage": "mlp.out", "layer": 0}]
    answered(run_prompt, engine, ids=[1], interventions=zero)
    answered(run_prompt, engine, ids=[1], interventions=zero)
    assert computed == [[1]] * 3
    for i in range(2, 10):
        answered(run_prompt, engine, ids=[i])
    assert len(engine.kept) == answers.MOST_KEPT
    answered(run_prompt, engine, ids=[9])
    assert computed[3:] == [[i] for i in range(2, 10)]


def test_progress_rises_to_1_with_and_without_interventions(monkeypatch):
    monkeypatch.setattr("numpy_gpt2.explore.turns.PROGRESS_AFTER", -1)
    monkeypatch.setattr("numpy_gpt2.explore.turns.PROGRESS_EVERY", -1)
    requests = [(run_prompt, {}), (run_prompt, {"interventions": [
        {"kind": "zero", "stage": "wte"}, {"kind": "from", "stage": "wte", "ids": OTHER_IDS}]}),
        (compare, {"other": OTHER}), (continue_text, {"n": 5})]
    for answer, more in requests:
        lines = []
        with Job(Turns(), "page", lines.append) as job:
            answer(Engine(MODEL, TOKENIZER, "fairytale"), {"prompt": PROMPT, **more}, job)
        progress = [line["progress"] for line in lines if "progress" in line]
        assert progress == sorted(progress) and len(set(progress)) > 5
        assert 0 < progress[0] < 0.2
        assert progress[-1] == 1


ZERO = {"kind": "zero", "stage": "attn.z", "layer": 3}
WRONG_RUNS = {
    "no prompt": ({}, "either 'prompt' or 'ids' must be given. Got neither."),
    "two prompts": ({"prompt": "a", "ids": [1]}, "either 'prompt' or 'ids' must be given. Got both."),
    "a number": ({"prompt": 3}, "'prompt' must be a string. Got 3."),
    "half a character": ({"prompt": "a\ud800"}, "surrogate"),
    "too long": ({"prompt": " king" * 129}, "the prompt must be at most 128 tokens, the page's limit. Got 129"),
    "no ids": ({"ids": []}, "'ids' must be a list of token ids."),
    "an unknown id": ({"ids": [4096]}, "an id of 'ids' must be a whole number from 0 to 4,095. Got 4096."),
    "true": ({"ids": [True]}, "Got True."),
    "an unknown key": ({"prompt": "a", "promt": "b"}, "the request must have no keys but .* Got 'promt'"),
    "no list": ({"prompt": "a", "interventions": ZERO}, "'interventions' must be a list of at most 32"),
    "too many": ({"prompt": "a", "interventions": [ZERO] * 33}, "'interventions' must be a list of at most 32"),
}
WRONG_INTERVENTIONS = {
    "no object": (3, "an intervention must be a JSON object. Got 3."),
    "an unknown kind": ({**ZERO, "kind": "explode"}, "'kind' must be one of zero, mean, scale, from. Got 'explode'."),
    "a kind that is no text": ({**ZERO, "kind": []}, "'kind' must be one of"),
    "an unknown stage": ({**ZERO, "stage": "attn.zz"}, "'stage' must be one of wte, wpe, resid_pre, .* Got 'attn.zz'"),
    "no vector for each token": ({**ZERO, "stage": "attn.pattern"}, "'stage' must be one of"),
    "logits": ({**ZERO, "stage": "logits"}, "'stage' must be one of"),
    "no layer": ({"kind": "zero", "stage": "attn.z"}, "'layer' must be a whole number from 0 to 5. Got None."),
    "a layer too many": ({**ZERO, "layer": 6}, "'layer' must be a whole number from 0 to 5. Got 6."),
    "a negative layer": ({**ZERO, "layer": -1}, "'layer' must be a whole number from 0 to 5. Got -1."),
    "a fractional layer": ({**ZERO, "layer": 1.5}, "'layer' must be a whole number from 0 to 5. Got 1.5."),
    "a layer of wte": ({**ZERO, "stage": "wte"}, "'layer' must be left out for 'wte'. Got 3."),
    "heads of an MLP": ({**ZERO, "stage": "mlp.out", "heads": [1]}, "'heads' must be left out for a stage without"),
    "a head too many": ({**ZERO, "heads": [6]}, "each of 'heads' must be a whole number from 0 to 5. Got 6."),
    "no heads": ({**ZERO, "heads": []}, "'heads' must be a list of whole numbers, or left out for all"),
    "a head that is no list": ({**ZERO, "heads": 1}, "'heads' must be a list of whole numbers"),
    "a position too many": ({**ZERO, "positions": [2]}, "each of 'positions' must be a whole number from 0 to 1."),
    "a factor for zero": ({**ZERO, "factor": 2}, "an intervention of the kind 'zero' must have no keys but"),
    "no factor": ({**ZERO, "kind": "scale"}, "'factor' must be a number from -1e9 to 1e9. Got None."),
    "an infinite factor": ({**ZERO, "kind": "scale", "factor": 1e999}, "'factor' must be a number .* Got inf."),
    "a factor in words": ({**ZERO, "kind": "scale", "factor": "2"}, "'factor' must be a number"),
    "no other prompt": ({**ZERO, "kind": "from"}, "either 'prompt' or 'ids' must be given. Got neither."),
    "another length": ({**ZERO, "kind": "from", "prompt": "Once upon a"},
                       "the other prompt must have as many tokens as this one, 2. Got 3."),
}


@pytest.mark.parametrize("asked, message", [
    *WRONG_RUNS.values(),
    *[({"prompt": "Once upon", "interventions": [each]}, message) for each, message in WRONG_INTERVENTIONS.values()],
], ids=[*WRONG_RUNS, *WRONG_INTERVENTIONS])
def test_a_wrong_run_is_refused_with_what_was_expected(asked, message):
    with pytest.raises(ValueError, match=message) as error:
        with Job(Turns(), "page", pytest.fail) as job:
            run_prompt(ENGINE, asked, job)
    assert "\n" not in str(error.value)


def test_interventions_that_overflow_are_an_error_not_numbers():
    explosions = [{"kind": "scale", "stage": "mlp.post", "layer": layer, "factor": 1e9} for layer in range(6)] * 3
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        answered(run_prompt, prompt=PROMPT, interventions=explosions)


# Comparisons ----------------------------------------------------------------------------------------------------------


NAMES = [f"h.{layer}.resid_pre" for layer in range(CONFIG.n_layer)] + [f"h.{CONFIG.n_layer - 1}.resid_post"]
TARGET, FOIL = int(forward(MODEL, IDS)[-1].argmax()), int(forward(MODEL, OTHER_IDS)[-1].argmax())


def values_by_patching(metric):
    """What each restored residual stream adds to the metric, one patch and one pass at a time."""
    acts = Recorder(NAMES)
    forward(MODEL, IDS, tap=acts)
    corrupted, _ = metric(forward(MODEL, OTHER_IDS))
    return [[metric(forward(MODEL, OTHER_IDS, tap=patch(name, acts[name], positions=position)))[0] - corrupted
             for position in range(N_TOKENS)] for name in NAMES]


def check_code(done, atol):
    """The code computes the values, and prints the fractions as the page shows them."""
    printed, names = executed(done["code"])
    np.testing.assert_allclose(names["values"], done["values"], rtol=0, atol=atol)
    rows = [line.split() for line in printed.splitlines()]
    assert [name for name, *_ in rows] == NAMES
    fractions = np.array([[float(text) for text in row] for _, *row in rows])
    np.testing.assert_allclose(fractions, done["fractions"], rtol=0, atol=0.0051)


@pytest.mark.parametrize("foil", [FOIL, None])
def test_a_comparison_is_a_patch_for_each_layer_and_position_and_the_code_gives_the_same(foil):
    metric = logit_difference(TARGET, foil)
    done, _ = answered(compare, prompt=PROMPT, other=OTHER, target=TARGET, foil=foil)
    np.testing.assert_allclose(done["values"], values_by_patching(metric), rtol=0, atol=1e-4)
    clean, corrupted = metric(forward(MODEL, IDS))[0], metric(forward(MODEL, OTHER_IDS))[0]
    assert (done["clean"], done["corrupted"]) == pytest.approx((clean, corrupted), abs=1e-5)
    np.testing.assert_allclose(done["fractions"], np.array(done["values"]) / (clean - corrupted), rtol=0, atol=1e-4)
    check_code(done, atol=1e-4)


def test_attribution_is_the_library_s_and_the_code_gives_the_same():
    done, _ = answered(compare, prompt=PROMPT, other=OTHER, method="attribution")
    effects = attribution_patching(MODEL, IDS, OTHER_IDS, logit_difference(done["target"], done["foil"])).effects
    np.testing.assert_allclose(done["values"], [effects[name] for name in NAMES], rtol=0, atol=1e-5)
    check_code(done, atol=1e-5)


def test_by_default_the_predictions_of_the_two_prompts_are_compared():
    done, _ = answered(compare, prompt=PROMPT, other=OTHER)
    assert done["target"] == TARGET
    likeliest = np.argsort(-forward(MODEL, OTHER_IDS)[-1], kind="stable")
    assert done["foil"] == next(token for token in likeliest if token != TARGET)
    assert {str(token) for token in [*IDS, *OTHER_IDS, done["target"], done["foil"]]} == done["names"].keys()


def test_a_token_is_never_compared_with_itself_by_default():
    done, _ = answered(compare, prompt=PROMPT, other=OTHER, target=FOIL)
    assert done["foil"] == np.argsort(-forward(MODEL, OTHER_IDS)[-1], kind="stable")[1]


def test_a_token_may_be_given_as_text():
    done, _ = answered(compare, prompt=PROMPT, other=OTHER, target=" king", foil=" queen")
    assert [done["target"]] == TOKENIZER.encode(" king")
    assert [done["foil"]] == TOKENIZER.encode(" queen")


def test_long_prompts_are_compared_in_batches_of_bounded_size(monkeypatch):
    whole, _ = answered(compare, prompt=PROMPT, other=OTHER)
    monkeypatch.setattr(answers, "MOST_BATCHED", 2 * N_TOKENS)
    assert [len(batch) for batch in answers.batches(np.arange(5), N_TOKENS)] == [2, 2, 1]
    parts, _ = answered(compare, prompt=PROMPT, other=OTHER)
    np.testing.assert_allclose(parts["values"], whole["values"], rtol=0, atol=1e-4)


def test_equal_prompts_differ_in_nothing():
    for method in ("patching", "attribution"):
        done, _ = answered(compare, prompt=PROMPT, other_ids=IDS, method=method)
        assert not np.any(done["values"])
        assert done["fractions"] is None
        printed, _ = executed(done["code"])  # the values: there is nothing to divide by
        assert [line.split()[1:] for line in printed.splitlines()] == [["0.00"] * N_TOKENS] * len(NAMES)


@pytest.mark.parametrize("asked, message", [
    ({"other": "The king"}, "the two prompts must have the same number of tokens. Got 8 and 2."),
    ({"other": OTHER, "method": "magic"}, "'method' must be one of patching, attribution. Got 'magic'."),
    ({"other": OTHER, "target": " kingfisher"}, "'target' must be one token. Got ' kingfisher', which is 4: ' king' "),
    ({"other": OTHER, "target": ""}, "'target' must be one token. Got '', which is 0: none."),
    ({"other": OTHER, "foil": 4096}, "'foil' must be a whole number from 0 to 4,095. Got 4096."),
    ({"other": OTHER, "target": [1]}, r"'target' must be a whole number from 0 to 4,095. Got \[1\]."),
    ({}, "either 'other' or 'other_ids' must be given. Got neither."),
])
def test_a_wrong_comparison_is_refused_with_what_was_expected(asked, message):
    with pytest.raises(ValueError, match=message):
        answered(compare, prompt=PROMPT, **asked)


def test_attribution_beyond_the_memory_that_is_meant_for_it_is_refused_before_the_work(monkeypatch):
    acts = Recorder()
    logits = forward(MODEL, IDS, tap=acts)
    n_numbers = 3 * sum(acts[name].size for name in acts)
    assert logits.size > 0
    monkeypatch.setattr(answers, "MOST_COMPARED", n_numbers)
    answered(compare, prompt=PROMPT, other=OTHER, method="attribution")
    monkeypatch.setattr(answers, "MOST_COMPARED", n_numbers - 1)
    with pytest.raises(ValueError, match=f"Got {n_numbers:,}, for 8 tokens and 6 layers: compare by patching"):
        answered(compare, prompt=PROMPT, other=OTHER, method="attribution")


# Writing on -----------------------------------------------------------------------------------------------------------


SETTINGS = {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "seed": 3}


@pytest.mark.parametrize("asked", [{}, SETTINGS, {"temperature": 0}, {"temperature": 2, "seed": 1}])
def test_tokens_are_those_of_generate_tokens_with_the_probabilities_of_each_step(asked):
    asked = {"seed": 5, **asked}
    done, lines = answered(continue_text, prompt=PROMPT, n=6, **asked)
    tokens = [line["token"] for line in lines]
    assert tokens == list(generate_tokens(MODEL, IDS, 6, **asked))
    assert done == {"finish_reason": "length", "ids": [*IDS, *tokens], "text": TOKENIZER.decode([*IDS, *tokens])}
    for i, line in enumerate(lines):
        logits = forward(MODEL, [*IDS, *tokens[:i]])[-1]
        probabilities = softmax(logits)
        processed = process_logits(logits, np.array([0]), GenerationConfig(**asked))
        drawn = softmax(processed) if asked.get("temperature") != 0 else np.eye(len(logits))[np.argmax(logits)]
        best = np.argsort(-logits, kind="stable")[:10].tolist()
        expected = best if tokens[i] in best else [*best, tokens[i]]
        assert [token for token, *_ in line["alternatives"]] == expected
        assert line["probability"] == pytest.approx(float(probabilities[tokens[i]]), abs=1e-5)
        for token, probability, of_draw in line["alternatives"]:
            assert (probability, of_draw) == pytest.approx((probabilities[token], drawn[token]), abs=1e-5)
        assert line["names"].keys() == set(expected)


def test_going_on_from_another_choice_is_a_continuation_of_other_ids():
    _, (line,) = answered(continue_text, prompt=PROMPT, n=1, temperature=0)
    other = line["alternatives"][1][0]
    done, _ = answered(continue_text, ids=[*IDS, other], n=4, temperature=0)
    assert done["ids"] == [*IDS, other, *generate_tokens(MODEL, [*IDS, other], 4, temperature=0)]


@settings(max_examples=15)
@given(st.lists(interventions(), min_size=1, max_size=3))
def test_a_continuation_with_interventions_is_that_of_the_library_s_pass_with_the_same_tap(asked):
    done, lines = answered(continue_text, prompt=PROMPT, interventions=asked, n=4, temperature=0)
    tokens = [line["token"] for line in lines]
    for i, line in enumerate(lines):
        probabilities = softmax(forward(MODEL, [*IDS, *tokens[:i]], tap=by_hand(asked))[-1])
        assert line["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
        assert line["probability"] == pytest.approx(float(probabilities[tokens[i]]), abs=1e-4)
    if len(tokens) > 2:
        rest, _ = answered(continue_text, prompt=PROMPT, interventions=asked, n=2, temperature=0, written=tokens[:2])
        assert rest["ids"] == done["ids"]


def test_a_token_that_is_drawn_though_it_is_unlikely_is_among_its_alternatives():
    _, lines = answered(continue_text, prompt=PROMPT, n=40, temperature=5, seed=0)
    assert any(len(line["alternatives"]) == 11 for line in lines)
    for line in lines:
        assert line["token"] in [token for token, *_ in line["alternatives"]]


@pytest.mark.parametrize("place", ["model", "tokenizer"])
def test_an_end_of_text_ends_it_whichever_file_names_it(place):
    _, second, *_ = generate_tokens(MODEL, IDS, 5, temperature=0)
    tokenizer = copy.copy(TOKENIZER)
    tokenizer.eos_ids = (second,) if place == "tokenizer" else ()
    model = replace(MODEL, config=replace(CONFIG, eos_token_id=second if place == "model" else None))
    done, lines = answered(continue_text, Engine(model, tokenizer, "any"), prompt=PROMPT, n=5, temperature=0)
    assert (done["finish_reason"], done["ids"][-1], len(lines)) == ("eos", second, 2)


def test_a_prompt_may_be_longer_than_a_page_shows_and_ends_with_the_context():
    ids = (IDS * 64)[:510]
    done, lines = answered(continue_text, ids=ids, n=10, temperature=0)
    assert (done["finish_reason"], len(lines)) == ("length", 3)
    with pytest.raises(ValueError, match="at most 512 tokens, the model's context. Got 513."):
        answered(continue_text, ids=(IDS * 65)[:513], n=1)


@pytest.mark.parametrize("asked, message", [
    ({}, "'n' must be a whole number from 1 to 128. Got None."),
    ({"n": 129}, "'n' must be a whole number from 1 to 128. Got 129."),
    ({"n": 1, "temperature": -1}, "temperature must be 0 .greedy. or a larger finite number. Got -1."),
    ({"n": 1, "temperature": "hot"}, "temperature must be 0"),
    ({"n": 1, "top_k": 1.5}, "top_k must be a whole number, 0 or more. Got 1.5."),
    ({"n": 1, "top_p": 0}, "top_p must be above 0 and at most 1"),
    ({"n": 1, "seed": -1}, "seed must be a whole number, 0 or more. Got -1."),
    ({"n": 1, "stop_strings": ["a"]}, "the request must have no keys but"),
    ({"n": 1, "written": None}, "'written' must be a list of token ids. Got None."),
    ({"n": 1, "written": [4096]}, "an id of 'written' must be a whole number from 0 to 4,095. Got 4096."),
    ({"n": 1, "interventions": [{"kind": "zero", "stage": "wte", "positions": [8]}]}, "from 0 to 7. Got 8."),
])
def test_wrong_settings_are_refused_with_what_was_expected(asked, message):
    with pytest.raises(ValueError, match=message):
        answered(continue_text, prompt=PROMPT, **asked)


# Tokens, and what the page must know ----------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_tokens_of_any_text_join_to_it(text):
    done, _ = answered(tokenize, prompt=text)
    names = [done["names"][str(token_id)] for token_id in done["ids"]]
    joined = b"".join(name.encode() if isinstance(name, str) else bytes(name) for name in names)
    assert joined.decode() == (text or "<|endoftext|>")


def test_ids_that_only_the_model_or_only_the_tokenizer_knows_are_neither_taken_nor_drawn():
    larger = random_model(GPT2Config(vocab_size=4100, n_positions=16, n_embd=4, n_layer=1, n_head=1))
    larger.ln_f.weight[:] = 0
    larger.ln_f.bias[:] = 1
    larger.wte[4096:] = 10  # the likeliest next tokens by far
    smaller = random_model(GPT2Config(vocab_size=300, n_positions=16, n_embd=4, n_layer=1, n_head=1))
    for model, last in ((larger, 4095), (smaller, 299)):
        engine = Engine(model, TOKENIZER, "any")
        assert answered(run_prompt, engine, ids=[last])[0]["page"]["ids"] == [last]
        done, lines = answered(continue_text, engine, ids=[last], n=8, temperature=5)
        assert max(done["ids"]) <= last and len(lines) == 8
        assert answered(compare, engine, ids=[1, 2], other_ids=[3, 2])[0]["target"] <= last
        with pytest.raises(ValueError, match="Got "):
            answered(run_prompt, engine, ids=[last + 1])


def test_the_page_is_told_which_stages_and_bounds_there_are():
    told = server_data(ENGINE, "The fox")
    assert told["prompt"] == "The fox"
    assert (told["max_tokens"], told["max_new_tokens"], told["max_interventions"]) == (128, 128, 32)
    assert told["kinds"] == ["zero", "mean", "scale", "from"]
    assert told["global_stages"] == ["wte", "wpe"]
    assert told["stages_with_heads"] == ["attn.q", "attn.k", "attn.v", "attn.z"]
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    for name in told["stages"]:
        array = acts[name if name in told["global_stages"] else f"h.0.{name}"]
        assert array.shape[-2] == N_TOKENS
        assert (array.ndim == 3) == (name in told["stages_with_heads"])


# Anything -------------------------------------------------------------------------------------------------------------


TINY = Engine(random_model(GPT2Config(vocab_size=4096, n_positions=8, n_embd=4, n_layer=2, n_head=2)), TOKENIZER, "any")
scalars = (st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.just(10**400) | st.floats()
           | st.text(max_size=5) | st.sampled_from([*CHANGEABLE, "zero", "mean", "scale", "from", "attribution"]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)
ids = st.lists(st.integers(0, 4095), min_size=2, max_size=2)
changes = {"zero": {}, "mean": {}, "scale": {"factor": st.floats(-1e9, 1e9)}, "from": {"ids": ids}}
change = st.one_of([st.fixed_dictionaries(
    {"kind": st.just(kind), "stage": st.sampled_from(["attn.q", "attn.z"]), "layer": st.integers(0, 1), **more},
    optional={"heads": st.just([1]), "positions": st.just([0])}) for kind, more in changes.items()])
LIKELY = {
    run_prompt: {"ids": ids, "interventions": st.lists(change | values, max_size=2) | st.lists(change, max_size=3)},
    compare: {"ids": ids, "other_ids": ids, "target": st.integers(0, 4095), "foil": st.none() | st.integers(0, 4095),
              "method": st.sampled_from(["patching", "attribution"])},
    continue_text: {"ids": ids, "n": st.integers(1, 3), "temperature": st.floats(0, allow_infinity=False),
                    "top_k": st.integers(0), "top_p": st.floats(1e-9, 1), "seed": st.integers(0), "written": ids,
                    "interventions": st.lists(change, max_size=2)},
    tokenize: {"prompt": st.text()}}


@settings(max_examples=100)
@given(st.sampled_from(list(LIKELY)), st.data())
def test_any_request_is_answered_or_refused_as_the_asker_s_mistake(answer, data):
    request = {key: data.draw(likely) for key, likely in LIKELY[answer].items()}
    for key in data.draw(st.sets(st.sampled_from(list(request)), max_size=1)):
        request[key] = data.draw(values)
    with np.errstate(all="ignore"), Job(Turns(), "page", lambda line: json.dumps(line, allow_nan=False)) as job:
        try:
            json.dumps(answer(TINY, request, job), allow_nan=False)
        except (ValueError, FloatingPointError) as error:
            assert re.search("must|not finite|surrogate", str(error)), error


# The README's session -------------------------------------------------------------------------------------------------


def test_the_session_of_the_readme_is_what_the_page_is_answered():
    text = (Path(answers.__file__).parent / "README.md").read_text(encoding="utf-8")
    king, queen = "The king said that", "The queen said that"
    done, _ = answered(compare, prompt=king, other=queen, target=" he", foil=" she")
    assert done == answered(compare, prompt=king, other=queen)[0]
    rows = re.findall(r"^\| (?:block \d|`ln_f`) \| (.*) \|$", text, re.MULTILINE)
    table = [[float(cell) for cell in row.split(" | ")] for row in rows]
    np.testing.assert_allclose(table, done["fractions"], atol=0.01)
    percents = []
    for changed in ([], [{"kind": "zero", "stage": "attn.z", "layer": 3, "heads": [4]}],
                    [{"kind": "zero", "stage": "mlp.out", "layer": 0}]):
        logits = unpacked(answered(run_prompt, prompt=king, interventions=changed)[0]["page"]["logits"], "<f4")
        percents += [100 * softmax(logits)[done[token]] for token in ("target", "foil")]
    session, = re.findall("^An example with.*?the output is", text, re.MULTILINE | re.DOTALL)
    assert percents == pytest.approx([float(number) for number in re.findall(r"([\d.]+)%", session)], abs=0.1)
