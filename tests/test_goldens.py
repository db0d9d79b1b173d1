"""What transformers computed on small random checkpoints (scripts/verify/make_goldens.py), we compute too. No torch."""

import json
from pathlib import Path

import numpy as np
import pytest

from numpy_gpt2 import Recorder, GenerationConfig, forward, generate_tokens, load_model
from numpy_gpt2.sampling import process_logits

GOLDENS = Path(__file__).parent / "goldens"
MODELS = sorted(path.parent.name for path in GOLDENS.glob("*/model.safetensors"))
SETTINGS = json.loads((GOLDENS / "sampling_settings.json").read_text())
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest number

each_model = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def golden(name, dtype):
    """Our model from the golden's folder, and the golden's arrays of this type."""
    model = load_model(GOLDENS / name, dtype=dtype)
    with np.load(GOLDENS / name / "expected.npz") as file:
        arrays = {key.removesuffix(f"_{dtype}"): file[key] for key in file.files if key == "ids" or key.endswith(dtype)}
    return model, arrays


def assert_close(ours, theirs, dtype):
    assert ours.dtype == theirs.dtype == dtype
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE[dtype] * np.abs(theirs).max()


def test_the_goldens_cover_every_supported_kind_of_config():
    assert MODELS == ["epsilon", "n_inner", "one_head", "pytorch_tanh", "tied", "untied"]


@each_model
def test_only_the_untied_golden_has_an_unembedding_of_its_own(name):
    model = load_model(GOLDENS / name)
    assert (model.lm_head is model.wte) == (name != "untied")


@each_dtype
@each_model
def test_logits_equal_transformers(name, dtype):
    model, expected = golden(name, dtype)
    assert_close(forward(model, expected["ids"]), expected["logits"], dtype)


@each_dtype
@each_model
def test_hidden_states_equal_transformers(name, dtype):
    """transformers' list: the input of each block, then what the final layer norm makes of the last block's output."""
    model, expected = golden(name, dtype)
    acts = Recorder()
    forward(model, expected["ids"], tap=acts)
    names = [f"h.{i}.resid_pre" for i in range(model.config.n_layer)] + ["ln_f"]
    assert len(names) == len(expected["hidden_states"])
    for stage, theirs in zip(names, expected["hidden_states"]):
        assert_close(acts[stage], theirs, dtype)


@each_dtype
@each_model
def test_greedy_ids_equal_transformers(name, dtype):
    model, expected = golden(name, dtype)
    n_steps = expected["greedy_ids"].shape[-1]
    for prompt, theirs in zip(expected["ids"], expected["greedy_ids"]):
        ours = generate_tokens(model, prompt, n_steps, temperature=0, eos_token_id=-1)
        assert list(ours) == theirs.tolist()


@each_dtype
@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=lambda number: json.dumps(SETTINGS[number]))
def test_processed_logits_equal_transformers(number, dtype):
    """The same tokens ruled out, and the others' logits equal up to a constant, which a softmax does not see.

    Which of several equally likely tokens top_p rules out is up to the sort: there, as many of them.
    """
    with np.load(GOLDENS / "sampling.npz") as file:
        logits = file["logits"].astype(dtype)
        theirs = file[f"processed_{dtype}"][number]
        ours = process_logits(logits, file["previous_ids"], GenerationConfig(**SETTINGS[number]))
    assert ours.dtype == dtype
    assert not np.isnan(ours).any()
    for our_row, their_row, row in zip(ours, theirs, logits):
        has_ties = len(np.unique(row)) < len(row)
        if has_ties and "top_p" in SETTINGS[number]:
            our_row, their_row = np.sort(our_row), np.sort(their_row)
        allowed = their_row > -np.inf
        assert np.array_equal(our_row > -np.inf, allowed)
        rounding = 8 * np.finfo(dtype).eps * np.abs(their_row[allowed]).max()
        difference = (our_row[allowed] - our_row.max()) - (their_row[allowed] - their_row.max())
        assert np.abs(difference).max() <= rounding
