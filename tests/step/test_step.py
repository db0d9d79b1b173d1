"""`python -m numpy_gpt2.step` as a user meets it: at a terminal, and with commands from a pipe."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outside import as_typed

import numpy_gpt2
from numpy_gpt2 import GPT2Config, load_tokenizer, random_model, save
from numpy_gpt2.step.walk import COMMANDS

try:
    import pexpect
except ImportError:
    pexpect = None

COMMAND = [sys.executable, "-m", "numpy_gpt2.step"]
LAUNCH = Path(__file__).parents[2] / ".vscode" / "launch.json"
GUIDE = (Path(__file__).parents[2] / "numpy_gpt2" / "step" / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
ENVIRONMENT.pop("PYTHONBREAKPOINT", None)

at_a_terminal = pytest.mark.skipif(pexpect is None or os.name == "nt",
                                   reason="a terminal needs POSIX and pexpect (the extra `test`)")


def step(*arguments, stdin="", env=None):
    """Run the command to its end; a process with stdout and stderr as text."""
    return subprocess.run([*COMMAND, *map(as_typed, arguments)], input=stdin, capture_output=True, timeout=60,
                          encoding="utf-8", env={**ENVIRONMENT, **(env or {})})


# From a pipe ----------------------------------------------------------------------------------------------------------


def test_a_scripted_lesson_prints_its_commands_and_what_they_show():
    process = step("Once upon a time", "--until", "h.3.attn.pattern", stdin="print q.shape\nheads\nnext\nquit\n")
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert lines[2].startswith("h.3.attn.pattern = softmax(scores)")
    assert lines[lines.index("step> print q.shape") + 1] == "(6, 4, 32)"
    assert "step> heads" in lines and lines[lines.index("step> next") + 2].startswith("h.3.attn.z = ")
    assert lines[-1] == "step> quit"
    assert [line[:16] for line in process.stderr.splitlines()] == ["model: fairytale"]


def test_the_end_of_the_input_ends_the_walk():
    process = step("Once upon a time")
    assert process.returncode == 0 and process.stdout.endswith("\nstep> \n")
    assert "wte = wte[ids]" in process.stdout and "The pass is done" not in process.stdout


def test_the_whole_pass_ends_with_what_the_model_predicts():
    process = step("Once upon a time", stdin="c\n")
    model, tokenizer = numpy_gpt2.load("fairytale")
    logits = numpy_gpt2.forward(model, tokenizer.encode("Once upon a time"))[-1]
    end = process.stdout[process.stdout.index("The pass is done."):]
    best, = numpy_gpt2.top_tokens(logits, tokenizer, 1)
    assert f'"{best.text}"' in end.splitlines()[3] and f"{best.probability:.3f}" in end.splitlines()[3]


def test_next_reads_the_prompt_first_and_walks_through_the_token_that_follows():
    process = step("Once upon a time", "--next", "--until", "h.0.attn.k_all", stdin="p k.shape, k_all.shape\nc\n")
    model, tokenizer = numpy_gpt2.load("fairytale")
    ids = tokenizer.encode("Once upon a time")
    next_id = int(numpy_gpt2.forward(model, ids)[-1].argmax())
    assert f'prefill: 4 tokens are in the cache now; the most likely next token is "{tokenizer.decode([next_id])}"' in (
        process.stdout)
    assert "n_all 5: 4 from the cache + 1 new" in process.stdout
    assert "((6, 1, 32), (6, 5, 32))" in process.stdout
    best, = numpy_gpt2.top_tokens(numpy_gpt2.forward(model, [*ids, next_id])[-1], tokenizer, 1)
    assert f'"{best.text}"' in process.stdout[process.stdout.index("The pass is done."):].splitlines()[3]


def test_the_debugger_reads_on_from_the_same_pipe_and_comes_back():
    process = step("Once", "--until", "h.3.attn.pattern",
                   stdin="pdb\np q.shape\nn\nn\nn\nn\np z.shape\nc\nwhere\npdb\nq\n")
    assert process.returncode == 0
    text = process.stdout
    assert "(Pdb) p q.shape\n(6, 1, 32)\n(Pdb) n\n" in text
    assert "-> return pattern @ v" in text and "(Pdb) p z.shape\n(6, 1, 32)\n(Pdb) c\n" in text
    assert "\nh.3.attn.out = " in text and "\nh.3.attn.z = " not in text
    assert "step> where\n" in text and text.rstrip().endswith("(Pdb) q")
    assert [line[:6] for line in process.stderr.splitlines()] == ["model:"]


@pytest.mark.parametrize("prompt", ["", "\n", 'a "b" \\ \x1b[31m é 王 ☃ \u202e'])
def test_any_prompt_is_shown_escaped(prompt):
    process = step(prompt, stdin="tokens\nuntil h.0.attn.pattern\nlogits\n")
    assert process.returncode == 0 and "\x1b" not in process.stdout and "\u202e" not in process.stdout
    assert ('"<|endoftext|>"' if prompt == "" else r'"\n"' if prompt == "\n" else r"\x1b") in process.stdout


@pytest.mark.parametrize("env", [{"COLUMNS": "20"}, {"COLUMNS": "0", "LINES": "0"}, {"COLUMNS": "1", "LINES": "1"},
                                 {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}, {"TERM": "xterm"}])
def test_no_terminal_is_too_poor(env):
    process = step("naïve ☃ 王", stdin="heads\nu h.0.attn.pattern\nhd\nlogits\nhelp\np 'é'\nw\nc\n", env=env)
    assert process.returncode == 0 and len(process.stderr.splitlines()) == 1
    assert "The pass is done." in process.stdout and "\x1b" not in process.stdout


def test_commands_that_are_not_utf_8_are_no_error():
    process = subprocess.run([*COMMAND, "Once"], input=b"\xff\np 1 + 1\r\n", capture_output=True,
                             timeout=60, env=ENVIRONMENT)
    assert process.returncode == 0 and b"no command is called" in process.stdout and b"\n2\n" in process.stdout


BAD_INPUT = {
    "no prompt": ([], "PROMPT"),
    "unknown stage": (["a", "--until", "h.3.attn.patern"], "h.3.attn.pattern"),
    "unknown block": (["a", "--until", "h.6.ln_1"], "h.5.ln_1"),
    "unknown model": (["a", "--model", "no-such-model"], "no-such-model"),
    "unknown option": (["a", "--no-such-option"], "--no-such-option"),
    "prompt longer than the context": (["word " * 600], "at most 512 tokens"),
    "prompt that leaves no room": (["a" + " a" * 511, "--next"], "at most 511 tokens"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line_and_exit_2(case):
    arguments, clue = BAD_INPUT[case]
    process = step(*arguments)
    lines = [line for line in process.stderr.splitlines() if not line.startswith("model:")]
    assert (process.returncode, process.stdout) == (2, "")
    assert len(lines) == 1 and lines[0].startswith("error: ") and clue in lines[0]


def test_too_many_layers_are_refused_before_the_weights_are_looked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2Config(n_layer=4000).to_dict()))
    process = step("Once", "--model", str(tmp_path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: a walk is through at most 500 layers. Got 4000: use a smaller model.\n"


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path):
    commands = tmp_path / "commands"
    commands.write_text("help\n" * 2000)
    with open(commands) as stdin:
        process = subprocess.Popen([*COMMAND, "Once"], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=ENVIRONMENT)
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="the shell is POSIX's")
@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-"])
def test_streams_that_were_closed_make_no_traceback(closing):
    process = subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} Once {closing}"], input=b"", capture_output=True,
                             timeout=60, env=ENVIRONMENT)
    assert process.returncode == 0
    assert b"Traceback" not in process.stderr


def test_without_docstrings_it_works_the_same():
    process = subprocess.run([sys.executable, "-OO", *COMMAND[1:], "Once"], input="help\nn\nnext 3\nq\n", timeout=60,
                             capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    assert process.returncode == 0 and process.stdout == step("Once", stdin="help\nn\nnext 3\nq\n").stdout


def test_help_names_every_option():
    text = step("--help").stdout
    for option in ("--model", "--until", "--next", "PROMPT"):
        assert option in text


@pytest.mark.slow
def test_small_s_size_is_walked_at_reading_speed(tmp_path):
    save(random_model(GPT2Config(vocab_size=4096)), tmp_path, tokenizer=load_tokenizer("fairytale"))
    process = step("Once upon a time", "--model", str(tmp_path), "--until", "h.3.attn.pattern")
    assert process.returncode == 0 and "[n_head 12, n_new 4, n_all 4]" in process.stdout


# At a terminal --------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal():
    """terminal(arguments...): the command at a terminal of its own; the function returned sends a line."""
    children = []

    def start(*arguments, columns=100):
        # whoever runs the tests may ignore Ctrl-C, which a child would inherit
        child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], *arguments], encoding="utf-8", timeout=30,
                              dimensions=(40, columns), env={**ENVIRONMENT, "COLUMNS": str(columns), "TERM": "xterm"},
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        child.delaybeforesend = 0.1
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def ended(child):
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


@at_a_terminal
def test_a_session_at_a_terminal(terminal):
    child = terminal("Once upon a time", "--until", "h.3.attn.pattern")
    for answer, line in [(r"h\.3\.attn\.pattern = softmax", "p q.shape"), (r"\(6, 4, 32\)", "heads"),
                         (r"head 0  head 1", "nxt"), ("error: no command is called 'nxt'", ""),
                         (r"h\.3\.attn\.z = ", "until h.5.*"), (r"h\.5\.resid_pre = ", "where"),
                         (r"h\.4 \[h\.5\] ln_f logits\r\nh\.5: \[resid_pre\] ln_1", "c")]:
        child.expect(answer)
        child.expect("step> ")
        child.sendline(line)
    child.expect("The pass is done")
    assert ended(child) == 0


@at_a_terminal
def test_tab_completes_commands_and_stages_and_the_arrow_brings_a_line_back(terminal):
    pytest.importorskip("readline")
    child = terminal("Once")
    child.expect("step> ")
    child.send("unt\t h.3.attn.pa\t\n")
    child.expect(r"h\.3\.attn\.pattern = softmax")
    child.expect("step> ")
    child.sendline("p 6 * 7")
    child.expect("42")
    child.expect("step> ")
    child.send("\x1b[A\n")
    child.expect(r"\n42")
    child.expect("step> ")
    child.send("\x04")
    assert ended(child) == 0


@at_a_terminal
def test_the_debugger_at_a_terminal_steps_a_line_and_comes_back(terminal):
    child = terminal("Once", "--until", "h.3.attn.pattern")
    for answer, line in [("step> ", "pdb"), (r"attend\(\)\r\n-> return .*pattern @ v.*\(Pdb\) ", "p q.shape"),
                         (r"\(6, 1, 32\).*\(Pdb\) ", "n"), (r"--Return--.*\(Pdb\) ", "p pattern.shape"),
                         (r"\(6, 1, 1\).*\(Pdb\) ", "c"), (r"h\.3\.attn\.z = .*step> ", "p 6 * 7"),
                         ("42.*step> ", "pdb"), (r"\(Pdb\) ", "q")]:
        child.expect("(?s)" + answer)
        child.sendline(line)
    assert ended(child) == 0
    assert "Traceback" not in child.before


@at_a_terminal
@pytest.mark.parametrize("leave", ["\x04", "q\n", "EOF\n"])
def test_leaving_is_no_error(terminal, leave):
    child = terminal("Once")
    child.expect("step> ")
    child.send(leave)
    assert ended(child) == 0
    assert "error" not in child.before and "Traceback" not in child.before


@at_a_terminal
def test_ctrl_c_is_exit_130(terminal):
    child = terminal("Once")
    child.expect("step> ")
    child.sendintr()
    assert ended(child) == 130
    assert "Traceback" not in child.before and child.before.endswith("\r\n")


@at_a_terminal
def test_ctrl_c_clears_a_line_that_has_been_begun(terminal):
    pytest.importorskip("readline")
    child = terminal("Once")
    child.expect("step> ")
    child.send("quit and some")
    child.expect("and some")
    child.sendintr()
    child.expect("step> ")
    child.sendline("p 6 * 7")
    child.expect(r"\n42\r\n")
    child.expect("step> ")
    child.sendintr()
    assert ended(child) == 130


@at_a_terminal
def test_ctrl_c_ends_a_long_print_not_the_walk(terminal):
    child = terminal("Once", "--until", "pattern")
    child.expect("step> ")
    child.sendline("p [print('begun', flush=True), __import__('time').sleep(60)]")
    child.expect(r"\nbegun")
    child.sendintr()
    child.expect("interrupted")
    child.expect("step> ")
    child.sendline("n")
    child.expect(r"h\.0\.attn\.z = ")
    child.expect("step> ")
    child.sendline("q")
    assert ended(child) == 0


@at_a_terminal
def test_at_80_columns_a_lesson_goes_back_and_forth_and_computes(terminal):
    pytest.importorskip("readline")
    child = terminal("Once upon a time there was a king who had three daughters", "--until", "h.2.pattern", columns=80)
    for answer, line in [(r"the \d keys with the largest weights; \d left out", "until z"),
                         (r"h\.2\.attn\.z = pattern @ v_all", "back"), (r"h\.2\.attn\.pattern = softmax", "n"),
                         (r"h\.2\.attn\.z = ", "s = softmax(q[0] @ k[0].T)"), ("", "u h.4.resid_mid"),
                         (r"h\.4\.resid_mid = ", "print s.shape, layer_norm.__name__"),
                         (r"\(\(12, 12\), 'layer_norm'\)\r\n", "q")]:
        child.expect(answer)
        child.expect("step> ")
        assert max(len(re.sub(r"\x1b\[.*?[a-z]", "", text)) for text in child.before.split("\r\n")) <= 80
        child.sendline(line)
    assert ended(child) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_while_commands_come_from_a_pipe_is_exit_130():
    process = subprocess.Popen([*COMMAND, "Once"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ENVIRONMENT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for letter in iter(lambda: process.stdout.read(1), b""):  # to the prompt, or to the end
        if letter == b">":
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors


# The guide ------------------------------------------------------------------------------------------------------------


def test_the_guide_has_every_command_with_its_short_form():
    rows = re.findall(r"^\| `(\w+)[^|]*\| `(\w+)` \|", GUIDE, re.MULTILINE)
    assert rows == [(command, short) for command, (short, _, _) in COMMANDS.items()]


@pytest.mark.parametrize("session", re.findall(r"^```text\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
def test_every_session_with_pdb_in_the_guide_goes_as_shown(session):
    said = re.findall(r"^(?:step>|\(Pdb\)) (.*)", session, re.MULTILINE)
    command = re.match(r"\$ python (.*)", session)
    arguments = shlex.split(command[1]) if command else [*COMMAND[1:], "Once upon a time", "--until", "pattern"]
    process = subprocess.run([sys.executable, *arguments], input="\n".join([*said, "q", ""]), capture_output=True,
                             encoding="utf-8", timeout=60, env=ENVIRONMENT, cwd=LAUNCH.parents[1])
    printed = re.sub(r"\(\d+\)", "(N)", process.stdout.replace(f"{LAUNCH.parents[1]}{os.sep}", ""))
    place = 0
    for line in session.splitlines():
        if not line.startswith(("$ ", "step> ", "(Pdb) ")):
            line = re.sub(r"\(\d+\)", "(N)", line)
            assert line in printed[place:], line
            place = printed.index(line, place) + len(line)


# From an editor, and from pdb -----------------------------------------------------------------------------------------


def test_the_editor_s_configurations_run():
    launch = json.loads(LAUNCH.read_text(encoding="utf-8"))
    configurations = {entry["name"]: entry for entry in launch["configurations"]}
    assert list(configurations) == ["generate", "step through one forward pass", "test"]
    for name, entry in configurations.items():
        assert (entry["type"], entry["request"]) == ("debugpy", "launch")
        arguments = [argument.replace("${file}", "tests/test_ops.py") for argument in entry["args"]]
        arguments += ["--collect-only"] if name == "test" else []
        process = subprocess.run([sys.executable, "-m", entry["module"], *arguments], stdin=subprocess.DEVNULL,
                                 capture_output=True, timeout=60, env=ENVIRONMENT, cwd=LAUNCH.parents[1])
        assert process.returncode == 0, process.stderr
        assert process.stdout


@pytest.mark.parametrize("place", ["numpy_gpt2/model.py:{line}", "numpy_gpt2.model.attention"])
def test_plain_pdb_breaks_in_attention_of_a_chosen_layer(place):
    source = (LAUNCH.parents[1] / "numpy_gpt2" / "model.py").read_text(encoding="utf-8").splitlines()
    line, = [number for number, text in enumerate(source, 1) if 'tap("attn.qkv"' in text]
    commands = f"import numpy_gpt2.model\nb {place.format(line=line)}, layer == 3\nc\np layer, x.shape\nq\n"
    process = subprocess.run([sys.executable, "-m", "pdb", "-m", "numpy_gpt2.generate", "Once"], input=commands,
                             capture_output=True, encoding="utf-8", timeout=60, env=ENVIRONMENT,
                             cwd=LAUNCH.parents[1])
    assert "-> qkv = tap(" in process.stdout or "-> n_new, n_embd = x.shape" in process.stdout
    assert "(3, (1, 192))" in process.stdout
