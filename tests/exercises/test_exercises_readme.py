"""The READMEs of the exercises name every exercise, the minutes of each chapter, and commands that there are."""

import re
from pathlib import Path

import numpy as np
import pytest

import numpy_gpt2.exercises
from numpy_gpt2.exercises.__main__ import make_parser
from numpy_gpt2.exercises.course import CHAPTERS, chapter_titles, exercises_by_name, read_texts

FOLDER = Path(numpy_gpt2.exercises.__file__).parent
LANGUAGE_OF = {"README.md": "en", "README.vi.md": "vi"}


@pytest.mark.parametrize("name", LANGUAGE_OF)
def test_the_table_of_chapters_is_that_of_the_course(name):
    rows = [f"| {i} {chapter_titles()[chapter][LANGUAGE_OF[name]]} | "
            + " ".join(f"`{exercise.name}`" for exercise in exercises)
            + f" | {sum(exercise.minutes for exercise in exercises)} |"
            for i, chapter in enumerate(CHAPTERS, 1) for exercises in [read_texts(chapter)[1]]]
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert all(row in text for row in rows)


@pytest.mark.parametrize("name", LANGUAGE_OF)
def test_the_plan_of_ten_weeks_names_only_exercises_of_the_course(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    weeks = re.findall(r"^\| \d+ \| [\d, ]+ \| (.*?) \|", text, re.MULTILINE)
    assert len(weeks) == 10
    assert set(re.findall(r"`(\w+)`", " ".join(weeks))) <= set(exercises_by_name())


@pytest.mark.parametrize("name", LANGUAGE_OF)
def test_every_command_shown_is_understood(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    commands = re.findall(r"python -m numpy_gpt2\.exercises ([^`\n#>]*)", text)
    assert len(commands) >= 6
    for command in commands:
        make_parser().parse_args(re.findall(r'"[^"]*"|\S+', command))


def test_the_failing_case_shown_is_what_a_check_prints():
    def softmax(x, out=None):
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    shown = f"softmax: wrong\n{numpy_gpt2.exercises.check('softmax', softmax).message}\n"
    assert f"```\n{shown}```" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_number_of_exercises_is_said():
    assert len(exercises_by_name()) == 36
    assert "Thirty-six functions in eight chapters" in (FOLDER / "README.md").read_text(encoding="utf-8")
