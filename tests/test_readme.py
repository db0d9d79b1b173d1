"""The README, run: every command and every block of Python in it does what a reader would expect, prints what it shows.

README.vi.md has the same blocks, which is tested, so that they are run once.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VIETNAMESE = (ROOT / "README.vi.md").read_text(encoding="utf-8")
CARD = (ROOT / "numpy_gpt2" / "fairytale" / "README.md").read_text(encoding="utf-8")


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT),
               "PYTHONIOENCODING": "utf-8"}
NAMES_OF_THE_HUB = {"gpt2", "small", "medium", "large", "xl"}
QUICK_SCRIPTS = ("five_steps", "untied_twin")  # about a second each; whatever reads the whole story takes longer


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [part.strip() for line in lines for part in shlex.join(shlex.split(line, comments=True)).split("'&&'")]


def consoles():
    """Each command that is shown with its output, and the output."""
    return [block.removeprefix("$ ").split("\n", 1) for block in blocks("console")]


def experiments():
    return re.findall(r"`(python scripts/experiments/[^`]+)`", README)


def transcripts(page=README):
    """What was run by hand, and what it printed: it takes too long to be run here."""
    return [block for block in blocks("text", page) if block.startswith("$ ")]


def prose(page):
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def marked(commands):
    return [pytest.param(command, marks=pytest.mark.slow if "scripts/" in command
                         and not any(name in command for name in QUICK_SCRIPTS) else ())
            for command in commands]


def run(command):
    return subprocess.run([sys.executable, *shlex.split(command)[1:]], input=b"The king\n", capture_output=True,
                          timeout=600, cwd=ROOT, env=ENVIRONMENT)


def test_commands_are_ones_that_are_run_here_or_by_ci():
    assert commands()
    for command in commands():
        assert command.startswith(("python -m numpy_gpt2.", "pip install ", "pytest")), command
    assert consoles()
    for command, _ in consoles():
        assert re.match(r"((echo|printf) [^|]*\| )?python -m numpy_gpt2\.[^|;&<>]*(\| (head|tail) -\d+)?$",
                        command), command
    scripts = {path.name for path in (ROOT / "scripts" / "experiments").glob("*.py")
               if "import experiment\n" in path.read_text(encoding="utf-8")}
    assert {command.split("/")[-1].split()[0] for command in experiments()} == scripts


@pytest.mark.parametrize("command", marked(command for command in commands() if command.startswith("python -m")))
def test_every_command_does_what_it_says(command, tmp_path):
    page = tmp_path / "explore.html"
    process = run(command.replace("explore.html", str(page)))
    needs_the_hub = not NAMES_OF_THE_HUB.isdisjoint(shlex.split(command))
    if needs_the_hub and process.returncode == 1:
        assert b"HF_HUB_OFFLINE" in process.stderr and process.stderr.count(b"\n") == 1
    else:
        assert process.returncode == 0, process.stderr
        assert page.exists() if "explore" in command else process.stdout


@pytest.mark.parametrize("command, output", consoles(), ids=[command for command, _ in consoles()])
def test_every_command_prints_the_output_that_is_shown(command, output):
    command = command.replace("python -m", f"{shlex.quote(sys.executable)} -m")
    process = subprocess.run(command, shell=True, capture_output=True, timeout=120, cwd=ROOT, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    printed = process.stdout.decode("utf-8")
    printed, output = (re.sub(r"model\.py:\d+", "model.py:LINE", text) for text in (printed, output))
    if re.search(r"score|step|--values", command):  # computed in floats, the last digit of which is the machine's
        decimals = r"-?\d+\.\d+"
        assert re.sub(decimals, "#", printed) == re.sub(decimals, "#", output)
        for ours, shown in zip(re.findall(decimals, printed), re.findall(decimals, output)):
            assert float(ours) == pytest.approx(float(shown), rel=1e-3, abs=2e-3)
    else:
        assert printed == output


@pytest.mark.parametrize("command", marked(experiments()))
def test_every_experiment_runs(command):
    process = run(command)
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_every_block_of_python_runs_in_one_session(capsys):
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "(6, " in capsys.readouterr().out  # the shape of the recorded pattern


@pytest.mark.parametrize("page", [README, VIETNAMESE], ids=["en", "vi"])
def test_every_file_it_names_is_there(page):
    names = set(re.findall(r"(?<![\w./])((?:\w+/)*\w[\w.]*\.(?:py|md|cfg|txt))\b", page))
    assert "README.md" in names or "README.vi.md" in names
    for name in names - {"merges.txt"}:
        assert any((ROOT / folder / name).exists() for folder in ("", "numpy_gpt2")), name


@pytest.mark.parametrize("page", [README, VIETNAMESE], ids=["en", "vi"])
def test_every_law_it_names_is_a_test(page):
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    laws = re.findall(r"`(test_\w+)`", page)
    assert laws
    for law in laws:
        assert f"def {law}(" in tests, law


@pytest.mark.parametrize("language", ["sh", "console", "python"])
def test_both_pages_have_the_same_blocks(language):
    assert blocks(language, VIETNAMESE) == blocks(language)


def test_both_pages_have_the_same_transcripts():
    assert len(transcripts()) > 2
    assert transcripts(VIETNAMESE) == transcripts()


@pytest.mark.parametrize("command", [line.removeprefix("$ ") for block in transcripts() for line in block.splitlines()
                                     if re.match(r"\$ .*scripts/", line)])
def test_every_script_of_a_transcript_is_there_and_has_its_options(command):
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("scripts/"))
    files = (ROOT / script).glob("*.py") if (ROOT / script).is_dir() else [ROOT / script]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in code


def test_each_page_links_to_the_other_at_its_top():
    assert "](README.vi.md)" in README[:200]
    assert "](README.md)" in VIETNAMESE[:200]


def test_the_vietnamese_page_has_every_name_and_number_of_this_page():
    codes = r"`([^`]+)`"
    names = {" ".join(name.split()) for name in re.findall(codes, prose(README))}
    assert names <= {" ".join(name.split()) for name in re.findall(codes, prose(VIETNAMESE))}
    numbers = r"\d[\d.,]*\d"
    assert set(re.findall(numbers, prose(README))) <= set(re.findall(numbers, prose(VIETNAMESE)))


def test_both_pages_have_as_many_sections_and_rows():
    english, vietnamese = ([line for line in prose(page).splitlines() if line.startswith("#")]
                           for page in (README, VIETNAMESE))
    assert len(english) + 1 == len(vietnamese)  # the glossary
    glossary = re.search(r"^## Thuật ngữ\n.*?(?=^## )", VIETNAMESE, re.MULTILINE | re.DOTALL).group(0)
    assert prose(README).count("\n|") == prose(VIETNAMESE.replace(glossary, "")).count("\n|")


def test_every_count_in_the_prose_stands_in_an_output():
    shown = "".join(blocks("console")) + CARD
    for number in re.findall(r"\d[\d,]*,\d{3}|\d\.\d{3}%", prose(README)):
        assert number in shown, number


def test_the_checkpoint_s_figures_are_its_card_s():
    bits = re.search(r"it needs ([\d.]+) bits per byte", re.sub(r"\s+", " ", README)).group(1)
    parameters = re.search(r"`fairytale` is a GPT-2 of ([\d,]+) parameters", README).group(1)
    assert f"| held-out bits per byte | {bits} " in CARD
    assert f"| parameters | {parameters} " in CARD
