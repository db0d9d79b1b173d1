"""The layout: a module imports only modules before it, few modules lie on top, and the files people read stay short."""

import ast
import re
from pathlib import Path

import pytest

from numpy_gpt2.__main__ import COMMANDS

PACKAGE = Path(__file__).parents[1] / "numpy_gpt2"

# From the foundations upwards. A folder stands for all its modules, which may import each other.
ORDER = """errors html config matmul ops weights cache tap model sampling scoring prompt_lookup bpe tokenizer streams
    decoding backward lens checkpoint cli training summary step explore exercises generate score tokens
    train""".split()
EXEMPT = ("__init__", "__main__")

MOST_FLAT_MODULES = 24
# The most lines that the README's table promises.
BUDGETS = dict(re.findall(r"^\| \[`(\w+\.py)`\]\(\S+\) \| (\d+) \|",
                          (PACKAGE.parent / "README.md").read_text(encoding="utf-8"), re.MULTILINE))


def parts(path):
    """numpy_gpt2/checkpoint/hub.py -> ("checkpoint", "hub")"""
    return path.relative_to(PACKAGE).with_suffix("").parts


MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path, code):
    """The modules of the package that the code of a module imports, wherever in it, each as its parts."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = parts(path)[:-node.level or None] if node.level <= len(parts(path)) else ()
            base = [PACKAGE.name, *folder] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for package, *rest in names:
            while rest and not is_module(rest):  # the last of them is a name inside the module
                del rest[-1]
            if package == PACKAGE.name:
                found.add(tuple(rest))
    return found


def is_module(names):
    return PACKAGE.joinpath(*names).with_suffix(".py").exists() or PACKAGE.joinpath(*names, "__init__.py").exists()


def wrong_imports(path, code):
    """What a module imports although it comes later, or is the package itself, whose `__init__` imports everything."""
    top, *_ = parts(path)
    before = set(ORDER[:ORDER.index(top)])
    if len(parts(path)) > 1:
        before.add(top)
    return sorted(".".join(names) or PACKAGE.name for names in imported(path, code)
                  if not names or names[0] not in before)


# The package ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem not in EXEMPT],
                         ids=lambda path: ".".join(parts(path)))
def test_a_module_imports_only_modules_before_it(path):
    assert parts(path)[0] in ORDER, "expected every module and folder to have its place in the order"
    assert wrong_imports(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name, code, wrong", [
    ("ops.py", "from .model import forward", ["model"]),
    ("ops.py", "from . import matmul, tap", ["tap"]),
    ("ops.py", "import numpy_gpt2.model as m", ["model"]),
    ("ops.py", "from numpy_gpt2 import lens", ["lens"]),
    ("ops.py", "from numpy_gpt2 import forward", ["numpy_gpt2"]),
    ("ops.py", "from . import ops", ["ops"]),
    ("ops.py", "def f():\n    from .model import forward", ["model"]),
    ("ops.py", "if TYPE_CHECKING:\n    from .cache import KVCache", ["cache"]),
    ("ops.py", "import numpy as np\nfrom .matmul import matmul\nfrom huggingface_hub import constants", []),
    ("checkpoint/hub.py", "from .download import download_file\nfrom ..errors import HubError", []),
    ("checkpoint/hub.py", "from ..cli.exits import say", ["cli.exits"]),
    ("checkpoint/hub.py", "from .. import generate", ["generate"]),
    ("checkpoint/hub.py", "from ..checkpoint import loading", []),
    ("generate.py", "from .explore.rendering import render", []),
])
def test_a_wrong_import_is_found_wherever_it_is(name, code, wrong):
    assert wrong_imports(PACKAGE / name, code) == wrong


def test_few_modules_lie_flat():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FLAT_MODULES


@pytest.mark.parametrize("name", ["ops.py", "model.py", "cache.py", "sampling.py", "decoding.py"])
def test_the_files_people_come_to_read_stay_within_the_lines_that_the_readme_promises(name):
    n_lines = (PACKAGE / name).read_text(encoding="utf-8").count("\n")
    assert n_lines <= int(BUDGETS[name])


def test_a_module_and_a_function_never_share_a_name():
    modules = {name for path in MODULES for name in parts(path)}
    functions = {node.name for path in MODULES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert modules & functions - {"__init__"} == set()


def test_every_command_is_listed():
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    commands = folders | modules - {"__main__"}
    assert set(COMMANDS) == commands
