"""`python -m numpy_gpt2.explore` as a user meets it: a process that writes a page, and the page in a real browser."""

import os
import re
import resource
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from outside import as_typed

from numpy_gpt2 import SIZES, Recorder, GenerationConfig, forward, random_model, score_tokens
from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.rendering import render
from numpy_gpt2.lens import logit_lens, top_tokens
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import process_logits
from browsing import PROMPT, as_shown, page_of, set_slider, table_of, until
from test_page import NASTY, bytes_tokenizer

COMMAND = [sys.executable, "-m", "numpy_gpt2.explore"]


def explore(*arguments, stdin=b"", **options):
    """Run the command to its end; a process with stdout and stderr as bytes."""
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120, **options)


def last_line(process):
    return process.stderr.decode().splitlines()[-1]


# The command ----------------------------------------------------------------------------------------------------------


def test_the_page_is_the_library_s_and_standard_error_says_where_it_is(fairytale, tmp_path):
    path = tmp_path / as_typed("page with spaces é.html")
    process = explore("Once upon a time", "-o", str(path))
    assert (process.returncode, process.stdout) == (0, b"")
    assert path.read_text(encoding="utf-8") == page_of(fairytale, "Once upon a time")
    shown = str(path).encode(sys.getfilesystemencoding(), "backslashreplace").decode()
    assert last_line(process) == f"page: {shown}, {path.stat().st_size / 1000:,.0f} KB"
    assert os.listdir(tmp_path) == [path.name]


def test_without_options_the_page_is_explore_html_and_the_model_begins_by_itself(fairytale, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert explore(cwd=tmp_path, env=env).returncode == 0
    assert (tmp_path / "explore.html").read_text(encoding="utf-8") == page_of(fairytale, "")


def test_the_prompt_can_come_from_a_file_or_a_pipe(fairytale, tmp_path):
    path = tmp_path / "page.html"
    assert explore("--prompt-file", "-", "--output", str(path), stdin=b"The fox\n").returncode == 0
    assert path.read_text(encoding="utf-8") == page_of(fairytale, "The fox")


def test_the_page_can_go_to_standard_output(fairytale, tmp_path):
    process = explore("The fox", "-o", "-", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (process.returncode, process.stdout.decode("utf-8")) == (0, page_of(fairytale, "The fox"))
    assert list(tmp_path.iterdir()) == []
    assert last_line(explore("The fox", "-o", "-", "--open")).startswith("error: --open needs the page in a file")


def test_a_page_that_is_there_is_replaced_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "old.html").write_text("old")
    (tmp_path / "link.html").symlink_to("old.html")
    assert explore("The fox", "-o", str(tmp_path / "link.html")).returncode == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "old.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "old.html").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_no_half_page_is_left_where_the_disk_is_full(tmp_path):
    (tmp_path / "page.html").write_text("old")
    unmeasured = {**os.environ, "COVERAGE_PROCESS_START": ""}  # what coverage writes at the end would be too large, too
    process = explore("The fox", "-o", str(tmp_path / "page.html"), env=unmeasured,
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert process.returncode == 1
    assert last_line(process).startswith("error: ")
    assert os.listdir(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_the_browser_is_told_to_open_the_page_and_its_absence_is_no_error(tmp_path):
    told, path = tmp_path / "told", tmp_path / "page.html"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    process = explore("The fox", "--open", "-o", str(path), env={**os.environ, "BROWSER": f"{browser} %s"})
    assert process.returncode == 0
    assert told.read_text().strip() == path.as_uri()
    nowhere = explore("The fox", "--open", "-o", str(path),
                      env={**os.environ, "BROWSER": "/no/such/browser %s", "PATH": "", "DISPLAY": ""})
    assert nowhere.returncode == 0
    assert last_line(nowhere) == f"no browser could be started: open {path} yourself"


BAD_INPUT = {
    "missing folder": (["-o", "no/such/folder/page.html"], "existing folder. Got 'no/such/folder/page.html'"),
    "output is a folder": (["-o", "."], "--output must be a file. Got '.', which is a folder."),
    "output is no page": (["-o", "x.pdf"], "--output must be a file ending in .html or .htm. Got 'x.pdf'."),
    "prompt too long": (["king " * 500], "at most 128 tokens"),
    "unknown model": (["--model", "no-such-model"], "no-such-model"),
    "missing prompt file": (["--prompt-file", "no/such/file"], "no/such/file"),
    "not UTF-8": (["--prompt-file", "-"], "not UTF-8"),
    "two prompts": (["The fox", "--prompt-file", "-"], "give one"),
    "unknown option": (["--no-such-option"], "--no-such-option"),
}


@pytest.fixture(scope="module")
def refusals():
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(BAD_INPUT, pool.map(lambda case: explore(*case[0], stdin=b"caf\xe9"), BAD_INPUT.values())))


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2(refusals, case):
    process, seen = refusals[case], BAD_INPUT[case][1]
    assert process.returncode == 2, process.stderr
    assert last_line(process).startswith("error: ") and seen in last_line(process)
    assert b"Traceback" not in process.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_is_not_replaced_by_a_page(tmp_path):
    pipe = tmp_path / "page.html"
    os.mkfifo(pipe)
    process = explore("The fox", "-o", str(pipe))
    assert process.returncode == 2
    assert last_line(process) == f"error: --output must be a file. Got {str(pipe)!r}, which is a device or a pipe."
    assert pipe.is_fifo()


# The page in a browser ------------------------------------------------------------------------------------------------


def recorded(fairytale, prompt=PROMPT):
    model, tokenizer = fairytale
    acts = Recorder()
    forward(model, prompt_ids(model, tokenizer, prompt), tap=acts)
    return acts


def contrast(one, other):
    """WCAG's contrast of two colours, each (red, green, blue) from 0 to 255."""
    def luminance(colour):
        channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.slow
def test_tokens_ids_and_bytes_are_the_tokenizer_s(opened, fairytale):
    page, tokenizer = opened(), fairytale[1]
    ids = tokenizer.encode(PROMPT)
    texts = [as_shown(tokenizer, token_id) for token_id in ids]
    assert page.locator("#tokens .strip .token").all_text_contents() == texts
    in_hex = [tokenizer.token_bytes(token_id).hex(" ").upper() for token_id in ids]
    losses = ["", *(f"{-log_prob:.4f}" for log_prob in score_tokens(fairytale[0], ids).log_probs)]
    assert table_of(page, "tokens") == [[str(position), *row] for position, row
                                        in enumerate(zip(texts, map(str, ids), in_hex, losses))]
    assert page.title() == "Inside fairytale"
    assert page.locator("#prompt").text_content() == PROMPT


@pytest.mark.slow
def test_a_chosen_head_s_table_and_map_are_the_recorder_s_pattern(opened, fairytale):
    page, acts = opened(), recorded(fairytale)
    for layer, head in [(3, 1), (0, 5)]:
        page.get_by_role("button", name=f"h.{layer}, head {head}", exact=True).click()
        pattern = acts[f"h.{layer}.attn.pattern"][head]
        for query, row in enumerate(table_of(page, "attention")):
            shown = [float(text) for text in row[1:query + 2]]
            np.testing.assert_allclose(shown, pattern[query, :query + 1], rtol=0, atol=0.0005 + 1e-5)
            assert row[query + 2:] == [""] * (len(pattern) - query - 1)
        box = page.locator(".map canvas").bounding_box()
        side = box["width"] / len(pattern)
        page.locator(".map canvas").hover(position={"x": 2.5 * side, "y": 6.5 * side})
        assert page.locator("#attention .readout b").text_content() == f"{pattern[6, 2]:.3f}"
        assert set(page.locator(".map .lit").all_text_contents()) == {"·said", "·that"}


@pytest.mark.slow
def test_the_lens_names_the_library_s_top_five(opened, fairytale):
    page, acts, (model, tokenizer) = opened(), recorded(fairytale), fairytale
    rows = iter(table_of(page, "lens"))
    for layer in range(model.config.n_layer + 1):
        for position, best in enumerate(top_tokens(logit_lens(model, acts, layer), tokenizer, 5)):
            row = next(rows)
            assert row[1] == str(position)
            assert row[3::2] == [as_shown(tokenizer, token.id) for token in best]
            np.testing.assert_allclose([float(text) for text in row[4::2]], [token.probability for token in best],
                                       rtol=0, atol=5.1e-5)
            cell = page.locator("#lens .grid tbody tr").nth(layer).locator("td").nth(position)
            assert cell.text_content() == as_shown(tokenizer, best[0].id)
    cell.hover()
    assert page.locator("#tip td:first-child").all_text_contents() == [as_shown(tokenizer, token.id) for token in best]


@pytest.mark.slow
def test_norms_and_contributions_are_the_recorder_s_and_add_up(opened, fairytale):
    page, acts = opened(), recorded(fairytale)
    shown = np.array([[float(text) for text in row[1:]] for row in table_of(page, "stream")])
    streams = [acts[f"h.{i}.resid_pre"] for i in range(6)] + [acts["h.5.resid_post"]]
    np.testing.assert_allclose(shown, np.linalg.norm(streams, axis=-1), rtol=1e-4, atol=5e-4)
    for position in (7, 2):
        page.locator("#tokens .strip button").nth(position).click()
        cells = page.locator("#parts [data-part]").all_text_contents()
        alone = [row[position + 1] for row in table_of(page, "parts") if row[0] in ("wte", "wpe", "ln_f.bias")]
        assert len(cells) == 6 * 8 and len(alone) == 3
        logit = acts["logits"][position].max()
        assert sum(map(float, cells)) + sum(map(float, alone)) == pytest.approx(logit, abs=0.005 * 51)
        assert page.locator("#parts .readout b").all_text_contents() == [f"{logit:.2f}"] * 2


@pytest.mark.slow
def test_the_sliders_give_the_library_s_probabilities(opened, fairytale):
    page, tokenizer = opened(), fairytale[1]
    logits = recorded(fairytale)["logits"][-1]
    table_of(page, "next")
    for temperature, top_k, top_p in [(1, 0, 1), (0, 0, 1), (0, 40, 0.5), (0.1, 0, 1), (0.8, 40, 1), (1.5, 0, 0.9),
                                      (1, 5, 0.7), (10, 0, 0.05), (10, 1000, 0.95), (0.3, 1, 1), (2, 200, 0.99)]:
        for name, value in [("temperature", temperature), ("top_k", top_k), ("top_p", top_p)]:
            set_slider(page, name, value)
        config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        processed = process_logits(logits, np.array([], int), config)
        if temperature == 0:
            expected = np.arange(len(logits)) == logits.argmax()
        else:
            expected = softmax(processed)
        np.testing.assert_allclose(page.evaluate("[...shaped]"), expected, rtol=1e-5, atol=1e-12)
        *rows, others = table_of(page, "next")
        ids = [int(row[2]) for row in rows]
        assert ids == np.argsort(-logits, kind="stable")[:100].tolist()
        assert [row[1] for row in rows] == [as_shown(tokenizer, token_id) for token_id in ids]
        np.testing.assert_allclose([float(row[5]) for row in rows], expected[ids], rtol=0, atol=5.1e-7)
        assert float(others[5]) == pytest.approx(1 - expected[ids].sum(), abs=1e-6)
        left = np.count_nonzero(expected)
        assert page.locator("#next .readout").text_content().startswith("One token" if left == 1 else f"{left:,} of ")


@pytest.mark.slow
def test_everything_is_reached_with_the_keyboard(opened):
    page = opened()
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == 'token 0: "The", id 335'
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        press(key)
    assert page.locator("#tokens [aria-pressed=true]").text_content().startswith("·said")
    page.locator("#model button").first.focus()
    press("ArrowDown")
    press("Enter")
    assert page.locator("#model .inside li").count() == 18
    assert page.locator("#attention h3").text_content().startswith("h.1, ")
    page.locator(".thumbnails [tabindex='0']").focus()
    for key in ("Home", "ArrowDown", "ArrowRight", "Enter"):
        press(key)
    assert page.locator("#attention h3").text_content() == "h.1, head 1"
    page.locator(".map canvas").focus()
    for key in ("ArrowUp", "ArrowRight", "Enter"):
        press(key)
    assert page.locator("#tokens [aria-pressed=true]").text_content().startswith("·that")
    page.locator("#lens [tabindex='0']").focus()
    press("ArrowDown")
    assert page.locator("#tip").text_content().startswith("after h.0, at The")
    press("Escape")
    assert page.locator("#tip").is_hidden()
    press("Enter")
    assert page.locator("#lens tr.chosen th").text_content() == "after h.0"
    page.locator("#temperature").focus()
    press("Home")
    assert page.locator("output[for=temperature]").text_content() == "0, greedy"
    assert page.locator("#temperature").get_attribute("aria-valuetext") == "0, greedy"
    press("Tab")
    press("ArrowLeft")
    assert page.locator("output[for=top_k]").text_content() == "1000"


@pytest.mark.slow
def test_tab_stops_once_in_each_figure_and_every_stop_can_be_seen(opened):
    page = opened()
    seen = []
    while True:
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => { const e = document.activeElement;
            return e === document.body ? null : [e.closest("figure").id, getComputedStyle(e).outlineStyle] }""")
        if stop is None:
            break
        seen.append(stop)
        assert len(seen) < 100
    assert {figure for figure, _ in seen} == {"tokens", "model", "attention", "stream", "lens", "parts", "next"}
    assert all(outline != "none" for _, outline in seen)
    assert sum(figure == "lens" for figure, _ in seen) <= 3


@pytest.mark.slow
def test_pointing_at_a_token_lights_it_everywhere_and_tells_its_id_and_bytes(opened):
    page = opened()
    page.locator("#tokens .strip .token").nth(1).hover()
    lit = page.locator(".token.lit[data-position='1']")
    assert lit.count() == page.locator(".token[data-position='1']").count() > 4
    assert set(lit.all_text_contents()) == {"·king"}
    assert page.locator("#tip").inner_text().split("\n") == ["·king", "position 1, id 660", "bytes 20 6B 69 6E 67"]
    page.locator("h1").hover()
    assert page.locator(".lit").count() == 0 and page.locator("#tip").is_hidden()


@pytest.mark.slow
def test_a_hostile_prompt_is_shown_and_not_run(opened, fairytale):
    page = opened(NASTY)
    assert page.locator("#prompt").text_content() == NASTY
    assert page.locator("script").count() == 2 and page.locator("img").count() == 0
    shown = page.locator("#tokens .strip .token").all_text_contents()
    assert shown == [as_shown(fairytale[1], token_id) for token_id in fairytale[1].encode(NASTY)]
    assert "F0" in shown  # a quarter of an emoji
    assert page.evaluate("getComputedStyle(document.querySelector('.token')).unicodeBidi") == "isolate"
    assert page.evaluate("['\\u202e', '\\u0301', '\\ue000'].map(visibleSign)") == ["U+202E", "◌\u0301", "U+E000"]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["", PROMPT, NASTY, "supercalifragilistic" * 8],
                         ids=["empty", "plain", "nasty", "long"])
def test_a_phone_scrolls_figures_and_never_the_page_sideways(opened, prompt):
    page = opened(prompt, width=360)
    for figure in ("tokens", "model", "attention", "stream", "lens", "parts", "next"):
        table_of(page, figure)
    page.locator("#model button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_text_stands_out_from_its_background(opened, colours):
    page = opened(colours=colours)
    set_slider(page, "top_k", 3)
    page.locator("#tokens .strip .token").first.hover()
    for figure in ("attention", "next"):
        table_of(page, figure)
    found = page.evaluate("""() => {
      const leaves = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
        [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && !e.matches("script, option"));
      const opaque = (e) => {
        const background = getComputedStyle(e).backgroundColor;
        return /, 0\\)$/.test(background) ? opaque(e.parentElement) : background };
      return leaves.map((e) => [e.textContent.slice(0, 20), getComputedStyle(e).color, opaque(e)]) }""")
    assert len(found) > 300
    assert len({background for _, _, background in found}) > 20
    for text, colour, background in found:
        colours_of_text = [[int(c) for c in re.findall(r"\d+", value)[:3]] for value in (colour, background)]
        assert contrast(*colours_of_text) >= 4.5, (text, colour, background)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 600) == (colours == "light")


@pytest.mark.slow
def test_figures_follow_when_the_system_goes_dark(opened):
    page = opened()
    cell = 'document.querySelector("#lens td[data-shade]").style.background'
    drawn = '[...document.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL())'
    cell_in_light, in_light = page.evaluate(cell), page.evaluate(drawn)
    page.emulate_media(color_scheme="dark")
    until(page, f"{cell} !== '{cell_in_light}'")
    in_dark = page.evaluate(drawn)
    assert len(in_dark) > 36 and all(dark != light for dark, light in zip(in_dark, in_light, strict=True))


@pytest.mark.slow
def test_a_page_of_small_s_size_works(opened):
    config = SIZES["small"]
    model, tokenizer = random_model(config), bytes_tokenizer(config.vocab_size)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=40).tolist()
    page = opened(html=render(page_data(model, tokenizer, ids, "small")))
    assert page.locator(".thumbnails button").count() == 144
    assert page.locator("#lens td[data-shade]").count() == 13 * 40
    set_slider(page, "top_p", 0.9)
    expected = softmax(process_logits(forward(model, ids)[-1], np.array([], int), GenerationConfig(top_p=0.9)))
    shown = np.array(page.evaluate("[...shaped]"))
    differing = (shown > 0) != (expected > 0)
    assert differing.sum() <= 1  # the token at the edge: the sums of 50,257 probabilities are rounded otherwise
    np.testing.assert_allclose(shown[~differing], expected[~differing], rtol=1e-4)
