"""The READMEs, run: every command and every block of Python does what a reader would expect, and prints what is shown.

README.vi.md has the blocks of README.md, with other comments, so that they are run once. After a change of what is
printed, `python tests/test_readme.py` writes the outputs anew.
"""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outside import as_typed

ROOT = Path(__file__).parents[1]
ENGLISH, VIETNAMESE = "README.md", "README.vi.md"
# Beside the root's, those of the folders; a checkpoint's is its card.
FOLDERS = [path.relative_to(ROOT).as_posix() for folder in ("numpy_gpt2", "scripts")
           for path in sorted((ROOT / folder).rglob("README.md")) if path.parent.name != "fairytale"]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (ENGLISH, *FOLDERS, VIETNAMESE)}
# The exercises' commands build on each other and on what a student has written: tests/exercises runs them.
EXERCISES = "numpy_gpt2/exercises/README.md"
RUN = [name for name in PAGES if name not in (VIETNAMESE, EXERCISES)]
MOST_LINES = 220  # of the root's

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT),
               "PYTHONIOENCODING": "utf-8"}
NAMES_OF_THE_HUB = {"gpt2", "small", "medium", "large", "xl"}
INSTALLATION = ("python3 -m venv ", ". .venv/bin/activate", "pip install ", "pytest")  # .ci/run does this
FILES_OF_A_CHECKPOINT = ("merges.txt", "vocab.txt")  # a page may name these, here or not
QUICK_SCRIPTS = ("five_steps", "untied_twin")  # about a second each; whatever reads the whole story takes longer


def blocks(language, name):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[name], re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for name in RUN for block in blocks("sh", name) for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in shlex.join(shlex.split(line, comments=True)).split("'&&'")]
    return list(dict.fromkeys(part for part in parts if part))


def consoles():
    """Each command that is shown with its output, and the output."""
    return [tuple(block.removeprefix("$ ").split("\n", 1)) for name in RUN for block in blocks("console", name)]


def experiments():
    return re.findall(r"`(python scripts/experiments/[^`]+)`", PAGES["scripts/experiments/README.md"])


def transcripts():
    """Commands that were run by hand, and what they printed: they take too long to be run here."""
    return [line.removeprefix("$ ") for name in RUN for block in blocks("text", name) for line in block.splitlines()
            if re.match(r"\$ .*scripts/", line)]


def links(name):
    return re.findall(r"\]\(([^)\s]+)\)", PAGES[name])


def marked(commands):
    return [pytest.param(command, marks=pytest.mark.slow if "scripts/" in command
                         and not any(name in command for name in QUICK_SCRIPTS) else ())
            for command in commands]


def run(command, folder=ROOT):
    arguments = map(as_typed, shlex.split(command)[1:])
    if "--serve" in command:
        return run_until_it_serves(arguments, folder)
    return subprocess.run([sys.executable, *arguments], input=b"The king\n", capture_output=True, timeout=1800,
                          cwd=folder, env=ENVIRONMENT)


def run_until_it_serves(arguments, folder):
    """A command that would go on until Ctrl-C, which ends it as soon as it has said its address."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
                          env=ENVIRONMENT) as process:
        address = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    return subprocess.CompletedProcess(process.args, 0, address, errors)


def output(command):
    command = re.sub(r"\bpython\b", shlex.quote(sys.executable), command, count=1)
    process = subprocess.run(as_typed(command), shell=True, capture_output=True, timeout=120, cwd=ROOT, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    return process.stdout.decode("utf-8")


# Commands and their outputs -------------------------------------------------------------------------------------------


def test_commands_are_ones_that_are_run_here_or_by_ci():
    assert commands()
    for command in commands():
        assert command.startswith(("python -m numpy_gpt2", *INSTALLATION)), command
    assert consoles()
    for command, _ in consoles():
        assert re.match(r"((echo|printf) [^|]*\| )?python (-m numpy_gpt2\.|scripts/)[^|;&<>]*(\| (head|tail) -\d+)?$",
                        command), command
    scripts = {path.name for path in (ROOT / "scripts" / "experiments").glob("*.py")
               if "import experiment\n" in path.read_text(encoding="utf-8")}
    assert {command.split("/")[-1].split()[0] for command in experiments()} == scripts


@pytest.mark.parametrize("command", marked(command for command in commands() if command.startswith("python -m")))
def test_every_command_does_what_it_says(command, tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")  # the one folder that commands read from
    process = run(command, tmp_path)
    needs_the_hub = not NAMES_OF_THE_HUB.isdisjoint(shlex.split(command))
    if needs_the_hub and process.returncode == 1:
        assert b"HF_HUB_OFFLINE" in process.stderr and process.stderr.count(b"\n") == 1
    else:
        assert process.returncode == 0, process.stderr
        assert process.stdout or list(tmp_path.iterdir()) != [tmp_path / "scripts"]


@pytest.mark.parametrize("command, shown", consoles(), ids=[command for command, _ in consoles()])
def test_every_command_prints_the_output_that_is_shown(command, shown):
    printed = output(command)
    printed, shown = (re.sub(r"(\w\.py):\d+", r"\1:LINE", text) for text in (printed, shown))
    if re.search(r"score|step|--values|--log-probs", command):  # floats, the last digit of which is the machine's
        decimals = r"-?\d+\.\d+"
        assert re.sub(decimals, "#", printed) == re.sub(decimals, "#", shown)
        for ours, theirs in zip(re.findall(decimals, printed), re.findall(decimals, shown)):
            assert float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=2e-3)
    else:
        assert printed == shown


@pytest.mark.parametrize("command", marked(experiments()))
def test_every_experiment_runs(command):
    process = run(command)
    assert process.returncode == 0, process.stderr
    assert process.stdout


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "training" in name else ())
                                  for name in RUN if blocks("python", name)])
def test_the_blocks_of_python_of_a_page_run_in_one_session(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python", name):
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("command", transcripts())
def test_every_script_of_a_transcript_is_there_and_has_its_options(command):
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("scripts/"))
    files = (ROOT / script).glob("*.py") if (ROOT / script).is_dir() else [ROOT / script]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in code


# Links and names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(name):
    for link in links(name):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("name", [*RUN, VIETNAMESE])
def test_every_file_it_names_is_there(name):
    places = [ROOT, ROOT / "numpy_gpt2", (ROOT / name).parent]
    for file in re.findall(r"(?<![\w./-])((?:\w+/)*\w[\w.]*\.(?:py|md|cfg|txt))\b", PAGES[name]):
        assert file in FILES_OF_A_CHECKPOINT or any((place / file).exists() for place in places), file


@pytest.mark.parametrize("name", PAGES)
def test_every_law_it_names_is_a_test(name):
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for law in re.findall(r"`(test_\w+)`", PAGES[name]):
        assert f"def {law}(" in tests, law


def test_every_folder_s_page_and_picture_is_linked():
    linked = {((ROOT / name).parent / link).resolve() for name in RUN for link in links(name)}
    pictures = list((ROOT / "numpy_gpt2").rglob("*.png"))
    assert pictures
    for path in [*(ROOT / name for name in FOLDERS), *pictures]:
        assert path.resolve() in linked, path


def test_the_root_s_page_fits_on_a_few_screens():
    assert PAGES[ENGLISH].count("\n") <= MOST_LINES


@pytest.mark.parametrize("address", ["", "https://example.org/numpy_gpt2"])
def test_on_pypi_a_link_has_a_whole_address_or_is_words(address):
    page = runpy.run_path(str(ROOT / "setup.py"))["for_pypi"](PAGES[ENGLISH], address)
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert all(target.startswith(("#", "https://")) for target in targets)
    assert len(targets) == (len(links(ENGLISH)) if address else 0)
    assert (f"]({address}/raw/HEAD/numpy_gpt2/explore/pictures/attention.png)" in page) == bool(address)
    assert "`model.py`" in page


# Two languages --------------------------------------------------------------------------------------------------------


def without_comments(block):
    return [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]


@pytest.mark.parametrize("language", ["sh", "console", "python"])
def test_both_pages_have_the_same_blocks_but_for_comments(language):
    ours, theirs = ([without_comments(block) for block in blocks(language, name)] for name in (ENGLISH, VIETNAMESE))
    assert ours and ours == theirs


def test_both_pages_have_the_same_links():
    translated = {link.replace(".vi.md", ".md") for link in links(VIETNAMESE)}
    assert {link.replace(".vi.md", ".md") for link in links(ENGLISH)} == translated - {"#thuật-ngữ"}


def test_both_pages_have_as_many_sections():
    english, vietnamese = (re.findall(r"^#+ ", re.sub(r"^```.*?^```", "", PAGES[name], flags=re.MULTILINE | re.DOTALL),
                                      re.MULTILINE) for name in (ENGLISH, VIETNAMESE))
    assert len(english) + 1 == len(vietnamese)  # the glossary


def write_outputs():
    for name, page in PAGES.items():
        for block in blocks("console", name):
            command = block.removeprefix("$ ").split("\n", 1)[0]
            page = page.replace(block, f"$ {command}\n{output(command)}")
        (ROOT / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_outputs()
