"""Whatever a student's file does, the check goes on, and says it in a line."""

import sys

import pytest
from student_folders import NAMES, solved_folder, with_change

from numpy_gpt2.exercises.course import CHAPTERS, exercises_by_name, mistaken_source
from numpy_gpt2.exercises.folders import new_folder
from numpy_gpt2.exercises.isolation import check_exercise, check_folder

GELU = "    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)\n"


def states(results):
    return {result.exercise: result.state for result in results}


def result_of(results, name):
    return next(result for result in results if result.exercise == name)


def with_body(folder, body):
    """gelu with other lines at its beginning."""
    return with_change(folder, "gelu", GELU, body + GELU)


def test_a_right_folder_passes(tmp_path):
    results = check_folder(solved_folder(tmp_path / "a"), NAMES)
    assert states(results) == {name: "passed" for name in NAMES}
    assert all(result.seconds < 1 for result in results)


def test_untouched_stubs_are_not_written(tmp_path):
    new_folder(tmp_path / "a")
    assert states(check_folder(tmp_path / "a", NAMES)) == {name: "not written" for name in NAMES}


@pytest.mark.parametrize("body, message", [
    ("    while True: pass\n", "It did not finish within 2 seconds: is there an endless loop?"),
    ("    exit()\n", "It called exit()."),
    ("    import os; os._exit(3)\n", "Python ended while it ran (exit 3): did it call os._exit, or need too much "
                                     "memory?"),
    ("    undefined\n", "It raised NameError: name 'undefined' is not defined (line 38)."),
    ("    return gelu(x)\n", "It raised RecursionError: maximum recursion depth exceeded"),
])
def test_a_function_that_misbehaves_is_a_line_and_harms_no_other(tmp_path, body, message):
    results = check_folder(with_body(solved_folder(tmp_path / "a"), body), ["softmax", "gelu", "linear"], limit=2)
    assert states(results) == {"softmax": "passed", "gelu": "wrong", "linear": "passed"}
    assert result_of(results, "gelu").message.split("\n")[0].startswith(message)


def test_megabytes_of_output_are_a_line(tmp_path):
    body = "    import os\n    print('ab' * 10**6); os.write(1, b'x' * 10**6)\n"
    result, = check_folder(with_body(solved_folder(tmp_path / "a"), body), ["gelu"])
    assert result.state == "passed"
    assert result.message.split("\n")[1].startswith("It printed 10,000,005 characters, beginning with: abab")
    assert len(result.message) < 400


@pytest.mark.parametrize("line, message", [
    ("import nowhere_to_be_found\n", "chapter_2_operations.py cannot be loaded: ModuleNotFoundError: No module named "
                                     "'nowhere_to_be_found' (line 11)"),
    ("exit()\n", "chapter_2_operations.py cannot be loaded: SystemExit: None (line 11)"),
    ("while True: pass\n", "It did not finish within 2 seconds"),
])
def test_a_file_that_cannot_be_loaded_is_a_line_and_harms_no_other_file(tmp_path, line, message):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "import numpy as np\n\n\ndef softmax",
                         line + "import numpy as np\n\n\ndef softmax")
    results = check_folder(folder, ["softmax", "gelu", "embed"], limit=2)
    assert states(results) == {"softmax": "wrong", "gelu": "wrong", "embed": "passed"}
    assert result_of(results, "gelu").message.startswith(message)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_syntax_error_is_the_one_functions_and_the_others_of_its_file_say_why_they_cannot_be_read(tmp_path, end):
    folder = with_body(solved_folder(tmp_path / "a"), "    if x\n")
    file = folder / "chapter_2_operations.py"
    file.write_bytes(file.read_text(encoding="utf-8").replace("\n", end).encode())
    results = check_folder(folder, ["softmax", "gelu", "layer_norm", "embed"])
    assert states(results) == {"softmax": "wrong", "gelu": "wrong", "layer_norm": "wrong", "embed": "passed"}
    place = "chapter_2_operations.py line 38: expected ':'"
    assert result_of(results, "gelu").message == place
    for name in ("softmax", "layer_norm"):
        assert result_of(results, name).message \
            == f"No function of this file can be read until this is fixed: {place}"


@pytest.mark.parametrize("data", [b"# Ng\xb5y mai\n", b"\n" * 9 + b"# Ng\xb5y mai\n", "x = 1\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_a_line(tmp_path, data):
    new_folder(tmp_path / "a")
    (tmp_path / "a" / "chapter_2_operations.py").write_bytes(data)
    result, = check_folder(tmp_path / "a", ["gelu"])
    assert (result.state, result.message) \
        == ("wrong", "chapter_2_operations.py is not UTF-8 text: let your editor save it as UTF-8.")


def test_a_file_may_say_its_own_encoding(tmp_path):
    folder = solved_folder(tmp_path / "a")
    file = folder / "chapter_2_operations.py"
    file.write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n" + file.read_bytes())
    assert states(check_folder(folder, ["gelu"])) == {"gelu": "passed"}


def test_the_engines_function_in_place_of_ones_own_is_wrong(tmp_path):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "def gelu", "from numpy_gpt2.ops import gelu\n"
                         "def not_gelu")
    results = check_folder(folder, ["softmax", "gelu"])
    assert states(results) == {"softmax": "passed", "gelu": "wrong"}
    assert result_of(results, "gelu").message.startswith("It calls the engine's own gelu")


def test_a_missing_file_and_a_missing_function_are_not_written(tmp_path):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "def gelu", "def gelo")
    (folder / "chapter_3_forward_pass.py").unlink()
    results = check_folder(folder, ["softmax", "gelu", "embed"])
    assert states(results) == {"softmax": "passed", "gelu": "not written", "embed": "not written"}
    assert [result.message for result in results[1:]] == ["gelu is not in chapter_2_operations.py.",
                                                          "chapter_3_forward_pass.py is not in the folder."]


def test_nothing_is_written_to_a_students_folder(tmp_path):
    folder = solved_folder(tmp_path / "a")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    check_folder(folder, NAMES)
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def mistaken_folder(folder, exercise, mistake):
    """All right, but for one known mistake."""
    (solved_folder(folder) / exercise.file).write_text(mistaken_source(exercise, mistake), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_known_mistake_changes_no_other_exercises_state(tmp_path, monkeypatch, name):
    exercise = exercises_by_name()[name]
    in_file = [other for other in exercises_by_name().values() if other.chapter == exercise.chapter]
    for i, mistake in enumerate(exercise.mistakes):
        folder = mistaken_folder(tmp_path / str(i), exercise, mistake)
        with monkeypatch.context() as patch:  # check_exercise puts a stand-in there
            patch.setattr(sys, "stdout", sys.stdout)
            patch.setattr(sys, "stderr", sys.stderr)
            results = [check_exercise(folder, other, "en", lambda event: None) for other in in_file]
        assert states(results) == {other.name: "wrong" if other is exercise else "passed" for other in in_file}
        assert result_of(results, name).message.split("\n")[0] == mistake.text["en"]


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_known_mistake_changes_no_state_in_any_file(tmp_path, chapter):
    exercise = next(exercise for exercise in exercises_by_name().values() if exercise.chapter == chapter)
    results = check_folder(mistaken_folder(tmp_path / "a", exercise, exercise.mistakes[0]), NAMES)
    assert states(results) == {name: "wrong" if name == exercise.name else "passed" for name in NAMES}


def test_something_that_cannot_be_looked_at_is_a_line(tmp_path):
    body = ("    class Strange(np.ndarray):\n        def __array_finalize__(self, other): pass\n"
            "        def __eq__(self, other): raise OSError('no')\n    return x.view(Strange)\n")
    results = check_folder(with_body(solved_folder(tmp_path / "a"), body), ["softmax", "gelu", "linear"])
    assert states(results) == {"softmax": "passed", "gelu": "wrong", "linear": "passed"}
