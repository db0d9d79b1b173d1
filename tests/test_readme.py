"""The README, run: every command and every block of Python in it does what a reader would expect."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "numpy_gpt2" / "checkpoints" / "fairytale" / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [part.strip() for line in lines for part in shlex.join(shlex.split(line, comments=True)).split("'&&'")]


def test_commands_are_ones_that_are_run_here_or_by_ci():
    assert commands()
    for command in commands():
        assert command.startswith(("python -m numpy_gpt2.", "pip install ", "pytest")), command


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("python -m")])
def test_every_command_does_what_it_says(command):
    arguments = shlex.split(command)
    needs_the_hub = "gpt2" in arguments
    process = subprocess.run([sys.executable, *arguments[1:]], input=b"The king\n", capture_output=True, timeout=120,
                             env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if needs_the_hub and process.returncode == 1:
        assert b"HF_HUB_OFFLINE" in process.stderr and process.stderr.count(b"\n") == 1
    else:
        assert process.returncode == 0, process.stderr
        assert process.stdout


def test_every_block_of_python_runs_in_one_session(capsys):
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "(6, " in capsys.readouterr().out  # the shape of the recorded pattern


def test_every_file_it_names_is_there():
    names = set(re.findall(r"\b((?:numpy_gpt2/|scripts/|tests/)?[\w/]+\.(?:py|md|cfg))\b", README))
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "numpy_gpt2" / name).exists(), name


def test_every_law_it_names_is_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for law in re.findall(r"`(test_\w+)`", README):
        assert f"def {law}(" in tests, law


def test_the_checkpoint_s_figures_are_its_card_s():
    bits = re.search(r"it needs ([\d.]+) bits per byte", re.sub(r"\s+", " ", README)).group(1)
    parameters = re.search(r"`fairytale` is a GPT-2 of ([\d,]+) parameters", README).group(1)
    assert f"| held-out bits per byte | {bits} " in CARD
    assert f"| parameters | {parameters} " in CARD
