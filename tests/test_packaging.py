"""The wheel and the sdist, built from a copy of this tree, installed, and run outside it. No network is needed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache",
                                  ".hypothesis", "mutants")
KINDS = ["wheel", "sdist"]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
# Each command, and what its output holds.
COMMANDS = {
    "generate": (["Once upon a time", "--seed", "1"], "Once upon a time"),
    "step": (["Once upon a time", "--until", "h.3.attn.pattern"], "h.3.attn.pattern = softmax(scores)"),
    "explore": (["Once upon a time", "-o", "page.html"], ""),
    "tokens": (["Once upon a time", "--merges"], '"Once"'),
    "summary": ([], "3,554,304 parameters"),
    "score": (["story.txt", "--html", "story.html"], "perplexity"),
    "exercises": (["new", "my_gpt2"], "files of stubs"),
}


def run(*command, **options):
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8", timeout=300,
                             **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """{"wheel": path, "sdist": path}"""
    setuptools = pytest.importorskip("setuptools", "70.1", reason="needs setuptools, of the extra `test`")
    assert setuptools
    folder = tmp_path_factory.mktemp("packages")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    for kind in KINDS:
        run(sys.executable, "-c", BUILD, kind, folder, cwd=source)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=KINDS)
def installed(request, packages, tmp_path_factory):
    """A folder with nothing but the package in it, and the environment in which Python imports it from there."""
    folder = tmp_path_factory.mktemp(request.param)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--target", folder, packages[request.param])
    return folder, {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_where_the_tree_is_not(installed, tmp_path, name):
    folder, env = installed
    (tmp_path / "story.txt").write_text("Once upon a time there was a king who had three daughters.")
    arguments, shown = COMMANDS[name]
    output = run(sys.executable, "-m", f"numpy_gpt2.{name}", *arguments, cwd=tmp_path, env=env, input="quit\n")
    assert shown in output
    assert name != "explore" or (tmp_path / "page.html").stat().st_size > 50_000


def test_the_package_is_the_installed_one_and_whole(installed, tmp_path):
    folder, env = installed
    found = run(sys.executable, "-c", "import numpy_gpt2; print(numpy_gpt2.__file__)", cwd=tmp_path, env=env)
    assert Path(found.strip()).parent == folder / "numpy_gpt2"
    package = ROOT / "numpy_gpt2"
    wanted = {path.relative_to(package) for path in package.rglob("*") if path.is_file()
              and not path.suffix == ".pyc" and not {"pictures", ".ipynb_checkpoints"} & set(path.parts)
              and (path.name != "README.md" or path.parent.name in ("fairytale", "exercises"))}
    there = {path.relative_to(folder / "numpy_gpt2") for path in (folder / "numpy_gpt2").rglob("*") if path.is_file()}
    assert {path for path in there if path.suffix != ".pyc"} == wanted
    assert "numpy_gpt2" in run(sys.executable, "-m", "numpy_gpt2", cwd=tmp_path, env=env)


def test_the_description_has_no_link_that_pypi_cannot_follow(packages):
    with zipfile.ZipFile(packages["wheel"]) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode("utf-8")
    assert "# numpy_gpt2" in metadata and "Description-Content-Type: text/markdown" in metadata
    assert all(link.startswith(("#", "https://")) for link in re.findall(r"\]\(([^)\s]+)\)", metadata))


def test_the_sdist_has_what_the_tests_need(packages):
    with tarfile.open(packages["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "scripts", ".ci", ".vscode"):
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts}
        assert wanted and wanted <= names
    readmes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "numpy_gpt2").rglob("README.md")}
    assert {"README.vi.md", "setup.cfg", "setup.py", "pyproject.toml", "LICENSE", ".gitignore", *readmes} <= names


def test_tests_run_from_the_sdist(packages, tmp_path):
    with tarfile.open(packages["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    folder, = tmp_path.iterdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*pytest_command, "--collect-only", cwd=folder, env=environment)
    run(*pytest_command, "tests/test_goldens.py", "tests/test_config.py", "tests/test_errors.py", cwd=folder,
        env=environment)


def test_the_metadata_name_the_authors_and_the_types(packages):
    with zipfile.ZipFile(packages["wheel"]) as archive:
        name, = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    assert "Author: the numpy_gpt2 contributors" in lines and "Classifier: Typing :: Typed" in lines
    assert any(line.startswith("Requires-Dist: huggingface_hub") and "<3" in line for line in lines)
