"""The same numbers as transformers, live, on random checkpoints: pytest -m parity (needs the extra `parity`)."""

import numpy as np
import pytest

from numpy_gpt2 import (SIZES, GPT2Config, KVCache, Recorder, GenerationConfig, forward, generate_tokens, load_model,
                        parameter_shapes, random_model, save)
from numpy_gpt2.weights import build_model
from numpy_gpt2.sampling import process_logits

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest logit
N_CONFIGS = 16

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_seed = pytest.mark.parametrize("seed", range(N_CONFIGS))


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    torch.manual_seed(0)  # for what transformers draws when it makes a model


@pytest.fixture(autouse=True, scope="module")
def quiet_and_frugal():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def random_settings(seed):
    """Any config that we support, as transformers' names and values."""
    rng = np.random.default_rng(seed)
    n_head = int(rng.integers(1, 6))
    n_embd = n_head * int(rng.integers(1, 17))
    vocab_size = int(rng.integers(20, 500))
    return dict(
        vocab_size=vocab_size, n_positions=int(rng.integers(300, 400)), n_embd=n_embd, n_head=n_head,
        n_layer=int(rng.integers(1, 6)), n_inner=None if rng.random() < 0.5 else int(rng.integers(1, 6 * n_embd)),
        activation_function=str(rng.choice(["gelu_new", "gelu_pytorch_tanh"])),
        layer_norm_epsilon=float(rng.choice([1e-5, 1e-6, 1e-3])), tie_word_embeddings=bool(rng.random() < 0.5),
        bos_token_id=0, eos_token_id=vocab_size - 1,
    )


def perturb(model, seed):
    """Move every parameter, so that each bias and gain has a part in the result, and positions a large one: a model
    that heeds them little repeats one token for ever, which would be a poor test of generation."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ".h." in name and parameter.ndim == 2:
            parameter.add_(noise / parameter.shape[0] ** 0.5)
        else:
            parameter.add_(noise if "wpe" in name else 0.25 * noise)
    return model.eval()


def random_reference(seed, **changes):
    """A model of transformers, random config and weights."""
    config = transformers.GPT2Config(**{**random_settings(seed), **changes})
    return perturb(transformers.GPT2LMHeadModel(config), seed)


def both(folder, seed, dtype, **changes):
    """The same random checkpoint in transformers and, through a folder that transformers saved, in ours."""
    theirs = random_reference(seed, **changes)
    theirs.save_pretrained(folder)
    return theirs.to(getattr(torch, dtype)), load_model(folder, dtype=dtype)


def random_ids(model, shape, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, shape)


def logits_of(theirs, ids):
    return theirs(torch.as_tensor(np.atleast_2d(ids))).logits.numpy().reshape(*np.shape(ids), -1)


def difference(ours, theirs):
    """The largest difference, as a share of the largest number."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def greedy_of(theirs, ids, n_steps, **options):
    """transformers' own greedy generation: the new ids [n_batch, n_steps], the logits [n_batch, n_steps, n_vocab]."""
    ids = torch.as_tensor(np.atleast_2d(ids))
    options = {"eos_token_id": -1, "pad_token_id": 0, **options}
    output = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_steps,
                             return_dict_in_generate=True, output_logits=True, **options)
    return output.sequences[:, ids.shape[1]:].numpy(), torch.stack(output.logits, dim=1).numpy()


def n_sure_steps(logits, dtype):
    """How many steps come before the first near tie of the two largest logits [n_steps, n_vocab]."""
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    near_tie = first - second < 10 * TOLERANCE[dtype] * np.abs(logits).max()
    return int(np.argmax(near_tie)) if near_tie.any() else len(logits)


# The forward pass


@each_dtype
@each_seed
def test_logits_equal_transformers(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    for n_tokens in (1, 2, 3 + 7 * seed, 300):
        ids = random_ids(ours, n_tokens, seed)
        assert difference(forward(ours, ids), logits_of(theirs, ids)) <= TOLERANCE[dtype]


@each_dtype
@pytest.mark.parametrize("seed", range(4))
def test_logits_of_a_batch_read_in_chunks_equal_transformers(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    ids = random_ids(ours, (3, 120))
    cache = KVCache(ours, n_positions=120, batch=(3,))
    chunks = [forward(ours, chunk, cache=cache) for chunk in np.split(ids, [1, 50, 51, 119], axis=-1)]
    assert difference(np.concatenate(chunks, axis=-2), logits_of(theirs, ids)) <= TOLERANCE[dtype]


@each_dtype
@pytest.mark.parametrize("seed", range(4))
def test_hidden_states_and_attention_patterns_equal_transformers(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    theirs.set_attn_implementation("eager")
    ids = random_ids(ours, 40)
    expected = theirs(torch.as_tensor(ids[np.newaxis]), output_hidden_states=True, output_attentions=True)
    acts = Recorder()
    forward(ours, ids, tap=acts)
    names = [f"h.{i}.resid_pre" for i in range(ours.config.n_layer)] + ["ln_f"]
    for name, state in zip(names, expected.hidden_states, strict=True):
        assert difference(acts[name], state[0].numpy()) <= TOLERANCE[dtype]
    for i, pattern in enumerate(expected.attentions):
        assert difference(acts[f"h.{i}.attn.pattern"], pattern[0].numpy()) <= TOLERANCE[dtype]


# Generation


@each_dtype
@pytest.mark.parametrize("seed", range(0, N_CONFIGS, 2))
def test_50_greedy_tokens_equal_transformers(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    prompt = random_ids(ours, 1 + 16 * seed)
    expected, logits = greedy_of(theirs, prompt, 50)
    n_sure = n_sure_steps(logits[0], dtype)
    tokens = list(generate_tokens(ours, prompt, 50, temperature=0, eos_token_id=-1))
    assert tokens[:n_sure] == expected[0, :n_sure].tolist()
    assert n_sure == 50 or dtype == "float32"


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_of_a_batch_with_ends_equal_transformers(tmp_path, seed):
    """transformers fills ended rows with the padding token: here the end token, as ours."""
    theirs, ours = both(tmp_path, seed, "float64")
    prompts = random_ids(ours, (4, 12))
    endless, _ = greedy_of(theirs, prompts, 20)
    end = int(endless[0, 6])
    expected, _ = greedy_of(theirs, prompts, 20, eos_token_id=end, pad_token_id=end)
    tokens = np.stack(list(generate_tokens(ours, prompts, 20, temperature=0, eos_token_id=end)), axis=-1)
    assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_under_a_repetition_penalty_equal_transformers(tmp_path, seed):
    theirs, ours = both(tmp_path, seed, "float64")
    prompt = random_ids(ours, 8)
    expected, _ = greedy_of(theirs, prompt, 40, repetition_penalty=1.3)
    tokens = generate_tokens(ours, prompt, 40, temperature=0, repetition_penalty=1.3, eos_token_id=-1)
    assert list(tokens) == expected[0].tolist()


def test_the_full_size_of_124m_parameters_equals_transformers():
    config = SIZES["small"]
    theirs = perturb(transformers.GPT2LMHeadModel(transformers.GPT2Config()), seed=0)
    state = {name.removeprefix("transformer."): value.numpy() for name, value in theirs.state_dict().items()}
    ours = build_model(config, {name: state[name] for name in parameter_shapes(config)})
    ids = random_ids(ours, 300)
    assert difference(forward(ours, ids), logits_of(theirs, ids)) <= TOLERANCE["float32"]

    prompt = ids[:20]
    expected, logits = greedy_of(theirs, prompt, 50)
    n_sure = n_sure_steps(logits[0], "float32")
    tokens = list(generate_tokens(ours, prompt, 50, temperature=0, eos_token_id=-1))
    assert n_sure > 0
    assert tokens[:n_sure] == expected[0, :n_sure].tolist()


# Files


@pytest.mark.parametrize("seed", range(6))
def test_what_we_save_loads_in_transformers_as_it_is(tmp_path, seed):
    settings = random_settings(seed)
    del settings["activation_function"]
    ours = random_model(GPT2Config(**settings), seed)
    save(ours, tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = random_ids(ours, (2, 50))
    assert difference(forward(ours, ids), logits_of(theirs.eval(), ids)) <= TOLERANCE["float32"]


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_transformers_saves_loads_here_as_it_is(tmp_path, tied, stored, max_shard_size):
    random_reference(2, tie_word_embeddings=tied).to(getattr(torch, stored)).save_pretrained(
        tmp_path, max_shard_size=max_shard_size)
    n_files = len(list(tmp_path.glob("*.safetensors")))
    assert n_files > 1 if max_shard_size == "10KB" else n_files == 1

    ours = load_model(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (ours.lm_head is ours.wte) == tied
    ids = random_ids(ours, (2, 50))
    assert difference(forward(ours, ids), logits_of(theirs, ids)) <= TOLERANCE["float32"]


def test_a_file_that_says_tied_but_holds_another_unembedding_means_the_same_in_both(tmp_path):
    random_reference(3, tie_word_embeddings=False).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    ours = load_model(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = random_ids(ours, 50)
    assert difference(forward(ours, ids), logits_of(theirs, ids)) <= TOLERANCE["float32"]


# Sampling


def random_sampling(rng):
    """Each setting on or off, any value."""
    values = {"temperature": float(rng.uniform(0.1, 3)), "top_k": int(rng.integers(1, 60)),
              "top_p": float(rng.uniform(0.05, 0.999)), "min_p": float(rng.uniform(0.001, 0.9)),
              "repetition_penalty": float(rng.uniform(0.5, 3))}
    return {name: value for name, value in values.items() if rng.random() < 0.6}


def assert_equal_logits(ours, theirs):
    """The same tokens ruled out; the others' logits equal up to a constant, which a softmax does not see."""
    assert np.array_equal(ours == -np.inf, theirs == -np.inf)
    allowed = theirs > -np.inf
    rounding = 8 * np.finfo("float32").eps * np.abs(theirs[allowed]).max()
    ours = ours - ours.max(axis=-1, keepdims=True)
    theirs = theirs - theirs.max(axis=-1, keepdims=True)
    assert np.abs(ours[allowed] - theirs[allowed]).max() <= rounding


@pytest.mark.parametrize("seed", range(30))
def test_processed_logits_equal_those_of_a_run_of_transformers(seed):
    """transformers' generate() puts its processors together itself and tells the logits before and after them."""
    theirs = random_reference(seed % 3)
    sampling = random_sampling(np.random.default_rng(seed))
    prompt = torch.as_tensor(random_ids(theirs, (2, 15), seed))
    torch.manual_seed(seed)
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    output = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=8,
                             eos_token_id=-1, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
                             output_logits=True, **{**neutral, **sampling})
    for step, (logits, scores) in enumerate(zip(output.logits, output.scores)):
        previous_ids = output.sequences[:, :15 + step].numpy()
        ours = process_logits(logits.numpy(), previous_ids, GenerationConfig(**sampling))
        assert_equal_logits(ours, scores.numpy())
