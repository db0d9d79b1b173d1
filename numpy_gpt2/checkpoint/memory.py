"""Whether a model fits into memory, checked before it is read: the size of its weights, and the memory available.

Linux reports the available memory in text files. On other systems nothing is checked, and NumPy raises its own
MemoryError.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import SIZES, GPT2Config
from ..weights import parameter_shapes


def check_memory(config: GPT2Config, dtype: np.dtype) -> None:
    """Raise MemoryError if the weights of a model, in this type, do not fit into the available memory."""
    available = available_memory()
    if available is None or weights_bytes(config, dtype) <= available:
        return
    fitting = [size for size in SIZES if weights_bytes(SIZES[size], dtype) <= available]
    smaller = f"{fitting[-1]} ({gigabytes(weights_bytes(SIZES[fitting[-1]], dtype))})" if fitting else "fairytale"
    raise MemoryError(f"the weights as {dtype.name} take {gigabytes(weights_bytes(config, dtype))}, and "
                      f"{gigabytes(available)} is available: use a smaller model, {smaller}, or close other programs")


def weights_bytes(config: GPT2Config, dtype: np.dtype) -> int:
    """The bytes of a model's parameters. Loading takes little more, because they are read a piece at a time."""
    with_one, with_two = (sum(map(math.prod, parameter_shapes(replace(config, n_layer=n)).values())) for n in (1, 2))
    n_parameters = with_one + (config.n_layer - 1) * (with_two - with_one)  # a config may claim a billion layers
    return n_parameters * dtype.itemsize


def gigabytes(n_bytes: int) -> str:
    """1234567890 -> "1.23 GB"."""
    return f"{n_bytes / 1e9:.2f} GB"


def available_memory(root: Path = Path("/")) -> int | None:
    """The bytes that this process can still allocate: the minimum over the machine, containers and its own limit.

    None if unknown. root: the root of the file system.
    """
    known = [*group_memory(root), *address_space(root)]
    machine = named_numbers(root / "proc/meminfo")  # in kB
    if "MemAvailable" in machine:
        known.append(1024 * (machine["MemAvailable"] + machine.get("SwapFree", 0)))
    return max(min(known), 0) if known else None


def group_memory(root: Path) -> list[int]:
    """What is left to each control group of this process: a container, a job on a cluster, a user's session.

    Source: cgroups(7), version 2. Cached files count as used, but the system drops them when memory is needed.
    """
    group = root / "sys/fs/cgroup" / text_of(root / "proc/self/cgroup").strip().removeprefix("0::/")
    left = []
    for folder in (group, *group.parents):  # a limit holds for all groups inside
        limit, used = text_of(folder / "memory.max").strip(), text_of(folder / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():  # not "max", and not missing
            left.append(int(limit) - int(used) + named_numbers(folder / "memory.stat").get("inactive_file", 0))
    return left


def address_space(root: Path) -> list[int]:
    """What `ulimit -v` leaves this process."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = named_numbers(root / "proc/self/status").get("VmSize")  # in kB
    return [] if limit == resource.RLIM_INFINITY or used is None else [limit - 1024 * used]


def named_numbers(path: Path) -> dict[str, int]:
    """The lines `name: number` of a system file; none if it does not exist."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):?\s+(\d+)", text_of(path), re.MULTILINE)}


def text_of(path: Path) -> str:
    """The text of a system file; empty if it cannot be read, for example on another system."""
    try:
        return path.read_text()
    except OSError:
        return ""
