"""What loading a checkpoint may cost, and a watch that measures it by means that Linux has."""

import os
import sys
import time
from pathlib import Path

MOST_SECONDS = 2
MOST_BYTES = 120e6  # the models here have some kilobytes, so that 1.15 times their size is nothing
STUCK = 120  # seconds after which a process is killed: to open a pipe is to wait for ever


class Watch:
    """Measures what a block of code takes, and notes the names by which it opens files.

    Python tells of what it opens. safetensors does not, but it is only given paths that are opened here as well.
    """

    def __init__(self) -> None:
        self.names: list[str] | None = None
        self.usual: set[str] = set()  # what is opened whatever the files say, to learn how much memory there is
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
        """What was wrong with the last block, if anything."""
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
    """This process's memory in bytes: VmRSS, what it has, or VmHWM, the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
