"""What you read is what runs: the lines of ops.py and model.py compute every call, and nothing else does."""

import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import (GPT2Config, KVCache, Recorder, ablate, chain, forward, generate_tokens, model, named_parameters,
                        ops, replace_weights, transform, unembed)
from numpy_gpt2.tap import no_tap, stage_names
from strategies import lively_model, passes, random_ids, seeds, splits

CONFIG = GPT2Config(vocab_size=50, n_positions=400, n_embd=24, n_layer=2, n_head=3)
N_TOKENS = 300

READABLE = [(ops, name) for name in ("softmax", "gelu", "layer_norm", "row_mean", "linear")]
READABLE += [(model, name) for name in
             ("embed", "block", "attention", "attend", "mlp", "split_heads", "merge_heads", "unembed")]


@contextmanager
def rebound(function, replacement):
    """In every module of the package that holds the function, the name means the replacement."""
    holders = [(module, name) for module in list(sys.modules.values())
               if getattr(module, "__name__", "").partition(".")[0] == "numpy_gpt2"
               for name, value in vars(module).items() if value is function]
    patches = [patch.object(module, name, replacement) for module, name in holders]
    for started in patches:
        started.start()
    try:
        yield
    finally:
        for started in patches:
            started.stop()


def uncached(gpt2, ids):
    return forward(gpt2, ids)


def cached_prefill(gpt2, ids):
    return forward(gpt2, ids, cache=KVCache(gpt2, n_positions=len(ids)))


def decode(gpt2, ids):
    cache = KVCache(gpt2, n_positions=len(ids))
    forward(gpt2, ids[:-1], cache=cache)
    return forward(gpt2, ids[-1:], cache=cache)


@pytest.mark.parametrize("run", [uncached, cached_prefill, decode])
@pytest.mark.parametrize("module, name", READABLE, ids=[name for _, name in READABLE])
def test_an_edit_of_any_function_changes_the_logits(module, name, run):
    gpt2 = lively_model(CONFIG, dtype=np.float32)
    ids = random_ids(CONFIG, (N_TOKENS,))
    function = getattr(module, name)
    expected = run(gpt2, ids)
    with rebound(function, lambda *args, **options: 1.01 * function(*args, **options)):
        changed = run(gpt2, ids)
    assert np.max(np.abs(changed - expected)) > 1e-3 * np.max(np.abs(expected))


def test_an_edit_of_a_function_counts_in_a_prefill_before_it_counts_in_a_decode():
    """The pass for the last token reads keys and values that the edited functions of the prefill have made."""
    gpt2 = lively_model(CONFIG, dtype=np.float32)
    ids = random_ids(CONFIG, (N_TOKENS,))
    cache = KVCache(gpt2)
    with rebound(ops.linear, lambda x, weight, bias: 1.01 * (x @ weight + bias)):
        transform(gpt2, ids[:-1], cache=cache)
    after_an_edit = forward(gpt2, ids[-1:], cache=cache)
    assert np.max(np.abs(after_an_edit - decode(gpt2, ids))) > 0


def test_a_breakpoint_in_attention_holds_a_whole_long_prompt(tmp_path):
    script = tmp_path / "long_prompt.py"
    script.write_text("import numpy_gpt2\n"
                      "gpt2 = numpy_gpt2.random_model(numpy_gpt2.GPT2Config(50, 400, 24, 2, 3))\n"
                      "numpy_gpt2.forward(gpt2, [7] * 400)\n", encoding="utf-8")
    pdb = pexpect.spawn(sys.executable, ["-m", "pdb", str(script)], encoding="utf-8", timeout=60)
    for command in ("import numpy_gpt2.model", "b numpy_gpt2.model.attention", "c"):
        pdb.expect_exact("(Pdb) ")
        pdb.sendline(command)
    pdb.expect_exact("attention(")
    pdb.expect_exact("(Pdb) ")
    pdb.sendline("p x.shape")
    pdb.expect_exact("(400, 24)")
    pdb.close(force=True)


# What a tap sees ------------------------------------------------------------------------------------------------------


class Calls(list):
    """Stands in for a function; keeps each call's arguments and result, copied before anything can overwrite them."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **options):
        arrays = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
        result = self.function(*args, **options)
        self.append((arrays, result.copy()))
        return result

    def arguments(self, index=0):
        return [arrays[index] for arrays, _ in self]

    def results(self):
        return [result for _, result in self]


def computed_without_a_tap(gpt2, ids):
    """Every stage of an untapped pass, from what the functions of ops.py and model.py were given and returned."""
    names = ["layer_norm", "linear", "gelu", "softmax", "split_heads", "attend", "block", "embed", "unembed"]
    calls = {name: Calls(getattr(model, name, getattr(ops, name, None))) for name in names}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(rebound(calls[name].function, calls[name]))
        forward(gpt2, ids)
    n_blocks = len(calls["attend"]) // CONFIG.n_layer  # of queries
    assert n_blocks > 1

    def rows_of(blocks, fill):  # of all queries; keys that a block never met are filled in
        return np.concatenate([np.pad(block, ((0, 0), (0, 0), (0, len(ids) - block.shape[-1])), constant_values=fill)
                               for block in blocks], axis=-2)

    stages = {"wte": gpt2.wte[ids], "wpe": gpt2.wpe[:len(ids)], "ln_f": calls["layer_norm"].results()[-1],
              "logits": calls["unembed"].results()[0]}
    assert len(calls["gelu"]) > CONFIG.n_layer  # strips
    for i in range(CONFIG.n_layer):
        of_layer = slice(i * n_blocks, (i + 1) * n_blocks)
        stages |= {
            f"h.{i}.resid_pre": (calls["embed"].results() + calls["block"].results())[i],
            f"h.{i}.ln_1": calls["layer_norm"].results()[2 * i],
            f"h.{i}.attn.qkv": calls["linear"].results()[4 * i],
            f"h.{i}.attn.q": calls["split_heads"].results()[3 * i],
            f"h.{i}.attn.k": calls["split_heads"].results()[3 * i + 1],
            f"h.{i}.attn.v": calls["split_heads"].results()[3 * i + 2],
            f"h.{i}.attn.k_all": calls["attend"].arguments(1)[of_layer][-1],
            f"h.{i}.attn.v_all": calls["attend"].arguments(2)[of_layer][-1],
            f"h.{i}.attn.scores": rows_of(calls["softmax"].arguments()[of_layer], -np.inf),
            f"h.{i}.attn.pattern": rows_of(calls["softmax"].results()[of_layer], 0),
            f"h.{i}.attn.z": np.concatenate(calls["attend"].results()[of_layer], axis=-2),
            f"h.{i}.attn.out": calls["linear"].results()[4 * i + 1],
            f"h.{i}.resid_mid": calls["layer_norm"].arguments()[2 * i + 1],
            f"h.{i}.ln_2": calls["layer_norm"].results()[2 * i + 1],
            f"h.{i}.mlp.pre": calls["linear"].results()[4 * i + 2],
            f"h.{i}.mlp.post": calls["linear"].arguments()[4 * i + 3],
            f"h.{i}.mlp.out": calls["linear"].results()[4 * i + 3],
            f"h.{i}.resid_post": calls["block"].results()[i],
        }
    return stages


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_a_tap_sees_what_an_untapped_pass_computes(dtype, tolerance):
    gpt2 = lively_model(CONFIG, dtype=dtype)
    ids = random_ids(CONFIG, (N_TOKENS,))
    acts = Recorder()
    forward(gpt2, ids, tap=acts)
    computed = computed_without_a_tap(gpt2, ids)
    assert sorted(computed) == sorted(acts) == sorted(stage_names(CONFIG))
    for name, value in computed.items():
        finite = np.isfinite(acts[name])
        np.testing.assert_array_equal(np.isfinite(value), finite, err_msg=name)
        largest = np.max(np.abs(value[finite]))
        assert np.max(np.abs(acts[name][finite] - value[finite])) <= tolerance * largest, name


# Speed changes nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
@given(passes(min_tokens=2), st.integers(1, 4), st.integers(1, 4), st.data())
def test_blocks_of_queries_and_strips_of_rows_change_nothing(dtype, tolerance, drawn, n_queries, n_rows, data):
    gpt2, ids = drawn
    gpt2 = lively_model(gpt2.config, data.draw(seeds), dtype)
    expected = forward(gpt2, ids)
    cache = KVCache(gpt2, n_positions=ids.shape[-1], batch=ids.shape[:-1])
    with patch.object(model, "QUERY_BLOCK", n_queries), patch.object(ops, "STRIP", n_rows):
        chunks = [forward(gpt2, chunk, cache=cache) for chunk in data.draw(splits(ids))]
    np.testing.assert_allclose(np.concatenate(chunks, axis=-2), expected, rtol=tolerance, atol=10 * tolerance)


@given(passes(min_tokens=2))
def test_merging_heads_copies_nothing(drawn):
    """Attention makes z in the memory order that merge_heads turns into a view."""
    gpt2, ids = drawn
    merge_heads = model.merge_heads
    shared = []

    def watched(z):
        merged = merge_heads(z)
        shared.append(np.shares_memory(z, merged))
        return merged

    with rebound(merge_heads, watched):
        forward(gpt2, ids)
    assert shared == [True] * gpt2.config.n_layer


@pytest.mark.parametrize("tap, in_place", [(no_tap, True), (lambda name, value: None, False)], ids=["no_tap", "tap"])
def test_the_pattern_takes_the_memory_of_the_scores_unless_a_tap_has_seen_them(tap, in_place):
    softmax = ops.softmax
    in_places = []

    def watched(x, out=None):
        in_places.append(out is x)
        return softmax(x, out)

    with rebound(softmax, watched):
        forward(lively_model(CONFIG), random_ids(CONFIG, (N_TOKENS,)), tap=tap)
    assert set(in_places) == {in_place}


@pytest.mark.parametrize("tap, whole", [
    (Recorder("h.*.resid_*"), False), (Recorder(["logits", "h.0.attn.q"]), False), (Recorder([]), False),
    (Recorder("h.1.attn.pattern"), True), (ablate("h.*.attn.scores"), True), (lambda name, value: None, True),
    (chain(Recorder("ln_f"), ablate("h.1.mlp.out")), False), (chain(Recorder("ln_f"), lambda name, value: None), True),
], ids=["residual", "list", "nothing", "pattern", "scores", "any_function", "chain", "chain_with_any_function"])
def test_queries_go_in_blocks_unless_a_tap_wants_scores_or_pattern(tap, whole):
    gpt2, ids = lively_model(CONFIG), random_ids(CONFIG, (N_TOKENS,))
    calls = Calls(model.attend)
    with rebound(model.attend, calls):
        forward(gpt2, ids, tap=tap)
    assert ((len(ids), CONFIG.d_head) in {q.shape[-2:] for q in calls.arguments()}) == whole


def test_a_caller_who_wants_floating_point_errors_raised_gets_none_from_a_pass():
    """Keys that match far worse than the best round to a weight of 0 as a matter of course."""
    gpt2 = lively_model(CONFIG, dtype=np.float32)
    name = "h.0.attn.c_attn.weight"
    gpt2 = replace_weights(gpt2, {name: 10 * dict(named_parameters(gpt2))[name]})
    ids = random_ids(CONFIG, (N_TOKENS,))
    expected = forward(gpt2, ids)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(forward(gpt2, ids), expected)
        unembed(gpt2, np.full((2, CONFIG.n_embd), 1e-40, np.float32))
        next(generate_tokens(gpt2, ids, 1, top_k=5, seed=0))
