"""How commands are read and answered: short forms, help, refusals in a line, Ctrl-C, never more than a screenful."""

import cmd
import shutil
import sys
from contextlib import nullcontext
from typing import Any, Iterable, Mapping

from ..cli.interrupts import interruptible_prompt
from ..cli.tables import table
from .grids import elided, fitted
from .naming import Refused, nearest


class Commands(cmd.Cmd):
    """Each command is a method do_NAME(argument); one that returns True ends the asking.

    commands: for each, in the order of help, its short form, what may follow it, and what it does.
    """

    def __init__(self, commands: Mapping[str, tuple[str, str, str]]) -> None:
        self.on_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        super().__init__("tab" if self.on_a_terminal else None)  # type: ignore[arg-type]  # the key that completes
        self.commands = commands
        self.whole_forms = {short: command for command, (short, _, _) in commands.items()}

    def ask(self) -> None:
        """Read and run commands until one continues the pass. Ctrl-C clears a half-typed line."""
        while True:
            try:
                with interruptible_prompt() if self.on_a_terminal else nullcontext():
                    return self.cmdloop()
            except KeyboardInterrupt:
                if not (self.on_a_terminal and half_typed()):
                    raise
                print()

    def parseline(self, line: str) -> tuple[str | None, str | None, str]:
        command, argument, line = super().parseline(line)
        return self.whole_forms.get(command or "", command), argument, line

    def onecmd(self, line: str) -> bool:
        try:
            command, argument, _ = self.parseline(line)
            if argument and command and command in self.commands and not self.commands[command][1]:
                raise Refused(f"{command} takes nothing after it. Got {argument!r}.")
            return super().onecmd(line)
        except Refused as error:
            self.write([f"error: {error}"])
        except KeyboardInterrupt:
            if not self.on_a_terminal:
                raise
            self.write(["", "interrupted"])
        return False

    def default(self, line: str) -> None:
        command = line.split()[0]
        raise Refused(f"no command is called {command!r}; {nearest(command, self.commands)}; help lists all")

    def completenames(self, text: str, *ignored: Any) -> list[str]:
        return [command for command in self.commands if command.startswith(text)]

    def do_help(self, argument: str) -> None:
        rows = [(f"{command} {usage}".rstrip(), short, meaning)
                for command, (short, usage, meaning) in self.commands.items() if argument in ("", command, short)]
        if not rows:
            Commands.default(self, argument)
        self.write(table(("command", "short", "what it does"), rows, "<<<", terminal_size()[0]))

    def write(self, lines: Iterable[str]) -> None:
        """Print to standard output, never more than a screenful."""
        width, height = terminal_size()
        for line in elided([part for line in lines for part in fitted(line, width)], height - 1):
            print(line)


def half_typed() -> bool:
    """Whether Ctrl-C interrupted a line with something on it."""
    try:
        import readline
    except ImportError:  # Windows
        return False
    return bool(readline.get_line_buffer())


def terminal_size() -> tuple[int, int]:
    """Columns and lines, at least 20 by 10 even if the terminal reports none."""
    width, height = shutil.get_terminal_size(fallback=(120, 24))
    return max(width, 20), max(height, 10)
