"""The limits on loading a checkpoint, and a watch that measures it (on Linux)."""

import os
import sys
import time
from pathlib import Path

MOST_SECONDS = 2
MOST_BYTES = 120e6  # the models here have a few kilobytes, so that 1.15 times their size is negligible
STUCK = 120  # seconds after which a process is killed: opening a pipe, for one, blocks forever


class Watch:
    """Measures the time and memory of a block of code, and records the names of the files that it opens.

    An audit hook sees the files that Python opens. It misses safetensors', but Python opens the same paths as well.
    """

    def __init__(self) -> None:
        self.names: list[str] | None = None
        self.usual: set[str] = set()  # opened in every load, to find out the available memory
        self.slowest, self.largest = 0.0, 0
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if event == "open" and self.names is not None and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self.names.append(os.fsdecode(arguments[0]))

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        self.memory_before = memory("VmRSS")
        self.start = time.process_time()
        self.names = []

    def __exit__(self, *_: object) -> None:
        self.opened, self.names = self.names, None
        self.seconds = time.process_time() - self.start
        self.bytes = memory("VmHWM") - self.memory_before
        self.slowest, self.largest = max(self.slowest, self.seconds), max(self.largest, self.bytes)

    def complaint(self, folder: Path) -> str:
        """The limit that the last block exceeded, or ""."""
        imports = (sys.prefix, sys.base_prefix)
        outside = {name for name in self.opened if Path(name).parent != folder and not name.startswith(imports)}
        outside -= self.usual
        if outside:
            return f"opened {outside}"
        if self.seconds > MOST_SECONDS:
            return f"took {self.seconds:.1f} s"
        if self.bytes > MOST_BYTES:
            return f"took {self.bytes / 1e6:.0f} MB"
        return ""


def memory(key: str) -> int:
    """This process's memory in bytes: VmRSS (resident) or VmHWM (peak resident)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
