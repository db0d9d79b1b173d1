"""`python -m numpy_gpt2.exercises`: new, check, hint, and how a class is marked."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from student_folders import NAMES, solved_folder, with_change

from numpy_gpt2.cli.exits import exit_status
from numpy_gpt2.exercises.__main__ import main
from numpy_gpt2.exercises.course import CHAPTERS, LANGUAGES, exercises_by_name
from numpy_gpt2.exercises.folders import new_folder

FIRST, SECOND = NAMES[:2]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line; the exit status, standard output, standard error."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["exercises", *map(str, arguments)])
        try:
            status = exit_status(main)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """The current folder, with one folder of stubs in it."""
    new_folder(tmp_path / "my_gpt2")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_gpt2"


def test_new_makes_a_file_for_each_chapter(command, tmp_path):
    status, out, err = command("new", tmp_path / "a b")
    assert (status, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == [f"{chapter}.py" for chapter in CHAPTERS]
    assert f"{len(CHAPTERS)} files of stubs. Begin with {CHAPTERS[0]}.py" in out


def test_new_refuses_an_existing_folder_and_one_nowhere(command, tmp_path):
    status, out, err = command("new", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "exists: name a new folder" in err
    status, out, err = command("new", tmp_path / "a" / "b")
    assert (status, err.count("\n")) == (2, 1)


def test_check_lists_every_exercise_and_what_to_do_next(command, stubs):
    status, out, err = command("check")
    assert (status, err) == (1, "")
    assert all(f" {name} " in out for name in NAMES)
    assert out.count("not written") == len(NAMES)
    assert f"0 of {len(NAMES)} passed.\nNext: {FIRST}, in " in out


def test_check_of_a_right_folder_exits_0(command, tmp_path):
    status, out, err = command("check", "--folder", solved_folder(tmp_path / "a"))
    assert (status, err) == (0, "")
    assert f"{len(NAMES)} of {len(NAMES)} passed.\nAll done." in out


def test_check_of_one_shows_the_smallest_failing_case(command, tmp_path):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "0.5 * x *", "0.6 * x *")
    status, out, err = command("check", "gelu", "--folder", folder)
    assert status == 1
    assert out.splitlines()[:3] == ["gelu: wrong", "Every number is 1.2 times what it should be.",
                                    "The smallest case that fails:"]
    assert "first difference = [0]: expected -0.158808 got -0.19057" in out
    assert command("check", "softmax", "--folder", folder)[:2] == (0, "softmax: passed\n")


def test_what_a_function_prints_is_told_where_it_is_asked_for(command, tmp_path):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "    inner =", "    print(x.shape)\n    inner =")
    status, out, err = command("check", "gelu", "--folder", folder)
    assert (status, err) == (0, "")
    assert out.startswith("gelu: passed\nIt printed 42 characters, beginning with: (4,)\\n(4, 5)")


def test_json_is_a_list_of_objects(command, tmp_path):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "0.5 * x *", "0.6 * x *")
    status, out, err = command("check", "--json", "--folder", folder)
    objects = json.loads(out)
    assert status == 1
    assert [set(result) for result in objects] == [{"exercise", "state", "message", "file", "seconds"}] * len(NAMES)
    assert {result["exercise"]: result["state"] for result in objects} \
        == {name: "wrong" if name == "gelu" else "passed" for name in NAMES}
    assert objects[0]["file"] == str(folder / f"{CHAPTERS[0]}.py")
    assert command("check", "--json", "--folder", solved_folder(tmp_path / "b"))[0] == 0


def test_csv_marks_a_class(command, tmp_path):
    right, stubs = solved_folder(tmp_path / "Anh, 12A"), tmp_path / "b"
    new_folder(stubs)
    command("hint", FIRST, "--folder", stubs)
    status, out, err = command("check", "--folder", right, "--folder", stubs, "--csv")
    header, *rows = csv.reader(io.StringIO(out.removeprefix("\ufeff")))
    assert status == 1
    assert header == ["folder", "passed", "total", "hints", *NAMES]
    n = len(NAMES)
    assert rows == [[str(right), str(n), str(n), "0", *["passed"] * n],
                    [str(stubs), "0", str(n), "1", *["not written"] * n]]


def test_a_row_is_printed_as_soon_as_its_folder_is_marked(command, tmp_path, monkeypatch, capsys):
    lines_before = []

    def check_nothing(folder, names, language):
        lines_before.append(capsys.readouterr().out.count("\n"))
        return []

    monkeypatch.setattr("numpy_gpt2.exercises.__main__.check_folder", check_nothing)
    for name in "abc":
        new_folder(tmp_path / name)
    command("check", "--csv", *[word for name in "abc" for word in ("--folder", tmp_path / name)])
    assert lines_before == [1, 1, 1]


def test_each_hint_goes_one_step_further_and_is_counted(command, stubs):
    hints = exercises_by_name()[SECOND].hints
    outputs = [command("hint", SECOND)[1] for _ in range(4)]
    assert [hints[i]["en"] in output for i, output in zip([0, 1, 2, 2], outputs)] == [True] * 4
    assert ["last hint" in output for output in outputs] == [False, False, True, True]
    assert json.loads((stubs / ".hints").read_text()) == {SECOND: 3}
    (stubs / ".hints").write_text("[nonsense")
    assert hints[0]["en"] in command("hint", SECOND)[1]


def test_vietnamese(command, stubs):
    status, out, err = command("check", "--language", "vi")
    assert (status, out.count("chưa viết")) == (1, len(NAMES))
    assert all(exercise.title["vi"] in out for exercise in exercises_by_name().values())
    assert exercises_by_name()[FIRST].hints[0]["vi"] in command("hint", FIRST, "--language", "vi")[1]
    assert json.loads(command("check", FIRST, "--json", "--language", "vi")[1])[0]["state"] == "not written"


@pytest.mark.parametrize("arguments, message", [
    (["check", "sofmax"], "the name must be an exercise's. Got 'sofmax'. Did you mean softmax or "),
    (["hint", "Attenton"], "the name must be an exercise's. Got 'Attenton'. Did you mean attention"),
    (["check", "what"], "the name must be an exercise's. Got 'what'. There are decode, merge, "),
    (["check", "--folder", "nowhere"], "--folder must be a folder that `new` has made. Got 'nowhere', which is no "),
    (["check", "--folder", "empty"], "Got 'empty', which has no chapter_1_tokens.py or other chapter."),
    (["run", "--folder", "empty"], "Got 'empty', which has no chapter_1_tokens.py or other chapter."),
    (["check", "--folder", "empty", "--folder", "my_gpt2", "--folder", "nowhere"], "chapter. --folder must be a folder "
     "that `new` has made. Got 'nowhere', which is no folder."),
    (["check", "--language", "fr"], "argument --language: invalid choice: 'fr'"),
    (["check", "--json", "--csv"], "not allowed with argument"),
    ([], "the following arguments are required: COMMAND"),
])
def test_bad_input_is_one_line_and_exit_2(command, stubs, arguments, message):
    (stubs.parent / "empty").mkdir()
    status, out, err = command(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_folder_is_the_current_one_or_the_only_one_in_it(command, stubs, monkeypatch):
    monkeypatch.chdir(stubs)
    assert command("check", FIRST)[0] == 1
    monkeypatch.chdir(stubs.parent)
    new_folder(stubs.parent / "other")
    status, out, err = command("check")
    assert (status, err.count("\n")) == (2, 1)
    assert ". has several folders of exercises, my_gpt2, other: choose one with --folder" in err
    (stubs.parent / "an").mkdir()
    stubs.rename(stubs.parent / "an" / "my_gpt2")
    row = command("check", FIRST, "--folder", "an", "--csv")[1].splitlines()[1]
    assert row == f"{Path('an', 'my_gpt2')},0,1,0,not written"
    (stubs.parent / "empty").mkdir()
    monkeypatch.chdir(stubs.parent / "empty")
    assert "no exercises here: make them with" in command("check")[2]


def test_help_names_every_command(command):
    out = command("--help")[1]
    assert all(name in out for name in ["new", "check", "hint", "run"])
    assert set(LANGUAGES) == {"en", "vi"}
