"""`run`: the real model with a student's functions in place of the engine's."""

import subprocess
import sys

import numpy as np
import pytest
from student_folders import NAMES, solved_folder, with_change

import numpy_gpt2
from numpy_gpt2 import model, ops
from numpy_gpt2.exercises.__main__ import main
from numpy_gpt2.exercises.isolation import start
from numpy_gpt2.exercises.running import functions_of, passes, run_with

ALL = {"names": NAMES, "prompt": "Once upon a time", "model": "fairytale", "n_tokens": 4, "language": "en"}


def test_every_name_is_the_students_inside_and_the_engines_after(tmp_path):
    engines = ops.softmax, model.attention
    with functions_of(solved_folder(tmp_path / "a"), NAMES):
        assert engines[0] not in (ops.softmax, model.softmax, numpy_gpt2.sampling.softmax)
        assert ops.softmax is model.softmax
        assert numpy_gpt2.unembed is model.unembed
        assert model.attention is not engines[1]
    assert (ops.softmax, model.softmax, model.attention) == (engines[0], *engines)
    assert numpy_gpt2.sampling.softmax is engines[0]


def test_only_the_functions_asked_for_change(tmp_path):
    with functions_of(solved_folder(tmp_path / "a"), ["gelu"]):
        assert ops.gelu.__module__ != "numpy_gpt2.ops"
        assert ops.softmax.__module__ == "numpy_gpt2.ops"


def test_with_every_function_the_students_the_pass_equals_the_engines(tmp_path):
    engines = list(passes("fairytale", "Once upon a time", 3))
    with functions_of(solved_folder(tmp_path / "a"), NAMES):
        students = list(passes("fairytale", "Once upon a time", 3))
    assert len(engines) == len(students) == 4
    for one, other in zip(engines, students):
        shared = [name for name in one if name in other]
        assert {"logits", "ln_f", "h.0.attn.z", "h.3.resid_post", "ids"} <= set(shared)
        for name in shared:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-3)


def test_a_run_with_every_function_the_students_writes_what_the_engine_writes(tmp_path, capsys):
    run_with(solved_folder(tmp_path / "a"), **ALL)
    out = capsys.readouterr().out
    assert out.startswith(f"Your functions: {', '.join(NAMES)}.\n")
    assert out.count("Once upon a time") == 2
    assert out.count("The engine writes the same.") == 2
    idle = out.rpartition("Not called by this run: ")[2].rstrip(".\n").split(", ")
    called = ["merge", "decode_stream", "softmax", "gelu", "layer_norm", "linear", "embed", "split_heads", "attend",
              "attention", "mlp", "block", "unembed", "append", "next_logits", "apply_temperature", "keep_top_k",
              "keep_top_p", "sample"]
    assert [name for name in NAMES if name not in idle] == called


@pytest.mark.parametrize("name, old, new, stage", [
    ("attend", "/ math.sqrt(d_head)", "/ d_head", "h.0.attn.z, while the prompt is read"),
    ("gelu", "0.044715 * x**3", "5.0 * x**3", "h.0.mlp.out, while the prompt is read"),
    ("unembed", "hidden @ model.lm_head.T", "-hidden @ model.lm_head.T", "logits, while the prompt is read"),
    ("embed", "np.arange(first_position, first_position + ids.shape[-1])", "np.arange(ids.shape[-1])",
     "h.0.resid_pre, while token 1 after the prompt is read"),
])
def test_the_first_stage_at_which_they_part_is_named(tmp_path, capsys, name, old, new, stage):
    run_with(with_change(solved_folder(tmp_path / "a"), name, old, new), **ALL)
    out = capsys.readouterr().out
    assert "The engine writes: Once upon a time" in out
    assert f"They first differ at {stage}." in out


def test_without_functions_it_is_the_engine(tmp_path, capsys):
    run_with(solved_folder(tmp_path / "a"), **{**ALL, "names": []})
    assert capsys.readouterr().out.startswith("No function is written yet")


def test_what_cannot_run_is_said_in_a_line_for_each_reason(tmp_path, monkeypatch, capsys):
    folder = with_change(solved_folder(tmp_path / "a"), "gelu", "    inner =", "    if x\n    inner =")
    with_change(folder, "attend", "    pattern =", "    exit()\n    pattern =")
    monkeypatch.setattr(sys, "argv", ["exercises", "run", "--folder", str(folder), "--max-new-tokens", "1"])
    main()
    assert capsys.readouterr().out.splitlines() == [
        "Left out (the engine's are used instead): softmax, gelu, layer_norm, linear. chapter_2_operations.py line "
        "38: expected ':'",
        "Left out (the engine's are used instead): attend. It called exit()."]


def test_a_function_that_fails_in_the_pass_is_one_line(tmp_path, capsys):
    folder = with_change(solved_folder(tmp_path / "a"), "attend", "    pattern =", "    oops\n    pattern =")
    with pytest.raises(SystemExit) as end:
        run_with(folder, **ALL)
    assert end.value.code == 1
    assert "With your functions the pass fails: NameError: name 'oops' is not defined (line " \
        in capsys.readouterr().out.splitlines()[-1]


def test_numbers_that_are_not_finite_are_followed_to_where_they_began(tmp_path, capsys):
    folder = with_change(solved_folder(tmp_path / "a"), "attend", "where(key_position >", "where(key_position >=")
    with pytest.raises(SystemExit), np.errstate(all="ignore"):  # as every command does
        run_with(folder, **ALL)
    failed, parted = capsys.readouterr().out.splitlines()[-2:]
    assert failed.startswith("With your functions the pass fails: FloatingPointError: the logits are not finite")
    assert parted == "They first differ at h.0.attn.z, while the prompt is read."


def test_a_wrong_merge_is_told_by_the_prompts_tokens(tmp_path, capsys):
    run_with(with_change(solved_folder(tmp_path / "a"), "merge", "        if not known:", "        if True:"), **ALL)
    assert "They first differ at the prompt's tokens: yours [" in capsys.readouterr().out


def test_a_model_that_is_nowhere_is_one_line_and_exit_2(tmp_path):
    process = start("run", solved_folder(tmp_path / "a"), {**ALL, "model": "nowhere"}, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert "nowhere" in err


def test_the_command_runs_in_a_process_of_its_own(tmp_path):
    process = start("run", solved_folder(tmp_path / "a"), ALL, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.count("The engine writes the same.") == 2
