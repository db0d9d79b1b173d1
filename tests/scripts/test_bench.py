"""The benchmark: its arithmetic worked by hand, its checks, its floors; a whole run on the bundled checkpoint.

No time is asserted: machines differ, and so do their hours.
"""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from numpy_gpt2 import GPT2Config, generate_tokens, load_model, named_parameters, random_model, save
from numpy_gpt2.cli.exits import BadInput
from numpy_gpt2.summary.counting import PassCost, pass_cost
from strategies import configs, lively_model

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "scripts" / "bench"), str(ROOT / "scripts" / "experiments")]  # as `python scripts/bench` does

import run as bench  # noqa: E402
from cases import OURS, TEXTS, THEIRS, Bench, Disagreement  # noqa: E402
from cases import count_equal, floor_seconds, measure_lookup  # noqa: E402
from engine import Engine, louder, product_shapes, streamed_weights, ways_to_read  # noqa: E402
from report import Measurement, as_json, cells, median_and_range, number_text, without_empty_columns  # noqa: E402
from sides import Side, is_near_tie, median_seconds, time_output  # noqa: E402

CONFIG = GPT2Config(vocab_size=50, n_positions=100, n_embd=8, n_layer=2, n_head=2, eos_token_id=None)
ROWS = {
    "load": ["load the model, s", "process start to first token, s", "peak memory, MB"],
    "start": ["process start to first text, s", "to the end of 40 tokens, s"],
    "decode": ["20 tokens of context, ms", "128 tokens of context, ms"],
    "prefill": ["128 tokens, ms", "512 tokens, ms"],
    "batch": [f"{n} at once, ms" for n in (1, 2, 4, 8, 16)],
    "lookup": ["text that repeats itself", "at times", "hardly"],
    "gradients": ["8 x 256 tokens, ms", "8 x 256 tokens, peak memory, MB", "16 x 512 tokens, ms",
                  "16 x 512 tokens, peak memory, MB"],
}  # of fairytale, whose context is 512 tokens


# Ratios ---------------------------------------------------------------------------------------------------------------


def test_ratios_are_medians_of_the_rounds_ratios():
    measurement = Measurement("decode", "20 tokens", "ms", floor=[1, 2, 4], ours=[2, 2, 6], theirs=[6, 3, 6])
    assert measurement.times_floor == 1.5  # of 2, 1 and 1.5; of the medians it would be 1
    assert measurement.times_ours == 1.5  # of 3, 1.5 and 1
    assert measurement.gain is None


def test_the_gain_counts_tokens_in_the_same_time():
    measurement = Measurement("batch", "4 at once", "ms", ours=[2, 2, 6], plain=[1, 2, 3], n_tokens=4)
    assert measurement.gain == 2  # 4 times the median of 1/2, 1 and 1/2
    assert measurement.tokens_per_second == 2


def test_what_was_not_measured_has_no_ratio():
    measurement = Measurement("lookup", "a text", "ms", ours=[1])
    assert (measurement.times_floor, measurement.times_ours, measurement.gain) == (None, None, None)


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError):
        Measurement("decode", "20 tokens", "ms", floor=[1, 2], ours=[2]).times_floor


@pytest.mark.parametrize("n_batch, seconds", [
    (1, 42),  # 4 * (1000 + 50) bytes at 100 a second; 100 operations at 10 a second are done in 10
    (8, 80),  # 4 * (1000 + 8 * 50) bytes take 56 seconds, 800 operations 80
])
def test_the_floor_is_the_longer_of_reading_and_computing(n_batch, seconds):
    cost = PassCost(1, 10, block_flops=60, attention_flops=30, unembed_flops=10, weights_read=1000, cache_read=50)
    assert floor_seconds(cost, n_batch, bandwidth=100, rate=10) == seconds


@pytest.mark.parametrize("value, text", [(1380.4, "1,380"), (99.96, "100.0"), (20.61, "20.6"), (1.384, "1.38"),
                                         (0.02061, "0.021")])
def test_numbers_are_shown_with_about_three_digits(value, text):
    assert number_text(value) == text


def test_a_cell_shows_the_median_between_the_smallest_and_the_largest():
    assert median_and_range([0.0221, 0.0199, 0.0206], 1e3) == ["20.6", "(19.9 to 22.1)"]
    assert median_and_range([], 1e3) == ["", ""]


def test_a_row_has_every_figure_in_its_column():
    measurement = Measurement("batch", "2 at once", "ms", [0.01], [0.02], [0.05], plain=[0.015], n_tokens=2)
    assert cells(measurement) == ["2 at once, ms", "10.0", "20.0", "(20.0 to 20.0)", "2.00", "50.0", "(50.0 to 50.0)",
                                  "2.50", "100", "1.50"]


def test_columns_in_which_nothing_was_measured_are_left_out():
    table = without_empty_columns(["case", "floor", "ours"], [["a", "", "1"], ["b", "", ""]])
    assert table == (["case", "ours"], [["a", "1"], ["b", ""]])


def test_median_seconds_repeats_until_the_time_is_over_but_once_at_least():
    calls = []
    assert median_seconds(lambda: calls.append("action"), 0, lambda: calls.append("afterwards")) >= 0
    assert calls == ["action", "afterwards"]
    median_seconds(lambda: calls.append("action"), 0.001, lambda: calls.append("afterwards"))
    assert len(calls) > 10


def test_the_output_of_a_program_is_whole_however_it_comes():
    program = "import time; print('abc', flush=True); time.sleep({}); print('def')"
    for seconds in (0, 0.2):
        first, end, output = time_output([sys.executable, "-c", program.format(seconds)], 2)
        assert output == b"abc\ndef\n"
        assert end - first >= seconds


def test_a_program_that_fails_ends_the_benchmark_with_its_last_line():
    with pytest.raises(SystemExit, match="^error: -c raise .* ended with status 1: ValueError: too bad$"):
        time_output([sys.executable, "-c", "raise ValueError('too bad')"], 1)


# The check ------------------------------------------------------------------------------------------------------------


def test_equal_tokens_all_count_near_ties_or_not():
    assert count_equal([[1, 2], [3, 4]], [[1, 2], [3, 4]], [[False, True], [True, False]]) == 4


def test_other_tokens_are_refused_by_place_and_id():
    with pytest.raises(Disagreement, match=r"^numpy_gpt2's token 2 is 9, expected 2\.$"):
        count_equal([[1, 9, 3]], [[1, 2, 3]], [[True, False, True]])


def test_texts_may_part_at_a_near_tie_and_are_counted_up_to_it():
    assert count_equal([[1, 9, 8]], [[1, 2, 3]], [[False, True, False]]) == 1


def test_a_near_tie_in_one_row_excuses_no_other_row():
    with pytest.raises(Disagreement):
        count_equal([[9, 8], [3, 9]], [[1, 2], [3, 4]], [[True, True], [True, False]])


def test_a_near_tie_is_one_thousandth_of_the_largest_logit():
    logits = [[10, 9.995, 0], [10, 9.98, 0], [9.98, -30, 10]]
    assert is_near_tie(np.array(logits)).tolist() == [True, False, True]


class Fake(Side):
    """A side that always chooses one token."""

    def __init__(self, token):
        super().__init__()
        self.logits = np.eye(CONFIG.vocab_size)[[token]]

    def prefill(self, ids, room):
        return self.logits, None

    def step(self, token, cache):
        return self.logits

    def crop(self, cache, n):
        pass

    def __call__(self, method, *arguments):
        return getattr(self, method)(*arguments)


def bench_of(ours, theirs):
    made = Bench(None, CONFIG, rounds=1, seconds=0, seed=0, with_theirs=True)
    made.workers = {OURS: ours, THEIRS: theirs}
    return made


def test_sides_that_write_the_same_are_believed():
    agreeing = bench_of(Fake(3), Fake(3))
    agreeing.read_by_both(agreeing.random_ids(1, 5))
    assert agreeing.n_checked == 8


def test_sides_that_write_other_tokens_end_the_program_with_one_line():
    disagreeing = bench_of(Fake(3), Fake(4))
    with pytest.raises(SystemExit) as error:
        disagreeing.read_by_both(disagreeing.random_ids(1, 5))
    # A text in the place of a status is printed, and the status 1.
    assert error.value.code == "error: numpy_gpt2's token 1 is 3, expected 4. No time of this run is to be believed."


def test_a_prompt_that_fills_the_context_is_checked_by_the_one_token_after_it():
    full = bench_of(Fake(3), Fake(3))
    full.read_by_both(full.random_ids(1, CONFIG.n_positions))
    assert full.n_checked == 1


class Lookup:
    """Stands for numpy_gpt2's process: prompt lookup is three times as fast, and writes these tokens."""

    def __init__(self, tokens, near_tie=False):
        self.tokens, self.near_tie = tokens, near_tie

    def __call__(self, method, prompt=None, *arguments):
        if method == "near_ties":
            return [self.near_tie] * 3
        n_new, loudness, n_draft = arguments
        return (0.3, [1, 2, 2]) if n_draft is None else (0.1, self.tokens)


def test_prompt_lookup_is_set_against_plain_greedy_writing():
    measurements = list(measure_lookup(bench_of(Lookup([1, 2, 2]), None)))
    assert [measurement.gain for measurement in measurements] == [pytest.approx(3)] * 3
    assert measurements[0].case == "text that repeats itself (2 different tokens of 3)"


def test_prompt_lookup_must_write_what_plain_greedy_does():
    with pytest.raises(SystemExit, match="^error: numpy_gpt2's token 3 is 9, expected 2. No time"):
        list(measure_lookup(bench_of(Lookup([1, 2, 9]), None)))
    assert len(list(measure_lookup(bench_of(Lookup([1, 2, 9], near_tie=True), None)))) == 3


# numpy_gpt2's side, and the floors ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(louder(lively_model(CONFIG, dtype=np.float32), 10), folder)  # so that it does not repeat one token
    return Engine(folder)


def test_the_engine_writes_what_generate_tokens_does(engine):
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    tokens, near_ties = engine.greedy(ids, 6)
    expected = np.stack(list(generate_tokens(engine.model, ids, 6, temperature=0)), axis=-1)
    np.testing.assert_array_equal(tokens, expected)
    assert len(np.unique(tokens)) > 3
    assert near_ties.shape == (2, 6)


def test_each_step_that_is_timed_reads_the_same_position(engine):
    engine.greedy(np.array([[1, 2, 3]]), 6)
    cache, _ = engine.read[1]
    assert cache.length == 3
    engine.decode(1, seconds=0.01)
    assert cache.length == 3


def test_near_ties_of_a_text_are_those_of_writing_it(engine):
    tokens, near_ties = engine.greedy(np.array([[1, 2, 3]]), 6)
    assert engine.near_ties([1, 2, 3], tokens[0].tolist(), loudness=1).tolist() == near_ties[0].tolist()


@given(configs())
def test_the_floor_streams_every_weight_that_counting_says_a_step_reads(config):
    flat = streamed_weights(lively_model(config))
    looked_up = 2 * config.n_embd  # a row of wte and one of wpe
    assert sum(array.size for array in flat) == pass_cost(config, 1, 1).weights_read - looked_up


@pytest.mark.parametrize("tied", [True, False])
def test_the_floor_reads_the_models_own_memory(tied):
    model = random_model(replace(CONFIG, tie_word_embeddings=tied))
    flat = streamed_weights(model)
    assert any(np.shares_memory(array, model.lm_head) for array in flat)
    assert any(np.shares_memory(array, model.wte) for array in flat) == tied
    assert not any(np.shares_memory(array, model.wpe) for array in flat)


def test_every_way_to_read_reads_each_array_up_to_less_than_a_row():
    flat = [np.ones(n, dtype=np.float32) for n in (8192, 20000, 100)]
    ways = ways_to_read(flat)
    assert [n_bytes for _, n_bytes in ways] == [4 * n for n in (8192 + 18432, 8192 + 18432, 8192 + 16384, 8192 + 16384,
                                                                8192 + 16384, 8192 + 16384)]
    for read, n_bytes in ways:
        assert sum(float(np.sum(product)) for product in read()) == n_bytes / 4  # each one counted once


@given(configs())
def test_the_products_are_those_that_counting_counts(config):
    n = config.n_positions
    flops = {name: 2 * math.prod(shape) for name, shape in product_shapes(config, n).items()}
    attention = flops.pop("attn.scores") + flops.pop("attn.z")
    cost = pass_cost(config, n, n)
    assert config.n_layer * sum(flops.values()) == cost.block_flops
    assert config.n_layer * attention * (n + 1) == cost.attention_flops * 2 * n  # the whole square, not its causal half


def test_the_louder_the_positions_the_less_a_text_repeats_itself(tmp_path, monkeypatch):
    config = GPT2Config(vocab_size=1000, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=None)
    monkeypatch.setattr(bench, "SIZES", {"tiny": config})
    bench.save_random("tiny", 0, tmp_path)
    model = load_model(tmp_path)
    n_different = []
    for loudness in TEXTS.values():
        tokens = generate_tokens(louder(model, loudness), [1, 2, 3], 50, temperature=0)
        n_different.append(len(set(tokens)))
    assert n_different == sorted(n_different)
    assert n_different[0] < 5 and n_different[-1] > 25
    for (name, array), (_, random) in zip(named_parameters(model), named_parameters(random_model(config))):
        assert np.array_equal(array, random) == (name != "wpe.weight")


# The command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    (["--only", "decode,speed"],
     "argument --only: must be of load, start, decode, prefill, batch, lookup, gradients. Got"),
    (["--size", "small", "--model", "fairytale"], "not allowed with argument --size"),
    (["--size", "tiny"], "argument --size: invalid choice: 'tiny'"),
    (["--rounds", "0"], "argument --rounds: must be a whole number, 1 or more. Got '0'."),
    (["--seconds", "0"], "--seconds must be more than 0. Got 0.0."),
    (["--seconds", "nan"], "--seconds must be more than 0. Got nan."),
    (["--json", "no/such/folder/x.json"], "--json must be a file in an existing folder. Got no/such/folder/x.json"),
])
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments, message):
    with pytest.raises(BadInput) as error:
        bench.check_outputs(bench.make_parser().parse_args(arguments))
    assert message in str(error.value)


def test_a_picture_of_nothing_that_can_be_drawn_is_refused(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra `plot`")
    arguments = ["--plot", str(tmp_path / "x.png"), "--only", "load,lookup"]
    with pytest.raises(BadInput, match="--plot draws decode, prefill, batch"):
        bench.check_outputs(bench.make_parser().parse_args(arguments))


def test_a_model_whose_context_is_too_short_for_the_groups_is_refused(tmp_path):
    save(random_model(replace(CONFIG, n_positions=219)), tmp_path)
    with pytest.raises(BadInput, match="must have a context of 220 tokens or more. Got 219.$"):
        bench.checkpoint(bench.make_parser().parse_args(["--model", str(tmp_path)]), None)


def test_groups_run_in_one_order_whatever_the_order_of_their_names():
    assert bench.make_parser().parse_args(["--only", "batch,decode"]).only == ["decode", "batch"]


def test_without_torch_or_transformers_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert not bench.has_transformers()
    assert capsys.readouterr().err == ("torch and transformers not installed: numpy_gpt2 is measured against the "
                                       "floors only (pip install 'numpy_gpt2[bench]')\n")


# A whole run ----------------------------------------------------------------------------------------------------------


def run_bench(*arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "scripts/bench", *arguments], capture_output=True, text=True, timeout=600,
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})


def quick_run(tmp_path, *arguments):
    """The output and the JSON of a run on the bundled model, one short round of each case."""
    file = tmp_path / "bench.json"
    process = run_bench("--model", "fairytale", "--rounds", "1", "--seconds", "0.001", "--threads", "1",
                        "--json", str(file), *arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout, json.loads(file.read_text())


def assert_table_and_json_agree(output, report):
    """Every measurement has its row, and every ratio is that of its own values."""
    for entry in report["measurements"]:
        assert entry["numpy_gpt2"] and all(seconds > 0 for seconds in entry["numpy_gpt2"])
        again = Measurement(entry["group"], entry["case"], "MB" if entry["unit"] == "bytes" else "ms", entry["floor"],
                            entry["numpy_gpt2"], entry["transformers"], entry["plain"], entry["n_tokens"])
        assert as_json(again) == entry
        assert re.search(f"^{re.escape(entry['case'])}, (ms|s|MB)  ", output, re.MULTILINE), entry["case"]


@pytest.mark.slow
def test_a_whole_run_without_transformers_has_every_row_of_the_table(tmp_path):
    picture = tmp_path / "bench.png"
    drawing = ["--plot", str(picture)] if find_spec("matplotlib") else []
    output, report = quick_run(tmp_path, "--without-transformers", *drawing)
    for group, rows in ROWS.items():
        if group == "lookup" and not any(entry["group"] == "lookup" for entry in report["measurements"]):
            continue  # where generate_tokens has no prompt lookup
        for row in rows:
            assert f"\n{row}" in output, (group, row)
    assert_table_and_json_agree(output, report)
    with_floor = {entry["group"] for entry in report["measurements"] if entry["times_floor"] is not None}
    assert with_floor == {"load", "decode", "prefill", "batch"}
    assert not any(entry["transformers"] for entry in report["measurements"])
    assert "x ours  " not in output and "Checked" not in output
    assert list(report["machine"]) == ["model", "processor", "threads", "NumPy", "rounds"]
    assert report["machine"]["threads"] == "1"
    if drawing:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parity
def test_both_sides_are_checked_and_timed_on_the_same_cases(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    output, report = quick_run(tmp_path, "--only", "load,decode,prefill,batch")
    assert_table_and_json_agree(output, report)
    assert all(len(entry["transformers"]) == 1 for entry in report["measurements"])
    assert re.search(r"^transformers: [\d.]+ with torch ", output, re.MULTILINE)
    n_checked = int(re.search(r"Checked: ([\d,]+) greedy tokens", output)[1].replace(",", ""))
    # load 2 * 4, decode 2 * 8, prefill 8 + 1, batches 31 * 8, fewer where a near tie parts the texts
    assert 200 < n_checked == report["n_checked"] <= 281


@pytest.mark.slow
def test_a_disagreement_ends_a_run_with_status_1(tmp_path):
    """transformers is not needed: a module in its place that chooses other tokens."""
    (tmp_path / "reference.py").write_text(
        "import engine\n"
        "class Wrong(engine.Engine):\n"
        "    def step(self, token, cache):\n"
        "        return -super().step(token, cache)\n"
        "load = Wrong\n")
    code = ("import sys\n"
            "from numpy_gpt2.cli import exits\n"
            f"sys.path[:0] = [{str(tmp_path)!r}, 'scripts/bench', 'scripts/experiments']\n"
            "import run as bench\n"
            "if __name__ == '__main__':\n"
            "    bench.has_transformers = lambda: True\n"
            "    bench.describe = lambda *args: {}\n"
            "    exits.run(bench.main)\n")
    script = tmp_path / "wrong.py"
    script.write_text(code)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.run([sys.executable, str(script), "--model", "fairytale", "--rounds", "1", "--seconds",
                              "0.001", "--threads", "1", "--only", "decode"], capture_output=True, text=True,
                             timeout=600, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    assert process.returncode == 1
    told = r"^error: numpy_gpt2's token 2 is \d+, expected \d+\. No time .* believed\.$"
    assert len(re.findall(told, process.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in process.stderr
