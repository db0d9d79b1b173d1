"""A walk through one forward pass: a tap that stops at each named array, shows it, and asks what to do.

The pass itself is an ordinary `forward(model, ids, cache=cache, tap=walk)`; nothing in it knows of the walk.
"""

import cmd
import difflib
import shutil
import sys
from bdb import BdbQuit
from typing import Any, Sequence

import numpy as np

from ..cache import KVCache
from ..cli.tables import table, wrapped
from ..model import forward
from ..tap import QUERY_BY_KEY, STAGES, Recorder, fits, stage_names, stage_of
from ..tokenizer import Tokenizer, quoted
from ..weights import GPT2, named_parameters
from .debugger import Debugger
from .expressions import evaluate, part_of, spoken_names
from .frames import live_frames, making_lines
from .previews import Screen, elided, preview, statistics, thumbnails, what_it_would_say

SHORT_FORMS = {"next": "n", "layer": "l", "until": "u", "continue": "c", "show": "sh", "print": "p", "heads": "hd",
               "logits": "lg", "tokens": "t", "where": "w", "pdb": "db", "help": "h", "quit": "q"}
WHOLE_FORMS = {short: command for command, short in SHORT_FORMS.items()}


class WalkEnded(Exception):
    """The user has seen enough: the pass need not go on."""


class Refused(ValueError):
    """A command that cannot be carried out; the message is the line that says why."""


def walk_through(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], stop_at: str = "*",
                 cache: KVCache | None = None, commands: Sequence[str] = ()) -> np.ndarray | None:
    """Walk through a forward pass: ask on standard input what to do, and show on standard output what there is.

    ids: all tokens so far; those in the cache are not read again. stop_at: a glob; the first stage that it fits is the
    first stop. commands: carried out before standard input is asked.
    Returns the logits [n_new, vocab_size], or None where the user left before there were any.
    Raises ValueError for a glob that fits no stage of this model, and for ids that `forward` refuses.
    """
    if cache is None:
        cache = KVCache(model, n_positions=max(len(ids), 1))
    walk = Walk(model, tokenizer, ids, cache)
    walk.stop_at = walk.still_to_come(stop_at)
    walk.cmdqueue.extend(commands)
    n_new = len(ids) - cache.length
    walk.write([f"{n_new} token{'s'[:n_new > 1]}, {len(walk.names)} stages; help lists what you can do"])
    try:
        logits = forward(model, ids[cache.length:], cache=cache, tap=walk)
    except (WalkEnded, BdbQuit):
        return None
    finally:
        walk.debugger.leave()
    walk.write(["", "The pass is done.", *preview("logits", logits, walk.screen(n_above=2))])
    return logits


class Walk(cmd.Cmd):
    """The tap that asks. Each command is a method do_NAME(argument), its docstring "usage: what help says of it"."""

    prompt = "step> "

    def __init__(self, model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], cache: KVCache) -> None:
        on_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        super().__init__("tab" if on_a_terminal else None)  # type: ignore[arg-type]  # the key that completes names
        self.model = model
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.cache = cache
        self.n_cached = cache.length  # as it was when the pass began
        self.names = stage_names(model.config)
        self.acts = Recorder()  # what the pass has made so far
        self.lines: dict[str, list[str]] = {}  # of model.py, that made each of them
        self.at = ""  # the stage at which it stands
        self.block = ""  # the block it is in, or was in last: h.3
        self.stop_at: str | None = "*"  # a glob; None is nowhere
        self.head = 0
        self.debugger = Debugger([__name__, "numpy_gpt2.tap"])

    def __call__(self, name: str, value: np.ndarray) -> None:
        self.at = name
        if part_of(name) != name:
            self.block = part_of(name)
        self.acts(name, value)
        self.lines[name] = making_lines()
        if not self.debugger.stepping and self.stop_at is not None and fits(name, self.stop_at):
            self.do_show("")
            self.cmdloop()

    # Where to stop next. What returns True ends the asking, and the pass goes on --------------------------------------

    def do_next(self, argument: str) -> bool:
        """next: go on to the next stage; an empty line does the same"""
        self.stop_at = "*"
        return True

    def do_layer(self, argument: str) -> bool:
        """layer N: go on to where block N begins"""
        layer = chosen(argument, self.model.config.n_layer, "layer")
        self.stop_at = self.still_to_come(next(name for name in self.names if part_of(name) == f"h.{layer}"))
        return True

    def do_until(self, argument: str) -> bool:
        """until NAME: go on to a stage, or to the first that a glob fits: until h.3.attn.*"""
        self.stop_at = self.still_to_come(argument)
        return True

    def do_continue(self, argument: str) -> bool:
        """continue: go on to the end of the pass"""
        self.stop_at = None
        return True

    def do_pdb(self, argument: str) -> bool:
        """pdb: Python's debugger, in the frame of model.py that holds these arrays; its c comes back to the walk"""
        frames = list(live_frames())
        self.write([f"pdb, in {frames[0].f_code.co_name}: n steps a line, s into a call, p prints; c comes back to the "
                    "walk at its next stop, q ends it"])
        self.stop_at = "*"
        self.debugger.enter(frames)
        return True

    def do_quit(self, argument: str) -> bool:
        """quit: end the walk here"""
        raise WalkEnded

    def do_EOF(self, argument: str) -> bool:
        print()
        raise WalkEnded

    def still_to_come(self, glob: str) -> str:
        """The glob. Raises Refused where it fits no stage of this model, or only such as have been passed."""
        latest = fitting_stages(glob, self.names)[-1]
        if latest in self.acts:
            raise Refused(f"{latest} has been passed; to see it again: show {latest}")
        return glob

    # What to look at --------------------------------------------------------------------------------------------------

    def do_show(self, argument: str) -> None:
        """show [NAME]: this stage once more, or an earlier one; the last part of its name will do: show q"""
        name = self.at
        if argument:
            spoken = spoken_names(self.acts, self.block)
            if argument not in spoken:
                raise Refused(f"no stage so far is called {argument!r}; {nearest(argument, list(spoken))}")
            name = spoken[argument]
        stage, value = stage_of(name), self.acts[name]
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(stage.shape, value.shape))
        lines = ["", f"{name} = {stage.equation}  ({self.names.index(name) + 1} of {len(self.names)})",
                 f"  {stage.sentence}", f"  [{axes}] {value.dtype}, {statistics(value)}"]
        if "n_all" in stage.shape:
            n_all = len(self.ids)
            lines.append(f"  n_all {n_all}: {self.n_cached} from the cache + {n_all - self.n_cached} new")
        lines += [f"  {line}" for line in self.lines[name]] + [""]
        self.write(lines + preview(name, value, self.screen(n_above=len(lines))))

    def do_print(self, argument: str) -> None:
        """print EXPR: Python over value (this stage), q or h.0.attn.q (earlier ones), np, model, ids, tokens, cache"""
        try:
            result = self.evaluate(argument or "value")
            with np.printoptions(linewidth=terminal_size()[0], precision=4, suppress=True):
                text = str(result) if isinstance(result, (np.ndarray, np.generic)) else repr(result)
        except Exception as error:
            message = error.msg if isinstance(error, SyntaxError) else (str(error).splitlines() or [""])[0]
            raise Refused(f"{type(error).__name__}: {message}") from error
        self.write(text.splitlines())

    def evaluate(self, expression: str) -> Any:
        """What `print` prints. Weights have their names in the checkpoint: h.3.attn.c_attn.weight."""
        arrays = dict(named_parameters(self.model))
        arrays.update((spoken, self.acts[name]) for spoken, name in spoken_names(self.acts, self.block).items())
        others = {"value": self.acts[self.at], "np": np, "model": self.model, "cache": self.cache, "ids": self.ids,
                  "tokens": [self.tokenizer.decode([token_id]) for token_id in self.ids]}
        return evaluate(expression, arrays, others, to_come=[name for name in self.names if name not in self.acts])

    def do_heads(self, argument: str) -> None:
        """heads [N]: all heads at once; with N, the head to show from here on"""
        name, value = self.at, self.acts[self.at]
        shape = stage_of(name).shape
        if argument:
            n_head = self.model.config.n_head
            self.head = chosen(argument, n_head, "head")
            shown = preview(name, value, self.screen(n_above=1)) if shape == QUERY_BY_KEY else []
            self.write([f"head {self.head} of {n_head} is shown from here on", *shown])
        elif shape == QUERY_BY_KEY:
            self.write(thumbnails(value, self.screen()))
        elif "n_head" in shape:
            self.write(preview(name, value, self.screen()))
        else:
            with_heads = [stage.name.removeprefix("h.i.") for stage in STAGES if "n_head" in stage.shape]
            raise Refused(f"{name} has no heads; these have: {', '.join(with_heads)}")

    def do_logits(self, argument: str) -> None:
        """logits: the logit lens here, what the model would say if it stopped now"""
        streams = [name for name in self.acts if ".resid_" in name]
        name = streams[-1] if streams else " + ".join(self.acts)  # it begins as wte, then wte + wpe
        residual = self.acts[name] if streams else np.sum([self.acts[part] for part in self.acts], axis=0)
        self.write(what_it_would_say(self.model, name, residual, self.screen()))

    def do_tokens(self, argument: str) -> None:
        """tokens: all tokens so far, with position and id"""
        self.write([f"{position:4}  {token_id:6}  {quoted(self.tokenizer, token_id)}"
                    + ("  in the cache" if position < self.n_cached else "")
                    for position, token_id in enumerate(self.ids)])

    def do_where(self, argument: str) -> None:
        """where: the place in the model, and in model.py"""
        here = part_of(self.at)
        stages = [name.removeprefix(f"{here}.") for name in self.names if part_of(name) == here != name]
        marked = " ".join(f"[{stage}]" if f"{here}.{stage}" == self.at else stage for stage in stages)
        parts = list(dict.fromkeys(map(part_of, self.names)))
        place = parts.index(here)
        room = terminal_size()[1] // 4
        frames = list(live_frames())
        self.write([*(f"  {part}" for part in elided(parts[:place], room)),
                    f"> {here}  {marked}".rstrip(),
                    *(f"  {part}" for part in elided(parts[place + 1:], room)),
                    " > ".join(frame.f_code.co_name for frame in reversed(frames)),
                    *self.lines[self.at][-1:]])

    def do_help(self, argument: str) -> None:
        """help [COMMAND]: what you can do here; also ?"""
        commands = [WHOLE_FORMS.get(argument, argument)] if argument else list(SHORT_FORMS)
        if commands[0] not in SHORT_FORMS:
            self.default(argument)
        usages = [getattr(self, f"do_{command}").__doc__.split(": ", 1) for command in commands]
        rows = [(usage, SHORT_FORMS[command], meaning) for command, (usage, meaning) in zip(commands, usages)]
        self.write(list(table(("command", "short", "what it does"), rows, "<<<", terminal_size()[0])))

    # How commands are read --------------------------------------------------------------------------------------------

    def parseline(self, line: str) -> tuple[str | None, str | None, str]:
        command, argument, line = super().parseline(line)
        return WHOLE_FORMS.get(command or "", command), argument, line

    def onecmd(self, line: str) -> bool:
        try:
            command, argument, _ = self.parseline(line)
            if command in SHORT_FORMS and argument and " " not in getattr(self, f"do_{command}").__doc__.split(":")[0]:
                raise Refused(f"{command} takes nothing after it. Got {argument!r}.")
            return super().onecmd(line)
        except Refused as error:
            self.write([f"error: {error}"])
            return False

    def emptyline(self) -> bool:
        return self.do_next("")

    def default(self, line: str) -> None:
        command = line.split()[0]
        raise Refused(f"no command is called {command!r}; {nearest(command, list(SHORT_FORMS))}; help lists all")

    def completenames(self, text: str, *ignored: Any) -> list[str]:
        return [command for command in SHORT_FORMS if command.startswith(text)]

    def completedefault(self, text: str, *ignored: Any) -> list[str]:
        return [name for name in self.names if name.startswith(text)]

    # How what there is to see is written ------------------------------------------------------------------------------

    def screen(self, n_above: int = 0) -> Screen:
        """The room for a preview, below so many lines and above the next prompt."""
        width, height = terminal_size()
        return Screen(self.tokenizer, self.ids, self.n_cached, self.head, width, height - n_above - 1)

    def write(self, lines: Sequence[str]) -> None:
        """To standard output, never more than a screenful."""
        width, height = terminal_size()
        fitting = [part for line in lines for part in (wrapped(line, width, 2) if len(line) > width else [line])]
        for line in elided(fitting, height - 1):
            print(line)


def fitting_stages(glob: str, names: Sequence[str]) -> list[str]:
    """The stages that a glob fits. Raises ValueError, with the nearest names, where there is none."""
    fitting = [name for name in names if fits(name, glob)]
    if not fitting:
        raise Refused(f"no stage here is called {glob!r}; {nearest(glob, names)}")
    return fitting


def chosen(argument: str, n: int, what: str) -> int:
    """A number from 0 up to n, as the user gave it. Raises Refused."""
    if not argument.isdecimal() or len(argument) > len(str(n)) or int(argument) >= n:
        raise Refused(f"{what} must be a number from 0 to {n - 1}. Got {argument[:40]!r}.")
    return int(argument)


def nearest(name: str, names: Sequence[str]) -> str:
    return "the nearest are " + ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))


def terminal_size() -> tuple[int, int]:
    """Columns and lines, some even where a terminal says that it has none."""
    width, height = shutil.get_terminal_size(fallback=(120, 24))
    return max(width, 20), max(height, 10)
