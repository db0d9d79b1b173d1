"""A walk through one forward pass: a tap that stops at named arrays, shows them, and reads commands.

The pass itself is an ordinary `forward(model, ids, cache=cache, tap=walk)`.
"""

import math
import re
from bdb import BdbQuit
from typing import Any, Sequence

import numpy as np

from ..cache import KVCache
from ..config import GPT2Config
from ..model import forward
from ..tap import QUERY_BY_KEY, STAGES, Recorder, stage_names, stage_of
from ..tokenizer import Tokenizer, quoted
from ..weights import GPT2
from .commands import Commands, terminal_size
from .debugger import Debugger
from .expressions import OPERATIONS, evaluate, explained
from .frames import live_frames, making_lines
from .grids import elided, fitted
from .naming import Refused, chosen, fitting_stages, forms_of, is_meant, nearest, part_of, short_names
from .previews import Screen, lens_predictions, preview, statistics, thumbnails

# For each command: its short form, its argument, and what it does.
COMMANDS = {
    "next": ("n", "", "continue to the next stage; an empty line does the same"),
    "back": ("b", "", "show the previous stage; next moves forward again"),
    "layer": ("l", "N", "continue to the beginning of block N"),
    "until": ("u", "NAME", "continue to a stage (h.3.attn.z), the next with a short name (z), or a glob (h.5.*)"),
    "continue": ("c", "", "continue to the end of the pass"),
    "show": ("sh", "[NAME]", "show this stage again, or an earlier one by any of its names: show q"),
    "print": ("p", "EXPR", 'Python over value (this stage), q, acts["h.0.attn.q"], softmax, np, model, ids, tokens'),
    "heads": ("hd", "[N]", "all heads at once; with N, the head to show from now on"),
    "logits": ("lg", "", "the logit lens: what the model would predict if it stopped now"),
    "tokens": ("t", "", "all tokens so far, with position and id"),
    "where": ("w", "", "the position in the model, and in model.py"),
    "pdb": ("db", "", "Python's debugger, in the current call of model.py; its c returns to the walk"),
    "help": ("h", "[COMMAND]", "list the commands; also ?"),
    "quit": ("q", "", "end the walk"),
}

# A walk keeps every array of the pass and every stage's name. xl has 48 layers; small with a full context takes 2.3 GB.
MOST_LAYERS = 500
MOST_BYTES = 4 * 10**9


class WalkEnded(Exception):
    """Raised to abandon the pass when the user quits."""


def walk_through(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], stop_at: str = "*",
                 cache: KVCache | None = None, commands: Sequence[str] = ()) -> np.ndarray | None:
    """Walk through a forward pass, with commands from standard input and output to standard output.

    ids: all tokens so far; those in the cache are not processed again. stop_at: a glob for the first stop. commands:
    executed before any from standard input.
    Returns the logits [n_new, vocab_size], or None if the user quits first.
    Raises ValueError for a glob that matches no stage of this model, for a pass too large to keep, and for ids that
    `forward` refuses.
    """
    if cache is None:
        cache = KVCache(model, n_positions=max(len(ids), 1))
    n_new = len(ids) - cache.length
    check_size(model.config, n_new, len(ids))
    walk = Walk(model, tokenizer, ids, cache)
    walk.stop_at = walk.still_to_come(stop_at)
    walk.cmdqueue.extend(commands)
    walk.write([f"{n_new} token{'s'[:n_new > 1]}, {len(walk.names)} stages; help lists what you can do"])
    try:
        logits = forward(model, ids[cache.length:], cache=cache, tap=walk)
    except (WalkEnded, BdbQuit):
        return None
    finally:
        walk.debugger.leave()
    walk.write(["", "The pass is done.", *preview("logits", logits, walk.screen(n_above=2))])
    return logits


class Walk(Commands):
    """The tap that stops, and the commands at its prompt."""

    prompt = "step> "

    def __init__(self, model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], cache: KVCache) -> None:
        super().__init__(COMMANDS)
        self.model = model
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.cache = cache
        self.n_cached = cache.length  # before the pass
        self.names = stage_names(model.config)
        self.acts = Recorder()  # the arrays so far
        self.made: dict[str, list[str]] = {}  # the lines of model.py that computed each; last, the call stack
        self.own: dict[str, Any] = {}  # the user's variables
        self.at = ""  # the stage shown: the current one or, after `back`, an earlier one
        self.stop_at: str | None = "*"  # a glob for the next stop; None: do not stop
        self.head = 0
        self.debugger = Debugger([__name__, "numpy_gpt2.tap"])

    def __call__(self, name: str, value: np.ndarray) -> None:
        self.at = name
        self.acts(name, value)
        self.acts[name].flags.writeable = False
        self.made[name] = [*making_lines(), " > ".join(frame.f_code.co_name for frame in [*live_frames()][::-1])]
        if not self.debugger.stepping and self.stop_at is not None and is_meant(name, self.stop_at):
            self.do_show("")
            self.ask()

    # Commands that move; those that return True continue the pass -----------------------------------------------------

    def do_next(self, argument: str) -> bool:
        self.stop_at = "*"
        return self.at == self.names[len(self.acts) - 1] or self.look_at(self.names.index(self.at) + 1)

    def do_back(self, argument: str) -> bool:
        if self.at == self.names[0]:
            raise Refused(f"{self.at} is the first stage")
        return self.look_at(self.names.index(self.at) - 1)

    def look_at(self, place: int) -> bool:
        self.at = self.names[place]
        self.do_show("")
        return False

    def do_layer(self, argument: str) -> bool:
        return self.do_until(f"h.{chosen(argument, self.model.config.n_layer, 'layer')}.resid_pre")

    def do_until(self, argument: str) -> bool:
        self.stop_at = self.still_to_come(argument)
        return True

    def do_continue(self, argument: str) -> bool:
        self.stop_at = None
        return True

    def do_pdb(self, argument: str) -> bool:
        frames = list(live_frames())
        self.write([f"pdb, in {frames[0].f_code.co_name}: n steps a line, s into a call, p prints; c comes back to the "
                    "walk at its next stop, q ends it"])
        self.stop_at = "*"
        self.debugger.enter(frames)
        return True

    def do_quit(self, argument: str) -> bool:
        raise WalkEnded

    def do_EOF(self, argument: str) -> bool:
        print()
        raise WalkEnded

    def still_to_come(self, glob: str) -> str:
        """The glob. Raises Refused if it matches no stage of this model, or only earlier ones."""
        latest = fitting_stages(glob, self.names)[-1]
        if latest in self.acts:
            raise Refused(f"{latest} has been passed; to see it again: show {latest}")
        return glob

    # Commands that show something -------------------------------------------------------------------------------------

    def do_show(self, argument: str) -> None:
        short = short_names(list(self.acts), self.block())
        if argument and argument not in short:
            raise Refused(f"no stage so far is called {argument!r}; {nearest(argument, short)}")
        name = short[argument] if argument else self.at
        stage, value = stage_of(name), self.acts[name]
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(stage.shape, value.shape))
        lines = ["", f"{name} = {stage.equation}  ({self.names.index(name) + 1} of {len(self.names)})",
                 f"  {stage.sentence}", f"  [{axes}] {value.dtype}, {statistics(value)}"]
        if "n_all" in stage.shape:
            n_all = len(self.ids)
            lines.append(f"  n_all {n_all}: {self.n_cached} from the cache + {n_all - self.n_cached} new")
        width, _ = terminal_size()
        made = [f"  {line}" for line in self.made[name][:-1]]
        lines += [line if len(line) <= width else line.partition("  # ")[0] for line in made] + [""]
        above = [part for line in lines for part in fitted(line, width)]
        self.write(above + preview(name, value, self.screen(n_above=len(above))))

    def do_print(self, argument: str) -> None:
        short = short_names(list(self.acts), self.block())
        names = {**OPERATIONS, "np": np, "model": self.model, "cache": self.cache, "ids": self.ids, "acts": self.acts,
                 "tokens": [self.tokenizer.token_text(token_id) for token_id in self.ids],
                 **{form: self.acts[name] for form, name in short.items() if form.isidentifier()},
                 "value": self.acts[self.at]}
        expression = argument or "value"
        try:
            with np.printoptions(linewidth=terminal_size()[0], precision=4, suppress=True):
                text = evaluate(expression, names, self.own)
        except Exception as error:
            raise Refused(explained(error, expression, self.names[len(self.acts):])) from error
        self.write(text.splitlines())

    def do_heads(self, argument: str) -> None:
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
        latest = [name for name in self.so_far() if ".resid_" in name][-1:]
        streams = latest or self.so_far()  # before block 0: wte, then wte + wpe
        residual = np.sum([self.acts[name] for name in streams], axis=0)  # [n_new, n_embd]
        self.write(lens_predictions(self.model, " + ".join(streams), residual, self.screen()))

    def do_tokens(self, argument: str) -> None:
        self.write([f"{position:4}  {token_id:6}  {quoted(self.tokenizer, token_id)}"
                    + ("  in the cache" if position < self.n_cached else "")
                    for position, token_id in enumerate(self.ids)])

    def do_where(self, argument: str) -> None:
        here = part_of(self.at)
        parts = list(dict.fromkeys(map(part_of, self.names)))
        place = parts.index(here)
        inside = [name.removeprefix(f"{here}.") for name in self.names if part_of(name) == here]
        marked = " ".join(f"[{name}]" if self.at == f"{here}.{name}" else name for name in inside)
        *_, line, calls = self.made[self.at]
        self.write([" ".join([*elided(parts[:place], 12), f"[{here}]", *elided(parts[place + 1:], 12)]),
                    *([f"{here}: {marked}"] if here != self.at else []), calls, line])

    def block(self) -> str:
        """The block of the stage shown, h.3, or the last one before it."""
        blocks = [part_of(name) for name in self.so_far() if part_of(name) != name]
        return blocks[-1] if blocks else ""

    def so_far(self) -> list[str]:
        """The stages up to the one shown."""
        return self.names[:self.names.index(self.at) + 1]

    # Other input ------------------------------------------------------------------------------------------------------

    def emptyline(self) -> bool:
        return self.do_next("")

    def default(self, line: str) -> None:
        if not re.match(r"\w+ *=(?!=)", line):
            return super().default(line)
        self.do_print(line)  # an assignment

    def completedefault(self, text: str, *ignored: Any) -> list[str]:
        forms = dict.fromkeys(form for name in self.names for form in forms_of(name))
        return [form for form in forms if form.startswith(text)]

    def screen(self, n_above: int = 0) -> Screen:
        """The space for a preview between n_above lines and the next prompt."""
        width, height = terminal_size()
        return Screen(self.tokenizer, self.ids, self.n_cached, self.head, width, height - n_above - 1)


def check_size(config: GPT2Config, n_new: int, n_all: int) -> None:
    """Raise Refused if a pass has too many layers, or arrays too large to keep."""
    if config.n_layer > MOST_LAYERS:
        raise Refused(f"a walk is through at most {MOST_LAYERS} layers. Got {config.n_layer}: use a smaller model.")
    sizes = [math.prod(stage.concrete_shape(config, n_new, n_all, n_new))
             * (config.n_layer if stage.name.startswith("h.i.") else 1) for stage in STAGES]
    n_bytes = 4 * sum(sizes)
    if n_bytes > MOST_BYTES:
        raise Refused(f"a walk keeps every array of the pass, at most {MOST_BYTES / 1e9:.0f} GB. With {n_new} tokens "
                      f"these would be {n_bytes / 1e9:.1f} GB: shorten the prompt, or use a smaller model.")
