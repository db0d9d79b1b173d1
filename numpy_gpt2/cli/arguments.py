"""Arguments shared by the command lines, and reading the prompt or text that they name."""

import argparse
import codecs
import json
import os
import stat
import sys
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from itertools import chain, takewhile
from pathlib import Path
from threading import Timer
from typing import Any, Callable, Iterable, Iterator, NoReturn

from ..checkpoint.hub import checkpoint_files
from ..checkpoint.json_file import read_config
from ..checkpoint.wanted import CONFIG
from ..config import GPT2Config
from ..weights import GPT2, named_parameters
from .exits import BadInput, bad_input, say


LONGEST_TOKEN = 128  # bytes of GPT-2's longest
LONGEST_PROMPT = 2**20  # bytes of a prompt that are read: far more tokens than a context holds
TOO_LONG = ", or give --last to keep the end that fits"  # for commands that have this option

PART = 2**20  # bytes of a long text that are read at a time

BYTE_ORDER_MARK = "\ufeff"


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest what was probably meant; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see python -m {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file, flush=True)  # argparse would pass over a full disk

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = list(sys.argv[1:] if args is None else args)
        self.check_options(words)
        known, rest = super().parse_known_args(words, namespace)
        options = [word for word in rest if word.startswith("-")]
        if options:
            name = options[0].partition("=")[0]
            near = get_close_matches(name, self._option_string_actions, n=1)
            self.error(f"there is no option {name}" + (f": did you mean {near[0]}?" if near else ""))
        if rest:
            self.refuse_words(known, rest)
        return known, rest

    def refuse_words(self, known: argparse.Namespace, rest: list[str]) -> NoReturn:
        """Raise BadInput for extra arguments: typically a prompt without quotation marks."""
        for action in self._actions:
            if action.dest in ("prompt", "text"):
                words = [getattr(known, action.dest), *rest]
                whole = json.dumps(" ".join(words), ensure_ascii=False)  # as a shell takes it
                self.error(f"the {action.dest} must be one argument. Got {len(words)}: put quotation marks round it: "
                           f"{whole}")
        self.error(f"one argument too many: {rest[0]!r}")

    def check_options(self, words: list[str]) -> None:
        """Raise BadInput for `--model gpt2` where the model is a positional argument, as in `summary gpt2`."""
        positionals = {f"--{action.metavar or action.dest}".lower() for action in self._actions
                       if not action.option_strings}
        for word in takewhile("--".__ne__, words):
            name = word.partition("=")[0]
            if name in positionals and name not in self._option_string_actions:
                self.error(f"there is no option {name}: give the {name[2:]} alone, without it")


def whole_number(smallest: int, largest: int = 10**18 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number from `smallest` to `largest`."""
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or not smallest <= int(text) <= largest:
            limits = f"{smallest} or more" if largest == 10**18 - 1 else f"from {smallest} to {largest:,}"
            raise argparse.ArgumentTypeError(f"must be a whole number, {limits}. Got {text[:40]!r}.")
        return int(text)

    return parse


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model NAME`."""
    parser.add_argument("--model", default="fairytale", metavar="NAME",
                        help="fairytale (bundled, the default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, "
                             "an owner/repo on the hub, or a folder")


def model_config(name: str) -> GPT2Config:
    """The config of a model, without its weights. Raises BadInput."""
    with bad_input():
        files = checkpoint_files(name, None, [CONFIG])
    return read_config(files["config.json"])


def add_special_tokens_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--special-tokens`, for command lines that encode a text."""
    parser.add_argument("--special-tokens", action="store_true", help="treat the names of special tokens in the "
                        "text, such as <|endoftext|>, as those tokens, not as plain text")


def special_tokens(args: argparse.Namespace) -> str | tuple[()]:
    """The value of `allowed_special` for these arguments."""
    return "all" if args.special_tokens else ()


def announce_model(name: str, model: GPT2) -> None:
    """Print the model's name and size to standard error and, for the default model, how to choose another."""
    line = f"model: {name}, {sum(array.size for _, array in named_parameters(model)):,} parameters"
    if name == "fairytale":
        line += " (bundled; for OpenAI's GPT-2: --model gpt2)"
    say(line)


def read_prompt(prompt: str | None, prompt_file: str | None = None, n_positions: int | None = None,
                last: bool = False) -> str:
    """The prompt from the command line, a file, or `-` (standard input). Raises BadInput.

    Reads no more than a context could hold, since a file may be endless; with `last`, reads everything, but keeps only
    the end that n_positions tokens could hold. n_positions: the model's context, for error messages. Line ends are
    normalized, and the last one is dropped: editors and `echo` add it.
    """
    if prompt_file is None:
        return limited_text(os.fsencode(prompt or ""), "the prompt", n_positions)
    source = name_of(prompt_file)
    with notice_of_waiting(prompt_file):
        if last:
            most = LONGEST_TOKEN * (n_positions or 0)
            text = ""
            for part in text_parts(byte_parts(prompt_file, PART), source):
                text = (text + part)[-most:]
        else:
            text = limited_text(next(byte_parts(prompt_file, LONGEST_PROMPT + 1)), source, n_positions)
    return text.replace("\r\n", "\n").removesuffix("\n")


def limited_text(data: bytes, source: str, n_positions: int | None) -> str:
    """A prompt's bytes as text. Raises BadInput for more than any context holds."""
    if len(data) <= LONGEST_PROMPT:
        return utf8_text(data, source)
    if n_positions is None:
        raise BadInput(f"{source} must be at most {LONGEST_PROMPT:,} bytes. Got more: shorten it")
    raise BadInput(f"{source} must be at most {n_positions:,} tokens, the model's context. Got more than "
                   f"{LONGEST_PROMPT // LONGEST_TOKEN:,} tokens: shorten it{TOO_LONG}")


def prompt_file_or_pipe(prompt: str | None, prompt_file: str | None) -> str | None:
    """The file to read the prompt from: without a prompt or a file, standard input (-) if it is a pipe or a file.

    A terminal, /dev/null or a closed stream counts as no input.
    """
    if prompt is not None or prompt_file is not None:
        return prompt_file
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # a stream without a file, as in a notebook
        return None
    return "-" if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else None


@contextmanager
def notice_of_waiting(file: str) -> Iterator[None]:
    """While standard input is read: after a second, say that the command is waiting for its end."""
    notice = Timer(1.0, say, ["note: reading standard input to its end"])
    notice.daemon = True  # so that it ends with Ctrl-C
    if file == "-":
        notice.start()
    try:
        yield
    finally:
        notice.cancel()


def name_of(file: str) -> str:
    return "standard input" if file == "-" else file


def read_text(file: str) -> str:
    """The whole text of a file or of standard input (-), byte for byte: to be measured, not continued.

    Raises BadInput."""
    return non_empty_text(next(byte_parts(file, -1)), name_of(file))


def non_empty_text(data: bytes, source: str) -> str:
    """The bytes as text. Raises BadInput if they are not UTF-8, or none."""
    text = utf8_text(data, source)
    if not text:
        raise BadInput(f"{source} is empty: expected a text")
    return text


def byte_parts(file: str, first: int) -> Iterator[bytes]:
    """The bytes of a file or of standard input (-): `first` bytes, then PART at a time. Raises BadInput."""
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as opened:
            yield opened.read(first)
            while data := opened.read(PART):
                yield data
    except OSError as error:
        raise BadInput(f"{name_of(file)}: {error.strerror}") from error


def text_parts(parts: Iterable[bytes], source: str) -> Iterator[str]:
    """The parts of a text, decoded. Raises BadInput, naming the source and the first byte that is not UTF-8.

    A byte order mark at the beginning, which some editors put there, is dropped, with a note.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_decoded = 0
    for data in chain(parts, [b""]):
        held_back = len(decoder.getstate()[0])  # bytes of a character that is not whole yet
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise BadInput(f"{source} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset "
                           f"{n_decoded - held_back + error.start}") from error
        if n_decoded == 0 and text.startswith(BYTE_ORDER_MARK):
            say(f"note: {source} begins with a byte order mark, which is dropped")
            text = text[1:]
        yield text
        n_decoded += len(data)


def utf8_text(data: bytes, source: str) -> str:
    """The bytes as text: see `text_parts`."""
    return "".join(text_parts([data], source))


def check_file(option: str, path: Path, *endings: str) -> None:
    """Raise ValueError, before anything is computed, if a file with one of these endings cannot be written there."""
    if path.suffix.lower() not in endings:
        *others, last = filter(None, endings)
        listed = " or ".join(filter(None, (", ".join(others), last)))
        raise ValueError(f"{option} must be a file ending in {listed}. Got {str(path)!r}.")
    target = Path(os.path.realpath(path))  # where links lead; still a link if they lead in a circle
    if not target.parent.is_dir() or target.is_symlink():
        raise ValueError(f"{option} must be a file in an existing folder. Got {str(path)!r}.")
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "a device or a pipe"
        raise ValueError(f"{option} must be a file. Got {str(path)!r}, which is {what}.")


def check_plot(path: Path) -> None:
    """`check_file` for a plot, which also needs matplotlib. Raises ValueError."""
    check_file("--plot", path, ".png", ".svg", ".pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'numpy_gpt2[plot]'") from error
