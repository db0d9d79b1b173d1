"""Run the tests on every supported Python and NumPy, with the wheel and the sdist.

    python scripts/verify/supported_range.py
    python scripts/verify/supported_range.py --python /opt/python3.15/bin/python3 -- tests/test_ops.py -k softmax

Builds the sdist, and the wheel from the sdist. Then, for every combination, creates a temporary virtual environment,
installs the package, generates a few tokens from an empty folder, and runs the tests against the installed package.
They run in a copy of the checkout whose numpy_gpt2 is a link to the installed one, so that no other can be imported.
Arguments after `--` go to pytest instead of the default tests. The combinations:

    newest    every Python from 3.10 on that is found (or --python), with the newest version of each dependency
    numpy     the same with NumPy 1.26, if it exists for that Python
    lowest    the oldest Python, with the lowest version of each dependency that setup.cfg allows
    sdist     the oldest Python with the newest versions, from the sdist instead of the wheel

Prints a line for each; exit status 1 if one fails, with its last lines on standard error. NumPy is never built from
source: if it has no wheel for a Python, the line says so.
"""

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache",
                                  ".hypothesis")
INSTALLED = "import numpy, numpy_gpt2; print(numpy.__version__, *numpy_gpt2.__path__, sep='\\n')"


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="PATH", help="these instead of all that are found")
    parser.add_argument("--only", action="append", choices=["newest", "numpy", "lowest", "sdist"])
    parser.add_argument("tests", nargs="*", metavar="-- TESTS", help="for pytest, instead of all default tests")
    return parser


def main():
    args = make_parser().parse_args()
    pythons = args.python or found_pythons()
    all_well = True
    with tempfile.TemporaryDirectory(prefix="numpy_gpt2-range-") as folder:
        scratch = Path(folder)
        wheel, sdist = build(scratch, pythons[-1])
        tree = shutil.copytree(ROOT, scratch / "tree", ignore=LEFT_OUT, symlinks=True)
        shutil.rmtree(tree / "numpy_gpt2")
        for python, kind, package, pinned in combinations(pythons, wheel, sdist):
            if args.only is None or kind in args.only:
                all_well &= try_one(scratch, tree, python, kind, package, pinned, args.tests)
    sys.exit(0 if all_well else 1)


def found_pythons():
    """The newest patch release of each minor version from 3.10 on, on the path and in pyenv, the oldest first."""
    folders = [*map(Path, os.get_exec_path()), *Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(
        "versions/*/bin")]
    found = {}
    for path in (path for folder in folders for path in folder.glob("python3.*")):
        if re.fullmatch(r"python3\.\d+", path.name):
            asked = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:3])"], capture_output=True)
            version = tuple(map(int, asked.stdout.split()))  # a pyenv shim may lead nowhere: no output
            if version >= (3, 10):
                found[version[:2]] = max(found.get(version[:2], ((), "")), (version, str(path)))
    return [path for _, (_, path) in sorted(found.items())]


def combinations(pythons, wheel, sdist):
    """Tuples (python, kind, what to install, pinned versions of dependencies)."""
    for python in pythons:
        yield python, "newest", wheel, []
    for python in pythons:
        yield python, "numpy", wheel, ["numpy==1.26.*"]
    yield pythons[0], "lowest", wheel, lowest_versions()
    yield pythons[0], "sdist", sdist, []


def lowest_versions():
    """setup.cfg's requirements, `numpy>=1.26,<3`, each pinned: `numpy==1.26`."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    requirements = settings["options"]["install_requires"] + settings["options.extras_require"]["test"]
    return [requirement.partition(",")[0].replace(">=", "==") for requirement in requirements.split("\n")
            if requirement and not requirement.startswith("#")]


# Building and testing -------------------------------------------------------------------------------------------------


def run(*command, **options):
    """Run a command, both output streams as one text, without environment variables that lead into the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          encoding="utf-8", errors="replace", env=environment, **options)


def build(scratch, python):
    """The paths of the wheel and the sdist, from a copy of the checkout."""
    source = shutil.copytree(ROOT, scratch / "source", ignore=LEFT_OUT, symlinks=True)
    environment = make_environment(scratch / "builder", python)
    for command in ([environment, "-m", "pip", "install", "--quiet", "build"],
                    [environment, "-m", "build", "--outdir", scratch / "dist", source]):
        process = run(*command)
        if process.returncode != 0:
            sys.exit(f"error: the package cannot be built: {process.stdout[-2000:]}")
    shutil.rmtree(source)
    (wheel,), (sdist,) = (scratch / "dist").glob("*.whl"), (scratch / "dist").glob("*.tar.gz")
    return wheel, sdist


def make_environment(folder, python):
    """A fresh environment; returns the path of its Python."""
    process = run(python, "-m", "venv", folder)
    if process.returncode != 0:
        sys.exit(f"error: {python} cannot create an environment: {process.stdout[-2000:]}")
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def try_one(scratch, tree, python, kind, package, pinned, tests):
    """Install, generate, test, and print a line. Returns whether all went well."""
    empty = scratch / "empty folder"
    empty.mkdir(exist_ok=True)
    pinned_file = scratch / "pinned.txt"  # as requirements: pip says less about constraints that it cannot meet
    pinned_file.write_text("\n".join(pinned) + "\n")
    inside = make_environment(scratch / "environment", python)
    try:
        say(f"{kind:8}{run(inside, '--version').stdout.strip():16}")
        install = run(inside, "-m", "pip", "install", "--quiet", "--only-binary", "numpy", "--prefer-binary",
                      "--requirement", pinned_file, f"{package}[test]", cwd=empty)
        if install.returncode != 0:
            has_no_wheel = kind == "numpy" and "No matching distribution found for numpy" in install.stdout
            say("no such wheel for this Python\n" if has_no_wheel else "NOT INSTALLED\n")
            return has_no_wheel or failed(install)
        writing = run(inside, "-m", "numpy_gpt2.generate", "Once upon a time", "--max-new-tokens", "5", cwd=empty)
        if writing.returncode != 0 or "Once upon a time" not in writing.stdout:
            say("DOES NOT WRITE\n")
            return failed(writing)
        numpy_version, installed = run(inside, "-c", INSTALLED, cwd=empty).stdout.splitlines()
        say(f"NumPy {numpy_version:8}")
        (tree / "numpy_gpt2").unlink(missing_ok=True)
        (tree / "numpy_gpt2").symlink_to(installed)
        testing = run(inside, "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=tree)
        say(testing.stdout.rstrip().splitlines()[-1] + "\n")
        return testing.returncode == 0 or failed(testing)
    finally:
        shutil.rmtree(inside.parents[1])


def say(text):
    """Print a part of a combination's line."""
    print(text, end="", flush=True)


def failed(process):
    print(process.stdout[-6000:], file=sys.stderr, flush=True)
    return False


if __name__ == "__main__":
    main()
