"""The survey's experiments, run as a student runs them; their figures against other ways to compute them."""

import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import (GPT2Config, KVCache, Recorder, build_model, forward, generate_tokens, loss_and_gradients,
                        named_parameters, no_tap, random_model, residual_logits)
from numpy_gpt2.model import block

pytestmark = pytest.mark.slow  # each runs a script from beginning to end

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "experiments"
STORY = SCRIPTS / "story.txt"
BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
PNG = b"\x89PNG\r\n\x1a\n"

QUICK = {  # little work, and the same code
    "ablate_heads": ["--length", "8", "--samples", "2"],
    "attribution": [],
    "bias_study": ["--tokens", "40"],
    "coherence_study": ["--tokens", "200", "--samples", "1", "--length", "24"],
    "five_steps": ["--rounds", "3"],
    "logit_lens": ["--tokens", "40"],
    "neighbours": ["--tokens", "40"],
    "patch_activations": [],
    "projection": ["--tokens", "30"],
    "qkv_split": ["--tokens", "30", "--rounds", "2"],
    "query_noise": ["--tokens", "30", "--seeds", "2", "--length", "8"],
    "residual_path": ["--tokens", "100"],
    "temperature_study": ["--temperatures", "30", "0.1", "1", "--samples", "2", "--length", "20", "--tokens", "100"],
    "untied_twin": ["--tokens", "20"],
    "weight_tying": ["--tokens", "40"],
}


def script(name, *arguments, env=None, folder="scripts/experiments"):
    """Run a script to its end, from the root of the repository. On one thread: others run beside it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", **(env or {})}
    return subprocess.run([sys.executable, f"{folder}/{name}.py", *arguments], capture_output=True, timeout=600,
                          cwd=ROOT, env=env)


def script_runs(cases):
    """Several, two at a time: {key: (name, *arguments)} -> {key: process}."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(lambda case: script(*case), cases.values())))


@pytest.fixture(scope="module")
def fairytale():
    return numpy_gpt2.load("fairytale")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where the scripts of `outputs` draw, if they can."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def outputs(pictures):
    """What every script prints about the bundled model."""
    cases = {name: [name, *flags] for name, flags in QUICK.items()}
    if find_spec("matplotlib"):
        cases = {name: [*case, "--plot", str(pictures / f"{name}.png")] for name, case in cases.items()}
    processes = script_runs(cases)
    for name, process in processes.items():
        assert process.returncode == 0, (name, process.stderr.decode())
    return {name: process.stdout.decode() for name, process in processes.items()}


def row(output, name, at=0):
    """The cells after a row's name, as texts; `at`: of the lines that begin so, which."""
    lines = [line for line in output.splitlines() if re.match(re.escape(name) + "(  |$)", line)]
    return re.split(r"\s{2,}", lines[at][len(name):].strip())


def number(cell):
    value = float(cell.rstrip("%").replace(",", ""))
    return value / 100 if cell.endswith("%") else value


def story_ids(tokenizer, n):
    return [tokenizer.eot_id, *tokenizer.encode(STORY.read_text(encoding="utf-8"))[:n]]


def losses(model, ids):
    """Of every token but the first, by the definition."""
    logits = forward(model, ids[:-1]).astype(np.float64)
    return np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__(name)


# All of them ----------------------------------------------------------------------------------------------------------


def test_every_experiment_is_here():
    own = {path.stem for path in SCRIPTS.glob("*.py") if "import experiment\n" in path.read_text(encoding="utf-8")}
    assert own == set(QUICK)


def test_every_experiment_ends_with_a_sentence_and_names_the_model(outputs):
    for name, output in outputs.items():
        last_paragraph = output.rstrip().split("\n\n")[-1]
        assert last_paragraph.endswith((".", ")")) and len(last_paragraph.split()) > 15, name
        assert name == "temperature_study" or "nan" not in output.split(), name  # in a sample it may be a word


def test_every_experiment_draws_a_picture(outputs, pictures):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra `plot`")
    for name in outputs:
        picture = (pictures / f"{name}.png").read_bytes()
        assert picture.startswith(PNG) and int.from_bytes(picture[16:20], "big") <= 1080, name  # a page shrinks others


def test_every_experiment_takes_a_folder_untied_and_with_a_short_context(tmp_path, fairytale):
    config = GPT2Config(fairytale[0].config.vocab_size, 40, 16, 2, 2, tie_word_embeddings=False)
    numpy_gpt2.save(random_model(config), tmp_path, tokenizer=fairytale[1])
    processes = script_runs({name: (name, *flags, "--model", str(tmp_path)) for name, flags in QUICK.items()})
    for name, process in processes.items():
        assert process.returncode == 0, (name, process.stderr.decode())
    assert "model.lm_head is model.wte: False" in processes["weight_tying"].stdout.decode()
    assert "untied already" in " ".join(processes["untied_twin"].stdout.decode().split())


def test_without_matplotlib_a_plot_is_one_line_that_says_how_to_get_it_and_exit_2(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    process = script("untied_twin", "--plot", str(tmp_path / "x.png"), env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    lines = process.stderr.decode().splitlines()
    assert (process.returncode, process.stdout, len(lines)) == (2, b"", 1)
    assert "pip install" in lines[0] and "matplotlib" in lines[0]


def test_bad_input_gets_one_clear_line_and_exit_2(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    cases = {
        **{f"unknown model, {name}": (name, "--model", "no-such-model") for name in QUICK},
        "unknown option": ("bias_study", "--no-such-option"),
        "text that is not there": ("bias_study", "--text", "no/such/file"),
        "text that is not UTF-8": ("projection", "--text", str(tmp_path / "latin.txt")),
        "empty text": ("weight_tying", "--text", str(tmp_path / "empty.txt")),
        "short text": ("coherence_study", "--tokens", "20"),
        "plot in no folder": ("untied_twin", "--plot", "no/such/folder/x.png"),
        "temperature 0": ("temperature_study", "--temperatures", "0"),
        "too long": ("temperature_study", "--length", "99999"),
        "temperature below 0": ("five_steps", "--temperature", "-1"),
        "temperature that is no number": ("coherence_study", "--temperature", "warm"),
        "empty prompt": ("five_steps", "--prompt", ""),
        "more rounds than room": ("five_steps", "--rounds", "99999"),
        "seed below 0": ("bias_study", "--seed", "-1"),
        "two copies beyond the context": ("ablate_heads", "--length", "256"),
        "a copy of one token": ("ablate_heads", "--length", "1"),
        "no prompt": ("logit_lens", "--prompt", ""),
        "a prompt beyond the context": ("logit_lens", "--prompt", "a" * 9999),
        "prompts of two lengths": ("patch_activations", "--clean", "The\nqueen", "--corrupted", "The king had"),
        "equal prompts": ("patch_activations", "--clean", "The king", "--corrupted", "The king"),
        "prompts beyond the context": ("patch_activations", "--clean", "the" * 512, "--corrupted", "The" * 512),
        "equal answers": ("patch_activations", "--answers", " she", " she"),
        "a word of several tokens": ("neighbours", "--words", " king", " no such token"),
        "more to write than room": ("query_noise", "--length", "99999"),
        "no answer": ("patch_activations", "--answers", "", " he"),
    }
    for name, process in script_runs(cases).items():
        lines = [line for line in process.stderr.decode().splitlines() if not line.startswith("model:")]
        assert (name, process.returncode, process.stdout) == (name, 2, b"")
        assert len(lines) == 1 and lines[0].startswith("error: "), (name, lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_experiment_runs_as_it_stands(name):
    process = script(name)
    assert process.returncode == 0, process.stderr.decode()


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]), st.floats(-3, 3), st.floats(0.01, 3))
def test_noise_has_the_mean_the_deviation_and_the_type_of_what_it_replaces(seed, dtype, mean, std):
    rng = np.random.default_rng(seed)
    array = (mean + std * rng.uniform(size=(20, 30))).astype(dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        noise = imported("experiment", monkeypatch).noise_like(array, rng)
    assert noise.dtype == dtype and noise.shape == array.shape
    assert noise.mean() == pytest.approx(array.mean(), abs=1e-5) and noise.std() == pytest.approx(array.std(), rel=1e-4)
    assert abs(np.corrcoef(noise.ravel(), array.ravel())[0, 1]) < 0.25
    assert np.mean(np.abs(noise - mean - std / 2) > std / 2) > 0.02  # normal: some are beyond what it replaces


# Each by itself -------------------------------------------------------------------------------------------------------


def test_ablate_heads_figures_are_those_of_models_without_these_heads(outputs, monkeypatch, fairytale):
    model, tokenizer = fairytale
    module = imported("ablate_heads", monkeypatch)
    ids = module.repeated_sequences(tokenizer, tokenizer.vocab_size, n_samples=2, length=8, seed=1)
    pattern = Recorder("h.*.attn.pattern")
    forward(model, ids, tap=pattern)
    arrays = dict(named_parameters(model))
    d_head = model.config.d_head
    before = np.stack([losses(model, sample) for sample in ids])
    for layer, head in ((5, 5), (0, 2), (3, 4)):
        weight = arrays[f"h.{layer}.attn.c_proj.weight"].copy()
        weight[head * d_head:(head + 1) * d_head] = 0
        without = build_model(model.config, {**arrays, f"h.{layer}.attn.c_proj.weight": weight})
        added = np.stack([losses(without, sample) for sample in ids]) - before
        shares = pattern[f"h.{layer}.attn.pattern"][:, head]
        induction = np.mean([shares[i, q, q - 7] for i in range(2) for q in range(9, 17)])
        previous = np.mean([shares[i, q, q - 1] for i in range(2) for q in range(1, 17)])
        expected = [added[:, 9:].mean(), added[:, 1:8].mean(), induction, previous]
        cells = list(map(number, row(outputs["ablate_heads"], f"{layer}.{head}")))
        np.testing.assert_allclose(cells, expected, atol=1.1e-3)
    names = re.findall(r"^(\d\.\d) ", outputs["ablate_heads"], re.MULTILINE)
    values = [number(row(outputs["ablate_heads"], name)[0]) for name in names]
    assert len(names) == 36 and values == sorted(values, reverse=True)
    losses_of_all = f"second copy {before[:, 9:].mean():.3f}, uniform guess {math.log(model.config.vocab_size):.3f}"
    assert losses_of_all in outputs["ablate_heads"]


@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 3))
def test_a_repeated_sequence_is_an_end_of_text_and_two_equal_copies_of_different_tokens(seed, length, n_samples):
    class Tokenizer:
        eot_id = 5

    with pytest.MonkeyPatch.context() as monkeypatch:
        module = imported("ablate_heads", monkeypatch)
    ids = module.repeated_sequences(Tokenizer, 21, n_samples, length, seed)
    assert ids.shape == (n_samples, 1 + 2 * length) and ids.min() >= 0 and ids.max() < 21
    for first, *rest in ids.tolist():
        assert first == 5 and 5 not in rest
        assert rest[:length] == rest[length:] and len(set(rest)) == length


def test_a_head_that_copies_is_found_by_its_pattern(monkeypatch):
    module = imported("ablate_heads", monkeypatch)
    tokens = [9, 1, 2, 3, 4, 1, 2, 3, 4]
    copies, looks_back = np.zeros((2, 9, 9)), np.zeros((2, 9, 9))
    for q, token in enumerate(tokens):
        came_after = tokens[:q].index(token) + 1 if token in tokens[:q] else 0
        copies[:, q, came_after] = 1
        looks_back[:, q, max(q - 1, 0)] = 1
    assert module.induction_scores(copies, 4).tolist() == [1, 1]
    assert module.induction_scores(looks_back, 4).tolist() == [0, 0]
    assert module.previous_scores(looks_back).tolist() == [1, 1]
    assert module.previous_scores(copies).tolist() == [1 / 8, 1 / 8]  # the first token is the second one's


@pytest.mark.parametrize("worth, expected", [([3, 2, 1], "whose ablation increases"), ([1, 2, 3], "0 are among them")])
def test_the_verdict_on_heads_follows_from_their_scores(monkeypatch, worth, expected):
    module = imported("ablate_heads", monkeypatch)
    heads = [module.Head(f"0.{i}", added, 0, induction, 0.9) for i, (added, induction) in
             enumerate(zip(worth, (0.5, 0.01, 0.02)))]
    heads.sort(key=lambda head: -head.added_second)
    text = " ".join(module.conclusion(heads, 9.0, 8.0, 8.5, 0.05, 0.1))
    assert expected in text and "0.0 (0.50)" in text and "3 of 3 heads attend to the previous token" in text
    assert "1.00 nats a token easier" in text and "8.50, is better than the worse" in text
    others = " ".join(module.conclusion(heads, 9.0, 10.0, 8.5, 0.2, 0.1))
    assert "1.00 nats a token harder" in others and "better than both" in others and "no induction head" in others
    assert "better than neither" in " ".join(module.conclusion(heads, 8.0, 8.0, 8.5, 0.2, 0.1))


def test_bias_study_s_losses_are_those_of_models_without_these_biases(outputs, fairytale):
    model, tokenizer = fairytale
    ids = story_ids(tokenizer, 40)
    arrays = dict(named_parameters(model))
    biases = {name: np.zeros_like(array) for name, array in arrays.items() if name.endswith("bias")}
    gains = {name: np.ones_like(array) for name, array in arrays.items() if ".ln_" in "." + name and "weight" in name}
    without = {"nothing": {}, "all biases": biases, "the layer norms' gains to 1": gains,
               "all biases and gains": {**biases, **gains}}
    for name, changed in without.items():
        cells = row(outputs["bias_study"], name)
        expected = losses(build_model(model.config, {**arrays, **changed}), ids).mean()
        assert number(cells[0]) == sum(array.size for array in changed.values()), name
        assert number(cells[2]) == pytest.approx(expected, abs=2e-4), name
    assert abs(number(row(outputs["bias_study"], "  of them the keys'")[3])) < 1e-4


def test_random_weights_set_to_zero_are_as_many_as_asked(monkeypatch, fairytale):
    model, _ = fairytale
    arrays = imported("bias_study", monkeypatch).without_random_weights(model, 1000, seed=0)
    before = dict(named_parameters(model))
    assert sum(np.sum((array == 0) & (before[name] != 0)) for name, array in arrays.items()) >= 990  # few were 0
    assert sum(np.sum(array != before[name]) for name, array in arrays.items()) <= 1000


def test_coherence_study_s_losses_are_the_definition_s(outputs, fairytale):
    model, tokenizer = fairytale
    of_each = losses(model, story_ids(tokenizer, 200))
    for name, places in (("1-7", slice(0, 7)), ("32-63", slice(31, 63)), ("128-255", slice(127, 200))):
        cells = row(outputs["coherence_study"], name)
        assert number(cells[0]) == len(of_each[places])
        assert number(cells[-1]) == pytest.approx(of_each[places].mean(), abs=2e-3)
    assert row(outputs["coherence_study"], "1-7")[1:4] == ["-", "-", "-"]


def test_a_short_context_sees_half_of_it_to_all(monkeypatch, fairytale):
    model, tokenizer = fairytale
    ids = story_ids(tokenizer, 40)
    short = imported("coherence_study", monkeypatch).losses(model, ids, 8)
    assert len(short) == len(ids) - 1
    np.testing.assert_allclose(short[:7], losses(model, ids[:8]), atol=1e-4)
    np.testing.assert_allclose(short[7:11], losses(model, ids[4:12])[3:], atol=1e-4)


def test_coherence_study_s_attention_is_the_pattern_s(outputs, fairytale):
    model, tokenizer = fairytale
    acts = Recorder()
    ids = story_ids(tokenizer, 200)
    forward(model, ids, tap=acts)
    pattern = acts["h.1.attn.pattern"].mean(axis=0)
    far = np.mean([sum(pattern[q, k] * (q - k) for k in range(q + 1)) for q in range(len(ids))])
    near = np.mean([sum(pattern[q, k] for k in range(max(q - 7, 1), q + 1)) for q in range(len(ids))])
    cells = row(outputs["coherence_study"], "1")
    assert number(cells[0]) == pytest.approx(far, abs=0.06)
    assert number(cells[1]) == pytest.approx(pattern[:, 0].mean(), abs=6e-4)
    assert number(cells[2]) == pytest.approx(near, abs=6e-4)


def test_five_steps_draws_what_generate_tokens_draws(outputs, fairytale):
    model, tokenizer = fairytale
    prompt = tokenizer.encode("Once upon a time")
    drawn = list(generate_tokens(model, prompt, 3, temperature=0.8, seed=4))  # the script's own seed
    assert repr(tokenizer.decode([*prompt, drawn[0]])) in outputs["five_steps"]
    assert repr(tokenizer.decode([*prompt, *drawn])) in " ".join(outputs["five_steps"].split("\n"))
    assert "samples the same tokens" in " ".join(outputs["five_steps"].split())


def test_logit_lens_sees_what_a_model_of_so_many_blocks_says(outputs, fairytale):
    model, tokenizer = fairytale
    prompt = [tokenizer.eot_id, *tokenizer.encode("Once upon a time there was a king who had three daughters")]
    text = story_ids(tokenizer, 40)
    best_of_all = forward(model, text[:-1]).argmax(axis=-1)
    tables = outputs["logit_lens"].split("\n\n")
    for layer in (1, 3, 6):
        arrays = {name: array for name, array in named_parameters(model)
                  if not re.match(r"h\.(\d+)", name) or int(name.split(".")[1]) < layer}
        shorter = build_model(replace(model.config, n_layer=layer), arrays)
        logits = forward(shorter, prompt[:-1]).astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        for at in range(len(prompt) - 1):
            name = repr(tokenizer.decode([prompt[at]]))
            repeat = sum(token == prompt[at] for token in prompt[:at])
            cells = row(tables[1], name, repeat)
            assert cells[1 + layer] == repr(tokenizer.decode([logits[at].argmax()]))
            share = number(row(tables[3], name, repeat)[1 + layer])
            assert share == pytest.approx(shares[at, prompt[at + 1]], abs=6e-4)
        best = forward(shorter, text[:-1]).argmax(axis=-1)
        loss, right, agreed = map(number, row(tables[5], str(layer)))
        assert loss == pytest.approx(losses(shorter, text).mean(), abs=2e-3)
        assert right == pytest.approx(np.mean(best == text[1:]), abs=6e-4)
        assert agreed == pytest.approx(np.mean(best == best_of_all), abs=6e-4)


def test_patch_activations_restores_what_the_blocks_make_of_the_patched_stream(outputs, fairytale):
    model, tokenizer = fairytale
    prompts = [[tokenizer.eot_id, *tokenizer.encode(f"The old {who} went into the forest. Then")]
               for who in ("woman", "man")]
    she, he = tokenizer.encode(" she")[0], tokenizer.encode(" he")[0]
    clean, corrupted = Recorder("h.*.resid_pre"), Recorder("h.*.resid_pre")
    for_she = [forward(model, ids, tap=acts)[-1] for ids, acts in zip(prompts, (clean, corrupted))]
    with_clean, with_corrupted = (logits[she] - logits[he] for logits in for_she)
    assert f"clean {with_clean:+.2f}" in outputs["patch_activations"]
    assert f"corrupted {with_corrupted:+.2f}" in outputs["patch_activations"]

    for position, token_id in enumerate(prompts[0]):
        cells = row(outputs["patch_activations"], str(position))
        assert cells[0] == repr(tokenizer.decode([token_id]))
        for layer in range(6):
            x = corrupted[f"h.{layer}.resid_pre"].copy()
            x[position] = clean[f"h.{layer}.resid_pre"][position]
            for i in range(layer, 6):
                x = block(x, model.h[i], model.config, KVCache(model), i, no_tap)
            logits = residual_logits(model, x)[-1]
            share = (logits[she] - logits[he] - with_corrupted) / (with_clean - with_corrupted)
            assert number(cells[layer - 6]) == pytest.approx(share, abs=6e-3)
            assert position >= 3 or share == pytest.approx(0, abs=1e-4)  # the prompts differ at 3
    assert number(row(outputs["patch_activations"], "3")[-6]) == 1
    assert "prefers ' she', after the corrupted one ' he'." in " ".join(outputs["patch_activations"].split())


def test_neighbours_are_those_of_all_cosines(outputs, monkeypatch, fairytale):
    model, tokenizer = fairytale
    module = imported("neighbours", monkeypatch)
    wte = model.wte.astype(np.float64)
    wte /= np.linalg.norm(wte, axis=1)[:, np.newaxis]
    cosines = wte @ wte.T
    np.fill_diagonal(cosines, -2)
    king = tokenizer.encode(" king")[0]
    best = np.argsort(-cosines[king])[:5]
    expected = ", ".join(f"{tokenizer.decode([i])!r} {cosines[king, i]:.2f}" for i in best)
    assert row(outputs["neighbours"], "' king'")[0] == expected
    found, values = module.nearest(module.unit(model.wte), np.array([king, 5]))
    assert found.tolist() == cosines[[king, 5]].argmax(axis=1).tolist()
    np.testing.assert_allclose(values, cosines[[king, 5]].max(axis=1), atol=1e-5)

    wpe = model.wpe / np.linalg.norm(model.wpe, axis=1)[:, np.newaxis]
    for distance in (1, 64):
        expected = np.mean([wpe[i] @ wpe[i + distance] for i in range(len(wpe) - distance)])
        assert number(row(outputs["neighbours"], str(distance), -1)[0]) == pytest.approx(expected, abs=6e-4)


def test_the_cosine_of_any_two_is_that_of_all_pairs(monkeypatch):
    module = imported("neighbours", monkeypatch)
    units = module.unit(np.random.default_rng(0).normal(1, 1, (9, 4)))
    pairs = [units[i] @ units[j] for i in range(9) for j in range(9) if i != j]
    assert module.mean_cosine(units) == pytest.approx(np.mean(pairs))
    assert module.mean_cosine(np.eye(3)) == 0 and module.mean_cosine(np.ones((3, 1))) == 1
    assert not module.unit(np.zeros((1, 2))).any()


def test_an_analogy_is_answered_by_the_sum_alone_by_the_third_word_or_not_at_all(monkeypatch):
    module = imported("neighbours", monkeypatch)
    man, woman, king, queen, other = range(5)
    units = module.unit(np.array([[1, 0, 0.2], [0, 1, 0.2], [1, 0, 1], [0, 1, 1], [0.5, 0.5, 1]]))
    answer = module.analogy(units, man, woman, king, queen)  # woman - man + king is nearest to queen
    assert (answer.best, answer.rank, answer.best_of_all) == (queen, 1, queen)
    assert answer.alone == 2  # to king alone, the other one is nearest
    assert module.right_answers(units, [(man, woman, king, queen)]) == (1, 1, 0)
    assert module.right_answers(units, [(man, woman, king, other)]) == (0, 0, 1)
    close = module.unit(np.array([[1, 0.1, 0], [1, -0.1, 0], [0, 0.3, 1], [0, -0.3, 1]]))  # the step is short
    answer = module.analogy(close, man, woman, king, queen)
    assert (answer.best, answer.rank, answer.best_of_all, answer.alone) == (queen, 1, king, 1)
    assert "16 of 19" in module.arithmetic_found(19, (16, 9, 9), (0, 0, 0))
    assert "7 more are due" in module.arithmetic_found(19, (16, 9, 9), (0, 0, 0))
    assert "adds nothing" in module.arithmetic_found(19, (9, 9, 9), (0, 0, 0))


def test_siblings_differ_in_case_and_spaces_only(monkeypatch):
    module = imported("neighbours", monkeypatch)
    texts = [" the", "The", " cat", "\ufffd", "\ufffd", " dog"]
    units = module.unit(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 1.1], [1, 1]]))
    measures = module.token_measures(units, np.arange(6), texts)
    assert (measures.siblings, measures.n_with_sibling) == (1, 2)
    assert module.token_measures(units[[0, 5, 2, 3, 4, 1]], np.arange(6), texts).siblings == 0


def test_the_twin_s_two_gradients_sum_to_the_tied_model_s(outputs, fairytale):
    model, tokenizer = fairytale
    ids = story_ids(tokenizer, 40)
    arrays = {**dict(named_parameters(model)), "lm_head.weight": model.wte.copy()}
    twin = build_model(replace(model.config, tie_word_embeddings=False), arrays)
    _, gradients = loss_and_gradients(twin, ids)
    a, b = gradients.wte.ravel(), gradients.lm_head.ravel()
    np.testing.assert_allclose(a + b, loss_and_gradients(model, ids)[1].wte.ravel(), atol=1e-6)
    text = " ".join(outputs["neighbours"].split())
    assert f"a cosine of {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.2f} (1" in text
    assert f"{np.linalg.norm(b) / np.linalg.norm(a):.1f} times as long" in text


def test_projection_s_shares_are_each_head_s_rows_of_the_matrix(outputs, fairytale):
    model, tokenizer = fairytale
    acts = Recorder()
    forward(model, story_ids(tokenizer, 30), tap=acts)
    c_proj, d_head = model.h[2].attn.c_proj, model.config.d_head
    out = acts["h.2.attn.out"]
    cells = row(outputs["projection"], "2")
    for head in range(model.config.n_head):
        part = acts["h.2.attn.z"][head] @ c_proj.weight[head * d_head:(head + 1) * d_head]
        assert number(cells[head]) == pytest.approx(np.sum(part * out) / np.sum(out * out), abs=6e-3)
    assert number(cells[model.config.n_head]) == pytest.approx(np.sum(c_proj.bias * out) / np.sum(out * out), abs=6e-3)
    assert cells[model.config.n_head + 1] == "100%"


def test_qkv_split_takes_apart_and_times(outputs, fairytale):
    width = fairytale[0].config.n_embd
    assert f"c_attn {width} x {3 * width} = 3 of {width} x {width}" in outputs["qkv_split"]
    assert float(re.search(r"([\d.e+-]+) of the\s+largest", outputs["qkv_split"]).group(1)) < 1e-5
    for n in (1, 16):
        fused, separate, ratio, _, traffic = row(outputs["qkv_split"], str(n))
        assert min(number(fused), number(separate), number(ratio)) > 0
        one = 3 * width * width + 3 * width + n * width + 3 * n * width
        assert number(traffic) == pytest.approx((one + 2 * n * width) / one, abs=6e-3)


def test_noise_in_one_of_q_k_and_v_leaves_all_other_weights(monkeypatch, fairytale):
    model, _ = fairytale
    module = imported("query_noise", monkeypatch)
    width, d_head = model.config.n_embd, model.config.d_head
    before = model.h[2].attn.c_attn.weight.copy()
    columns = {("Q", None): slice(0, width), ("K", None): slice(width, 2 * width), ("V", None): slice(2 * width, None),
               ("Q", 3): slice(3 * d_head, 4 * d_head)}
    for (part, head), changed in columns.items():
        after = module.with_noise(model, 2, part, 0, head)
        same = np.ones(3 * width, bool)
        same[changed] = False
        assert np.array_equal((after == before).all(axis=0), same), (part, head)
        assert after[:, changed].mean() == pytest.approx(before[:, changed].mean(), abs=1e-6)
        assert after[:, changed].std() == pytest.approx(before[:, changed].std(), rel=1e-5)
        assert not np.array_equal(after, module.with_noise(model, 2, part, 1, head))
    assert np.array_equal(before, model.h[2].attn.c_attn.weight)
    noisy = module.changed(model, "Q", range(2), 0)
    assert noisy.h[2] is not model.h[2] and noisy.h[2].attn.c_attn.weight is model.h[2].attn.c_attn.weight
    assert noisy.h[0].attn.c_attn.bias is model.h[0].attn.c_attn.bias
    one_head = module.with_one_noisy_head(model, 2, 0)
    assert (one_head != before).any(axis=0).sum() == d_head


def test_query_noise_s_losses_are_those_of_models_with_these_weights(outputs, monkeypatch, fairytale):
    model, tokenizer = fairytale
    module = imported("query_noise", monkeypatch)
    ids = story_ids(tokenizer, 30)
    own = losses(model, ids).mean()

    def added(layers, weights):
        arrays = {f"h.{i}.attn.c_attn.weight": weights(i) for i in layers}
        return losses(build_model(model.config, {**dict(named_parameters(model)), **arrays}), ids).mean() - own

    def zeroed(i):
        weight = model.h[i].attn.c_attn.weight.copy()
        weight[:, :model.config.n_embd] = 0
        return weight

    of_seeds = {part: [[added(layers, lambda i: module.with_noise(model, i, part, seed)) for seed in (0, 1)]
                       for layers in ([1], [0, 1], [4, 5])] for part in "QV"}
    rows = row(outputs["query_noise"], "1"), row(outputs["query_noise"], "2 (33%)")
    for cells, layers, q, v in zip(rows, ([1], [0, 1]), of_seeds["Q"], of_seeds["V"]):
        assert number(cells[0]) == pytest.approx(np.mean(q), abs=2e-3)
        assert number(cells[1]) == pytest.approx(np.std(q), abs=2e-3)
        assert number(cells[2]) == pytest.approx(np.mean(q) / (math.log(model.config.vocab_size) - own), abs=6e-3)
        assert number(cells[5]) == pytest.approx(np.mean(v), abs=2e-3)
        assert number(cells[7]) == pytest.approx(added(layers, zeroed), abs=2e-3)
    last = row(outputs["query_noise"], "2 (33%)", 1)
    assert number(last[0]) == pytest.approx(np.mean(of_seeds["Q"][2]), abs=2e-3)
    assert row(outputs["query_noise"], "6 (100%)", 1)[:2] == row(outputs["query_noise"], "6 (100%)")[:2]


def test_query_noise_s_texts_are_what_these_models_write(outputs, monkeypatch, fairytale):
    model, tokenizer = fairytale
    module = imported("query_noise", monkeypatch)
    prompt = [tokenizer.eot_id, *tokenizer.encode("Once upon a time")]

    def written(other, seed):
        ids = list(generate_tokens(other, prompt, 8, temperature=0.8, top_k=40, seed=seed, eos_token_id=-1))
        return ids, losses(model, [*prompt, *ids])[-8:].mean()

    own = np.mean([written(model, seed)[1] for seed in (0, 1)])
    others = [written(module.changed(model, "Q", range(6), seed), seed) for seed in (0, 1)]
    way = (np.mean([loss for _, loss in others]) - own) / (math.log(model.config.vocab_size) - own)
    assert number(row(outputs["query_noise"], "6 (100%)")[3]) == pytest.approx(way, abs=6e-3)
    assert f"  first 6 (100%): {' '.join(tokenizer.decode(others[0][0]).split())}" in outputs["query_noise"]


@pytest.mark.parametrize("added, quarter, three_quarters", [
    ([0.4, 1.0, 3.9, 4.6], "nearly normal (at", "noise (at"), ([0.6, 1.0, 3.9, 4.4], "not nearly", "not noise")])
def test_the_course_s_statements_on_queries_hold_up_to_a_tenth_and_from_nine_of_the_way(
        monkeypatch, added, quarter, three_quarters):
    module = imported("query_noise", monkeypatch)
    changes = {"Q": 0, "K": 1, "V": 2, "one head": -1, "Q = 0": -0.1}
    rows = [module.Row(str(i), i + 1, {name: np.array([3 + x + more, 3 + x + more]) for name, more in changes.items()},
                       2 + x, "") for i, x in enumerate(added)]
    way, text_way = module.scale(3, 8), module.scale(2, 7)
    text = list(module.statements(rows, way, text_way))
    assert quarter in text[0] and f"1 of 4, the loss goes {added[0] / 5:.0%} of the way" in text[0]
    assert three_quarters in text[1] and f"4 of 4, the loss goes {added[3] / 5:.0%} of the way" in text[1]
    assert "With 2 blocks there is none to test." in next(module.statements(rows[:2], way, text_way))
    controls, alone, order = module.conclusion(rows, rows, [row._replace(losses={"Q": row.losses["Q"] + 1})
                                                            for row in rows], 3, way)
    assert f"Q = 0, attention without queries, {added[3] - 0.1:.2f}. So noise for W_Q is no better" in controls
    assert "needs most is V" in controls and "block 3 needs its queries most" in alone
    assert f"first 2 blocks adds {added[1]:.2f} nats, in the last as many {added[1] + 1:.2f}" in order
    none = module.scale(3, 3.05)
    assert not list(module.statements(rows, none, text_way))
    assert "nothing can be lost" in "".join(module.conclusion(rows, rows, rows, 3, none))


def test_effective_dimensions_are_the_hand_worked_ones(monkeypatch):
    module = imported("residual_path", monkeypatch)
    cross = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]]) + 7  # variances 8 and 2 around the mean
    fractions = module.principal_fractions(cross)
    np.testing.assert_allclose(fractions, [0.8, 0.2])
    assert module.participation_ratio(fractions) == pytest.approx(1 / (0.64 + 0.04))
    assert module.entropy_dimension(fractions) == pytest.approx(0.8 ** -0.8 * 0.2 ** -0.2)
    assert [module.n_axes(fractions, amount) for amount in (0.5, 0.8, 0.9, 1)] == [1, 1, 2, 2]
    line = module.principal_fractions(np.array([[1, 1], [2, 2], [5, 5]]))
    assert module.participation_ratio(line) == pytest.approx(1) == module.entropy_dimension(line)
    assert module.n_axes(line) == 1
    for k in (2, 5, 10):
        equal = module.principal_fractions(np.vstack([np.eye(k, 12), -np.eye(k, 12)]))
        assert module.participation_ratio(equal) == pytest.approx(k) == module.entropy_dimension(equal)
        assert module.n_axes(equal) == math.ceil(0.9 * k)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 8))
def test_principal_fractions_are_those_of_the_covariance(seed, n, width):
    with pytest.MonkeyPatch.context() as monkeypatch:
        module = imported("residual_path", monkeypatch)
    vectors = np.random.default_rng(seed).normal(3, 2, (n, width))
    fractions = module.principal_fractions(vectors)
    variances = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(vectors.T))))[::-1][:len(fractions)]
    np.testing.assert_allclose(fractions, variances / variances.sum(), atol=1e-9)
    assert 1 - 1e-9 <= module.participation_ratio(fractions) <= module.entropy_dimension(fractions) + 1e-9
    assert module.entropy_dimension(fractions) <= min(n - 1, width) + 1e-9


def test_angles_are_in_degrees(monkeypatch):
    module = imported("residual_path", monkeypatch)
    a = np.array([[1.0, 0], [1, 0], [1, 0], [3, 0], [2, 0]])
    b = np.array([[1.0, 1], [0, 5], [-2, 0], [0.1, 0], [1, math.sqrt(3)]])
    np.testing.assert_allclose(module.angles(a, b), [45, 90, 180, 0, 60], atol=1e-6)


def test_residual_path_follows_the_recorded_stream(outputs, fairytale):
    model, tokenizer = fairytale
    acts = Recorder()
    forward(model, story_ids(tokenizer, 100), tap=acts)
    before, between, after, start = (acts[name][1:].astype(np.float64) for name in (
        "h.2.resid_pre", "h.2.resid_mid", "h.2.resid_post", "h.0.resid_pre"))
    attn, mlp = (acts[name][1:].astype(np.float64) for name in ("h.2.attn.out", "h.2.mlp.out"))

    def length(vectors):
        return np.mean(np.sqrt(np.sum(vectors * vectors, axis=1)))

    def angle(a, b):
        return np.mean([math.degrees(math.acos(x @ y / math.sqrt(x @ x) / math.sqrt(y @ y))) for x, y in zip(a, b)])

    variances = np.linalg.eigvalsh(np.cov(before.T))[::-1]
    p = variances[variances > 1e-9] / variances.sum()
    expected = [length(before), length(attn), angle(attn, before), length(mlp), angle(mlp, between),
                angle(after, before), angle(before, start), np.sum(before.mean(axis=0) ** 2) / np.mean(
                    np.sum(before * before, axis=1)), 1 / np.sum(p * p), math.exp(-np.sum(p * np.log(p)))]
    cells = row(outputs["residual_path"], "2")
    for cell, value, digits in zip(cells, expected, (2, 2, 0, 2, 0, 0, 0, 2, 1, 1)):
        assert number(cell) == pytest.approx(value, abs=0.51 * 10**-digits)
    assert int(cells[10]) == 1 + np.sum(np.cumsum(p) < 0.9)
    assert row(outputs["residual_path"], "6")[1:6] == ["-"] * 5

    everything = [acts[f"h.{i}.{part}.out"][1:] for i in range(6) for part in ("attn", "mlp")]
    path = sum(length(vectors.astype(np.float64)) for vectors in everything)
    away = length(acts["h.5.resid_post"][1:].astype(np.float64) - start)
    text = " ".join(outputs["residual_path"].split())
    assert f"steps are {path:.3g} long together and end {away:.3g} from" in text
    assert f"at right angles: {math.sqrt(12):.1f}" in text


def test_residual_path_s_windows_each_leave_out_their_first_position(monkeypatch, fairytale):
    model, tokenizer = fairytale
    module = imported("residual_path", monkeypatch)
    short = build_model(replace(model.config, n_positions=20), {**dict(named_parameters(model)),
                                                                "wpe.weight": model.wpe[:20]})
    ids = story_ids(tokenizer, 30)
    found = module.journey(short, ids)
    embeddings = np.concatenate([model.wte[ids[1:20]] + model.wpe[1:20], model.wte[ids[21:]] + model.wpe[1:11]])
    assert found.places[0].length == pytest.approx(np.linalg.norm(embeddings, axis=1).mean(), rel=1e-5)
    assert found.places[0].participation == pytest.approx(
        module.participation_ratio(module.principal_fractions(embeddings.astype(np.float64))), rel=1e-4)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_the_longest_repeat_is_the_longest_run_found_twice(ids):
    sys.path.insert(0, str(SCRIPTS))
    try:
        from temperature_study import longest_repeat
    finally:
        sys.path.remove(str(SCRIPTS))
    runs = [(ids[a:b], ids[c:c + b - a]) for a in range(len(ids)) for b in range(a, len(ids) + 1)
            for c in range(a + 1, len(ids) - (b - a) + 1)]
    assert longest_repeat(ids) == max((len(one) for one, other in runs if one == other), default=0)


def test_temperature_study_measures_what_was_drawn(outputs, fairytale):
    model, tokenizer = fairytale
    prompt = [tokenizer.eot_id, *tokenizer.encode("Once upon a time")]
    for temperature in (0.1, 1.0):
        steps = list(generate_tokens(model, prompt, 20, temperature=temperature, num_return_sequences=2, seed=1,
                                     eos_token_id=-1))
        samples = np.stack(steps, axis=1).tolist()
        own_loss = np.mean([losses(model, [*prompt, *sample])[-20:].mean() for sample in samples])
        distinct = np.mean([len(set(zip(sample, sample[1:]))) / 19 for sample in samples])
        logits = np.stack([forward(model, [*prompt, *sample[:-1]])[len(prompt) - 1:] for sample in samples])
        weights = np.exp(logits.astype(np.float64) / temperature)
        shares = weights / weights.sum(axis=-1, keepdims=True)
        cells = list(map(number, row(outputs["temperature_study"], f"{temperature:g}")))
        assert cells[0] == pytest.approx(distinct, abs=6e-4)
        assert cells[2] == pytest.approx(-np.sum(shares * np.log2(shares + 1e-300), axis=-1).mean(), abs=6e-3)
        assert cells[3] == pytest.approx(np.sort(shares, axis=-1)[..., -10:].sum(axis=-1).mean(), abs=6e-4)
        assert cells[4] == pytest.approx(own_loss, abs=1e-3)
        assert f"\n  {temperature:g}:\n" in outputs["temperature_study"]
    assert number(row(outputs["temperature_study"], "30")[2]) > 0.9 * math.log2(model.config.vocab_size)


def test_untied_twin_has_the_course_s_sum_and_the_size_table_s(outputs, fairytale):
    model, _ = fairytale
    assert "163,037,184 - 38,597,376 = 124,439,808" in outputs["untied_twin"]
    assert row(outputs["untied_twin"], "medium")[:3] == ["406,286,336", "51,463,168", "354,823,168"]
    assert row(outputs["untied_twin"], "large")[:3] == ["838,359,040", "64,328,960", "774,030,080"]
    assert row(outputs["untied_twin"], "xl")[:3] == ["1,638,022,400", "80,411,200", "1,557,611,200"]
    as_it_is, twin = row(outputs["untied_twin"], "as it is"), row(outputs["untied_twin"], "twin")
    assert number(twin[0]) - number(as_it_is[0]) == model.wte.size
    assert (as_it_is[2], twin[2]) == ("True", "False") and as_it_is[3] == twin[3]


def test_weight_tying_breaks_only_where_names_part(outputs, fairytale):
    model, tokenizer = fairytale
    rows = {name: row(outputs["weight_tying"], name) for name in (
        "as it is", "untied, two equal matrices", "lm_head permuted", "both permuted alike",
        "both, and the text renamed", "lm_head random")}
    expected = losses(model, story_ids(tokenizer, 40)).mean()
    for name in ("as it is", "untied, two equal matrices", "both, and the text renamed"):
        assert number(rows[name][1]) == pytest.approx(expected, abs=2e-4) and rows[name][2] == "100.0%", name
    for name in ("lm_head permuted", "both permuted alike", "lm_head random"):
        assert number(rows[name][1]) > expected + 1, name
    permuted = model.wte[np.random.default_rng(1).permutation(len(model.wte))]
    assert number(rows["lm_head permuted"][0]) == pytest.approx(
        np.corrcoef(model.wte.ravel(), permuted.ravel())[0, 1], abs=6e-5)
