"""`python -m numpy_gpt2.tokens` as a user meets it: a table of tokens, every merge of every piece, an exit status."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outside import as_typed

from numpy_gpt2 import tokens
from numpy_gpt2.bpe import merge
from numpy_gpt2.checkpoint.loading import load_tokenizer
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet
from numpy_gpt2.cli.exits import exit_status
from numpy_gpt2.cli.tables import display_width, table
from numpy_gpt2.tokenizer import END_OF_TEXT, quoted_bytes

FAIRYTALE = load_tokenizer("fairytale")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command in this process, on a terminal of 100 columns: exit status, stdout, stderr."""
    def run(*arguments, stdin=b"", columns="100"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys, "argv", ["tokens", *map(as_typed, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = exit_status(tokens.main)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def write_vocabulary(folder, *pairs):
    """The 256 bytes, what the merges make, and the end of text, as a checkpoint's files."""
    names = [*byte_alphabet(), *("".join(pair) for pair in pairs), END_OF_TEXT]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(names)}))
    lines = "".join(f"{left} {right}\n" for left, right in pairs)
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    return folder


NIGHT = ("g", "h"), ("Ġ", "n"), ("gh", "t"), ("i", "ght"), ("Ġn", "ight"), ("Ġ", "i")


def test_each_token_is_a_line_with_its_id_and_its_bytes(run, tmp_path):
    assert run("A night, né", "--model", write_vocabulary(tmp_path, *NIGHT)) == (0, r'''
 id  token     bytes
 32  "A"       41
260  " night"  20 6e 69 67 68 74
 11  ","       2c
257  " n"      20 6e
127  "\xc3"    c3
102  "\xa9"    a9
tokens: 6, characters: 11, bytes: 12
'''.lstrip("\n"), f"tokenizer: {tmp_path}, 263 tokens\n")


def test_each_merge_is_a_line_with_its_rank_and_the_tokens_after_it(run, tmp_path):
    assert run(" night!", "--merges", "--model", write_vocabulary(tmp_path, *NIGHT))[1].startswith('''\
rank  merge        tokens
                   " " "n" "i" "g" "h" "t"
   0  "g" "h"      " " "n" "i" "gh" "t"
   1  " " "n"      " n" "i" "gh" "t"
   2  "gh" "t"     " n" "i" "ght"
   3  "i" "ght"    " n" "ight"
   4  " n" "ight"  " night"

                   "!"

 id  token     bytes
260  " night"  20 6e 69 67 68 74
''')


def test_the_bundled_vocabulary_is_the_default_and_named(run):
    assert run("king")[2] == "tokenizer: fairytale, 4,096 tokens (bundled; for OpenAI's: --model gpt2)\n"


def steps_of(out):
    """[[(rank, tokens), ...] for each piece] from what --merges prints, the bytes of the piece under the rank -1."""
    pieces = [[]]
    for line in out.partition("\n")[2].splitlines():
        if line.lstrip().startswith("id "):
            return pieces[:-1]
        if not line:
            pieces.append([])
        else:
            rank, merged, shown = re.fullmatch(r"( *\d+|)  +(.*?|)  +(\S.*)", line).groups()
            pieces[-1].append((int(rank or -1), shown))


@pytest.mark.parametrize("text", ["the king's  daughter, 日 1812\n\n", "Rumpelstiltskin", "a"])
def test_the_merges_end_with_the_tokens_of_the_table(run, text):
    _, out, _ = run(text, "--merges", columns="200")
    pieces = steps_of(out)
    expected = [merge(piece.encode(), FAIRYTALE.merge_ranks) for piece in FAIRYTALE.pieces(text)]
    assert [steps[-1][1] for steps in pieces] == [" ".join(map(quoted_bytes, tokens)) for tokens in expected]
    assert [len(steps) - 1 for steps in pieces] == [len(b"".join(tokens)) - len(tokens) for tokens in expected]
    n_tokens = sum(map(len, expected))
    shown = [line.split()[0] for line in out.splitlines()[-1 - n_tokens:-1]]
    assert shown == [str(token_id) for token_id in FAIRYTALE.encode(text)]


def test_of_a_long_piece_the_tokens_around_each_merge_are_shown(run):
    _, out, _ = run("q" * 20 + "the" + "q" * 20, "--merges")
    (first, *steps), = steps_of(out)
    assert first == (-1, " ".join(['"q"'] * 11 + ["..."]))
    assert steps[-1][1] == " ".join(["...", *['"q"'] * 5, '"the"', *['"q"'] * 5, "..."])


@given(st.binary(max_size=30), st.data())
def test_nearby_tokens_are_eleven_or_all(piece, data):
    cuts = sorted({0, len(piece), *data.draw(st.sets(st.integers(0, len(piece))))})
    n_tokens = len(cuts) - 1
    at = data.draw(st.integers(0, max(n_tokens - 1, 0)))
    every = [quoted_bytes(piece[start:end]) for start, end in zip(cuts, cuts[1:])]
    shown = tokens.nearby_tokens(piece, cuts, at)
    some = every[max(0, min(at - 5, n_tokens - 11)):][:11]
    assert n_tokens == 0 or every[at] in some
    assert shown.removeprefix("... ").removesuffix(" ...") == " ".join(some)
    assert shown.count("...") - "".join(some).count("...") == (some != every) * (
        1 + (some != every[:11] and some != every[-11:]))


def test_the_text_comes_from_a_file_or_standard_input_without_its_last_line_end(run, tmp_path):
    path = tmp_path / as_typed("naïve ☃.txt")
    path.write_bytes("two\r\nlines\r\n".encode())
    expected = run("two\nlines")
    assert run("--prompt-file", path) == run("--prompt-file", "-", stdin=b"two\nlines\n") == expected
    assert expected[0] == 0 and '"\\n"' in expected[1]


def test_an_empty_text_has_no_tokens(run):
    assert run("") == run("--prompt-file", os.devnull)
    assert run("")[:2] == (0, "id  token  bytes\ntokens: 0, characters: 0, bytes: 0\n")


def test_end_of_text_in_a_text_is_text_unless_asked_for(run):
    assert f"\n{FAIRYTALE.eot_id} " not in run("<|endoftext|>")[1]
    out = run("a<|endoftext|>", "--merges", "--special-tokens")[1]
    assert f'\n{FAIRYTALE.eot_id}  "<|endoftext|>"' in out and [steps[-1][1] for steps in steps_of(out)] == ['"a"']


def test_a_vocabulary_that_tiktoken_would_merge_otherwise_is_shown_by_its_list(run, tmp_path):
    status, out, _ = run("abc", "--merges", "--model", write_vocabulary(tmp_path, "bc", "ab", ("ab", "c")))
    assert status == 0
    assert '   0  "b" "c"  "a" "bc"\n' in out and out.endswith("tokens: 2, characters: 3, bytes: 3\n")


@pytest.mark.parametrize("columns", ["1", "20", "40"])
def test_a_narrow_terminal_gets_lines_that_fit(run, columns):
    status, out, _ = run("midnight é", "--merges", columns=columns)
    assert status == 0
    assert max(map(len, out.splitlines()[:-1])) <= max(int(columns), 10)


BAD_INPUT = {
    "nothing": ([], b"", "expected a text, or standard input, or --prompt-file with a file"),
    "two texts": (["a", "--prompt-file", "-"], b"b", "a text and --prompt-file were both given: give one"),
    "not UTF-8": (["--prompt-file", "-"], b"caf\xe9", "standard input is not UTF-8 text: byte 0xe9 at offset 3"),
    "no file": (["--prompt-file", "no/such/file"], b"", "no/such/file: No such file or directory"),
    "too long": (["--prompt-file", "-"], b"a" * (2**20 + 1),
                 "standard input must be at most 1,048,576 bytes. Got more: shorten it"),
    "unknown model": (["a", "--model", "no-such-model"], b"", "no-such-model"),
    "unknown option": (["a", "--merge-steps"], b"", "--merge-steps"),
}


@pytest.mark.parametrize("arguments, stdin, clue", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_clear_line_and_exit_2(run, arguments, stdin, clue):
    status, out, err = run(*arguments, stdin=stdin)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and clue in err


def test_a_vocabulary_that_is_not_whole_is_exit_1(run, tmp_path):
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}')
    (tmp_path / "merges.txt").write_text("")
    status, out, err = run("a", "--model", tmp_path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "256 missing" in err


def test_without_a_text_a_pipe_is_read():
    command = [sys.executable, "-m", "numpy_gpt2.tokens"]
    piped = subprocess.run(command, input=b" king\n", capture_output=True, timeout=120)
    assert piped.returncode == 0 and b'" king"' in piped.stdout and b"tokens: 1," in piped.stdout
    nowhere = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert nowhere.returncode == 2 and nowhere.stderr.startswith(b"error: expected a text")


def test_it_runs_as_a_module():
    process = subprocess.run([sys.executable, "-m", "numpy_gpt2.tokens", "king"], capture_output=True, timeout=120)
    assert process.returncode == 0 and b'"king"' in process.stdout and process.stderr.count(b"\n") == 1


# The table


def test_wide_characters_and_marks_keep_columns_aligned():
    rows = [["1", '"日本"', "x"], ["2", '"e\u0301"', "y"], ["3", '"ab"', "z"]]
    assert list(table(["id", "token", "bytes"], rows, "><<", 40)) == [
        "id  token   bytes", ' 1  "日本"  x', ' 2  "e\u0301"     y', ' 3  "ab"    z']
    assert [display_width(text) for text in ("", "abc", "日本", "e\u0301", "👍", "ｱ")] == [0, 3, 4, 1, 2, 1]
