"""What a Windows machine has otherwise, one by one: no POSIX calls, another console encoding, other line ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from outside import as_typed
from student_folders import NAMES, solved_folder, with_change

from numpy_gpt2.exercises.course import CHAPTERS
from numpy_gpt2.exercises.isolation import check_folder

ROOT = Path(__file__).parents[2]
# Run by every Python that starts. Popen itself needs os.kill, os.waitpid and SIGKILL here.
WITHOUT_POSIX = """
import os, signal, sys
for name in ["fork", "forkpty", "setsid", "getuid", "geteuid", "killpg", "mkfifo", "nice", "wait"]:
    delattr(os, name)
for name in ["SIGALRM", "SIGXCPU", "alarm", "setitimer", "pthread_kill"]:
    delattr(signal, name)
for name in ["resource", "fcntl", "pwd", "grp", "pty", "termios", "tty", "multiprocessing"]:
    sys.modules[name] = None
"""


@pytest.fixture
def command(tmp_path):
    """Run the command in a process without the POSIX calls, whose console has no Vietnamese letters."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_POSIX)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}", "PYTHONIOENCODING": "cp1252",
                   "PYTHONUTF8": "1"}

    def run(*arguments):
        process = subprocess.run([sys.executable, "-m", "numpy_gpt2.exercises", *map(str, arguments)], env=environment,
                                 cwd=tmp_path, capture_output=True, timeout=120)
        return process.returncode, process.stdout, process.stderr

    return run


def test_every_command_works_without_what_windows_lacks(command, tmp_path):
    assert command("new", as_typed("Ánh"))[0] == 0
    status, out, err = command("hint", "merge", "--folder", as_typed("Ánh"), "--language", "vi")
    assert (status, err) == (0, b"") and b"?" in out  # a letter that the console does not have
    folder = solved_folder(tmp_path / as_typed("bài tập"))
    with_change(folder, "gelu", "    inner =", "    import os; os._exit(3)\n    inner =")
    status, out, err = command("check", "--folder", folder, "--json", "--language", "vi")
    assert (status, err) == (1, b"")
    assert {result["exercise"]: result["message"].startswith("đạt") for result in json.loads(out.decode("utf-8"))} \
        == {name: name != "gelu" for name in NAMES}
    status, out, err = command("run", "--folder", folder, "--max-new-tokens", "1")
    assert (status, err) == (0, b"")
    assert b"Left out (the engine's are used instead): gelu. Python ended while it ran (exit 3)" in out
    assert out.count(b"The engine writes the same.") == 2


def test_a_class_with_vietnamese_names_is_a_table_that_excel_takes_for_utf_8(command, tmp_path):
    solved_folder(tmp_path / as_typed("Ánh"))
    status, out, err = command("check", "linear", "--folder", as_typed("Ánh"), "--csv")
    assert (status, err) == (0, b"")
    assert out.startswith(b"\xef\xbb\xbf")
    assert out.decode("utf-8-sig").splitlines() == ["folder,passed,total,hints,linear", "Ánh,1,1,0,passed"]


@pytest.mark.parametrize("end, mark", [(b"\r\n", b""), (b"\r\n", b"\xef\xbb\xbf")])
def test_line_ends_byte_order_marks_and_letters_in_the_path_do_not_matter(tmp_path, end, mark):
    folder = solved_folder(tmp_path / as_typed("bài tập của Ánh"))
    for chapter in CHAPTERS:
        path = folder / f"{chapter}.py"
        path.write_bytes(mark + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end))
    assert {result.state for result in check_folder(folder, NAMES)} == {"passed"}
