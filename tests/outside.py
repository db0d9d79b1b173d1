"""What a test gets from where it runs: texts in any locale, and folders that may be read-only."""

import os
import shutil
from pathlib import Path
from typing import Any


def as_typed(text: object) -> str:
    """A text as Python gets it from a command line, and as it names files: in an ASCII locale its bytes, escaped."""
    return os.fsdecode(str(text).encode("utf-8", "surrogateescape"))


def writable_copy(source: Path, target: Path, **options: Any) -> None:
    """Copy a folder that may be read-only, as in another user's checkout, so that the copy can be changed."""
    shutil.copytree(source, target, dirs_exist_ok=True, **options)
    for path in (target, *target.rglob("*")):
        path.chmod(0o700)
