"""Laws of the page of `score --html`: its data are the scores, nothing in a text is taken for markup, and in a browser
every token tells its rank and the likeliest others, to a pointer and to the keyboard."""

import json
import math
import re

import numpy as np
import pytest

from numpy_gpt2 import score_tokens
from numpy_gpt2.explore.rendering import sha256
from numpy_gpt2.explore.scored_text import MOST_SHOWN, check_fits_page, scored_page
from numpy_gpt2.scoring import Scores
from test_page import MODEL, NASTY, TOKENIZER
from test_rendering import parsed

VOCAB_SIZE = MODEL.config.vocab_size
LEAD = "<script>alert(1)</script>"


def page_and_scores(text=NASTY, has_bos=True):
    ids = TOKENIZER.encode(text)
    scores = score_tokens(MODEL, TOKENIZER.with_bos(ids) if has_bos else ids, n_top=3)
    return scored_page(TOKENIZER, ids, scores, VOCAB_SIZE, LEAD), ids, scores


@pytest.mark.parametrize("has_bos", [True, False])
def test_the_data_are_the_scores_of_every_token_and_none_of_what_nothing_predicts(has_bos):
    page, ids, scores = page_and_scores(has_bos=has_bos)
    data = json.loads(parsed(page).scripts[0])
    assert (data["ids"], data["lead"], data["vocab_size"]) == (ids, LEAD, VOCAB_SIZE)
    n_unscored = 0 if has_bos else 1
    assert data["surprise"][:n_unscored] == [None] * n_unscored and data["top"][:n_unscored] == [[]] * n_unscored
    np.testing.assert_allclose(data["surprise"][n_unscored:], -scores.log_probs, atol=5.1e-5)
    assert data["ranks"][n_unscored:] == scores.ranks.tolist() and len(data["ranks"]) == len(ids)
    for row, top_ids, top_log_probs in zip(data["top"][n_unscored:], scores.top_ids, scores.top_log_probs, strict=True):
        assert [token_id for token_id, _ in row] == top_ids.tolist()
        np.testing.assert_allclose([probability for _, probability in row], np.exp(top_log_probs), atol=5.1e-6)


def test_the_names_give_the_text_back():
    page, ids, scores = page_and_scores()
    names = json.loads(parsed(page).scripts[0])["names"]
    data = b"".join(name.encode() if isinstance(name := names[str(token_id)], str) else bytes(name) for token_id in ids)
    assert data.decode() == NASTY
    assert {str(token_id) for token_id in scores.top_ids.ravel()} <= names.keys()


def test_nothing_but_its_own_script_and_style_may_run():
    page, _, _ = page_and_scores()
    scripts = parsed(page).scripts
    assert len(scripts) == 2 and "{{" not in page
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    [style] = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src '{sha256(scripts[1])}'" in policy and f"style-src '{sha256(style)}'" in policy
    assert not re.search(r"unsafe|https?:", page.split("<body>")[0])
    assert not {name for name, _ in parsed(page).attributes if name == "style" or name.startswith("on")}


def test_an_id_without_a_token_has_a_name_too():
    scores = Scores(np.array([-1.0]), np.array([2]), np.array([[VOCAB_SIZE - 1]]), np.array([[-0.5]]))
    page = scored_page(TOKENIZER, [0, TOKENIZER.vocab_size], scores, VOCAB_SIZE, "")
    assert json.loads(parsed(page).scripts[0])["names"][str(TOKENIZER.vocab_size)] == "no token"


def test_more_tokens_than_a_page_can_show_are_refused():
    check_fits_page(MOST_SHOWN)
    with pytest.raises(ValueError, match=f"at most {MOST_SHOWN:,} tokens. Got {MOST_SHOWN + 1:,}"):
        check_fits_page(MOST_SHOWN + 1)


# In a browser ---------------------------------------------------------------------------------------------------------


def tip_of(page):
    return page.locator("#tip").inner_text()


@pytest.mark.slow
def test_a_pointer_and_the_keyboard_find_rank_and_likeliest_tokens(opened, fairytale):
    model, tokenizer = fairytale
    text = "Once upon a time there was a king, who\nhad <b>three</b> umbrellas."
    ids = tokenizer.encode(text)
    scores = score_tokens(model, tokenizer.with_bos(ids), n_top=5)
    page = opened(html=scored_page(tokenizer, ids, scores, model.config.vocab_size, "A lead."))
    assert page.locator(".text").text_content().replace("↵", "") == text
    tokens = page.locator(".text bdi")
    for i, classes in enumerate(tokens.evaluate_all("all => all.map(token => token.className)")):
        assert classes.split()[0] == f"s{min(math.floor(-scores.log_probs[i]), 9)}"

    def check_tip(i):
        tip = " ".join(tip_of(page).split())
        assert f"id {ids[i]}, position {i}" in tip and f"rank {scores.ranks[i]:,} of 4,096" in tip
        assert f"surprise {-scores.log_probs[i]:.2f} nats" in tip
        chips = page.locator("#tip td .token").evaluate_all("all => all.map(token => token.textContent)")
        assert [chip.replace("·", " ").replace("↵", "\n") for chip in chips] == [
            tokenizer.decode([token_id]) for token_id in scores.top_ids[i].tolist()]

    tokens.nth(4).hover()
    check_tip(4)
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")
    check_tip(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    check_tip(2)
    page.keyboard.press("ArrowLeft")
    check_tip(1)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")  # there is none before
    check_tip(0)
    page.keyboard.press("End")
    check_tip(len(ids) - 1)
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    tokens.nth(1).click()
    check_tip(1)
    page.locator("#text summary").click()
    rows = page.locator("#text .numbers tbody tr")
    rows.first.wait_for()
    listed = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    assert [int(row[0]) for row in listed] == np.argsort(scores.log_probs, kind="stable").tolist()
    for position, _, token_id, surprise, rank, likeliest in listed:
        i = int(position)
        assert (token_id, rank) == (str(ids[i]), f"{scores.ranks[i]:,}")
        assert float(surprise) == pytest.approx(-scores.log_probs[i], abs=6e-4)
        assert likeliest.startswith(json.dumps(tokenizer.decode([int(scores.top_ids[i, 0])])) + " ")


@pytest.mark.slow
@pytest.mark.parametrize("width, colours", [(1280, "light"), (400, "dark")])
def test_every_token_can_be_read_and_nothing_runs_over_the_edge(opened, fairytale, width, colours):
    model, tokenizer = fairytale
    ids = tokenizer.encode("The fox said zebra crossing, and " * 20 + "x" * 400)
    scores = score_tokens(model, tokenizer.with_bos(ids), n_top=5)
    page = opened(html=scored_page(tokenizer, ids, scores, model.config.vocab_size, "A lead."), width=width,
                  colours=colours)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate("""() => [...document.querySelectorAll("#legend b")].map((swatch) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const light = (colour) => {
            canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
                .map((byte) => byte / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + [.2126, .7152, .0722][i] * c, 0);
        };
        const { color, backgroundColor } = getComputedStyle(swatch);
        const [a, b] = [light(color), light(backgroundColor)];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    })""")
    assert len(contrasts) == 10 and min(contrasts) >= 4.5, contrasts
    page.locator("#text summary").click()
    page.locator("#text .numbers tbody tr").first.wait_for()
    assert len(ids) > 200 == page.locator("#text .numbers tbody tr").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_fault(opened, fairytale, colours):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`").Axe()
    model, tokenizer = fairytale
    ids = tokenizer.encode("The fox said zebra crossing, and\n日本")
    scores = score_tokens(model, tokenizer.with_bos(ids), n_top=5)
    page = opened(html=scored_page(tokenizer, ids, scores, model.config.vocab_size, "A lead."), colours=colours,
                  bypass_csp=True)
    page.locator("#text summary").click()
    page.locator(".text bdi").nth(2).focus()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(fault["id"], fault["impact"]) for fault in found] == []
