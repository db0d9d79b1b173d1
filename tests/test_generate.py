"""`python -m numpy_gpt2.generate` as a user meets it: a process with arguments, pipes and an exit status."""

import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

import numpy_gpt2
from numpy_gpt2 import GPT2Config, build_model, named_parameters, random_model
from numpy_gpt2.cli.tables import visible
from numpy_gpt2.generate import last_that_fit
from numpy_gpt2.tokenizer import quoted

BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
COMMAND = [sys.executable, "-m", "numpy_gpt2.generate"]


def generate(*arguments, stdin=b"", env=None):
    """Run the command to its end; a process with stdout and stderr as bytes."""
    typed = [text.encode(errors="surrogateescape") if isinstance(text, str) else text  # in any locale
             for text in arguments]
    return subprocess.run([*COMMAND, *typed], input=stdin, capture_output=True, timeout=60,
                          env={**os.environ, **(env or {})})


def last_line(process):
    return process.stderr.decode().splitlines()[-1]


@pytest.fixture(scope="module")
def fairytale():
    return numpy_gpt2.load("fairytale")


def text_of(fairytale, prompt, **options):
    options = {"max_new_tokens": 40, "temperature": 0.8, "top_k": 40, **options}
    return "".join(numpy_gpt2.stream_text(*fairytale, prompt, **options))


def test_standard_output_is_the_prompt_and_the_library_s_text_and_nothing_else(fairytale):
    process = generate("Once upon a time", "--seed", "1")
    assert process.returncode == 0
    assert process.stdout.decode() == "Once upon a time" + text_of(fairytale, "Once upon a time", seed=1) + "\n"


def test_the_default_model_is_named_with_the_way_to_openai_s():
    lines = generate("Hello", "--max-new-tokens", "1").stderr.decode().splitlines()
    assert len(lines) == 1 and "fairytale" in lines[0] and "--model gpt2" in lines[0]


def test_every_option_reaches_the_library(fairytale):
    options = {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 5}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = generate("The king", "--max-new-tokens", "25", *flags)
    assert process.stdout.decode() == "The king" + text_of(fairytale, "The king", max_new_tokens=25, **options) + "\n"


def test_greedy_is_temperature_0():
    assert generate("The king", "--greedy").stdout == generate("The king", "--temperature", "0").stdout


def test_several_samples_are_printed_in_full_one_after_another(fairytale):
    process = generate("The king", "--num-samples", "3", "--seed", "2", "--max-new-tokens", "10")
    streams = numpy_gpt2.stream_samples(*fairytale, "The king", 3, 10, temperature=0.8, top_k=40, seed=2)
    texts = ["The king" + "".join(stream) + "\n" for stream in streams]
    assert process.stdout.decode() == "".join(f"--- sample {i} of 3 ---\n{text}" for i, text in enumerate(texts, 1))
    assert b"sample" not in process.stderr


def test_a_stop_string_ends_the_text_and_is_left_out(fairytale):
    whole = text_of(fairytale, "The king", max_new_tokens=60, seed=3)
    stop = whole[20:24]
    process = generate("The king", "--seed", "3", "--max-new-tokens", "60", "--stop", stop, "--stats")
    assert process.stdout.decode() == "The king" + whole[:whole.index(stop)] + "\n"
    assert last_line(process).endswith("finished by stop")


def test_the_prompt_can_come_from_a_file_or_from_standard_input(tmp_path):
    path = tmp_path / os.fsdecode("prompt with spaces é.txt".encode())
    path.write_bytes(b"The king\r\nsaid\r\n")
    from_file = generate("--prompt-file", str(path), "--seed", "1")
    from_input = generate("--prompt-file", "-", "--seed", "1", stdin=b"The king\nsaid\n")
    assert from_file.stdout == from_input.stdout
    assert from_file.stdout.startswith(b"The king\nsaid") and not from_file.stdout.startswith(b"The king\nsaid\n\n")


@pytest.mark.parametrize("arguments", [[""], []])
def test_an_empty_prompt_starts_from_the_end_of_text(fairytale, arguments):
    process = generate(*arguments, "--seed", "4", "--max-new-tokens", "8")
    assert process.stdout.decode() == text_of(fairytale, "", seed=4, max_new_tokens=8) + "\n"


@pytest.mark.skipif(os.name == "nt", reason="descriptors of POSIX")
def test_without_a_prompt_standard_input_is_read_if_it_is_a_pipe_or_a_file(tmp_path):
    (tmp_path / "prompt.txt").write_text("The king\nsaid\n")
    begun = generate("The king\nsaid", "--seed", "1", "--max-new-tokens", "8").stdout
    by_itself = generate("", "--seed", "1", "--max-new-tokens", "8").stdout
    options = "--seed 1 --max-new-tokens 8"
    for redirection, written in (("<prompt.txt", begun), ("--last <prompt.txt", begun), ("</dev/null", by_itself),
                                 ("<&-", by_itself), ("--prompt-file prompt.txt <&-", begun)):
        process = subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} {options} {redirection}"], cwd=tmp_path,
                                 env={**os.environ, "PYTHONPATH": str(BUNDLED.parents[1])}, capture_output=True)
        assert (redirection, process.stdout) == (redirection, written)
    piped = generate(*options.split(), stdin=b"The king\r\nsaid\r\n")
    assert piped.stdout == begun and piped.stderr.count(b"\n") == 1
    assert generate("", *options.split(), stdin=b"The fox").stdout == by_itself  # a prompt was given: it is empty


@pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX's")
def test_at_a_terminal_a_prompt_is_not_waited_for(fairytale):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.run([*COMMAND, "--seed", "1", "--max-new-tokens", "5"], stdin=theirs, capture_output=True,
                             timeout=60)
    os.close(theirs)
    os.close(ours)
    assert process.stdout.decode() == text_of(fairytale, "", seed=1, max_new_tokens=5) + "\n"


def test_waiting_for_standard_input_is_said():
    with subprocess.Popen([*COMMAND, "--max-new-tokens", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        end = Timer(40, process.kill)
        end.start()
        assert process.stderr.readline() == b"note: reading standard input to its end\n"
        text, _ = process.communicate(b"The king", timeout=60)
        end.cancel()
    assert text == b"The king\n"


def test_interactive_answers_each_line_and_ends_with_the_input(fairytale):
    process = generate("--interactive", "--seed", "1", "--max-new-tokens", "5", stdin=b"The king\nA fox\n")
    texts = [prompt + text_of(fairytale, prompt, seed=1, max_new_tokens=5) + "\n" for prompt in ("The king", "A fox")]
    assert process.returncode == 0
    assert process.stdout.decode() == "".join(texts)


def test_interactive_goes_on_after_a_prompt_it_cannot_use():
    process = generate("--interactive", "--max-new-tokens", "1", stdin=b"word " * 600 + b"\nA fox\n")
    assert process.returncode == 0
    assert process.stdout.startswith(b"A fox") and b"error: " in process.stderr


def test_interactive_goes_on_after_a_line_that_is_not_utf_8():
    process = generate("--interactive", "--max-new-tokens", "1", stdin=b"\xff\nA fox\n")
    assert process.returncode == 0
    assert process.stdout.startswith(b"A fox") and b"error: the prompt is not UTF-8" in process.stderr


@pytest.mark.skipif(os.name == "nt", reason="the shell is POSIX's")
@pytest.mark.parametrize("closing, status", [(">&-", 0), ("2>&-", 0), ("--prompt-file - <&-", 0), ("--no 2>&-", 2)])
def test_streams_that_were_closed_make_no_traceback(closing, status):
    prompt = "" if "-file" in closing else "Once"
    command = f"{shlex.join(COMMAND)} {prompt} --max-new-tokens 1 {closing}"
    process = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in process.stderr and b"model:" not in process.stdout and b"error:" not in process.stdout


BAD_INPUT = {
    "prompt that is not UTF-8": ([b"caf\xe9"], b"", "UTF-8"),
    "file that is not UTF-8": (["--prompt-file", "-"], b"caf\xe9", "UTF-8"),
    "prompt longer than the context": (["word " * 600], b"", "at most 512 tokens, the model's context. Got 602: "
                                       "shorten it, or give --last"),
    "file that is not there": (["--prompt-file", "no/such/file"], b"", "no/such/file"),
    "folder as a file": (["--prompt-file", "."], b"", "directory"),
    "two prompts": (["a", "--prompt-file", "-"], b"", "give one"),
    "prompt and interactive": (["a", "--interactive"], b"", "--interactive asks for its prompts: give no prompt"),
    "unknown model": (["--model", "no-such-model"], b"", "no-such-model"),
    "unknown option": (["--no-such-option"], b"", "--no-such-option"),
    "temperature below 0": (["--temperature", "-1"], b"", "temperature"),
    "temperature that is no number": (["--temperature", "warm"], b"", "temperature"),
    "temperature that is not a number": (["--temperature", "nan"], b"", "temperature"),
    "temperature without end": (["--temperature", "inf"], b"", "temperature"),
    "top-k below 0": (["--top-k", "-1"], b"", "top-k"),
    "top-p of 0": (["--top-p", "0"], b"", "top_p"),
    "top-p above 1": (["--top-p", "1.5"], b"", "top_p"),
    "min-p below 0": (["--min-p", "-0.1"], b"", "min_p"),
    "repetition penalty of 0": (["--repetition-penalty", "0"], b"", "repetition_penalty"),
    "max-new-tokens below 0": (["--max-new-tokens", "-1"], b"", "max-new-tokens"),
    "more samples than memory": (["--num-samples", "9999999999999"], b"", "num-samples"),
    "seed without end": (["--seed", "9" * 5000], b"", "seed"),
    "no samples": (["--num-samples", "0"], b"", "num-samples"),
    "seed below 0": (["--seed", "-1"], b"", "seed"),
    "empty stop string": (["--stop", ""], b"", "stop"),
    "greedy and a temperature": (["--greedy", "--temperature", "0.5"], b"", "--greedy is --temperature 0"),
    "prompt without end": (["--prompt-file", "/dev/zero"], b"", "more than 8,192 tokens"),
    "pipe of megabytes": ([], b"word " * 600_000, "at most 512 tokens, the model's context. Got more than 8,192 "
                          "tokens: shorten it, or give --last"),
}


def test_bad_input_gets_one_clear_line_and_exit_2():
    with ThreadPoolExecutor(2) as pool:
        processes = pool.map(lambda case: generate(*case[0], stdin=case[1]), BAD_INPUT.values())
        for (name, (_, _, clue)), process in zip(BAD_INPUT.items(), processes):
            lines = [line for line in process.stderr.decode().splitlines() if not line.startswith("model:")]
            assert (name, process.returncode, process.stdout) == (name, 2, b"")
            assert len(lines) == 1 and lines[0].startswith("error: ") and clue in lines[0], (name, lines)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to limit memory")
def test_no_more_of_a_prompt_is_read_than_a_context_could_hold(tmp_path):
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(200_000_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for prompt_file, shell in ((path, 'exec "$@"'), (fifo, f'yes > {fifo} & exec "$@"')):
        limited = ["sh", "-c", f"ulimit -v 2000000; {shell}", "sh", *COMMAND, "--prompt-file", str(prompt_file)]
        process = subprocess.run(limited, capture_output=True, timeout=60)
        assert process.returncode == 2 and process.stderr.count(b"\n") == 1
        assert b"more than 8,192 tokens" in process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to limit memory")
def test_last_reads_on_in_bounded_memory_and_keeps_the_end(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = "print('a king ' * 30000000 + 'and at the end of it the na\\xefve fox said')"
    made = f"PYTHONIOENCODING=utf-8 {shlex.join([sys.executable, '-c', program])}"
    limited = ["sh", "-c", f'{made} > {fifo} & ulimit -v 2000000; exec "$@"', "sh", *COMMAND, "--prompt-file",
               str(fifo), "--last", "--max-new-tokens", "12", "--stats"]
    process = subprocess.run(limited, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert process.returncode == 0 and " king a king and at the end of it the naïve fox said" in process.stdout.decode()
    assert b"note: of the prompt, the last 500 tokens are read (--last)" in process.stderr
    assert b"stats: 500 prompt tokens, 12 new tokens" in process.stderr


@pytest.mark.parametrize("n_new, most", [(12, 500), (400, 256), (0, 512)])
def test_last_leaves_room_for_the_new_tokens(n_new, most):
    prompt = "日本語 " * 300
    process = generate(prompt, "--last", "--max-new-tokens", str(n_new), "--stats", env={"PYTHONIOENCODING": "utf-8"})
    assert most - 4 <= int(re.search(r"stats: (\d+) prompt tokens", last_line(process))[1]) <= most


def test_last_cuts_no_character(fairytale):
    tokenizer = fairytale[1]
    prompt = "日本語 naïve " * 300
    ids = tokenizer.encode(prompt)
    for room in range(100, 130):
        kept, kept_ids = last_that_fit(prompt, ids, room, tokenizer, ())
        assert prompt.endswith(kept) and kept_ids == tokenizer.encode(kept) and room - 4 < len(kept_ids) <= room
    assert last_that_fit(prompt, ids, len(ids), tokenizer, ()) == (prompt, ids)


def test_last_leaves_a_prompt_that_fits_as_it_is():
    whole = generate("The king", "--seed", "1", "--max-new-tokens", "5")
    assert generate("The king", "--seed", "1", "--max-new-tokens", "5", "--last").stdout == whole.stdout


def test_interactive_goes_on_after_a_line_of_megabytes():
    process = generate("--interactive", "--max-new-tokens", "1", stdin=b"word " * 600_000 + b"\nA fox\n")
    assert process.returncode == 0 and process.stdout.startswith(b"A fox")
    assert process.stderr.count(b"error: ") == 1 and b"more than 8,192 tokens" in process.stderr


def test_a_text_that_ends_because_the_context_is_full_says_so():
    prompt = "The king said. " * 125  # 500 tokens, or a few more
    process = generate(prompt, "--max-new-tokens", "600", "--seed", "1")
    assert last_line(process) == "note: the text ends where the model's context of 512 tokens does"
    assert b"note:" not in generate("The king", "--max-new-tokens", "3", "--seed", "1").stderr


def on_a_terminal(*arguments):
    """What the command writes where standard output is a terminal."""
    pty = pytest.importorskip("pty", reason="terminals are POSIX's")
    ours, theirs = pty.openpty()
    process = subprocess.run([*COMMAND, *(text.encode() for text in arguments)], stdout=theirs, timeout=60,
                             stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUTF8": "1"})
    os.close(theirs)
    written = os.read(ours, 100_000)
    os.close(ours)
    assert process.returncode == 0
    return written.decode()


def test_a_terminal_is_shown_what_it_would_obey_and_a_pipe_gets_every_byte():
    text = "a\x1b]0;title\x07\x1b]52;c;cGFzdGU=\x1b\\b\x9b31m\u202ec\td\x7f"
    written = on_a_terminal(text, "--max-new-tokens", "0")
    assert written == ("a\\x1b]0;title\\x07\\x1b]52;c;cGFzdGU=\\x1b\\b\\x9b31m\\u202ec\td\\x7f\r\n")
    assert generate(text, "--max-new-tokens", "0", env={"PYTHONUTF8": "1"}).stdout.decode() == text + "\n"


def test_every_control_is_written_out_and_nothing_else():
    obeyed = {chr(i) for i in [*range(32), *range(127, 160)]} - {"\n", "\t"}
    turning = {chr(i) for i in range(0x110000) if not 0xd800 <= i < 0xe000 and unicodedata.bidirectional(chr(i)) in
               ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")} | {"\u200e", "\u200f", "\u061c"}
    changed = {chr(i) for i in range(0x110000) if visible(chr(i)) != chr(i)}
    assert changed == obeyed | turning
    assert all(visible(character).isascii() and visible(character).isprintable() for character in changed)


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_standard_error_that_nobody_reads_costs_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([*COMMAND, "The king", "--seed", "1", "--max-new-tokens", "5", "--stats"],
                             stdout=subprocess.PIPE, stderr=writer, timeout=60)
    os.close(writer)
    assert process.returncode == 0
    assert process.stdout == generate("The king", "--seed", "1", "--max-new-tokens", "5").stdout


def test_log_probs_are_the_library_s_in_a_table_after_each_text(fairytale):
    options = {"max_new_tokens": 6, "temperature": 0.8, "top_k": 40, "seed": 2}
    streams = numpy_gpt2.stream_samples(*fairytale, "The king", 2, **options)
    process = generate("The king", "--num-samples", "2", "--seed", "2", "--max-new-tokens", "6", "--log-probs")
    lines = iter(process.stdout.decode().split("\n"))
    for number, stream in enumerate(streams, 1):
        text = "The king" + "".join(stream)
        assert next(lines) == f"--- sample {number} of 2 ---"
        assert [next(lines) for _ in text.split("\n")] == text.split("\n")
        assert [next(lines), next(lines).split()] == ["", ["log-prob", "probability", "id", "token"]]
        for token_id, log_prob in zip(stream.ids, stream.log_probs):
            cells = next(lines).split(maxsplit=3)
            assert cells == [f"{log_prob:.3f}", f"{np.exp(log_prob):.4f}", str(token_id),
                             quoted(fairytale[1], token_id)]
        assert next(lines) == ""


@pytest.mark.parametrize("flags", [["--greedy", "--temperature", "0"], ["--greedy"]])
def test_greedy_may_be_said_twice(flags):
    assert generate("The king", *flags, "--max-new-tokens", "2").returncode == 0


def test_a_corrupt_checkpoint_is_one_line_and_exit_1(tmp_path, fairytale):
    for name in ("vocab.json", "merges.txt", "config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((BUNDLED / name).read_bytes()[:100_000])
    process = generate("--model", str(tmp_path))
    lines = process.stderr.decode().splitlines()
    assert process.returncode == 1 and process.stdout == b""
    assert len(lines) == 1 and lines[0].startswith("error: ") and "model.safetensors" in lines[0]


def test_weights_that_are_not_finite_are_one_line_and_exit_1(tmp_path, fairytale):
    small = GPT2Config(fairytale[0].config.vocab_size, 16, 8, 1, 2)
    arrays = {name: np.full_like(array, np.nan) for name, array in named_parameters(random_model(small))}
    numpy_gpt2.save(build_model(small, arrays), tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(BUNDLED / name)
    process = generate("The king", "--model", str(tmp_path))
    lines = process.stderr.decode().splitlines()
    assert process.returncode == 1 and len(lines) == 2 and "not finite" in lines[1]


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen([*COMMAND, "Once", "--max-new-tokens", "400", "--top-k", "0"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read().count(b"\n") == 1  # the line that names the model
        assert process.wait(timeout=60) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_keeps_what_was_written_and_exits_130():
    with subprocess.Popen([*COMMAND, "Once upon", "--max-new-tokens", "500", "--num-samples", "50"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        process.stdout.readline()  # --- sample 1 of 50 ---
        written = process.stdout.read(len("Once upon") + 1)  # one character of the continuation is out
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, written[:9]) == (130, b"Once upon")
    assert b"Traceback" not in errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.skipif(os.name == "nt", reason="ulimit of POSIX")
def test_samples_beyond_the_memory_are_refused_before_the_first_text():
    limited = f"ulimit -v 6000000; exec {shlex.join(COMMAND)} Hi --num-samples 10000 --max-new-tokens 250"
    process = subprocess.run(["bash", "-c", limited], capture_output=True, timeout=60, encoding="utf-8")
    assert (process.returncode, process.stdout) == (1, "")
    assert re.search(r"^error: not enough memory: 10,000 samples of 25\d tokens take 2\d\.\d\d GB, and \S+ GB is "
                     "available: lower --num-samples or --max-new-tokens$", process.stderr.splitlines()[-1])


def test_a_full_disk_is_one_line_and_exit_1():
    with open("/dev/full", "wb") as full:
        process = subprocess.run([*COMMAND, "Once", "--max-new-tokens", "3"], stdout=full, stderr=subprocess.PIPE)
    lines = process.stderr.decode().splitlines()
    assert process.returncode == 1 and len(lines) == 2 and "space" in lines[1]


def test_a_terminal_that_cannot_show_a_character_is_no_error():
    process = generate("naïve ☃", "--max-new-tokens", "1", env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0 and process.stdout.startswith(b"na?ve ?")


def test_prompt_lookup_writes_the_same_text_and_tells_the_passes():
    plain = generate("The fox said", "--greedy", "--max-new-tokens", "120")
    drafted = generate("The fox said", "--greedy", "--max-new-tokens", "120", "--prompt-lookup", "10", "--stats")
    assert drafted.stdout == plain.stdout
    told = re.search(r"([\d.]+) tokens per pass: (\d+) of \d+ guesses accepted", last_line(drafted))
    passes, accepted = told.groups()
    assert float(passes) > 1 and int(accepted) > 0


@pytest.mark.parametrize("flags", [(), ("--greedy", "--num-samples", "2")])
def test_prompt_lookup_without_one_greedy_text_is_refused_in_one_line(flags):
    process = generate("Hello", "--prompt-lookup", "5", *flags)
    assert process.returncode == 2 and process.stdout == b"" and process.stderr.count(b"\n") == 1
    assert "--greedy" in last_line(process)


def test_stats_tell_tokens_and_the_finish_reason():
    line = last_line(generate("The king", "--max-new-tokens", "7", "--seed", "1", "--stats"))
    assert line.startswith("stats: ") and " 7 new tokens " in line and line.endswith("finished by length")


def test_help_names_every_option():
    text = generate("--help").stdout.decode()
    for option in ("model interactive max-new-tokens temperature top-k top-p min-p repetition-penalty greedy seed "
                   "num-samples stop prompt-file prompt-lookup stats last log-probs").split():
        assert f"--{option}" in text


# Interactive, at a terminal -------------------------------------------------------------------------------------------


@pytest.fixture
def terminal():
    """The command, asking for prompts at a terminal of its own."""
    pexpect = pytest.importorskip("pexpect", reason="a terminal needs pexpect (the extra `test`)")
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "--interactive", "--max-new-tokens", "500", "--seed", "1"],
                          encoding="utf-8", timeout=60, env={**os.environ, "TERM": "dumb"},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    child.delaybeforesend = 0.1
    yield child
    child.close(force=True)


@pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX's")
def test_ctrl_c_ends_a_text_and_a_line_but_not_the_session(terminal):
    terminal.expect("Each line is a separate prompt; the model does not remember")
    terminal.expect("/quit or Ctrl-D exits")
    terminal.expect("prompt> ")
    terminal.sendline("The king")
    terminal.expect("\nThe king's son was ")  # the text has begun
    terminal.sendintr()
    terminal.expect("\nstopped; /quit or Ctrl-D exits")
    terminal.expect("prompt> ")
    terminal.send("A half-typed")
    terminal.expect("A half-typed")  # readline has read it: what it has not, Ctrl-C would flush
    terminal.sendintr()
    terminal.expect("prompt> ")
    terminal.sendline("A fox")
    terminal.expect(r"\nA fox")
    terminal.sendintr()
    terminal.expect("prompt> ")
    terminal.sendline("/help")
    terminal.expect("Each line is a separate prompt")
    terminal.expect("prompt> ")
    terminal.sendline("/quit")
    terminal.read()  # to its end
    terminal.close()
    assert terminal.exitstatus == 0


def test_interactive_has_commands_for_help_and_for_leaving():
    process = generate("--interactive", "--max-new-tokens", "1", stdin=b"/help\n/quti\n/quit\nA fox\n")
    assert (process.returncode, process.stdout) == (0, b"")
    said = process.stderr.decode()
    assert said.count("Each line is a separate prompt") == 2 and "Ctrl-C stops a text" in said
    assert said.count("error: no command is called /quti: expected /help or /quit") == 1


def test_special_tokens_in_a_prompt_are_read_as_such_on_request(fairytale):
    prompt = "The end.<|endoftext|>"
    plain = generate(prompt, "--greedy", "--max-new-tokens", "0", "--stats")
    marked = generate(prompt, "--greedy", "--max-new-tokens", "0", "--stats", "--special-tokens")
    n_plain, n_marked = (int(re.search(r"stats: (\d+) prompt tokens", last_line(one))[1]) for one in (plain, marked))
    assert n_plain == len(fairytale[1].encode(prompt)) and n_marked == len(fairytale[1].encode(prompt, "all"))
    assert n_plain > n_marked


def test_a_byte_order_mark_is_dropped_and_said(tmp_path):
    (tmp_path / "prompt.txt").write_bytes("\ufeffOnce upon".encode())
    process = generate("--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "0")
    assert process.returncode == 0 and process.stdout == b"Once upon\n"
    assert f"note: {tmp_path / 'prompt.txt'} begins with a byte order mark, which is dropped" in process.stderr.decode()


def test_a_stop_of_a_backslash_and_an_n_is_said_to_be_two_characters():
    process = generate("Once", "--max-new-tokens", "1", "--stop", r"\n")
    assert process.returncode == 0
    assert r"note: --stop: \n is two characters here, a backslash and an n" in process.stderr.decode()
    assert b"note" not in generate("Once", "--max-new-tokens", "1", "--stop", "\n").stderr
