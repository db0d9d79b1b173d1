"""Counts against headers and arrays, the published figures, costs against a real pass, and the weights' statistics."""

import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import numpy_gpt2
from numpy_gpt2 import (SIZES, CheckpointError, GPT2Config, Recorder, forward, load_model, model as model_module,
                        named_parameters, parameter_shapes, random_model, save)
from numpy_gpt2.checkpoint import loading
from numpy_gpt2.checkpoint.tensors import read_header
from numpy_gpt2.summary import counting, weight_statistics
from numpy_gpt2.summary.counting import count_parameters, figures, parameters, pass_cost
from numpy_gpt2.summary.metadata import metadata_of_size, read_metadata
from numpy_gpt2.summary.report import report_values, report_weights
from strategies import configs, passes

# DESIGN.md's table: parameters, untied, wte.
TABLE = {
    "small": (124_439_808, 163_037_184, 38_597_376),
    "medium": (354_823_168, 406_286_336, 51_463_168),
    "large": (774_030_080, 838_359_040, 64_328_960),
    "xl": (1_557_611_200, 1_638_022_400, 80_411_200),
}


def write_checkpoint(folder: Path, config: GPT2Config, arrays: dict[str, np.ndarray], prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({prefix + name: array for name, array in arrays.items()}, folder / "model.safetensors")
    return folder


def arrays_of(config: GPT2Config) -> dict[str, np.ndarray]:
    return dict(named_parameters(random_model(config)))


def header_sum(path: Path) -> int:
    return sum(math.prod(tensor.shape) for tensor in read_header(path))


TINY = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)


# Counts ---------------------------------------------------------------------------------------------------------------


@given(configs(), st.sampled_from(["float32", "float16"]))
def test_the_closed_form_the_header_and_the_sum_over_arrays_are_equal(config, dtype):
    with tempfile.TemporaryDirectory() as folder:
        save(random_model(config), folder, dtype)
        found = read_metadata(folder)
        counted = count_parameters(found.config).stored
        assert counted == header_sum(Path(folder, "model.safetensors"))
        assert counted == sum(array.size for _, array in named_parameters(load_model(folder)))
        assert counted == sum(one.count for one in parameters(found))
        assert found.is_verified and found.config == config and not found.extras
        item_bytes = {"float32": 4, "float16": 2}[dtype]
        assert all(one.n_bytes == item_bytes * one.count for one in parameters(found))


def kind_of(name):
    if ".ln_" in name or name.startswith("ln_f"):
        return "ln"
    return next(kind for kind in ("wte", "wpe", "attn", "mlp", "lm_head") if kind in name)


def role_of(name):
    if name.endswith(".bias"):
        return "biases"
    return "gains" if kind_of(name) == "ln" else "weights"


@given(configs())
def test_kinds_and_roles_add_up_and_agree_with_the_names(config):
    counts = count_parameters(config)
    listed = parameters(counting.Metadata("", config, ""))
    for sums, attribute in ((counts.kinds, kind_of), (counts.roles, role_of)):
        assert sum(sums.values()) == counts.stored
        for key, expected in sums.items():
            assert sum(one.count for one in listed if attribute(one.name) == key) == expected, key
    for kind, expected in counts.weight_kinds.items():
        weights = [one.count for one in listed if kind_of(one.name) == kind and one.name.endswith(".weight")]
        assert sum(weights) == expected, kind
    assert counts.per_block == sum(one.count for one in listed if one.name.startswith("h.0."))
    assert counts.untied - counts.tied == counts.difference == config.vocab_size * config.n_embd
    assert counts.stored == (counts.tied if config.tie_word_embeddings else counts.untied)


@given(configs())
def test_folding_the_blocks_loses_no_parameter_and_no_byte(config):
    listed = parameters(counting.Metadata("", config, ""))
    short = counting.folded(listed)
    assert sum(one.count for one in short) == sum(one.count for one in listed)
    assert sum(one.n_bytes for one in short) == sum(one.n_bytes for one in listed)
    assert len(short) == 2 + 12 + 2 + (not config.tie_word_embeddings)


@pytest.mark.parametrize("size", SIZES)
def test_the_released_sizes_have_the_table_s_counts(size):
    counts = count_parameters(SIZES[size])
    assert (counts.stored, counts.untied, counts.difference) == TABLE[size]
    assert counts.stored == sum(map(math.prod, parameter_shapes(SIZES[size]).values()))
    untied = replace(SIZES[size], tie_word_embeddings=False)
    assert count_parameters(untied).stored == TABLE[size][1]


def test_small_has_102144_biases_which_are_0_082_percent():
    roles = count_parameters(SIZES["small"]).roles
    assert roles == {"weights": 124_318_464, "biases": 102_144, "gains": 19_200}
    assert f"{roles['biases'] / 124_439_808:.3%}" == "0.082%"


def test_the_fraction_of_biases_and_of_gains_falls_from_size_to_size():
    for role in ("biases", "gains"):
        fractions = [counts.roles[role] / counts.stored for counts in map(count_parameters, SIZES.values())]
        assert fractions == sorted(fractions, reverse=True) and len(set(fractions)) == 4


def test_the_fused_matrix_is_shown_as_three_of_the_width():
    shapes = {one.name: one.shape_text for one in parameters(metadata_of_size("small"))}
    assert shapes["h.0.attn.c_attn.weight"] == "768 x 2304 = 768 x 3*768"
    assert shapes["h.0.attn.c_proj.weight"] == "768 x 768"
    assert shapes["h.11.attn.c_attn.bias"] == "2304"


@given(configs())
def test_the_tree_names_every_parameter_with_its_shape(config):
    path: list[str] = []
    found = {}
    for part in counting.parts(config):
        path = [*path[:part.depth], part.name]
        found[".".join(path)] = [int(number) for number in re.findall(r"\d+", part.shape.partition("=")[0])]
    for name, shape in parameter_shapes(replace(config, tie_word_embeddings=False)).items():
        place = re.sub(r"^h\.\d+\.", "h.", name).removesuffix(".weight").removesuffix(".bias")
        if "ln_" in name:
            assert found[place] == [config.n_embd] * 2
        elif name.endswith(".weight"):
            assert found[place] == list(shape)


# Metadata -------------------------------------------------------------------------------------------------------------


def test_counting_reads_no_weight(tmp_path, monkeypatch):
    save(random_model(TINY), tmp_path)

    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(loading, "read_tensor", refuse)
    sizes = map(math.prod, parameter_shapes(TINY).values())
    assert count_parameters(read_metadata(tmp_path).config).stored == sum(sizes)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_and_prefixes_change_no_count(tmp_path, prefix):
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 6, 6), np.float32) for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(2)}
    found = read_metadata(write_checkpoint(tmp_path, TINY, {**arrays_of(TINY), **masks}, prefix))
    assert set(found.extras) == set(masks)
    assert sum(one.count for one in parameters(found)) == count_parameters(TINY).stored
    assert header_sum(tmp_path / "model.safetensors") == count_parameters(TINY).stored + 2 * 36 + 2


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_second_array_under_a_tied_config_counts_as_load_takes_it(tmp_path, is_copy):
    arrays = arrays_of(TINY)
    arrays["lm_head.weight"] = arrays["wte.weight"].copy() if is_copy else -arrays["wte.weight"]
    found = read_metadata(write_checkpoint(tmp_path, TINY, arrays))
    assert found.config.tie_word_embeddings is is_copy
    loaded = load_model(tmp_path)
    assert count_parameters(found.config).stored == sum(array.size for _, array in named_parameters(loaded))
    assert found.config == loaded.config


@pytest.mark.parametrize("flaw", ["missing", "shape", "surplus"])
def test_a_header_that_contradicts_the_config_is_refused(tmp_path, flaw):
    arrays = arrays_of(TINY)
    if flaw == "missing":
        del arrays["h.1.ln_2.bias"]
    elif flaw == "shape":
        arrays["h.1.ln_2.bias"] = np.zeros(7, np.float32)
    else:
        arrays["h.2.ln_2.bias"] = arrays["h.1.ln_2.bias"]
    with pytest.raises(CheckpointError, match=r"h\.[12]\.ln_2\.bias"):
        read_metadata(write_checkpoint(tmp_path, TINY, arrays))


def test_the_bundled_checkpoint_is_verified():
    found = read_metadata("fairytale")
    assert found.is_verified and count_parameters(found.config).stored == 3_554_304


# Figures --------------------------------------------------------------------------------------------------------------


@given(configs())
def test_a_figure_of_any_config_is_the_sum_beside_it(config):
    for one in figures(config):
        assert one.count is not None and one.figure == counting.millions(one.count)
        numbers = [int(number.replace(",", "")) for number in re.findall(r"(?<=\s)[\d,]{1,}(?=$| \+)", one.sum_text)]
        assert sum(numbers) == one.count, one.sum_text


@pytest.mark.parametrize("figure, count", [
    ("124M", 124_439_808), ("163M", 163_037_184), ("137M", 137_022_720), ("85M", 85_056_000),
    ("123.65M", 123_653_376), ("163M - 38M = 124M", 124_439_808), ("117M", None), ("117M", 116_534_784)])
def test_the_figures_of_small(figure, count):
    assert (figure, count) in [(one.figure, one.count) for one in figures(SIZES["small"])]


def test_one_and_a_half_billion_is_xl_s_count_cut():
    assert [one.count for one in figures(SIZES["xl"]) if one.figure == "1.5 billion"] == [1_557_611_200]


def test_the_vocabulary_of_gpt_1_gives_all_four_figures_of_the_paper():
    for size, config in SIZES.items():
        paper = [one for one in figures(config) if one.figure == f"{counting.PAPER_MILLIONS[size]}M"]
        cited, guessed = paper[:2]
        assert cited.count is None and "OpenAI's README" in cited.remark
        assert guessed.count is not None and counting.millions(guessed.count) == guessed.figure
        assert guessed.count == TABLE[size][0] - (50257 - 40478) * config.n_embd


def test_a_fine_tune_of_a_released_size_has_its_figures_and_others_have_none():
    assert counting.released_size(replace(SIZES["medium"], eos_token_id=None)) == "medium"
    assert counting.released_size(TINY) is None


# Costs ----------------------------------------------------------------------------------------------------------------


@given(passes(batches=st.just(())))
def test_the_flops_of_a_prefill_are_those_of_its_products(case):
    model, ids = case
    flops, acts = [], Recorder()

    def counting_linear(x, weight, bias):
        flops.append(2 * x.size * weight.shape[1])
        return numpy_gpt2.ops.linear(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "linear", counting_linear)
        forward(model, ids, tap=acts)
    visible = sum(np.isfinite(acts[f"h.{i}.attn.scores"]).sum() for i in range(model.config.n_layer))
    cost = pass_cost(model.config, len(ids), len(ids))
    assert cost.block_flops == sum(flops)
    assert cost.attention_flops == 2 * 2 * visible * model.config.d_head
    assert cost.unembed_flops == 2 * model.wte.size
    assert cost.flops == cost.block_flops + cost.attention_flops + cost.unembed_flops


@given(configs().filter(lambda config: config.n_positions > 1), st.data())
def test_a_prefill_costs_what_its_chunks_cost_but_for_the_unembedding(config, data):
    n_all = data.draw(st.integers(2, config.n_positions))
    cut = data.draw(st.integers(1, n_all - 1))
    whole = pass_cost(config, n_all, n_all)
    first, second = pass_cost(config, cut, cut), pass_cost(config, n_all - cut, n_all)
    assert first.flops + second.flops - whole.flops == whole.unembed_flops
    assert second.cache_read == whole.cache_read


@given(configs(), st.data())
def test_a_decoded_token_reads_the_cache_and_every_weight_but_the_embeddings(config, data):
    n_context = data.draw(st.integers(1, config.n_positions))
    cost = pass_cost(config, 1, n_context)
    cache = numpy_gpt2.KVCache(random_model(config), n_context)
    assert cost.cache_read == cache.k.size + cache.v.size
    counts = count_parameters(config)
    rows = 2 * config.n_embd  # one of wte, one of wpe
    assert cost.weights_read == counts.tied - counts.kinds["wpe"] + rows


def test_a_decoded_token_of_small_at_its_full_context():
    cost = pass_cost(SIZES["small"], 1, 1024)
    assert cost.block_flops == 2 * 84_934_656  # two for each number of the blocks' matrices
    assert cost.unembed_flops == 2 * 38_597_376
    assert cost.attention_flops == 12 * 2 * 2 * 768 * 1024
    assert cost.cache_read * 4 == 75_497_472


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[7, 1 << 20])
def chunk(request, monkeypatch):
    """Whatever the size of a chunk, the results are the same."""
    monkeypatch.setattr(weight_statistics, "CHUNK", request.param)


def test_statistics_are_numpy_s_over_all_arrays_together(chunk):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(3, 2, shape).astype(np.float32) for shape in ((5, 7), (1,), (40,))]
    arrays[1][0] = 99  # far beyond the last edge
    both = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    found = weight_statistics.describe("x", *arrays)
    assert found.count == both.size and (found.smallest, found.largest) == (both.min(), both.max())
    np.testing.assert_allclose([found.mean, found.std, found.norm],
                               [both.mean(), both.std(), np.linalg.norm(both)], rtol=1e-12)
    scaled = np.clip((both - both.mean()) / both.std(), -3, 3)
    assert found.histogram == tuple(np.histogram(scaled, weight_statistics.HISTOGRAM_EDGES)[0])


def test_the_mean_and_deviation_keep_their_digits_far_from_zero(chunk):
    found = weight_statistics.describe("x", np.array([1e8 - 1, 1e8 + 1] * 50))
    assert (found.mean, found.std) == (1e8, 1.0)


# numbers -> excess kurtosis, and the fraction beyond four deviations. One 1 among 100 is a Bernoulli variable of
# p = 0.01: (1 - 6p(1-p)) / (p(1-p)), and the 1 is sqrt((1-p) / p) = 9.95 deviations from the mean.
SHAPES = {
    "two values": ([-1, 1] * 50, 1 - 3, 0),
    "one in five": ([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], 5 - 3, 0),
    "one in a hundred": ([1] + [0] * 99, (1 - 0.0594) / 0.0099, 0.01),
    "four deviations": ([4] + [-4] + [0] * 30, 16 - 3, 0),  # exactly four are not beyond
}


@pytest.mark.parametrize("numbers, kurtosis, beyond_4", SHAPES.values(), ids=SHAPES)
def test_kurtosis_and_tails_are_those_worked_out_by_hand(chunk, numbers, kurtosis, beyond_4):
    found = weight_statistics.describe("x", np.array(numbers, np.float32))
    assert (found.kurtosis, found.beyond_4) == (pytest.approx(kurtosis), beyond_4)


def test_a_normal_is_the_control():
    normal = weight_statistics.describe("x", np.random.default_rng(0).standard_normal(10**6))
    assert abs(normal.kurtosis) < 0.03
    assert normal.beyond_4 == pytest.approx(weight_statistics.NORMAL_BEYOND_4, abs=3e-5)
    assert weight_statistics.NORMAL_BEYOND_4 == pytest.approx(6.334e-5, rel=1e-3)
    np.testing.assert_allclose(normal.histogram, weight_statistics.NORMAL_HISTOGRAM, rtol=0.04)


def test_equal_numbers_have_no_deviation_and_one_bin(chunk):
    found = weight_statistics.describe("x", np.full((3, 5), 0.1, np.float32))
    assert found.std == 0 and found.kurtosis is None and found.beyond_4 == 0
    assert sorted(found.histogram)[-2:] == [0, 15]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error_that_names_the_tensor(bad):
    with pytest.raises(FloatingPointError, match=r"h\.0\.ln_1\.bias"):
        weight_statistics.describe("h.0.ln_1.bias", np.array([1.0, bad]))


def test_layers_and_tensors_cover_every_parameter():
    found = report_values(random_model(TINY))
    assert [one["name"] for one in found["tensors"]] == list(parameter_shapes(TINY))
    assert sum(one["count"] for one in found["tensors"]) == count_parameters(TINY).stored
    assert [(one["name"], one["count"]) for one in found["layers"]] == [(f"h.{i}", count_parameters(TINY).per_block)
                                                                        for i in range(2)]


def test_more_than_ten_layers_are_told_apart():
    layers = report_values(random_model(replace(TINY, n_layer=12)))["layers"]
    assert {one["count"] for one in layers} == {count_parameters(TINY).per_block}


def test_a_weight_that_grows_with_depth_has_trend_1():
    arrays = arrays_of(replace(TINY, n_layer=4))
    for i in range(4):
        arrays[f"h.{i}.mlp.c_fc.weight"] = arrays["h.0.mlp.c_fc.weight"] * (i + 1)
        arrays[f"h.{i}.ln_1.weight"] = np.ones(8, np.float32)
    found = report_values(numpy_gpt2.build_model(replace(TINY, n_layer=4), arrays))
    profiles = {one["name"]: one for one in found["depth"]}
    assert profiles["mlp.c_fc.weight"]["trend"] == pytest.approx(1)
    assert profiles["ln_1.weight"] == {"name": "ln_1.weight", "std": [0] * 4, "trend": None}


def test_queries_keys_and_values_are_the_thirds_of_c_attn(chunk):
    width = TINY.n_embd
    arrays = arrays_of(TINY)
    for i in range(TINY.n_layer):
        thirds = [np.full((width, width), 10 * i + third, np.float32) for third in range(3)]
        arrays[f"h.{i}.attn.c_attn.weight"] = np.concatenate(thirds, axis=1)
    groups = weight_statistics.grouped_weights(numpy_gpt2.build_model(TINY, arrays))
    found = {name: weight_statistics.describe(name, *of_group) for name, of_group in groups.items()}
    assert [found[f"h.1 {name}"].mean for name in ("queries", "keys", "values")] == [10, 11, 12]
    assert [(found[name].smallest, found[name].largest) for name in ("queries", "values")] == [(0, 10), (2, 12)]
    counts = count_parameters(TINY)
    assert found["attention"].count == counts.weight_kinds["attn"] == 2 * found["h.0 attention"].count
    assert found["MLP"].count == counts.weight_kinds["mlp"] and found["wpe"].count == counts.kinds["wpe"]
    proj = arrays["h.0.mlp.c_proj.weight"].astype(float)
    both = np.concatenate([arrays["h.0.mlp.c_fc.weight"].ravel(), proj.ravel()])
    assert found["h.0 MLP"].std == pytest.approx(both.std(), rel=1e-6)


def test_an_overlay_has_one_scale_and_says_what_lies_on_it(chunk):
    groups = {"wide": [np.array([-4.0, 4.0, 1.0, -1.0])], "narrow": [np.array([[0.01, -0.01]]), np.array([1.0, -99.0])]}
    statistics = {name: replace(weight_statistics.describe(name, *arrays), std=std)
                  for (name, arrays), std in zip(groups.items(), (2.0, 1.0))}
    found = weight_statistics.overlay(groups, statistics)
    edges, fractions = found["edges"], found["fractions"]
    assert (edges[0], edges[-1], len(edges)) == (-8, 8, weight_statistics.N_BINS + 1)
    for name, arrays in groups.items():
        numbers = np.concatenate([array.ravel() for array in arrays])
        assert fractions[name] == list(np.histogram(numbers, edges)[0] / numbers.size)
    assert sum(fractions["narrow"]) == 0.75  # -99 is outside


def test_no_statistic_needs_a_copy_of_a_matrix():
    model = random_model(TINY)
    for name, arrays in weight_statistics.grouped_weights(model).items():
        for array in arrays:
            assert np.shares_memory(array.ravel(order="K"), array), name


def test_an_untied_model_has_two_arrays_with_the_correlation_of_their_numbers():
    model = random_model(replace(TINY, tie_word_embeddings=False))
    found = weight_statistics.compare_embeddings(model.wte, model.lm_head)
    wte, lm_head = model.wte.astype(np.float64), model.lm_head.astype(np.float64)
    covariance = np.mean((wte - wte.mean()) * (lm_head - lm_head.mean()))
    assert found["correlation"] == pytest.approx(covariance / (wte.std() * lm_head.std()), abs=1e-12)
    assert found["largest_difference"] == np.abs(wte - lm_head).max()


def test_a_copy_of_the_embedding_in_another_memory_order_has_correlation_1():
    wte = random_model(TINY).wte
    for copy in (np.ascontiguousarray(wte), np.asfortranarray(wte)):
        found = weight_statistics.compare_embeddings(wte, copy)
        assert found == {"n_arrays": 2, "correlation": pytest.approx(1), "largest_difference": 0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_not_compared(bad):
    wte = random_model(TINY).wte
    for pair in ((wte, wte * np.float32(bad)), (wte * np.float32(bad), wte * np.float32(bad))):
        with pytest.raises(FloatingPointError, match="not finite"):
            weight_statistics.compare_embeddings(*pair)


def test_the_loss_of_a_text_is_that_of_all_its_tokens():
    model, tokenizer = numpy_gpt2.load("fairytale")
    text = "Once upon a time there was a küng."
    found = report_weights("fairytale", (), text)["loss"]
    ids = [tokenizer.eot_id, *tokenizer.encode(text)]
    logits = forward(model, ids).astype(np.float64)[:-1]
    nats = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    n_bytes = len(text.encode())
    assert (found["n_tokens"], found["n_bytes"]) == (len(ids) - 1, n_bytes)
    assert found["mean_loss"] == pytest.approx(nats.mean(), abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / n_bytes, abs=1e-5)
