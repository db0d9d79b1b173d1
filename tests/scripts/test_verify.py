"""The scripts that compare and wear out: what they print where all is well, and that they see what is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numpy_gpt2 import model, ops, tokenizer
from numpy_gpt2.cli.exits import run

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "verify"


def script(name, *arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, f"scripts/verify/{name}.py", *arguments], capture_output=True, timeout=600,
                          cwd=ROOT, env=env, text=True, encoding="utf-8")


@pytest.fixture
def imported(monkeypatch):
    """A script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__


def exit_of(module, *arguments):
    """What a script's main function gives to sys.exit: a line, or nothing where all is well."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(sys, "argv", [module.__name__, *arguments])
        run(module.main)
    return error.value.code


# parity.py ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parity(imported):
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    return imported("parity")


@pytest.mark.parity
def test_random_configs_are_transformers_models():
    process = script("parity", "--configs", "12", "--without-small")
    assert process.returncode == 0, process.stderr
    numbers = re.findall(r"^([a-z ]+?)  +\d+  +(\S+)  +(\S+)$", process.stdout, re.MULTILINE)
    assert {case for case, *_ in numbers} == {"prompt", "hidden states", "cached steps", "large scores", "one by one"}
    assert all(0 < float(single) < 1e-4 and 0 <= float(double) < 1e-10 for _, single, double in numbers)
    assert process.stdout.splitlines()[-1].startswith("12 random configs: at most ")


def careless_softmax(x, out=None):
    exponentials = np.exp(x)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parity
@pytest.mark.parametrize("name, wrong, case", [
    ("softmax", careless_softmax, "large scores in float32 differs by nan, expected at most 1.0e-04"),
    ("gelu", lambda x: x / (1 + np.exp(-1.702 * x)), "prompt in float32 differs by "),
])
def test_a_pass_that_is_not_gpt2_s_ends_with_the_case_and_the_config(parity, monkeypatch, name, wrong, case):
    monkeypatch.setattr(ops if name == "gelu" else model, name, wrong)
    line = exit_of(parity, "--configs", "3", "--without-small")
    assert line.startswith(f"error: {case}") and re.search(r": config \d: vocab_size=", line)


# tokens.py ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(imported):
    pytest.importorskip("tokenizers", reason="needs the extra `parity`")
    return imported("tokens")


@pytest.mark.parity
def test_random_strings_have_the_tokens_of_tokenizers():
    process = script("tokens", "--strings", "500", "--vocabulary", "numpy_gpt2/fairytale")
    assert process.returncode == 0, process.stderr
    assert re.search(r"^500 strings, [\d,]+ tokens: 0 strings differ\. Of 1,112,064 code points ", process.stdout, re.M)


@pytest.mark.parity
@pytest.mark.parametrize("folder", ["no/such/folder", "tests"])
def test_a_folder_without_a_vocabulary_is_refused_by_name(folder):
    process = script("tokens", "--vocabulary", folder)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert folder in process.stderr


@pytest.mark.parity
def test_code_points_that_the_libraries_take_for_something_else_are_found(tokens, monkeypatch, capsys):
    ascii_numbers = tokenizer.SPLIT_PATTERN.replace(r" ?\p{N}+", " ?[0-9]+").replace(r"\p{N}", "0-9")
    monkeypatch.setattr(tokenizer, "SPLIT_PATTERN", ascii_numbers)
    unlike = tokens.unlike_code_points()
    assert unlike["\u00b2"] == unlike["\u2160"] == unlike["\U0001d7d8"] == ("another sign", "a number")
    assert unlike.keys().isdisjoint("aZé日5! \n\u00a0\u0300")
    tokens.print_unlike(unlike)
    line = r"^U\+00B2..U\+00B3 +another sign +a number +SUPERSCRIPT TWO +2$"
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parity
def test_other_tokens_are_found_and_those_of_listed_code_points_counted_apart(tokens, monkeypatch):
    alphabets = {"English": ["It", "'s", "'ll", " ", "5"]}
    without_contractions = tokenizer.SPLIT_PATTERN.removeprefix(r"'(?:s|t|re|ve|m|ll|d)|")
    monkeypatch.setattr(tokenizer, "SPLIT_PATTERN", without_contractions)
    ours, theirs = tokens.both_of_folder(tokens.BUNDLED)
    counts, wrong = tokens.compare(ours, theirs, 100, 0, alphabets, set())
    assert counts[0] == 100 and counts[2] == len(wrong) > 0 and counts[3:] == [0, 0]
    assert all("'" in text for text in wrong)
    apart, none_wrong = tokens.compare(ours, theirs, 100, 0, alphabets, {"'"})
    assert none_wrong == [] and apart[3] >= apart[4] == len(wrong)


# soak.py --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_seconds_of_generation_and_two_processes_at_once_end_well():
    process = script("soak", "--minutes", "0.17", "--processes", "2")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.17 minutes", "memory", "seeds", "2 processes at once"]
    assert lines[-1].startswith("2 processes at once: 2 finished, 1 text, ")


@pytest.mark.slow
def test_a_process_that_fails_beside_others_is_told(imported, monkeypatch):
    soak = imported("soak")
    assert soak.start_at_once(0) == []
    monkeypatch.setattr(soak, "PROMPT", "word " * 600)
    (problem,) = soak.start_at_once(2)
    assert problem.startswith("2 of 2 processes failed: exit 2, ")


# supported_range.py ---------------------------------------------------------------------------------------------------


def test_the_lowest_versions_are_those_of_setup_cfg(imported):
    lowest = imported("supported_range").lowest_versions()
    assert {"numpy==1.26", "pytest==8"} <= set(lowest)
    assert all(re.fullmatch(r"\w+==\d+(\.\d+)*", requirement) for requirement in lowest)
