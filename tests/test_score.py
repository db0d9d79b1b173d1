"""`python -m numpy_gpt2.score` as a user meets it: a process with a file or a pipe, a table or JSON, an exit status."""

import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outside import as_typed

import numpy_gpt2
from numpy_gpt2 import GPT2Config, random_model
from numpy_gpt2 import score as module
from numpy_gpt2.cli import arguments
from numpy_gpt2.cli.exits import BadInput
from numpy_gpt2.score import dividing_place
from numpy_gpt2.scoring import score_stream, score_tokens

COMMAND = [sys.executable, "-m", "numpy_gpt2.score"]
TEXT = 'Once upon a time there was a king — and he said: "Où?"\r\n\n'
LONG_TEXT = "Once upon a time there was a king who had a daughter. " * 50  # longer than the context


def score(*arguments, stdin=b""):
    """Run the command to its end; a process with stdout and stderr as bytes."""
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def fairytale():
    return numpy_gpt2.load("fairytale")


def expected_scores(fairytale, text, stride=None, bos=True, n_top=0):
    model, tokenizer = fairytale
    return score_tokens(model, [tokenizer.eot_id] * bos + tokenizer.encode(text), stride, n_top)


def assert_measures(facts, scores, n_bytes):
    assert (facts["n_tokens"], facts["n_bytes"]) == (len(scores.log_probs), n_bytes)
    assert facts["total_loss"] == pytest.approx(-scores.log_probs.sum())
    assert facts["mean_loss"] == pytest.approx(scores.mean_loss)
    assert facts["perplexity"] == pytest.approx(scores.perplexity)
    assert facts["bits_per_byte"] == pytest.approx(scores.bits_per_byte(n_bytes))


def test_json_is_the_library_s_result_and_every_byte_of_the_file_counts(fairytale, tmp_path):
    path = tmp_path / as_typed("text with spaces é.txt")
    path.write_bytes(TEXT.encode())
    process = score(str(path), "--json")
    assert process.returncode == 0
    facts = json.loads(process.stdout)
    assert (facts["model"], facts["n_positions"], facts["stride"]) == ("fairytale", 512, 256)
    assert_measures(facts, expected_scores(fairytale, TEXT), len(TEXT.encode()))


@pytest.mark.slow
def test_a_long_text_comes_through_a_pipe_and_the_stride_reaches_the_library(fairytale):
    facts = json.loads(score("-", "--json", "--stride", "511", stdin=LONG_TEXT.encode()).stdout)
    assert facts["n_tokens"] > facts["n_positions"]
    assert facts["stride"] == 511
    assert_measures(facts, expected_scores(fairytale, LONG_TEXT, stride=511), len(LONG_TEXT))


def test_without_bos_the_first_token_is_not_scored_and_its_bytes_do_not_count(fairytale):
    facts = json.loads(score("-", "--json", "--no-bos", stdin=TEXT.encode()).stdout)
    first = len(fairytale[1].token_bytes(fairytale[1].encode(TEXT)[0]))
    assert_measures(facts, expected_scores(fairytale, TEXT, bos=False), len(TEXT.encode()) - first)


def test_json_holds_each_token_with_its_rank_and_alternatives(fairytale):
    tokens = json.loads(score("-", "--json", "--tokens", stdin=TEXT.encode()).stdout)["tokens"]
    scores = expected_scores(fairytale, TEXT, n_top=5)
    assert [token["id"] for token in tokens] == fairytale[1].encode(TEXT)
    assert [token["text"] for token in tokens[:3]] == ["Once", " upon", " a"]
    assert [token["rank"] for token in tokens] == scores.ranks.tolist()
    assert [token["log_prob"] for token in tokens] == pytest.approx(scores.log_probs.tolist())
    assert [[other["id"] for other in token["top"]] for token in tokens] == scores.top_ids.tolist()
    assert tokens[1]["top"][0]["log_prob"] == pytest.approx(scores.top_log_probs[1, 0])


def test_the_table_has_a_line_for_each_token_and_the_measures_below(fairytale):
    process = score("-", "--tokens", stdin=TEXT.encode())
    head, *lines = process.stdout.decode().splitlines()
    scores = expected_scores(fairytale, TEXT, n_top=5)
    n = len(scores.log_probs)
    assert head.split()[:4] == ["log-prob", "rank", "id", "token"]
    assert lines[1].split()[:3] == [f"{scores.log_probs[1]:.3f}", str(scores.ranks[1]),
                                    str(fairytale[1].encode(TEXT)[1])]
    assert '  " upon"  ' in lines[1]
    assert lines[1].endswith(f"{math.exp(scores.top_log_probs[1, 4]):.3f}")
    assert lines[n] == ""
    assert lines[n + 1:] == ["BOS            <|endoftext|>, put before the text",
                             f"tokens scored  {n} (context 512, stride 256)",
                             f"bytes scored   {len(TEXT.encode())}",
                             f"mean loss      {scores.mean_loss:.4f} nats per token",
                             f"perplexity     {scores.perplexity:.2f}",
                             f"bits per byte  {scores.bits_per_byte(len(TEXT.encode())):.4f}"]


def test_without_options_only_the_measures_are_printed_and_the_model_is_named(fairytale):
    process = score("-", stdin=TEXT.encode())
    assert process.stdout.decode().startswith("BOS  ") and process.stdout.count(b"\n") == 6
    errors = process.stderr.decode()
    assert errors.count("\n") == 1 and errors.startswith("model: fairytale") and "--model gpt2" in errors


def test_it_says_whether_a_bos_was_put_before_the_text():
    for options, line, bos in (([], b"BOS            <|endoftext|>, put before the text", "<|endoftext|>"),
                               (["--no-bos"], b"BOS            none (--no-bos): the first token is not scored", None)):
        assert score("-", *options, stdin=b"The king").stdout.splitlines()[0] == line
        assert json.loads(score("-", "--json", *options, stdin=b"The king").stdout)["bos"] == bos


@pytest.mark.parametrize("arguments, clue", [
    (["The king had three sons."], 'echo "the text" | python -m numpy_gpt2.score -'),
    (["The", "king"], "one argument too many: 'king'"),
    (["--file", "story.txt"], "give the file alone"),
])
def test_a_sentence_in_the_place_of_a_file_is_told_how_to_come(arguments, clue):
    process = score(*arguments)
    lines = process.stderr.decode().splitlines()
    assert (process.returncode, process.stdout, len(lines)) == (2, b"", 1)
    assert lines[0].startswith("error: ") and clue in lines[0]


def test_end_of_text_in_a_file_is_text():
    facts = json.loads(score("-", "--json", stdin=b"<|endoftext|>").stdout)
    assert facts["n_tokens"] > 1 and facts["n_bytes"] == 13


# Texts of any length --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch):
    """Limits at which a text of a few thousand bytes is a long one."""
    monkeypatch.setattr(module, "LONGEST_WHOLE", 500)
    monkeypatch.setattr(arguments, "PART", 301)
    for name, value in (("WINDOW", 200), ("MARGIN", 20), ("MOST_UNDIVIDED", 3000)):
        monkeypatch.setattr(module, name, value)


def score_here(monkeypatch, capsys, *options):
    """The command in this process: what it prints."""
    monkeypatch.setattr(sys, "argv", ["score", *options])
    module.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--no-bos"], ["--stride", "300"]])
def test_a_text_scored_in_parts_is_scored_as_a_whole(fairytale, small_parts, monkeypatch, capsys, tmp_path, options):
    text = "The king’s daughter said: naïve ☃  \n\n  yes, 12345 times! " * 17
    (tmp_path / "long.txt").write_bytes(text.encode())
    facts = json.loads(score_here(monkeypatch, capsys, str(tmp_path / "long.txt"), "--json", *options))
    bos = "--no-bos" not in options
    expected = expected_scores(fairytale, text, int(options[1]) if "--stride" in options else None, bos=bos)
    first = 0 if bos else len(fairytale[1].token_bytes(fairytale[1].encode(text)[0]))
    assert_measures(facts, expected, len(text.encode()) - first)


@pytest.mark.parametrize("content, clue", [
    (b"word " * 200 + b"\xff", "byte 0xff at offset 1000"), (b"word " * 200 + "é".encode()[:1], "0xc3 at offset 1000"),
    (bytes(10_000), "cannot be divided"), (b"word " * 60 + b"\xe2\x98" + b"word " * 60, "byte 0xe2 at offset 300")])
def test_what_is_wrong_in_a_long_text_is_said(small_parts, monkeypatch, capsys, tmp_path, content, clue):
    (tmp_path / "long.txt").write_bytes(content)
    with pytest.raises(BadInput, match=clue):
        score_here(monkeypatch, capsys, str(tmp_path / "long.txt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", [["--tokens"], ["--html", "page.html"], ["--plot", "picture.png"]])
def test_the_tokens_of_a_long_text_are_not_shown(small_parts, monkeypatch, capsys, tmp_path, option):
    monkeypatch.setattr(module, "check_plot", lambda path: None)  # which needs matplotlib
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_bytes(b"word " * 200)
    with pytest.raises(BadInput, match=f"{option[0]} shows a text of at most 500 bytes"):
        score_here(monkeypatch, capsys, "long.txt", *option)
    assert [path.name for path in tmp_path.iterdir()] == ["long.txt"]


# A page, a picture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_the_page_has_every_token_of_the_text_with_its_score_and_the_printed_table_stays(
        fairytale, monkeypatch, capsys, tmp_path, bos):
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    options = [str(tmp_path / "text.txt"), *([] if bos else ["--no-bos"])]
    printed = score_here(monkeypatch, capsys, *options)
    monkeypatch.setattr(sys, "argv", ["score", *options, "--html", str(tmp_path / "page.html")])
    module.main()
    with_page = capsys.readouterr()
    assert with_page.out == printed
    assert re.search(r"^page: .*page\.html, \d+ KB$", with_page.err, re.MULTILINE)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page)[1])
    ids, scores = fairytale[1].encode(TEXT), expected_scores(fairytale, TEXT, bos=bos, n_top=5)
    assert data["ids"] == ids
    n_unscored = 0 if bos else 1
    assert data["surprise"][:n_unscored] == [None] * n_unscored
    assert data["surprise"][n_unscored:] == pytest.approx((-scores.log_probs).tolist(), abs=1e-4)
    assert [len(row) for row in data["top"]] == [0] * n_unscored + [5] * len(scores.log_probs)
    for measure in (f"{len(scores.log_probs):,} tokens", f"{scores.mean_loss:.2f} nats", f"{scores.perplexity:,.1f}"):
        assert measure in data["lead"]


def test_a_page_of_too_many_tokens_is_refused_before_any_is_scored(monkeypatch, capsys, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"a b c d " * 6000)
    monkeypatch.setattr(module, "score_in_pieces", None)
    with pytest.raises(BadInput, match="a page can show at most 20,000 tokens. Got 24,001"):
        score_here(monkeypatch, capsys, str(tmp_path / "text.txt"), "--html", str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("options, clue", [
    (["--html", "page.txt"], "--html must be a file ending in .html. Got 'page.txt'."),
    (["--html", "no/such/folder/page.html"], "--html must be a file in an existing folder"),
    (["--plot", "picture.jpg"], "--plot must be a file ending in .png, .svg or .pdf. Got 'picture.jpg'."),
])
def test_a_page_or_a_picture_that_cannot_be_written_is_refused_before_the_text_is_read(monkeypatch, capsys, options,
                                                                                       clue):
    monkeypatch.setattr(module, "byte_parts", None)
    with pytest.raises(BadInput) as refused:
        score_here(monkeypatch, capsys, "-", *options)
    assert clue in str(refused.value)


@pytest.mark.slow  # matplotlib takes long to import
@pytest.mark.parametrize("text", [TEXT, LONG_TEXT])
def test_the_picture_shows_every_token_the_moving_average_and_the_loss(fairytale, monkeypatch, capsys, tmp_path, text):
    pyplot = pytest.importorskip("matplotlib.figure")
    saved = []
    monkeypatch.setattr(pyplot.Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    (tmp_path / "text.txt").write_bytes(text.encode())
    score_here(monkeypatch, capsys, str(tmp_path / "text.txt"), "--plot", str(tmp_path / "picture.png"))
    surprise = -expected_scores(fairytale, text).log_probs
    along, distribution = saved[0].axes
    tokens, average, loss = along.lines
    np.testing.assert_allclose(tokens.get_ydata(), surprise)
    n = min(50, len(surprise))
    assert average.get_ydata()[-1] == pytest.approx(np.mean(surprise[-n:]))
    assert average.get_xdata()[-1] == len(surprise) - 1 and len(average.get_xdata()) == len(surprise) - n + 1
    assert loss.get_ydata()[0] == pytest.approx(np.mean(surprise))
    assert sum(bar.get_height() for bar in distribution.patches) == len(surprise)


def test_a_text_is_divided_where_its_tokens_are_not():
    def encode(text):
        return re.findall("New York|.", text)  # a vocabulary with a token that spans two words

    text = "New York " * 100
    assert dividing_place(text, encode) % 9 == 8
    assert dividing_place(text.replace(" ", "_"), encode) == 0
    assert "".join(module.divided(["New York "] * 10_000, encode, "text")) == "New York " * 10_000


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_zeros_without_end_are_refused():
    process = subprocess.run(["sh", "-c", 'ulimit -v 2500000; exec "$@"', "sh", *COMMAND, "/dev/zero"],
                             capture_output=True, timeout=120)
    assert process.returncode == 2 and b"cannot be divided" in process.stderr


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 9), st.data())
def test_scores_of_a_stream_are_those_of_the_whole(sizes, n_positions, data):
    model = random_model(GPT2Config(vocab_size=11, n_positions=n_positions, n_embd=4, n_layer=1, n_head=1))
    stride = data.draw(st.integers(1, n_positions - 1))
    ids = np.random.default_rng(sum(sizes)).integers(11, size=sum(sizes) + 1)
    parts = np.split(ids, np.cumsum(sizes))
    whole = score_tokens(model, ids, stride)
    stream = np.concatenate([piece.log_probs for piece in score_stream(model, parts, stride)])
    np.testing.assert_allclose(stream, whole.log_probs, atol=1e-6)
    for nothing_to_predict in ([], [[]], [ids[:1]]):
        assert not list(score_stream(model, nothing_to_predict, stride))


BAD_INPUT = {
    "not UTF-8": (["-"], b"caf\xe9", "not UTF-8"),
    "nothing in the pipe": (["-"], b"", "standard input is empty"),
    "nothing in the file": ([os.devnull], b"", "is empty"),
    "one token and nothing before it": (["-", "--no-bos"], b"king", "one token"),
    "file that is not there": (["no/such/file"], b"", "no/such/file"),
    "folder": (["."], b"", "directory"),
    "no file": ([], b"", "FILE"),
    "stride of the whole context": (["-", "--stride", "512"], b"king", "512"),
    "stride of 0": (["-", "--stride", "0"], b"king", "--stride"),
    "unknown model": (["-", "--model", "no-such-model"], b"king", "no-such-model"),
}


def test_bad_input_gets_one_clear_line_and_exit_2():
    with ThreadPoolExecutor(2) as pool:
        processes = pool.map(lambda case: score(*case[0], stdin=case[1]), BAD_INPUT.values())
        for (name, (_, _, clue)), process in zip(BAD_INPUT.items(), processes):
            lines = [line for line in process.stderr.decode().splitlines() if not line.startswith("model:")]
            assert (name, process.returncode, process.stdout) == (name, 2, b"")
            assert len(lines) == 1 and lines[0].startswith("error: ") and clue in lines[0], (name, lines)


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen([*COMMAND, "-", "--tokens"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdin.write(LONG_TEXT.encode())  # its table is more than a pipe holds
        process.stdin.close()
        process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read().count(b"\n") == 1  # the line that names the model
        assert process.wait(timeout=120) == 0


def run_on_a_terminal(columns, stream):
    """The command on a long text with standard output or standard error a terminal: all that it writes there."""
    fcntl, pty, struct, termios = map(pytest.importorskip, ("fcntl", "pty", "struct", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: theirs}
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen([*COMMAND, "-", "--tokens"], stdin=subprocess.PIPE, env=environment, **streams) as process:
        os.close(theirs)
        process.stdin.write(LONG_TEXT.encode())
        process.stdin.close()
        written = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # what Linux says at the end
                chunk = b""
            if not chunk:
                break
            written += chunk
    os.close(ours)
    assert process.returncode == 0
    return written.decode()


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar_that_respects_its_width_and_goes_away():
    announcement, _, bars = run_on_a_terminal(40, "stderr").partition("\n")
    drawn = bars.split("\r")[1:]
    assert announcement.startswith("model: ")
    assert drawn[0].startswith("  0%|") and "100%|" in bars
    assert all(len(bar) <= 40 for bar in drawn)
    assert drawn[-2].strip() == drawn[-1] == ""  # it is wiped away


def test_a_terminal_gets_only_the_alternatives_that_fit_in_its_line():
    *table, _, _, _, _, _, _, end = run_on_a_terminal(70, "stdout").split("\r\n")
    assert end == "" and len(table) > 500
    assert 60 < max(map(len, table)) <= 70


def test_help_names_every_option_and_the_documentation():
    text = score("--help").stdout.decode()
    for option in "model stride no-bos tokens json html plot".split():
        assert f"--{option}" in text
    for page in ("pydoc numpy_gpt2.scoring", "numpy_gpt2/summary/README.md"):
        assert page in " ".join(text.split())


def test_a_byte_order_mark_is_not_scored_and_special_tokens_are_on_request():
    plain, marked = (json.loads(score("-", "--json", stdin=text).stdout)
                     for text in (b"Once upon a time", "\ufeffOnce upon a time".encode()))
    assert plain == marked
    n_tokens = [json.loads(score("-", "--json", *options, stdin=b"The end.<|endoftext|>Once").stdout)["n_tokens"]
                for options in ([], ["--special-tokens"])]
    assert n_tokens[0] > n_tokens[1]
