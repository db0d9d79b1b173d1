"""`python -m numpy_gpt2.summary` as a user meets it. What needs no process of its own calls `main` in this one."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hub_server import HubServer, Repo

from numpy_gpt2 import (SIZES, CheckpointError, GPT2Config, build_model, named_parameters, random_model,
                        save)
from numpy_gpt2.cli import tables
from numpy_gpt2.cli.exits import BadInput
from numpy_gpt2.summary import __main__ as summary, report, statements
from numpy_gpt2.summary.metadata import metadata_of_size, read_metadata
from numpy_gpt2.summary.report_text import text_report

COMMAND = [sys.executable, "-m", "numpy_gpt2.summary"]
TINY = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)


def run(*arguments, env=None, stdin=b""):
    """Run the command to its end in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=60,
                          env={**os.environ, "COLUMNS": "120", **(env or {})})


@pytest.fixture
def printed(monkeypatch, capsys):
    """What the command prints, in this process; `columns` is the terminal's width."""
    def call(*arguments, columns=120):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["summary", *map(str, arguments)])
        summary.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def tiny(tmp_path):
    save(random_model(TINY), tmp_path / "tiny")
    return tmp_path / "tiny"


# The four sizes -------------------------------------------------------------------------------------------------------

SIZE_COUNTS = {
    "small": (12, 12, 768, 124_439_808, 163_037_184, 38_597_376, 102_144),
    "medium": (24, 16, 1024, 354_823_168, 406_286_336, 51_463_168, 271_360),
    "large": (36, 20, 1280, 774_030_080, 838_359_040, 64_328_960, 508_160),
    "xl": (48, 25, 1600, 1_557_611_200, 1_638_022_400, 80_411_200, 846_400),
}


def test_json_has_every_number_of_the_four_sizes(printed):
    sizes = json.loads(printed("--sizes", "--json"))
    assert list(sizes) == list(SIZE_COUNTS)
    for size, expected in SIZE_COUNTS.items():
        found = sizes[size]
        config, counts = found["configuration"], found["counts"]
        assert (config["n_layer"], config["n_head"], config["n_embd"], counts["stored"], counts["untied"],
                counts["difference"], found["biases"]["biases"]) == expected
        assert counts["tied"] == counts["stored"] == found["n_parameters"]
        assert found["tying"] == {"n_arrays": 1, "correlation": 1.0, "largest_difference": 0.0}
        assert sum(counts["fractions"].values()) == pytest.approx(1)


def test_the_text_has_every_number_of_the_four_sizes(printed):
    text = printed("--sizes")
    for expected in SIZE_COUNTS.values():
        for number in expected[3:]:
            assert f"{number:,}" in text
    fractions = next(line for line in text.splitlines() if line.startswith("biases") and "%" in line)
    assert fractions.split()[1:] == ["0.082%", "0.076%", "0.066%", "0.054%"]


@pytest.mark.parametrize("figure", ["124M", "137M", "163M", "85M", "123.65M", "163M - 38M = 124M", "117M", "345M",
                                    "762M", "1542M", "1.5 billion"])
def test_every_figure_that_people_meet_begins_a_line(printed, figure):
    text = printed("--sizes", "--figures")
    assert re.search(rf"^{re.escape(figure)}  ", text, re.MULTILINE)
    assert "116,534,784" in text and "OpenAI's README" in text


def test_the_four_sizes_are_counted_without_a_file_and_without_the_network(printed, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was looked up")

    monkeypatch.setattr(summary, "read_metadata", refuse)
    monkeypatch.setattr(report, "load_model", refuse)
    assert "1,557,611,200" in printed("--sizes")


def test_the_four_sizes_stand_side_by_side_in_80_columns(printed):
    text = printed("--sizes", columns=80)
    assert max(map(len, text.splitlines())) <= 80
    for row in ("layers, n_layer", "stored", "biases", "decode, FLOPs per token"):
        assert any(line.startswith(row) and len(line.split()) >= 5 for line in text.splitlines())


def test_every_statement_about_the_sizes_has_its_verdict_and_numbers(printed):
    text = " ".join(printed("--sizes", "--counts").split())
    for verdict in (
            '"Attention is about 22, 28, 30, 31%" holds: 22.77, 28.39, 30.50, 31.57% without biases',
            '"The MLPs are about 45, 56, 60, 63%" holds: 45.54, 56.78, 61.00, 63.15% without biases',
            '"Layer norms are under 0.01%" does not hold: 0.01544, 0.01415, 0.01208, 0.00997% without biases '
            'and 0.031, 0.028, 0.024, 0.020% of all parameters.',
            '"Embeddings have the same size in all versions" does not hold: wte grows from 38.6M to 80.4M',
            '"In layer norms, weights and biases are equal in number" holds: weights 19,200, 50,176, 93,440'):
        assert verdict in text, verdict
    assert "What the course says" not in printed("--counts", "fairytale")  # of one model, there is nothing to compare


def test_a_count_without_biases_makes_its_own_verdict():
    reports = {size: report.report_counts(metadata_of_size(size), ["counts"], 8) for size in SIZES}
    reports["xl"]["counts"]["weight_fractions"]["attn"] += 0.02
    for one in reports.values():
        one["counts"]["fractions"]["ln"] = 9e-5
        one["counts"]["kinds"]["wte"] = 1
    holds = [statement.holds for statement in statements.size_statements(reports)]
    assert holds == [False, True, True, True, True]


def test_both_countings_are_in_the_json(printed):
    counts = json.loads(printed("--sizes", "--counts", "--json"))["small"]["counts"]
    assert counts["weight_kinds"] == {**counts["kinds"], "attn": 28_311_552, "mlp": 56_623_104, "ln": 19_200}
    assert sum(counts["weight_fractions"].values()) == pytest.approx(1)
    assert counts["weight_fractions"]["attn"] == pytest.approx(28_311_552 / 124_337_664)


def test_cost_is_about_the_context_asked_for(printed):
    whole, short = (json.loads(printed("--sizes", "--cost", "--json", *context))["small"]["cost"]
                    for context in ([], ["--context", "8"]))
    assert (whole["n_context"], short["n_context"]) == (1024, 8)
    assert whole["decode"]["flops"] == 284_812_800
    assert whole["decode"]["cache_bytes_per_token"] == {"float32": 75_497_472, "float16": 37_748_736}
    assert short["decode"]["attention_flops"] * 128 == whole["decode"]["attention_flops"]
    assert short["prefill"]["weight_bytes_per_token"]["float32"] > whole["prefill"]["weight_bytes_per_token"]["float32"]


# One model ------------------------------------------------------------------------------------------------------------


def test_without_arguments_the_bundled_model_is_summed_up_and_the_way_to_others_named():
    process = run()
    text, notes = process.stdout.decode(), process.stderr.decode().splitlines()
    assert process.returncode == 0
    assert text.startswith("fairytale: 3,554,304 parameters, by config.json and the header of model.safetensors")
    assert "192 x 576 = 192 x 3*192" in text and "\x1b" not in text
    assert len(notes) == 1 and "small" in notes[0] and "--sizes" in notes[0]


def test_a_folder_is_counted_by_its_own_header(printed, tiny):
    found = json.loads(printed(tiny, "--json"))[str(tiny)]
    expected = {name: array for name, array in named_parameters(random_model(TINY))}
    assert found["verified"] and found["n_parameters"] == sum(array.size for array in expected.values())
    assert [one["name"] for one in found["parameters"]] == list(expected)
    for one in found["parameters"]:
        array = expected[one["name"]]
        assert (tuple(one["shape"]), one["count"], one["bytes"]) == (array.shape, array.size, array.nbytes)
    assert sum(one["fraction"] for one in found["parameters"]) == pytest.approx(1)
    assert "values" not in found and "loss" not in found


def test_parameters_are_listed_one_by_one_where_asked_and_by_kind_where_not(printed, tiny):
    assert "h.1.attn.c_attn.weight" in printed(tiny, "--parameters")
    assert "h.1." not in printed(tiny) and "h.*.attn.c_attn.weight" in printed(tiny)


def test_only_the_sections_asked_for_are_printed(printed, tiny):
    assert set(json.loads(printed(tiny, "--json", "--tying", "--parts"))[str(tiny)]) == {
        "n_parameters", "source", "verified", "not_parameters", "parts", "tying"}


def test_tensors_that_are_no_parameters_are_named(printed, tiny):
    from safetensors.numpy import load_file, save_file
    arrays = load_file(tiny / "model.safetensors")
    arrays["h.0.attn.bias"] = np.ones((1, 1, 6, 6), np.float32)
    before = json.loads(printed(tiny, "--json"))[str(tiny)]
    save_file(arrays, tiny / "model.safetensors")
    after = json.loads(printed(tiny, "--json"))[str(tiny)]
    assert after["not_parameters"] == ["h.0.attn.bias"] and after["counts"] == before["counts"]
    assert "h.0.attn.bias" in printed(tiny)


def test_several_models_stand_side_by_side_each_once(printed, tiny):
    text = printed("fairytale", tiny, "fairytale", "--counts")
    heading = next(line for line in text.splitlines() if line.startswith("Parameters in all"))
    assert heading.split()[3:] == ["fairytale", str(tiny)]


def test_two_arrays_are_measured_when_asked(printed, tmp_path):
    model = random_model(replace(TINY, tie_word_embeddings=False))
    save(model, tmp_path)
    correlation = np.corrcoef(model.wte.ravel().astype(float), model.lm_head.ravel().astype(float))[0, 1]
    found = json.loads(printed(tmp_path, "--tying", "--json"))[str(tmp_path)]["tying"]
    assert found["n_arrays"] == 2 and found["correlation"] == pytest.approx(correlation)
    assert json.loads(printed(tmp_path, "--json"))[str(tmp_path)]["tying"] == {"n_arrays": 2}
    assert "two" in printed(tmp_path, "--tying") and "use --tying" in printed(tmp_path)


def test_values_are_the_statistics_of_every_tensor_and_layer(printed, tiny):
    found = json.loads(printed(tiny, "--values", "--json"))[str(tiny)]["values"]
    for one, (name, array) in zip(found["tensors"], named_parameters(random_model(TINY)), strict=True):
        assert (one["name"], sum(one["histogram"])) == (name, array.size)
        assert one["std"] == pytest.approx(array.astype(float).std())
    assert [one["name"] for one in found["layers"]] == ["h.0", "h.1"]
    text = printed(tiny, "--values")
    assert "trend" in text and "h.1.mlp.c_proj.bias" in text


def test_the_table_of_distributions_has_queries_keys_and_values_apart_and_a_normal(printed, tiny):
    found = json.loads(printed(tiny, "--values", "--json"))[str(tiny)]["values"]
    rows = {one["name"]: one for one in found["groups"]}
    assert list(rows)[:8] == ["wte", "wpe", "queries", "keys", "values", "attention", "MLP", "h.0 queries"]
    c_attn = random_model(TINY).h[1].attn.c_attn.weight.astype(float)
    assert rows["h.1 keys"]["std"] == pytest.approx(c_attn[:, 8:16].std())
    text = printed(tiny, "--values")
    assert re.search(r"^h\.1 values +[\d.]+ +-?[\d.]+ +\d\.\de[-+]\d\d ", text, re.MULTILINE)
    assert re.search(r"^normal distribution +0 +6\.3e-05 ", text, re.MULTILINE)


def trained(**deviations):
    """What `value_statements` reads, of a model whose weights are normal with these deviations."""
    rng = np.random.default_rng(0)
    config = replace(TINY, n_embd=32, n_layer=3)
    arrays = {name: rng.standard_normal(array.shape).astype(np.float32)
              for name, array in named_parameters(random_model(config))}
    for name, array in arrays.items():
        if name.endswith("c_attn.weight"):
            array *= np.repeat([deviations.get(third, 1) for third in "qkv"], 32).astype(np.float32)
        if name.startswith("h."):
            array *= np.float32(1 + int(name[2]) * deviations.get("growth", 0))
    arrays["wpe.weight"] *= np.float32(deviations.get("wpe", 1))
    return report.report_values(build_model(config, arrays))


@pytest.mark.parametrize("deviations, expected", [
    ({}, [False, False, False]),
    ({"wpe": 0.1}, [True, False, False]),
    ({"growth": 0.5}, [False, True, False]),
    ({"growth": -0.3}, [False, False, False]),
    ({"v": 0.5}, [False, False, True]),
    ({"q": 2, "v": 0.5}, [False, False, False]),
    ({"v": 2}, [False, False, False]),
])
def test_statements_about_trained_weights_follow_from_the_weights(deviations, expected):
    verdicts = list(statements.value_statements(trained(**deviations)))
    assert [one.holds for one in verdicts] == expected
    assert all(("\" holds: " if one.holds else "\" does not hold: ") in one.verdict for one in verdicts)


def test_a_histogram_is_drawn_in_ascii_where_blocks_cannot_be_shown():
    process = run("--values", env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0 and b"?" not in process.stdout and b"#" in process.stdout


# Losses ---------------------------------------------------------------------------------------------------------------


def test_the_loss_on_a_text_stands_beside_the_count(printed, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a king.\n")
    found = json.loads(printed("--text", path, "--json"))["fairytale"]
    loss = found["loss"]
    assert loss["n_bytes"] == 35 and loss["perplexity"] == pytest.approx(np.exp(loss["mean_loss"]))
    line = printed("--text", path).splitlines()[-1]
    assert line.split() == ["fairytale", "3,554,304", str(loss["n_tokens"]), "35", f"{loss['mean_loss']:.4f}",
                            f"{loss['perplexity']:.2f}", f"{loss['bits_per_byte']:.4f}"]


def test_sizes_whose_weights_are_out_of_reach_say_so_in_their_rows(tmp_path):
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    text = run("small", "fairytale", "--text", "-", env=env, stdin=b"The king said no.").stdout.decode()
    row, last = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("small ", "fairytale "))
    assert len(last.split()) == 7 and "-" not in last
    assert row.split()[:3] == ["small", "124,439,808", "-"] and "openai-community/gpt2" in row


def test_where_no_weights_can_be_read_at_all_it_is_an_error(tmp_path):
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    process = run("--sizes", "--text", "-", env=env, stdin=b"The king said no.")
    assert (process.returncode, process.stdout, process.stderr.count(b"\n")) == (1, b"", 1)
    assert process.stderr.startswith(b"error: openai-community/gpt2 is not fully cached")
    with_counts = run("--sizes", "--text", "-", "--counts", env=env, stdin=b"The king said no.")
    assert with_counts.returncode == 0 and b"124,439,808" in with_counts.stdout


# The hub --------------------------------------------------------------------------------------------------------------


def test_the_hub_shows_config_and_header_and_no_weights_are_kept(tmp_path, tiny):
    files = {name: (tiny / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with HubServer() as hub:
        hub.repos["some/model"] = Repo(files)
        process = run("some/model", "--counts", "--json", env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")})
    found = json.loads(process.stdout)["some/model"]
    assert found["verified"] and "some/model at commit 11111111" in found["source"]
    assert found["n_parameters"] == sum(array.size for _, array in named_parameters(random_model(TINY)))
    cached = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/*")}
    assert cached == {"config.json"}


def test_scaled_queries_are_mentioned_for_a_model_that_is_not_yet_downloaded(tmp_path, tiny):
    settings = json.loads((tiny / "config.json").read_text()) | {"scale_attn_by_inverse_layer_idx": True}
    files = {"config.json": json.dumps(settings).encode(),
             "model.safetensors": (tiny / "model.safetensors").read_bytes()}
    with HubServer() as hub:
        hub.repos["some/model"] = Repo(files)
        process = run("some/model", "--values", env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")})
    assert b"The weights of q, in c_attn, include the extra factor" in process.stdout


def test_a_released_size_is_counted_even_where_the_hub_is_out_of_reach(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    process = run("gpt2-xl", "--counts", env=env)
    assert process.returncode == 0 and process.stderr == b""
    assert b"1,557,611,200" in process.stdout and b"not verified" in " ".join(process.stdout.decode().split()).encode()
    process = run("some/model", env=env)
    assert process.returncode == 1 and process.stderr.startswith(b"error: ") and process.stderr.count(b"\n") == 1


# Terminals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--sizes"], [f"--{section}" for section in summary.SECTIONS]])
def test_no_line_is_longer_than_the_terminal_and_no_number_is_lost(printed, tiny, arguments):
    arguments = arguments if "--sizes" in arguments else [tiny, *arguments]
    number = re.compile(r"\d{1,3}(?:,\d{3})+")
    numbers = set(number.findall(printed(*arguments, columns=150)))
    for columns in (10, 20, 40, 80, 200):
        text = printed(*arguments, columns=columns)
        assert max(map(len, text.splitlines())) <= columns
        if columns >= 20:
            assert numbers and numbers == set(number.findall(text)), columns


@pytest.mark.parametrize("width, expected", [
    (16, ["name  n   prose", "one   1   a b c", "two   22  d"]),
    (14, ["name n  prose", "one  1  a b c", "two  22 d"]),
    (13, ["name n  prose", "one  1  a b c", "two  22 d"]),
    (12, ["name", "one", "  n 1", "  prose a b", "    c", "two", "  n 22", "  prose d"]),
])
def test_columns_stand_two_blanks_apart_or_one_or_a_row_becomes_lines(width, expected):
    assert list(tables.table(("name", "n", "prose"), [("one", "1", "a b c"), ("two", "22", "d")], "<<<",
                             width)) == expected


def test_prose_in_the_last_column_wraps():
    prose = "a long remark of many words that goes on"
    lines = list(tables.table(("n", "remark"), [("1", prose)], "><", 34))
    assert lines == ["n  remark", "1  a long remark of many words", "   that goes on"]


def test_a_wide_terminal_gets_bars_and_a_narrow_one_does_not(printed):
    assert printed("--counts", columns=120).count("#") > printed("--counts", columns=70).count("#") > 0
    assert "#" not in printed("--counts", columns=50)


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # matplotlib takes long to import
def test_plot_draws_what_was_measured(printed, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text("The king said no.")
    for i, arguments in enumerate((["--sizes"], ["fairytale", "--values", "--text", tmp_path / "text.txt"])):
        path = tmp_path / f"{i}.png"
        printed(*arguments, "--plot", path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_plot_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = run("--plot", tmp_path / "a.png", env=env)
    assert (process.returncode, process.stdout) == (2, b"")
    assert process.stderr.count(b"\n") == 1 and b"numpy_gpt2[plot]" in process.stderr


# Mistakes -------------------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "an unknown size": (["huge"], "'huge'"),
    "a folder that is not there": (["./no-such-folder"], "no-such-folder"),
    "sizes and a model": (["--sizes", "small"], "--sizes"),
    "a context of 0": (["--context", "0"], "context"),
    "a context longer than the model's": (["--cost", "--context", "513"], "512"),
    "a text that is not there": (["--text", "no/such/file"], "no/such/file"),
    "an empty text": (["--text", os.devnull], "empty"),
    "an unknown option": (["--no-such-option"], "--no-such-option"),
    "a picture of no known type": (["--plot", "picture.xyz"], ".png"),
    "a picture of what cannot be drawn": (["--parts", "--plot", "picture.png"], "--counts"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_printed(printed, capsys, case):
    arguments, clue = BAD_INPUT[case]
    with pytest.raises(BadInput) as refused:
        printed(*arguments)
    assert clue in str(refused.value) and "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_mistakes_are_one_line_and_exit_2_and_corrupt_files_exit_1(tmp_path, tiny):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    header = (tiny / "model.safetensors").read_bytes()[:200]
    (tiny / "model.safetensors").write_bytes(header)
    cases = [(2, ["huge"]), (2, ["--text", tmp_path / "latin.txt"]), (1, [tiny])]
    with ThreadPoolExecutor(2) as pool:
        for (status, arguments), process in zip(cases, pool.map(lambda case: run(*case[1]), cases)):
            lines = [line for line in process.stderr.decode().splitlines() if not line.startswith("model:")]
            assert (arguments, process.returncode, process.stdout) == (arguments, status, b"")
            assert len(lines) == 1 and lines[0].startswith("error: ")


def test_weights_that_are_not_finite_are_refused_by_name_and_counted_all_the_same(printed, tmp_path):
    arrays = {name: np.full_like(array, np.nan) for name, array in named_parameters(random_model(TINY))}
    save(build_model(TINY, arrays), tmp_path)
    with pytest.raises(FloatingPointError, match="wte.weight"):
        printed(tmp_path, "--values")
    assert "h.*.attn.c_attn.weight" in printed(tmp_path)


def test_help_names_every_option():
    text = summary.make_parser().format_help()
    for option in ("sizes", *summary.SECTIONS, "text", "context", "json", "plot"):
        assert f"--{option}" in text


def test_a_folder_is_counted_by_its_config_alone(tmp_path):
    settings = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    metadata = read_metadata(tmp_path)
    assert not metadata.is_verified and metadata.source.startswith("config.json alone, not verified")
    assert (metadata.config.n_layer, metadata.config.n_head) == (2, 3)
    with pytest.raises(CheckpointError, match="expected config.json"):
        read_metadata(tmp_path / "..")


def test_values_say_that_q_is_scaled_where_it_is(tmp_path):
    save(random_model(GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=2, n_head=2)), tmp_path)
    config = tmp_path / "config.json"
    for setting, is_said in (("", False), ('"scale_attn_by_inverse_layer_idx": true, ', True)):
        config.write_text(config.read_text().replace("{", "{" + setting, 1))
        reports = report.report_each([read_metadata(tmp_path)], ["values"], ["values"])
        text = "\n".join(text_report(reports, ["values"], False, 200))
        assert ("The weights of q, in c_attn, include the extra factor" in text) == is_said
