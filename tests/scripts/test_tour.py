"""The tour: it runs as a script, cell by cell and as a notebook, and the notebook is made from the script."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "scripts" / "tour.py"
NOTEBOOK = TOUR.with_suffix(".ipynb")


def jupytext_options():
    """As a comment of setup.cfg has them. (Read when they are needed: a source distribution's has no comments.)"""
    options, = re.findall(r"jupytext (--to notebook .*) scripts/tour\.py$", (ROOT / "setup.cfg").read_text(),
                          re.MULTILINE)
    return options


def cells():
    """The cells of the script, each as its kind and its text: of code, or of what its comments say."""
    first, *parts = re.split(r"^# %%(.*)\n", TOUR.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first == ""
    for kind, text in zip(parts[::2], parts[1::2]):
        if kind == " [markdown]":
            yield "markdown", re.sub(r"^# ?", "", text.strip("\n"), flags=re.MULTILINE)
        else:
            yield "code", text.strip("\n")


CODE = [text for kind, text in cells() if kind == "code"]
PROSE = [text for kind, text in cells() if kind == "markdown"]


def test_the_notebook_has_the_cells_of_the_script_and_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == list(cells()), (
        f"make it again: jupytext {jupytext_options()} scripts/tour.py")
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_cells_of_text_teach_and_have_no_sign_that_markdown_swallows():
    titles = [re.match(r"## (\d+)\. ", text) for text in PROSE]
    numbers = [int(title[1]) for title in titles if title]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 10
    for text in PROSE:
        assert not re.search(r"[*_<]", re.sub(r"`[^`]*`", "", text)), text


@pytest.mark.slow
def test_every_cell_can_be_run_again(capsys):
    namespace = {}
    for code in CODE:
        compiled = compile(code, "a cell", "exec")
        exec(compiled, namespace)
        before = capsys.readouterr().out
        exec(compiled, namespace)
        assert capsys.readouterr().out == before
    for code in CODE[1:]:
        exec(code, namespace)  # and all of them once the last has run
    head = namespace["j"], namespace["i"]
    assert namespace["to_previous"][head[::-1]] == namespace["to_previous"].max() > 0.4
    assert len(namespace["patterns"][0, 0]) == 400


@pytest.mark.slow
def test_as_a_script_it_prints_its_headings_and_nothing_that_cannot_be_printed(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([sys.executable, TOUR], capture_output=True, timeout=300, cwd=tmp_path, env=env)
    assert (process.returncode, process.stderr) == (0, b"")
    text = process.stdout.decode()
    headings = re.findall(r"^(.*)\n-+$", text, re.MULTILINE)
    assert headings == [re.match(r"#+ (.*)", prose)[1] for prose in PROSE if prose.startswith("#")]
    assert "the same logits without a cache: True" in text
    assert all(character.isprintable() for character in text.replace("\n", "")) and "\ufffd" not in text
    assert not re.search(r"\\x[0-9a-f]{2}", text)


# Jupyter --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_makes_the_notebook(tmp_path):
    pytest.importorskip("jupytext", reason="needs the extra `notebook`")
    (tmp_path / "tour.py").write_bytes(TOUR.read_bytes())
    subprocess.run([sys.executable, "-m", "jupytext", *shlex.split(jupytext_options()), "tour.py"], cwd=tmp_path,
                   check=True, capture_output=True, timeout=60)
    made, kept = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "tour.ipynb", NOTEBOOK))
    for notebook in (made, kept):
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        for cell in notebook["cells"]:
            del cell["id"]  # at random
    assert made["cells"] == kept["cells"]


@pytest.mark.slow
def test_the_notebook_runs_from_end_to_end_and_shows_pictures(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebook`")
    pytest.importorskip("ipykernel", reason="needs the extra `notebook`")
    import nbformat
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "the same logits without a cache: True" in printed
    assert not re.search(r"^-+$", printed, re.MULTILINE)  # no heading twice
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    for sign in ("GPT2, 3,554,304 parameters", "Recorder: 112 arrays", "<svg ", "<iframe "):
        assert any(sign in text for text in shown), sign
