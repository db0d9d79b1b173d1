"""`python -m numpy_gpt2.train` as a user meets it: a folder that loads, a run that survives, one line for a mistake."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from unittest.mock import Mock

import numpy as np
import pytest

import numpy_gpt2
from numpy_gpt2 import forward, named_parameters
from numpy_gpt2 import train as command
from numpy_gpt2.training.saved_run import FILE, LOCK, PARTIAL, RECORD, only_run

COMMAND = [sys.executable, "-m", "numpy_gpt2.train"]
SMALL = ["--from-scratch", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context", "16", "--steps", "6",
         "--batch-size", "2"]
STORY = "Once upon a time there was a king who had a daughter, and she was the fairest of them all. " * 30
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture()
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return str(path)


def train(*arguments, **options):
    """Run the command to its end; a process with stdout and stderr as text."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=300, encoding="utf-8",
                          env=ENVIRONMENT, **options)


def weights(folder):
    return dict(named_parameters(numpy_gpt2.load_model(folder)))


def assert_same_weights(folder, other):
    ours, theirs = weights(folder), weights(other)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# A run from beginning to end ------------------------------------------------------------------------------------------


def test_a_trained_folder_loads_and_the_table_says_what_was_learnt(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", *SMALL, "--eval-every", 3)
    assert process.returncode == 0, process.stderr
    header, *rows = process.stdout.splitlines()
    assert header.split("  ")[0].strip() == "step"
    assert [row.split()[0] for row in rows] == ["0", "3", "6"]
    assert "held-out loss" in process.stderr
    files = ["config.json", "merges.txt", "model.safetensors", RECORD, "vocab.json"]
    assert sorted(os.listdir(tmp_path / "out")) == files
    model, tokenizer = numpy_gpt2.load(tmp_path / "out")
    assert (model.config.n_layer, model.config.n_embd, model.config.n_positions) == (1, 16, 16)
    assert np.isfinite(forward(model, tokenizer.encode("Once upon"))).all()


@pytest.mark.slow
def test_a_fine_tuned_folder_says_what_the_text_says(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", "--context", 64, "--steps", 25, "--batch-size", 4)
    assert process.returncode == 0, process.stderr
    model, tokenizer = numpy_gpt2.load(tmp_path / "out")
    text = "".join(numpy_gpt2.stream_text(model, tokenizer, "Once upon a time there was", 14, temperature=0.0))
    assert text.startswith(" a king who had a daughter")


# A text that the held-out tail is unlike: the longer it is learnt, the worse its loss there.
OVERFIT = ["--context", "16", "--batch-size", "2", "--held-out", "0.5", "--muon-rate", "0.1", "--eval-every", "2",
           "--steps", "6"]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A run whose held-out loss rises towards its end: its text, its folder, what it said."""
    folder = tmp_path_factory.mktemp("overfitted")
    text = folder / "text.txt"
    text.write_text("one two three four " * 80 + "The king said: no, my daughter. " * 30, encoding="utf-8")
    return text, folder / "out", train(text, "--out", folder / "out", *OVERFIT)


def test_the_weights_with_the_lowest_held_out_loss_are_kept_and_said(overfitted):
    text, out, process = overfitted
    losses = {int(row.split()[0]): row.split()[-2] for row in process.stdout.splitlines()[1:]}
    best = min((step for step in losses if step), key=lambda step: float(losses[step]))
    assert best < 6, losses
    assert (f"the weights of step {best} are kept: its held-out loss is the lowest, {losses[best]}; after 6 steps it "
            f"was {losses[6]}, so fewer --steps would be enough") in process.stderr
    model, tokenizer = numpy_gpt2.load(out)
    ids = tokenizer.with_bos(tokenizer.encode(text.read_text(encoding="utf-8")))
    held_out = ids[len(ids) - len(ids) // 2:]
    assert f"{numpy_gpt2.score_tokens(model, held_out, stride=511).mean_loss:.3f}" == losses[best]


def test_a_run_stopped_before_its_best_weights_were_saved_still_keeps_them(overfitted, tmp_path, monkeypatch):
    text, whole, _ = overfitted
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["train", str(text), "--out", str(out), *OVERFIT])
        patched.setattr(command, "save", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command.main()
    assert os.listdir(out) == [FILE]
    assert train(text, "--out", out, *OVERFIT).returncode == 0
    for name, array in weights(whole).items():  # up to rounding: this process has more threads
        if not name.endswith("c_attn.bias"):  # a key's bias changes no probability: its gradient is rounding alone
            np.testing.assert_allclose(weights(out)[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("stopped_at", [2, 6])
def test_a_run_stopped_before_an_evaluation_makes_it_when_it_resumes(overfitted, tmp_path, monkeypatch, stopped_at):
    text, _, process = overfitted
    out = tmp_path / "out"
    measure = command.measure

    def stopping(run, *others):
        if run.step == stopped_at:
            raise KeyboardInterrupt
        measure(run, *others)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["train", str(text), "--out", str(out), *OVERFIT])
        patched.setattr(command, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            command.main()
    again = train(text, "--out", out, *OVERFIT)
    assert again.returncode == 0, again.stderr
    assert [row.split()[0] for row in again.stdout.splitlines()] == [row.split()[0] for row in
                                                                     process.stdout.splitlines()]


def test_a_finished_run_says_so_and_what_to_do(overfitted):
    text, out, _ = overfitted
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = train(text, "--out", out, *OVERFIT)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == (f"{out} holds this run, finished. To train further: the same command with --model {out} "
                            "and another --out\n")
    longer = train(text, "--out", out, *OVERFIT[:-1], "8")
    assert_refused(longer, 2, "holds a finished run with steps 6. Got 8: to train further, use --model")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_without_a_held_out_text_the_last_weights_are_kept(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", *SMALL, "--held-out", 0)
    assert process.returncode == 0 and "kept" not in process.stderr
    assert np.isfinite(weights(tmp_path / "out")["wte.weight"]).all()


@pytest.mark.parametrize("arguments, n_tokens, steps", [
    ([], 100, 20), ([], 8 * 256 * 30, 90), ([], 10**9, 200), (["--accumulate", "3"], 8 * 256 * 30, 30),
    (["--from-scratch"], 8 * 256 * 30, 200), (["--steps", "7"], 10**9, 7)])
def test_by_default_the_steps_read_the_text_three_times(arguments, n_tokens, steps):
    args = command.make_parser().parse_args(["story.txt", "--out", "out", *arguments])
    model = numpy_gpt2.random_model(numpy_gpt2.GPT2Config(16, 512, 8, 1, 2))
    assert command.training_config(args, model, n_tokens).steps == steps


@pytest.mark.parity
def test_a_trained_folder_gives_the_same_logits_in_transformers(story, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    assert train(story, "--out", tmp_path / "out", *SMALL).returncode == 0
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    model, tokenizer = numpy_gpt2.load(tmp_path / "out")
    ids = tokenizer.encode("There was a king")
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(forward(model, ids), expected, atol=1e-4 * np.abs(expected).max())


def test_what_is_frozen_is_what_it_was(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", "--steps", 1, "--context", 16, "--batch-size", 1,
                    "--freeze", "wte", "h.[0-3].*")
    assert process.returncode == 0, process.stderr
    before, after = weights("fairytale"), weights(tmp_path / "out")
    for name in before:
        frozen = name == "wte.weight" or re.match(r"h\.[0-3]\.", name) is not None
        assert np.array_equal(before[name], after[name]) == frozen, name


def test_the_same_seed_gives_the_same_weights(story, tmp_path):
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert train(story, "--out", tmp_path / folder, *SMALL, "--seed", seed).returncode == 0
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert (weights(tmp_path / "a")["wte.weight"] != weights(tmp_path / "c")["wte.weight"]).any()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `plot`")
def test_the_losses_are_drawn(story, tmp_path):
    assert train(story, "--out", tmp_path / "out", *SMALL, "--plot", tmp_path / "loss.png").returncode == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# A run that is stopped ------------------------------------------------------------------------------------------------

LONGER = ["--from-scratch", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context", "16", "--steps", "400",
          "--batch-size", "2", "--save-every", "0", "--eval-every", "150"]


@pytest.mark.slow
@pytest.mark.parametrize("stop, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_bit_for_bit(story, tmp_path, stop, status):
    assert train(story, "--out", tmp_path / "whole", *LONGER).returncode == 0
    out = tmp_path / "out"
    process = subprocess.Popen([*COMMAND, story, "--out", str(out), *LONGER], stderr=subprocess.PIPE, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not (out / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    if stop == signal.SIGINT:
        assert b"run the same command again to resume" in error
    assert (out / FILE).exists()
    again = train(story, "--out", out, *LONGER)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resuming after step [1-9]\d* of 400", again.stderr)
    assert_same_weights(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_run_that_found_the_disk_full_goes_on(story, tmp_path):
    """`ulimit -f` stands for the disk: the state is larger than what one file may hold."""
    out = tmp_path / "out"
    limited = f"ulimit -f 100; exec {shlex.join(COMMAND)} {story} --out {out} {' '.join(SMALL)} --save-every 0"
    unmeasured = {**ENVIRONMENT, "COVERAGE_PROCESS_START": ""}  # what coverage writes would be too large, too
    process = subprocess.run(["bash", "-c", limited], capture_output=True, encoding="utf-8", env=unmeasured)
    assert process.returncode == 1
    assert re.search(r"error: .*File too large", process.stderr)
    assert "Traceback" not in process.stderr
    assert os.listdir(out) == []
    assert train(story, "--out", out, *SMALL).returncode == 0
    assert train(story, "--out", tmp_path / "whole", *SMALL).returncode == 0
    assert_same_weights(tmp_path / "whole", out)


# One line for a mistake -----------------------------------------------------------------------------------------------


def assert_refused(process, status, message):
    assert process.returncode == status, process.stderr
    line = process.stderr.splitlines()[-1]
    assert line.startswith("error: "), line
    assert re.search(message, line), line
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--context", "2000"], "context must be at most the model's, 512. Got 2000"),
    (["--freeze", "wtf"], "freeze must be globs .* Got 'wtf', which matches none; the nearest are wte.weight"),
    (["--rate", "0"], "rate must be above 0"),
    (["--rate", "nan"], "rate must be above 0"),
    (["--steps", "0"], "must be a whole number, 1 or more. Got '0'"),
    (["--held-out", "1.5"], "--held-out must be from 0 to less than 1. Got 1.5"),
    (["--plot", "loss.txt"], "--plot must be a file ending in .png, .svg or .pdf"),
    (["--from-scratch", "--n-head", "3"], "n_embd must be a multiple of n_head"),
    (["--model", "nowhere"], "nowhere"),
    (["--save-every", "nan"], "--save-every must be 0 .* or more seconds. Got nan"),
    (["--save-every=-1"], "--save-every must be 0 .* or more seconds. Got -1"),
])
def test_a_mistake_is_one_line_and_nothing_is_made(story, tmp_path, arguments, message):
    assert_refused(train(story, "--out", tmp_path / "out", *arguments), 2, message)
    assert not (tmp_path / "out").exists()


def test_a_text_shorter_than_a_window_says_what_to_give(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Once upon a time there was a king.", encoding="utf-8")
    assert_refused(train(path, "--out", tmp_path / "out"), 2,
                   r"longer than one window, --context 256. Got \d+ tokens to train on: use a longer text, or "
                   r"--context \d")


def test_a_folder_that_holds_something_else_is_left_alone(story, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert_refused(train(story, "--out", out, *SMALL), 2, "--out must be a new folder.*holds something else")
    assert os.listdir(out) == ["thesis.txt"]


def test_the_folder_of_another_run_is_left_alone(story, tmp_path):
    out = tmp_path / "out"
    rates = ["--rate", "1e30", "--muon-rate", "1e30", "--clip", "0"]
    process = train(story, "--out", out, *SMALL, *rates, "--save-every", "0", "--eval-every", "6")
    assert_refused(process, 1, "step [2-6] of 6: the loss is nan, .*: restart with lower rates than 1e.30")
    state = (out / FILE).read_bytes()
    assert_refused(train(story, "--out", out, *SMALL), 2, "holds a run with rate 1e.30. Got 0.005: use that run's")
    assert (out / FILE).read_bytes() == state


def test_a_model_that_has_diverged_is_said_where_it_is_measured(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", *SMALL, "--rate", "1e30", "--muon-rate", "1e30", "--clip", "0")
    assert_refused(process, 1, "of 6: the logits are not finite: restart with lower rates than 1e.30")


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_a_second_run_in_a_folder_is_refused_and_leaves_the_first_alone(story, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / PARTIAL).write_bytes(b"what the first is writing")
    with only_run(out):
        files = sorted(os.listdir(out))
        assert_refused(train(story, "--out", out, *SMALL), 2, "folder that no other run is writing to. Got .*/out'")
        assert sorted(os.listdir(out)) == files
    assert train(story, "--out", out, *SMALL).returncode == 0
    assert not {PARTIAL, LOCK} & {*os.listdir(out)}


def test_a_new_model_beyond_all_memory_is_refused_before_it_is_made(story, tmp_path):
    process = train(story, "--out", tmp_path / "out", "--from-scratch", "--n-layer", 10**9)
    assert_refused(process, 1, "not enough memory: the weights as float32 take .* GB")
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_said_before_the_start(story, tmp_path):
    limited = (f"ulimit -v 3000000; exec {shlex.join(COMMAND)} {story} --out {tmp_path / 'out'} --context 512 "
               "--batch-size 60000")
    process = subprocess.run(["bash", "-c", limited], capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    assert_refused(process, 1, r"not enough memory: training takes .* GB \(weights 0.01 GB, gradients 0.01 GB, .*: "
                               "lower --batch-size or --context")
    assert not (tmp_path / "out").exists()
