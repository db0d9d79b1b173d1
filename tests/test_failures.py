"""Every command through what may be wrong with a model or with its start: a result or one line, never a traceback."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numpy_gpt2
from numpy_gpt2 import GPT2Config, build_model, generate, named_parameters, random_model, save, score
from numpy_gpt2.cli.exits import exit_status
from numpy_gpt2.explore import __main__ as explore
from numpy_gpt2.step import __main__ as step
from numpy_gpt2.summary import __main__ as summary

BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
COMMANDS = {
    "generate": (generate, ["Once", "--max-new-tokens", "2"]),
    "generate --greedy": (generate, ["Once", "--max-new-tokens", "2", "--greedy"]),
    "score": (score, ["story.txt"]),
    "score --tokens": (score, ["story.txt", "--tokens"]),
    "step": (step, ["Once", "--until", "logits"]),
    "step --next": (step, ["Once", "--next"]),
    "explore": (explore, ["Once"]),
    "summary --values": (summary, ["--values", "--tying"]),
    "summary --text": (summary, ["--text", "story.txt"]),
}
WEIGHTS = {"NaN": np.nan, "infinite": np.inf, "so large that they overflow": 1e37}


def folder_of(path, config, factor=1.0):
    """A checkpoint with the bundled vocabulary, its random weights multiplied."""
    arrays = {name: array * np.float32(factor) for name, array in named_parameters(random_model(config))}
    save(build_model(config, arrays), path)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(BUNDLED / name, path)
    return str(path)


def run(command, model, tmp_path, monkeypatch):
    """The exit status of a command, in this process."""
    module, arguments = COMMANDS[command]
    (tmp_path / "story.txt").write_text("The king said no.")
    monkeypatch.chdir(tmp_path)
    commands = open(os.devnull)
    monkeypatch.setattr(sys, "stdin", commands)
    place = [model] if module is summary else ["--model", model]
    monkeypatch.setattr(sys, "argv", ["numpy_gpt2", *place, *arguments])
    return exit_status(module.main)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_are_no_numbers_are_one_line(tmp_path, monkeypatch, capfd, command, weights):
    model = folder_of(tmp_path / "model", GPT2Config(4096, 16, 8, 1, 2), WEIGHTS[weights])
    status = run(command, model, tmp_path, monkeypatch)
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("model:", "note:"))]
    if (command, weights) == ("summary --values", "so large that they overflow"):
        assert (status, errors) == (0, [])  # they have statistics all the same
    else:
        assert status == 1 and len(errors) == 1
        assert errors[0].startswith("error: ") and "not finite" in errors[0]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "summary --values"])
def test_fewer_ids_than_the_tokenizer_has_are_one_line(tmp_path, monkeypatch, capfd, command):
    model = folder_of(tmp_path / "model", GPT2Config(200, 16, 8, 1, 2))
    status = run(command, model, tmp_path, monkeypatch)
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("model:", "note:"))]
    assert status in (1, 2) and len(errors) == 1 and errors[0].startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "score", "step", "explore", "summary", "tokens"])
def test_python_without_docstrings_and_asserts_changes_nothing(tmp_path, name):
    (tmp_path / "story.txt").write_text("The king said no.")
    arguments = {"summary": ["--sizes"], "score": ["story.txt"]}.get(name, ["The king"])
    if name == "generate":
        arguments += ["--seed", "1", "--max-new-tokens", "5"]
    outputs = []
    for flags in ([], ["-OO"]):
        process = subprocess.run([sys.executable, *flags, "-m", f"numpy_gpt2.{name}", *arguments], cwd=tmp_path,
                                 env={**os.environ, "PYTHONPATH": str(BUNDLED.parents[1])}, stdin=subprocess.DEVNULL,
                                 capture_output=True, timeout=120)
        outputs.append((process.returncode, process.stdout))
    assert outputs[0] == outputs[1] and outputs[0][0] == 0


# Ctrl-C while the modules are imported --------------------------------------------------------------------------------


def interrupted_import(tmp_path, *command):
    """The command, whose import of tiktoken, one of the last, is where Ctrl-C comes."""
    (tmp_path / "tiktoken.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(BUNDLED.parents[1])])}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, timeout=60,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("command", [["-m", "numpy_gpt2.generate"], ["-mnumpy_gpt2.score", "x"], ["-m", "numpy_gpt2"]])
def test_ctrl_c_during_the_imports_of_a_command_is_status_130_and_no_traceback(tmp_path, command):
    process = interrupted_import(tmp_path, *command)
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_during_the_import_of_the_library_is_the_program_s_own(tmp_path):
    process = interrupted_import(tmp_path, "-c", "try: import numpy_gpt2\nexcept KeyboardInterrupt: print('mine')")
    assert (process.returncode, process.stdout, process.stderr) == (0, b"mine\n", b"")
