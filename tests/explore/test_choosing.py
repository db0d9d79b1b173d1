"""The page as people met it: a chosen token moves every section; links, print, zoom, tooltips, names of heads."""

import numpy as np
import pytest

from browsing import PROMPT, page_of, set_slider, table_of
from numpy_gpt2 import GenerationConfig, SIZES, forward, random_model
from numpy_gpt2.explore import page as page_module
from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.rendering import render
from numpy_gpt2.ops import softmax
from numpy_gpt2.sampling import process_logits
from test_page import bytes_tokenizer

pytestmark = pytest.mark.slow
REPEATING = "The king had a daughter and a son, and the king had a castle and a garden, and the king had a horse."


def choose_token(page, position):
    page.locator("#tokens .strip button").nth(position).click()


@pytest.mark.parametrize("n_exact, n_groups", [(1000, 1000), (40, 500)])
def test_a_chosen_token_moves_every_section_the_next_token_s_probabilities_too(opened, fairytale, monkeypatch, n_exact,
                                                                               n_groups):
    monkeypatch.setattr(page_module, "N_EXACT", n_exact)
    monkeypatch.setattr(page_module, "N_GROUPS", n_groups)
    page, (model, tokenizer) = opened(), fairytale
    logits = forward(model, tokenizer.encode(PROMPT))
    for position in (2, 5, 7):
        choose_token(page, position)
        assert page.locator("#lens thead th.chosen, #stream thead th.chosen").count() == 2
        assert page.locator("#lens td.chosen, #stream td.chosen").count() == 2
        assert page.locator("#parts figcaption .token").first.get_attribute("data-position") == str(position)
        assert page.locator("#next figcaption .token").first.get_attribute("data-position") == str(position)
        assert page.locator("#attention .readout .token").first.get_attribute("data-position") == str(position)
        for temperature, top_k, top_p in [(1, 0, 1), (0.5, 0, 1), (2, 0, 1), (1, 5, 1), (0.8, 40, 0.9), (0, 0, 1)]:
            for name, value in [("temperature", temperature), ("top_k", top_k), ("top_p", top_p)]:
                set_slider(page, name, value)
            row = logits[position]
            config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
            expected = (softmax(process_logits(row, np.array([], int), config)) if temperature
                        else np.arange(len(row)) == row.argmax())
            rows = table_of(page, "next")[:-1]
            ids = [int(cells[2]) for cells in rows]
            n_ids = min(100, n_exact) if position < 7 else 100
            assert ids == np.argsort(-row, kind="stable")[:n_ids].tolist()
            np.testing.assert_allclose([float(cells[5]) for cells in rows], expected[ids], rtol=2e-4, atol=5.1e-7)
            np.testing.assert_allclose([float(cells[4]) for cells in rows], softmax(row)[ids], rtol=0, atol=5.1e-7)
            if top_k or not temperature or temperature == 1:
                left = np.count_nonzero(expected)
                told = page.locator("#next .readout").text_content()
                assert told.startswith("One token" if left == 1 else f"{left:,} of ")


def test_the_token_that_comes_next_is_underlined_among_the_predictions(opened, fairytale):
    page = opened("Once upon a time")
    choose_token(page, 2)
    assert page.locator("#next .likely .right").text_content() == "·time"
    choose_token(page, 3)
    assert page.locator("#next .likely .right").count() == 0


def test_a_link_opens_its_head_and_token_and_choices_go_into_the_address(opened):
    page = opened(address="#head=3.4&token=2")
    assert page.locator("#attention h3").text_content().startswith("h.3, head 4")
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 2:")
    page.get_by_role("button", name="h.1, head 5", exact=True).click()
    choose_token(page, 6)
    assert page.evaluate("location.hash") == "#head=1.5&token=6"
    page.evaluate("location.hash = 'head=0.0&token=1'")
    page.locator("#attention h3", has_text="h.0, head 0").wait_for()
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 1:")


@pytest.mark.parametrize("address", ["", "#head=99.0&token=99", "#head=x&token=-1", "#token=1e2", "#%E0%A4%A",
                                     "#head=1"])
def test_an_address_without_a_state_opens_the_page_as_it_is(opened, address):
    page = opened(address=address)
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 7:")
    assert page.evaluate("location.hash") == address


def test_in_a_frame_the_address_stays_and_everything_is_chosen_all_the_same(opened, fairytale):
    page = opened(html="<!doctype html><link rel=icon href='data:,'><iframe></iframe>")
    page.evaluate("html => document.querySelector('iframe').srcdoc = html", page_of(fairytale, PROMPT))
    inside = page.frame_locator("iframe")
    inside.locator("#tokens .strip button").nth(2).click()
    assert inside.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 2:")
    assert page.evaluate("location.hash") == ""
    assert page.evaluate("history.length") == 2  # the empty page, and this one


def test_a_tooltip_leaves_the_neighbouring_cells_free(opened):
    page = opened()
    for row, column in [(0, 0), (3, 3), (6, 7)]:
        cell = "document.querySelectorAll('#lens tbody tr')[%d]?.querySelectorAll('td')[%d]?.getBoundingClientRect()"
        page.locator("#lens tbody tr").nth(row).locator("td").nth(column).hover()
        assert page.locator("#tip").is_visible()
        around = [cell % (row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)
                  if row + down >= 0 and column + right >= 0]
        covered = page.evaluate("""() => { const tip = document.getElementById("tip").getBoundingClientRect();
            return [%s].filter((box) => box && box.left < tip.right && box.right > tip.left && box.top < tip.bottom &&
                                        box.bottom > tip.top).length }""" % ", ".join(around))
        assert covered == 0


def small_page():
    config = SIZES["small"]
    ids = np.random.default_rng(0).integers(config.vocab_size, size=12).tolist()
    return render(page_data(random_model(config), bytes_tokenizer(config.vocab_size), ids, "small"))


@pytest.mark.parametrize("model", ["fairytale", "small"])
def test_at_150_percent_zoom_the_chosen_head_stays_in_view(opened, model):
    html = None if model == "fairytale" else small_page()
    page = opened(width=1280 * 2 // 3, height=800 * 2 // 3, device_scale_factor=1.5, html=html)
    n_layer, n_head = (6, 6) if model == "fairytale" else (12, 12)
    for layer, head in [(0, 0), (n_layer - 1, n_head - 1)]:
        button = page.get_by_role("button", name=f"h.{layer}, head {head}", exact=True)
        button.click()
        view = "(box => box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth)"
        assert button.evaluate(f"element => {view}(element.getBoundingClientRect())")
        assert page.locator("#attention h3").evaluate(f"element => {view}(element.getBoundingClientRect())")
        shown = page.locator(".map canvas").evaluate("""canvas => { const box = canvas.getBoundingClientRect();
            return (Math.min(box.bottom, innerHeight) - Math.max(box.top, 0)) / box.height }""")
        assert shown > 0.7


@pytest.mark.parametrize("width, height", [(400, 800), (600, 800), (1024, 768), (1280, 800)])
def test_no_head_is_cut_off_in_the_grid_of_all_heads(opened, width, height):
    page = opened(REPEATING[:76], width=width, height=height)
    assert page.evaluate("n_tokens") >= 20
    cut = page.evaluate("""() => { const box = document.querySelector(".heads");
        return [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight] }""")
    assert cut == [0, 0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_keeps_bars_and_cells_and_cuts_nothing_off(opened):
    page = opened()
    page.emulate_media(media="print")
    adjust = "(selector) => getComputedStyle(document.querySelector(selector)).printColorAdjust"
    for selector in (".bar i", "#lens td", "#stream td", ".token", ".box .count"):
        assert page.evaluate(adjust, selector) == "exact"
    assert page.evaluate("""() => [...document.querySelectorAll(".scroll, .side")].filter((box) =>
        getComputedStyle(box).overflowY !== "visible").length""") == 0
    assert page.locator(".presets").is_hidden()


def test_a_dark_page_is_printed_on_white(opened):
    page = opened(colours="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    drawn = "document.querySelector('.map canvas').toDataURL()"
    on_screen, dark = page.evaluate(drawn), page.evaluate(paper)
    page.evaluate("""() => addEventListener("beforeprint", () => {
        window.printed = [%s, %s] })""" % (paper, drawn))
    page.pdf()
    printed_paper, printed_map = page.evaluate("printed")
    assert printed_paper == "rgb(255, 255, 255)" != dark and printed_map != on_screen
    assert (page.evaluate(paper), page.evaluate(drawn)) == (dark, on_screen)


def test_every_scale_that_is_not_linear_says_so(opened):
    page = opened()
    legends = {figure: page.locator(f"#{figure} .legend > span").text_content() for figure in
               ("attention", "lens", "stream", "parts")}
    assert "square-root scale" in legends["attention"] and "square-root scale" in legends["lens"]
    assert "rank" in legends["stream"] and "not evenly spaced" in legends["stream"]
    places = {figure: page.eval_on_selector_all(f"#{figure} .legend .scale span", """marks => marks.map((mark) =>
        [Number(mark.textContent), parseFloat(mark.style.left)])""") for figure in legends}
    marks = np.array(places["parts"])  # the one that says nothing is linear
    np.testing.assert_allclose(np.diff(marks[:, 0]), np.diff(marks[:, 0])[0], atol=0.011)


def test_named_heads_are_listed_with_their_scores_and_chosen_by_a_click(opened, fairytale):
    model, tokenizer = fairytale
    page = opened(REPEATING)
    heads = page_data(model, tokenizer, prompt_ids(model, tokenizer, REPEATING), "fairytale")["heads"]
    assert heads
    assert page.locator(".named button").all_text_contents() == [
        f"{head['layer']}.{head['head']} {head['kind']} {head['score']:.2f}" for head in heads]
    page.locator(".named button").last.click()
    last = heads[-1]
    assert page.locator("#attention h3").text_content() == (
        f"h.{last['layer']}, head {last['head']} · {last['kind']}, {last['score']:.2f}")
    assert opened("The fox").locator(".named").text_content().startswith("None")


def test_axe_finds_no_serious_fault(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`").Axe()
    for colours in ("light", "dark"):
        page = opened(REPEATING, colours=colours)
        table_of(page, "lens")
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(each["id"], [node["html"][:100] for node in each["nodes"]][:3]) for each in found
                if each["impact"] in ("serious", "critical")] == []
