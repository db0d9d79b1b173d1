"""What command lines share: a mistake is one line that says what was probably meant."""

import os
import subprocess
import sys

import pytest

from numpy_gpt2 import __main__ as list_of_commands
from numpy_gpt2 import generate, score, tokens
from numpy_gpt2.cli.arguments import check_file
from numpy_gpt2.cli.exits import exit_status
from numpy_gpt2.exercises import __main__ as exercises
from numpy_gpt2.explore import __main__ as explore
from numpy_gpt2.step import __main__ as step
from numpy_gpt2.summary import __main__ as summary


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command's main function here; the exit status, standard output, standard error."""
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        status = exit_status(module.main)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("module", [generate, step, explore], ids=lambda module: module.__name__)
def test_a_prompt_without_quotation_marks_is_shown_with_them(command, module):
    status, out, err = command(module, "Once", "upon", "a", "time", "--model", "fairytale")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'the prompt must be one argument. Got 4: put quotation marks round it: "Once upon a time"' in err


def test_other_texts_and_what_is_no_text_are_told_apart(command):
    assert 'the text must be one argument. Got 2: put quotation marks round it: "Once upon"' in (
        command(tokens, "Once", "upon")[2])
    assert 'put quotation marks round it: "a \\"b\\"\\nc"' in command(generate, "a", '"b"\nc')[2]
    assert "one argument too many: 'king'" in command(score, "The", "king")[2]
    assert "one argument too many: 'b'" in command(exercises, "new", "a", "b")[2]


@pytest.mark.parametrize("module, arguments, meant", [
    (generate, ["Once", "--max-tokens", "5"], "--max-tokens: did you mean --max-new-tokens?"),
    (generate, ["--max_new_tokens=5", "Once"], "--max_new_tokens: did you mean --max-new-tokens?"),
    (generate, ["Once", "--temprature", "2"], "--temprature: did you mean --temperature?"),
    (exercises, ["check", "--jsn"], "--jsn: did you mean --json?"),
    (score, ["story.txt", "--tokns"], "--tokns: did you mean --tokens?"),
], ids=lambda value: str(value))
def test_an_unknown_option_is_told_the_nearest(command, module, arguments, meant):
    status, out, err = command(module, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"there is no option {meant}" in err


def test_an_option_like_none_is_told_none(command):
    status, _, err = command(generate, "Once", "--zzz", "5")
    assert status == 2 and "there is no option --zzz (see" in err


@pytest.mark.parametrize("module, arguments, what", [
    (summary, ["--model", "fairytale"], "model"), (summary, ["--model=fairytale"], "model"),
    (generate, ["--prompt", "Once"], "prompt"), (step, ["--prompt", "Once"], "prompt"),
    (tokens, ["--text", "Once"], "text"), (score, ["--file", "story.txt"], "file"),
], ids=lambda value: str(value))
def test_what_has_no_option_is_to_be_given_without_one(command, module, arguments, what):
    status, out, err = command(module, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"there is no option --{what}: give the {what} alone, without it" in err


def test_after_two_dashes_nothing_is_an_option(command):
    status, out, _ = command(generate, "--max-new-tokens", "0", "--", "--prompt")
    assert (status, out) == (0, "--prompt\n")


@pytest.mark.parametrize("name, near", [("fairytail", "fairytale"), ("meduim", "medium"), ("GPT2", "gpt2"),
                                        ("gpt2-small", None)])
def test_an_unknown_model_is_told_the_nearest(command, name, near):
    status, _, err = command(tokens, "Once", "--model", name)
    assert (status, err.count("\n")) == (2, 1)
    assert f"no checkpoint '{name}'" in err
    assert err.endswith(f"Did you mean {near}?\n" if near else "on the hub.\n")


@pytest.mark.parametrize("option, given, meant", [("--top-p", "90", "0.9"), ("--min-p", "5", "0.05")])
def test_a_percentage_is_told_as_a_fraction(command, option, given, meant):
    status, out, err = command(generate, "Once", option, given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"argument {option}: must be a fraction, at most 1. Got {given}: {given}% is {meant}" in err


def test_an_unknown_exercise_is_told_the_nearest(command):
    for words in (["check", "sotfmax"], ["hint", "sotfmax"]):
        status, out, err = command(exercises, *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "Got 'sotfmax'. Did you mean softmax" in err


@pytest.mark.parametrize("word, meant", [("generate", "numpy_gpt2.generate:"), ("bogus", "numpy_gpt2.NAME:")])
def test_a_command_after_a_space_is_told_to_come_after_a_dot(command, word, meant):
    status, out, err = command(list_of_commands, word, "Once upon a time")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"Got '{word}'" in err and meant in err


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_a_file_is_written_where_links_lead_unless_they_lead_in_a_circle(tmp_path):
    (tmp_path / "link.html").symlink_to("new.html")
    check_file("--html", tmp_path / "link.html", ".html")
    (tmp_path / "circle.html").symlink_to("circle.html")
    with pytest.raises(ValueError, match="--html must be a file in an existing folder"):
        check_file("--html", tmp_path / "circle.html", ".html")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_help_that_a_full_disk_does_not_take_is_exit_1():
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "numpy_gpt2.generate", "--help"], stdout=full,
                                 stderr=subprocess.PIPE, timeout=60)
    assert (process.returncode, process.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_the_list_of_commands_may_lose_its_reader():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([sys.executable, "-m", "numpy_gpt2"], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")
