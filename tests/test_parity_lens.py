"""Recording and patching as others do it, live, on random checkpoints: pytest -m parity (needs the extra `parity`).

TransformerLens has a name for nearly every stage; where it is not installed, and for what it has no name for, hooks on
transformers' own modules see the same arrays.
"""

import numpy as np
import pytest

from numpy_gpt2 import STAGES, KVCache, Recorder, ablate, forward, load_model, logit_lens, patch
from numpy_gpt2.tap import stage_names, stage_of

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest number
N_TOKENS, N_NEW = 12, 3  # of the prompt, and after it

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_seed = pytest.mark.parametrize("seed", range(3))

# TransformerLens 4's names, without compatibility mode; its axes are [batch, position, head, channel].
LENS_NAMES = {
    "wte": "hook_embed", "wpe": "hook_pos_embed",
    "h.i.resid_pre": "blocks.i.hook_resid_pre", "h.i.resid_mid": "blocks.i.hook_resid_mid",
    "h.i.resid_post": "blocks.i.hook_resid_post", "h.i.ln_1": "blocks.i.ln1.hook_out",
    "h.i.ln_2": "blocks.i.ln2.hook_out", "h.i.attn.q": "blocks.i.attn.hook_q", "h.i.attn.k": "blocks.i.attn.hook_k",
    "h.i.attn.v": "blocks.i.attn.hook_v", "h.i.attn.scores": "blocks.i.attn.hook_attn_scores",
    "h.i.attn.pattern": "blocks.i.attn.hook_pattern", "h.i.attn.z": "blocks.i.attn.hook_z",
    "h.i.attn.out": "blocks.i.hook_attn_out", "h.i.mlp.pre": "blocks.i.mlp.hook_pre",
    "h.i.mlp.post": "blocks.i.mlp.hook_post", "h.i.mlp.out": "blocks.i.hook_mlp_out", "ln_f": "ln_final.hook_out",
    "logits": "unembed.hook_out",
}
NAMELESS = ["h.i.attn.qkv", "h.i.attn.k_all", "h.i.attn.v_all"]  # in TransformerLens
POSITION_BEFORE_HEAD = ["h.i.attn.q", "h.i.attn.k", "h.i.attn.v", "h.i.attn.z"]


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


def both(folder, seed, dtype):
    """A random checkpoint in transformers, every bias and gain of it at work, and the same in ours."""
    rng = np.random.default_rng(seed)
    n_head = int(rng.integers(1, 5))
    config = transformers.GPT2Config(
        vocab_size=int(rng.integers(20, 100)), n_positions=40, n_embd=n_head * int(rng.integers(2, 9)), n_head=n_head,
        n_layer=int(rng.integers(1, 4)), n_inner=int(rng.integers(5, 60)), tie_word_embeddings=bool(seed % 2),
        layer_norm_epsilon=float(rng.choice([1e-5, 1e-3])), bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    theirs.set_attn_implementation("eager")  # the only one that makes the pattern
    theirs.save_pretrained(folder)
    return theirs.to(getattr(torch, dtype)), load_model(folder, dtype=dtype)


def random_ids(model, seed):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (2, N_TOKENS))


def assert_equal(ours, theirs, name=""):
    theirs = np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
    hidden = theirs < np.finfo(theirs.dtype).min / 2  # a mask may be -inf or the lowest number
    assert np.array_equal(hidden, ours < np.finfo(ours.dtype).min / 2), name
    largest = np.abs(theirs[~hidden]).max()
    assert np.abs(ours[~hidden] - theirs[~hidden]).max() <= TOLERANCE[str(ours.dtype)] * largest, name


def noise(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# TransformerLens ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bridge(tmp_path, seed, dtype, monkeypatch):
    """The random checkpoint in TransformerLens, and the same in ours."""
    pytest.importorskip("transformer_lens", reason="needs transformer_lens 4")
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs, ours = both(tmp_path, seed, dtype)
    lens = TransformerBridge.boot_transformers(str(tmp_path), hf_model=theirs, dtype=theirs.dtype, device="cpu")
    return lens, ours


def lens_name(name):
    """A stage's name in TransformerLens: blocks.3.hook_resid_pre for h.3.resid_pre."""
    row = stage_of(name).name
    block = name.split(".")[1] if row != name else ""
    return LENS_NAMES[row].replace(".i.", f".{block}.")


def as_ours(name, value):
    """An array of TransformerLens with our axes."""
    value = value.numpy()
    if stage_of(name).name in POSITION_BEFORE_HEAD:
        value = np.swapaxes(value, -3, -2)
    return value[0] if name == "wpe" else value


def named_in_the_lens(model):
    return [name for name in stage_names(model.config) if stage_of(name).name not in NAMELESS]


def test_every_stage_has_a_name_in_transformer_lens_or_is_known_to_have_none():
    assert {stage.name for stage in STAGES} == {*LENS_NAMES, *NAMELESS}


@each_dtype
@each_seed
def test_every_recorded_stage_equals_transformer_lens(bridge, seed):
    lens, ours = bridge
    ids = random_ids(ours, seed)
    _, cache = lens.run_with_cache(torch.as_tensor(ids))
    acts = Recorder()
    forward(ours, ids, tap=acts)
    for name in named_in_the_lens(ours):
        assert_equal(acts[name], as_ours(name, cache[lens_name(name)]), name)


@each_dtype
@each_seed
def test_a_patch_of_any_stage_gives_transformer_lens_s_logits(bridge, seed, dtype):
    lens, ours = bridge
    ids = random_ids(ours, seed)
    plain = forward(ours, ids)
    acts = Recorder()
    forward(ours, ids, tap=acts)
    for name in named_in_the_lens(ours):
        heads = 0 if "n_head" in stage_of(name).shape else None
        new = noise(acts[name].shape, dtype)
        at = lens_name(name)
        if stage_of(name).name == "h.i.resid_mid":  # theirs is what ln2 is given, beside the stream: so patch the sum
            at = at.replace("hook_resid_mid", "hook_attn_out")

        def hook(value, hook):
            value = value.clone()
            if stage_of(name).name in POSITION_BEFORE_HEAD:
                value[:, 5, 0] = torch.as_tensor(new[:, 0, 5])
            elif heads == 0:
                value[:, 0, 5] = torch.as_tensor(new[:, 0, 5])
            elif at != lens_name(name):
                value[:, 5] = torch.as_tensor(new[:, 5] - acts[name.replace("mid", "pre")][:, 5])
            else:
                value[:, 5] = torch.as_tensor(new[..., 5, :])
            return value

        expected = lens.run_with_hooks(torch.as_tensor(ids), fwd_hooks=[(at, hook)])
        logits = forward(ours, ids, tap=patch(name, new, positions=5, heads=heads))
        assert_equal(logits, expected.numpy(), name)
        assert np.abs(logits - plain).max() > 1e-4, name


# transformers with hooks ----------------------------------------------------------------------------------------------


def modules(theirs):
    """The modules of transformers whose output is a stage's array: {name: module}."""
    found = {"wte": theirs.transformer.wte, "ln_f": theirs.transformer.ln_f, "logits": theirs.lm_head}
    for i, block in enumerate(theirs.transformer.h):
        found.update({f"h.{i}.ln_1": block.ln_1, f"h.{i}.attn.qkv": block.attn.c_attn,
                      f"h.{i}.attn.out": block.attn.c_proj, f"h.{i}.ln_2": block.ln_2, f"h.{i}.mlp.pre": block.mlp.c_fc,
                      f"h.{i}.mlp.post": block.mlp.act, f"h.{i}.mlp.out": block.mlp.c_proj, f"h.{i}.resid_post": block})
    return found


def inputs(theirs):
    """The modules whose input is one: {name: module}. c_proj of attention is given the heads side by side."""
    found = {}
    for i, block in enumerate(theirs.transformer.h):
        found.update({f"h.{i}.resid_pre": block, f"h.{i}.resid_mid": block.ln_2, f"h.{i}.attn.z": block.attn.c_proj})
    return found


def tensor_of(output):
    return output[0] if isinstance(output, tuple) else output


def run_and_record(theirs, ids, cache=None):
    """A pass of transformers: its output, and {name: array} of all that hooks on its modules see."""
    seen, handles = {}, []
    for name, module in modules(theirs).items():
        handles.append(module.register_forward_hook(
            lambda module, given, output, name=name: seen.__setitem__(name, tensor_of(output).numpy())))
    for name, module in inputs(theirs).items():
        handles.append(module.register_forward_pre_hook(
            lambda module, given, name=name: seen.__setitem__(name, given[0].numpy())))
    if cache is None:
        cache = transformers.DynamicCache(config=theirs.config)
    output = theirs(torch.as_tensor(ids), cache, use_cache=True, output_attentions=True)
    for handle in handles:
        handle.remove()
    n_layer, n_head = theirs.config.n_layer, theirs.config.n_head
    for i in range(n_layer):
        seen[f"h.{i}.attn.z"] = split(seen[f"h.{i}.attn.z"], n_head)
        seen[f"h.{i}.attn.pattern"] = output.attentions[i].numpy()
        parts = np.split(seen[f"h.{i}.attn.qkv"], 3, axis=-1)
        seen.update({f"h.{i}.attn.{name}": split(part, n_head) for name, part in zip("qkv", parts)})
        layer = cache.layers[i]
        seen[f"h.{i}.attn.k_all"], seen[f"h.{i}.attn.v_all"] = layer.keys.numpy(), layer.values.numpy()
    return output, seen


def split(array, n_head):
    """[..., n, n_embd] -> [..., n_head, n, d_head], said in another way than ours."""
    return np.stack(np.split(array, n_head, axis=-1), axis=-3)


@each_dtype
@each_seed
def test_every_recorded_stage_equals_transformers_with_hooks_in_prefill_and_decode(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    ids = random_ids(ours, seed)
    prompt, new = ids[:, :-N_NEW], ids[:, -N_NEW:]
    cache, acts = KVCache(ours, batch=(2,)), Recorder()
    past = transformers.DynamicCache(config=theirs.config)
    for chunk in (prompt, new):
        forward(ours, chunk, cache=cache, tap=acts)
        output, seen = run_and_record(theirs, chunk, past)
        assert set(stage_names(ours.config)) - set(seen) == {
            "wpe", *(f"h.{i}.attn.scores" for i in range(ours.config.n_layer))}
        for name, expected in seen.items():
            assert_equal(acts[name], expected, name)


@each_dtype
@each_seed
def test_a_patch_gives_the_logits_of_transformers_with_another_module_s_output(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    ids = random_ids(ours, seed)
    plain, seen = run_and_record(theirs, ids)
    for name, module in modules(theirs).items():
        new = noise(seen[name].shape, dtype)

        def replace(module, given, output):
            changed = tensor_of(output).clone()
            changed[:, 3:5] = torch.as_tensor(new[:, 3:5])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = module.register_forward_hook(replace)
        expected = theirs(torch.as_tensor(ids)).logits.numpy()
        handle.remove()
        assert_equal(forward(ours, ids, tap=patch(name, new, positions=[3, 4])), expected, name)
        assert np.abs(expected - plain.logits.numpy()).max() > 1e-4, name


@each_dtype
@each_seed
def test_a_pass_without_a_head_equals_transformers_whose_c_proj_is_given_zeros_there(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    ids = random_ids(ours, seed)
    d_head = ours.config.d_head
    for layer in range(ours.config.n_layer):
        for head in range(ours.config.n_head):
            def silence(module, given):
                merged = given[0].clone()
                merged[..., head * d_head:(head + 1) * d_head] = 0
                return (merged,)

            handle = theirs.transformer.h[layer].attn.c_proj.register_forward_pre_hook(silence)
            expected = theirs(torch.as_tensor(ids)).logits.numpy()
            handle.remove()
            assert_equal(forward(ours, ids, tap=ablate(f"h.{layer}.attn.z", heads=head)), expected)


@each_dtype
@each_seed
def test_the_logit_lens_equals_transformers_head_on_its_hidden_states(tmp_path, seed, dtype):
    theirs, ours = both(tmp_path, seed, dtype)
    ids = random_ids(ours, seed)
    states = theirs(torch.as_tensor(ids), output_hidden_states=True).hidden_states
    acts = Recorder()
    forward(ours, ids, tap=acts)
    for layer in range(ours.config.n_layer):
        expected = theirs.lm_head(theirs.transformer.ln_f(states[layer])).numpy()
        assert_equal(logit_lens(ours, acts, layer), expected)
    assert_equal(logit_lens(ours, acts, ours.config.n_layer), theirs.lm_head(states[-1]).numpy())
