"""A user's script under `mypy --strict`: right calls pass and have their types, wrong options are found."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from numpy_gpt2 import GenerationConfig
from numpy_gpt2.config import GenerationSettings

RIGHT = '''
from typing import Any

import numpy as np
from typing_extensions import assert_type

import numpy_gpt2
from numpy_gpt2 import (GenerationConfig, Recorder, ablate, chain, forward, generate_tokens, logit_lens, pad_ids, patch,
                        score_tokens, stream_samples, stream_text)
from numpy_gpt2.sampling import LogitsProcessor
from numpy_gpt2.streams import Stream, TextStream
from numpy_gpt2.tap import Tap

model, tokenizer = numpy_gpt2.load()
ids = tokenizer.encode("Once")


def forbid_0(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return np.where(np.arange(logits.shape[-1]) == 0, -np.inf, logits)


stream = generate_tokens(model, ids, 5, temperature=0.8, top_k=40, seed=0, eos_token_id=[1], tap=ablate("ln_f"),
                         logits_processor=[forbid_0], top_log_probs=3, vocab_size=9)
assert_type(next(stream), int)
samples = generate_tokens(model, [ids, ids], 5, num_return_sequences=2, generation_config=GenerationConfig())
assert_type(next(samples), Any)
text = stream_text(model, tokenizer, "Once", 5, min_p=0.1, stop_strings=["."], logits_processor=forbid_0)
assert_type(next(text), str)
assert_type(text.ids, list[int])
assert_type(text.log_probs, list[float])
assert_type(stream_samples(model, tokenizer, "Once", 3, seed=0, top_log_probs=1), list[TextStream])
tap: Tap = ablate("ln_f")
processor: LogitsProcessor = forbid_0
typed_stream: Stream[int] = generate_tokens(model, ids, 5, tap=tap, logits_processor=processor)
acts = Recorder("h.*.attn.z")
assert_type(forward(model, ids, tap=chain(acts, ablate("ln_f"))), np.ndarray)
assert_type(dict(acts.items()), dict[str, np.ndarray])
padded, mask = pad_ids([ids, [1, 2]])
assert_type(score_tokens(model, padded, mask=mask, tap=acts).perplexity, float)
assert_type(tokenizer.decode(5), str)
for head in np.argsort(acts["h.0.attn.z"][:, -1, 0]):
    patch("h.0.attn.z", 0, heads=head, positions=np.arange(2))
    ablate("h.0.attn.z", heads=[head], positions=(1, head))
    assert_type(logit_lens(model, acts, layer=head), np.ndarray)
'''

WRONG = '''
import numpy_gpt2
from numpy_gpt2 import forward, generate_tokens, score_tokens, stream_samples, stream_text

model, tokenizer = numpy_gpt2.load()
ids = tokenizer.encode("Once")
generate_tokens(model, ids, temprature=1)
generate_tokens(model, ids, top_k="many")
generate_tokens(model, ids, logits_processor=3)
stream_text(model, tokenizer, "Once", temprature=1)
stream_text(model, tokenizer, "Once", num_return_sequences=2)
stream_samples(model, tokenizer, "Once", 2, top_logprobs=1)
forward(model, ids, cash=None)
score_tokens(model, ids, strid=3)
tokenizer.decode("Once")
next(generate_tokens(model, ids)).upper()
'''


def test_the_settings_that_type_checkers_know_are_the_fields_of_generation_config():
    fields = {field.name: field.type for field in dataclasses.fields(GenerationConfig)}
    in_the_signatures = {"max_new_tokens", "num_return_sequences"}
    assert GenerationSettings.__annotations__ == {name: kind for name, kind in fields.items()
                                                  if name not in in_the_signatures}


def test_nothing_but_type_checkers_needs_typing_extensions():
    code = "import sys; sys.modules['typing_extensions'] = None; import numpy_gpt2.decoding; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("imported\n", "")


@pytest.mark.slow
def test_mypy_finds_the_wrong_options_in_a_users_script_and_no_others(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    environment = {**os.environ, "MYPYPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=",
                           "--ignore-missing-imports", "right.py", "wrong.py"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {tuple(line.split(":")[:2]) for line in done.stdout.splitlines() if "error:" in line}
    n_wrong = len(WRONG.splitlines()) - 6
    assert n_wrong == 10 and found == {("wrong.py", str(line)) for line in range(7, 7 + n_wrong)}, done.stdout
