"""Write tests/goldens/: small random GPT-2s, and transformers' results for them.

    pip install -e '.[parity]' && python scripts/verify/make_goldens.py

For every config a folder written by transformers' save_pretrained (config.json, model.safetensors), plus expected.npz:
ids, logits, all hidden states and the greedy continuation, in float32 and in float64. For sampling one file,
sampling.npz: logits, and the same logits after transformers' processors, for many settings. tests/test_goldens.py
compares, without torch. Deterministic, by SEED; made_with.json records the versions.
"""

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import GPT2LMHeadModel, LogitsProcessorList
from transformers.generation import (MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
                                     TopKLogitsWarper, TopPLogitsWarper)

SEED = 0
GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
N_TOKENS = 11
N_GREEDY = 12

COMMON = dict(vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=4, bos_token_id=60, eos_token_id=60)
CONFIGS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "n_inner": {"n_inner": 24},
    "epsilon": {"layer_norm_epsilon": 0.01},
    "one_head": {"n_head": 1, "n_layer": 3},
    "pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
}

SAMPLING_SETTINGS = [
    {},
    *[{"temperature": t} for t in (0.1, 0.7, 1.3, 10.0)],
    *[{"top_k": k} for k in (1, 2, 5, 52, 53, 1000)],
    *[{"top_p": p} for p in (1e-6, 0.1, 0.37, 0.61, 0.93, 0.999)],
    *[{"min_p": p} for p in (0.01, 0.11, 0.5, 1.0)],
    *[{"repetition_penalty": r} for r in (0.5, 1.1, 1.7, 10.0)],
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 0.8, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.93},
    {"temperature": 0.3, "min_p": 0.11},
    {"temperature": 1.7, "repetition_penalty": 1.3},
    {"top_k": 10, "top_p": 0.61},
    {"top_k": 10, "min_p": 0.11},
    {"top_p": 0.93, "min_p": 0.11},
    {"top_k": 5, "repetition_penalty": 1.7},
    {"top_p": 0.61, "repetition_penalty": 1.7},
    {"min_p": 0.5, "repetition_penalty": 0.5},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.93, "min_p": 0.03, "repetition_penalty": 1.2},
    {"temperature": 2.0, "top_k": 7, "top_p": 0.37, "min_p": 0.2, "repetition_penalty": 0.8},
]


def random_gpt2(settings: dict, rng: np.random.Generator) -> GPT2LMHeadModel:
    """A model with noise added to every parameter, so that each bias and gain affects the result."""
    model = GPT2LMHeadModel(transformers.GPT2Config(**settings))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            usual = 1.0 if ".ln_" in name and name.endswith(".weight") else 0.0
            values = usual + 0.25 * rng.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))
    return model.eval()


def expected(model: GPT2LMHeadModel, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """Logits [n_batch, n_tokens, vocab_size], hidden states [n_layer + 1, n_batch, n_tokens, n_embd], greedy ids."""
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N_GREEDY,
                                eos_token_id=-1, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    top_two = torch.stack(greedy.logits).topk(2).values
    assert (top_two[..., 0] - top_two[..., 1]).min() > 1e-3, "a near tie: greedy ids would depend on rounding"
    return {"logits": output.logits.numpy(), "hidden_states": torch.stack(output.hidden_states).numpy(),
            "greedy_ids": greedy.sequences[:, ids.shape[1]:].numpy()}


def write_model(name: str, settings: dict, rng: np.random.Generator) -> None:
    folder = GOLDENS / name
    model = random_gpt2({**COMMON, **settings}, rng)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.from_numpy(rng.integers(0, COMMON["vocab_size"], (2, N_TOKENS)))
    arrays = {"ids": ids.numpy()}
    for dtype in (torch.float32, torch.float64):
        suffix = str(dtype).removeprefix("torch.")
        arrays |= {f"{key}_{suffix}": value for key, value in expected(model.to(dtype), ids).items()}
    np.savez_compressed(folder / "expected.npz", **arrays)


def processors(settings: dict) -> LogitsProcessorList:
    """transformers' processors, in the order of its generate()."""
    chain = LogitsProcessorList()
    if "repetition_penalty" in settings:
        chain.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "temperature" in settings:
        chain.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        chain.append(MinPLogitsWarper(settings["min_p"]))
    return chain


def write_sampling(rng: np.random.Generator) -> None:
    n_tokens = 53  # a prime, so that no sum of equal probabilities equals a top_p
    peaked = rng.standard_normal(n_tokens)
    peaked[7] = 12
    rows = {
        "normal": 2 * rng.standard_normal(n_tokens),
        "flat": 0.1 * rng.standard_normal(n_tokens),
        "peaked": peaked,
        "large": 40 * rng.standard_normal(n_tokens) - 100,
        "ties": np.floor(2 * rng.standard_normal(n_tokens)),
        "all_equal": np.full(n_tokens, 0.5),
    }
    logits = np.stack(list(rows.values())).astype(np.float32)
    previous_ids = rng.integers(0, n_tokens, (len(rows), 9))
    arrays = {"logits": logits, "previous_ids": previous_ids}
    for dtype in (torch.float32, torch.float64):
        start = torch.from_numpy(logits).to(dtype)
        processed = [processors(settings)(torch.from_numpy(previous_ids), start.clone())
                     for settings in SAMPLING_SETTINGS]
        arrays["processed_" + str(dtype).removeprefix("torch.")] = torch.stack(processed).numpy()
    np.savez_compressed(GOLDENS / "sampling.npz", **arrays)
    lines = ",\n".join("  " + json.dumps(settings) for settings in SAMPLING_SETTINGS)
    (GOLDENS / "sampling_settings.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    shutil.rmtree(GOLDENS, ignore_errors=True)
    GOLDENS.mkdir()
    for number, (name, settings) in enumerate(CONFIGS.items()):
        write_model(name, settings, np.random.default_rng([SEED, number]))
    write_sampling(np.random.default_rng([SEED, len(CONFIGS)]))
    made_with = {"script": "scripts/verify/make_goldens.py", "seed": SEED, "python": platform.python_version(),
                 "numpy": np.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    (GOLDENS / "made_with.json").write_text(json.dumps(made_with, indent=2) + "\n")
    size = sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file())
    print(f"{GOLDENS}: {size:,} bytes")


if __name__ == "__main__":
    main()
