"""pdb, started from inside a tap in the frame of model.py that holds the arrays."""

import pdb
import sys
from types import FrameType
from typing import Any, Sequence


class Debugger(pdb.Pdb):
    """Python's debugger, started by a tap, which should not prompt while this is `stepping`.

    own_modules: the tap's modules; code in them, or called from them, is never stepped into.
    """

    def __init__(self, own_modules: Sequence[str]) -> None:
        super().__init__(nosigint=True)  # leave Ctrl-C as it is
        self.own_modules = own_modules
        self.stepping = False
        self.botframe: FrameType | None = None

    def enter(self, frames: Sequence[FrameType]) -> None:
        """Stop at the next line of frames[0]. frames: the innermost call first, then its callers."""
        self.reset()
        self.botframe = frames[-1]  # its callers are not shown
        for frame in frames:
            frame.f_trace = self.trace_dispatch
        self.set_next(frames[0])
        self.stepping = True
        sys.settrace(self.trace_dispatch)

    def leave(self) -> None:
        """Stop debugging, if it was started."""
        if self.botframe is not None:
            sys.settrace(None)
        self.stepping = False

    def stop_here(self, frame: FrameType) -> bool:
        inside: FrameType | None = frame
        while inside is not None and inside is not self.botframe:
            if inside.f_globals.get("__name__") in self.own_modules:
                return False
            inside = inside.f_back
        return super().stop_here(frame)

    def interaction(self, *args: Any) -> None:
        self.stepping = True  # a breakpoint may have stopped after the user continued
        super().interaction(*args)

    def set_continue(self) -> None:
        super().set_continue()
        self.stepping = False
