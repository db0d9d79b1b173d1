"""Laws of the lines that the walk shows for each array: they are in model.py, they run, and they follow its edits."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from outside import writable_copy

import numpy_gpt2
from numpy_gpt2 import GPT2Config, KVCache, forward, model as model_module, random_model
from numpy_gpt2.step.frames import making_lines
from numpy_gpt2.tap import STAGES, stage_names

CONFIG = GPT2Config(vocab_size=20, n_positions=16, n_embd=12, n_layer=2, n_head=2)
MODEL = random_model(CONFIG)
PACKAGE = Path(numpy_gpt2.__file__).parent
SOURCE = Path(model_module.__file__).read_text(encoding="utf-8").splitlines()


def traced_pass(n_tokens, n_cached):
    """What making_lines says at each stage, and the numbers of the lines of model.py that ran."""
    cache = KVCache(MODEL)
    if n_cached:
        forward(MODEL, np.arange(n_cached), cache=cache)
    lines, run = {}, set()

    def trace(frame, event, argument):
        if frame.f_code.co_filename == model_module.__file__:
            run.add(frame.f_lineno)
        return trace

    def tap(name, value):
        lines[name] = making_lines()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        forward(MODEL, np.arange(n_tokens), cache=cache, tap=tap)
    finally:
        sys.settrace(before)
    return lines, run


@pytest.mark.parametrize("n_cached", [0, 3])
def test_every_stage_has_lines_of_model_py_that_run_and_end_with_its_tap(n_cached):
    lines, run = traced_pass(4, n_cached)
    assert list(lines) == stage_names(CONFIG)
    for name, shown in lines.items():
        numbers = [int(re.match(r"numpy_gpt2/model\.py:(\d+)  ", line).group(1)) for line in shown]
        assert numbers == sorted(set(numbers)) and set(numbers) <= run, name
        for number, line in zip(numbers, shown):
            assert line.split(maxsplit=1)[1] == SOURCE[number - 1].strip()
        assert f'"{re.sub(r"^h.[0-9]+.", "", name)}"' in shown[-1], name


def test_one_token_after_the_cache_has_the_same_lines():
    assert traced_pass(1, 5)[0] == traced_pass(4, 0)[0]


CLUES = {
    "wte": "model.wte[", "wpe": "model.wpe[", "resid_pre": "block(", "ln_1": "ln_1.weight", "attn.qkv": "c_attn.weight",
    "attn.q": "split_heads(qkv", "attn.k": "split_heads(qkv", "attn.v": "split_heads(qkv",
    "attn.k_all": "cache.append(", "attn.v_all": "cache.append(", "attn.scores": "scaled @ ",
    "attn.pattern": "softmax(scores", "attn.z": "attend(q", "attn.out": "merge_heads(z)",
    "resid_mid": "x + attention(", "ln_2": "ln_2.weight", "mlp.pre": "c_fc.weight", "mlp.post": "pre)",
    "mlp.out": "c_proj.weight", "resid_post": "x + mlp(", "ln_f": "ln_f.weight", "logits": "lm_head"}


def test_the_lines_of_a_stage_are_about_its_equation():
    assert len(CLUES) == len(STAGES)
    lines, _ = traced_pass(4, 0)
    for name, shown in lines.items():
        assert CLUES[re.sub(r"^h.[0-9]+.", "", name)] in "\n".join(shown), name
    scores = "\n".join(lines["h.1.attn.scores"])
    assert "np.where(later, -np.inf" in scores and "if n_query > 1" in scores
    assert len(lines["h.1.attn.pattern"]) == 1


# Edits that a reader may make of the line `post = tap("mlp.post", EXPR)`, and what its lines must then be.
EDITS = {
    "a tap on a line of its own": ["neurons = EXPR", 'post = tap("mlp.post", neurons)'],
    "a statement of several lines": ["post = tap(", '    "mlp.post",', "    EXPR", ")"],
    "a change in place": ["post = EXPR", "post[..., 0] = 0", "post *= 1", 'post = tap("mlp.post", post)'],
    "a condition": ["post = EXPR", "if len(post) > 1:", "    post = post + 0", 'post = tap("mlp.post", post)'],
    "a name that is computed": ['post = tap("mlp." + "post", EXPR)'],
}


@pytest.mark.parametrize("edit", EDITS)
def test_the_lines_follow_an_edit_of_model_py(edit, tmp_path):
    number, = [i for i, line in enumerate(SOURCE) if 'post = tap("mlp.post", ' in line]
    expression = re.fullmatch(r' *post = tap\("mlp.post", (.*)\)(  #.*)?', SOURCE[number]).group(1)
    expected = [line.replace("EXPR", expression) for line in EDITS[edit]]
    edited = ["# An edit above moves everything.", *SOURCE[:number], *(f"    {line}" for line in expected),
              *SOURCE[number + 1:], ""]
    writable_copy(PACKAGE, tmp_path / "numpy_gpt2", ignore=shutil.ignore_patterns("fairytale", "__pycache__"))
    (tmp_path / "numpy_gpt2" / "fairytale").symlink_to(PACKAGE / "fairytale")
    (tmp_path / "numpy_gpt2" / "model.py").write_text("\n".join(edited), encoding="utf-8")
    process = subprocess.run([sys.executable, "-m", "numpy_gpt2.step", "Once", "--until", "h.1.mlp.post"], input="",
                             capture_output=True, timeout=60, encoding="utf-8", cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "150", "LINES": "50"})
    assert process.returncode == 0, process.stderr
    shown = [line for line in process.stdout.splitlines() if "numpy_gpt2/model.py:" in line]
    assert shown == [f"  numpy_gpt2/model.py:{number + 2 + i}  {line}" for i, line in enumerate(expected)]
