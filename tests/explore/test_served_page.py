"""The served page in a real browser: types, intervenes, compares, writes on, goes back and forth, as a user would.

Every figure is compared with what the library computes with the same taps.
"""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from browsing import PROMPT, as_shown, table_of, until
from numpy_gpt2 import (SIZES, Recorder, ablate, attribution_patching, chain, forward, generate_tokens,
                        logit_difference, logit_lens, patch, random_model)
from numpy_gpt2.explore.answers import server_data
from numpy_gpt2.explore.page import page_data
from numpy_gpt2.explore.prompts import Engine
from numpy_gpt2.explore.rendering import render
from numpy_gpt2.explore.server import PageServer
from numpy_gpt2.ops import softmax
from test_page import bytes_tokenizer

pytestmark = pytest.mark.slow
OTHER = "The fox said to his brother that he"


@contextmanager
def serving(model, tokenizer):
    engine = Engine(model, tokenizer, "fairytale")
    data = page_data(model, tokenizer, tokenizer.encode(PROMPT), "fairytale")
    with PageServer(engine, render({**data, "server": server_data(engine, PROMPT)})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(fairytale):
    with serving(*fairytale) as server:
        yield server


@pytest.fixture
def served(browser, server):
    """Opens the served page; what the browser complains of, but for refused requests, fails the test."""
    contexts, complaints = [], []

    def open_page(width=1280, height=800, colours="light", address="", where=server):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: "status of 400" in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(error.stack))
        page.goto(where.address + address)
        until(page, "document.querySelector('#code pre').textContent !== ''")  # the first answer is there
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def tokens_of(page):
    return page.locator("#tokens .strip .token").all_text_contents()


def shown(tokenizer, ids):
    return [as_shown(tokenizer, token_id) for token_id in ids]


def type_prompt(page, text):
    page.locator("#ask-prompt").fill(text)
    page.locator("#ask-prompt").press("Enter")
    until(page, "text => page.prompt === text", text)


def intervene(page, kind="zero", **fields):
    """Adds an intervention on what was clicked last, and waits until it is at work."""
    n_chips = page.locator("#bar .chips [aria-label^=remove]").count()
    page.locator("#kind").select_option(kind)
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#bar button[type=submit]").click()
    until(page, "n => document.querySelectorAll('#bar .chips [aria-label^=remove]').length === n", n_chips + 1)


def check_next_and_lens_and_loss(page, fairytale, tap, ids, position):
    """The figures now are the library's with the tap, and what was before is the library's without."""
    model, tokenizer = fairytale
    acts, acts_before = Recorder(), Recorder()
    logits, logits_before = forward(model, ids, tap=chain(tap, acts)), forward(model, ids, tap=acts_before)
    rows = page.eval_on_selector_all("#next .likely tr:has(bdi)", """rows => rows.map((row) =>
        [Number(row.querySelector("bdi").dataset.id), ...[...row.cells].slice(2).map((cell) =>
            parseFloat(cell.textContent.replace("<", "")))])""")
    now, was = softmax(logits[position]), softmax(logits_before[position])
    assert [row[0] for row in rows] == np.argsort(-logits[position], kind="stable")[:12].tolist()
    np.testing.assert_allclose([row[1] for row in rows], [100 * now[row[0]] for row in rows], rtol=0, atol=0.051)
    np.testing.assert_allclose([row[2] for row in rows], [100 * was[row[0]] for row in rows], rtol=0, atol=0.051)
    for layer in (1, 3, model.config.n_layer):
        tops = [logit_lens(model, found, layer).argmax(-1) for found in (acts, acts_before)]
        for column, (top, top_before) in enumerate(zip(*tops)):
            cell = page.locator("#lens tbody tr").nth(layer).locator("td").nth(column)
            expected = as_shown(tokenizer, top)
            if top != top_before:
                expected += "was " + as_shown(tokenizer, top_before)
            assert cell.text_content() == expected
    losses = [[-np.log(softmax(of.astype(np.float64))[i, token]) for i, token in enumerate(ids[1:])]
              for of in (logits, logits_before)]
    table = table_of(page, "tokens")
    np.testing.assert_allclose([[float(row[4]), float(row[5])] for row in table[1:]], np.transpose(losses), atol=1e-4)
    row = page.locator("#changed tbody tr", has_text="mean loss").locator("td").all_text_contents()
    assert [float(text) for text in row] == pytest.approx([np.mean(losses[1]), np.mean(losses[0])], abs=1e-4)


# The prompt -----------------------------------------------------------------------------------------------------------


def test_a_typed_prompt_moves_the_whole_page_and_the_history_goes_back_and_forth(served, fairytale):
    page, (model, tokenizer) = served(), fairytale
    type_prompt(page, OTHER)
    assert tokens_of(page) == shown(tokenizer, tokenizer.encode(OTHER))
    acts = Recorder()
    forward(model, tokenizer.encode(OTHER), tap=acts)
    norms = [[float(text) for text in row[1:]] for row in table_of(page, "stream")]
    np.testing.assert_allclose(norms[0], np.linalg.norm(acts["h.0.resid_pre"], axis=-1), rtol=1e-3)
    type_prompt(page, "Once upon a time")
    assert len(tokens_of(page)) == 4
    assert page.locator("#forth").is_disabled()
    for button, prompt in [("back", OTHER), ("back", PROMPT), ("forth", OTHER), ("forth", "Once upon a time")]:
        page.locator(f"#{button}").click()
        until(page, "prompt => page.prompt === prompt", prompt)
        assert tokens_of(page) == shown(tokenizer, tokenizer.encode(prompt))
        assert page.locator("#ask-prompt").input_value() == prompt
    page.go_back()  # the browser's own
    until(page, "prompt => page.prompt === prompt", OTHER)
    page.locator("#earlier").select_option(PROMPT)
    until(page, "prompt => page.prompt === prompt", PROMPT)


def test_a_bookmark_and_a_reload_open_the_same_state(served, fairytale):
    page = served(address="#prompt=The+fox+said&head=2.1&token=1")
    assert page.evaluate("page.prompt") == "The fox said"
    assert page.locator("#attention h3").text_content().startswith("h.2, head 1")
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 1:")
    intervene(page)
    page.reload()
    page.locator("#bar .chips li").first.wait_for()
    assert page.locator("#bar .chips li").first.text_content().startswith("head 2.1")
    assert "token=" not in page.url.split("#")[0]  # the secret has left the address
    copy = served(address="#" + page.url.split("#")[1])  # the link, opened by somebody else
    assert copy.locator("#bar .chips li").all_text_contents() == page.locator("#bar .chips li").all_text_contents()
    assert copy.evaluate("page.prompt") == "The fox said"


@pytest.mark.parametrize("text, sentence", [
    ("nonsense", "'interventions' must be a list of at most 32. Got 'nonsense'."),
    ('[{"kind":"zero","stage":"attn.z","layer":9}]', "'layer' must be a whole number from 0 to 5. Got 9."),
])
def test_a_link_with_other_than_interventions_is_refused_in_a_sentence(server, browser, text, sentence):
    page = browser.new_page()
    page.goto(f"{server.address}#interventions={text}")
    page.locator("#bar .problem", has_text=sentence).wait_for()
    assert page.locator("#bar .chips li").count() == 0
    page.close()


@pytest.mark.parametrize("change, name", [
    ('{"kind":"zero","stage":"attn.q","layer":2,"heads":[1,3]}', "attn.q of h.2, heads 1, 3 = 0"),
    ('{"kind":"mean","stage":"attn.z","layer":2}', "attn.z of h.2 = mean"),
    ('{"kind":"scale","stage":"wte","factor":2,"positions":[0,5]}', "wte, positions 0, 5 × 2"),
    ('{"kind":"from","stage":"mlp.out","layer":1,"positions":[0],"ids":[1,2,3,4,5,6,7,8]}',
     "mlp.out of h.1, positions 0 from [1,2,3,4,5,6,7,8]"),
])
def test_a_link_may_hold_any_intervention_that_the_server_knows(served, change, name):
    page = served(address=f"#interventions=[{change}]")
    assert page.locator("#bar .chips li").all_text_contents() == [name + "×"]
    assert name in page.locator("#changed .at-work").text_content()


def test_a_new_prompt_selects_its_last_token_whatever_was_selected_before(served):
    page = served(address="#prompt=The+king+said+that")
    until(page, "page.ids.length === 4")

    def check_last_token(n_tokens):
        label = page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label")
        assert label.startswith(f"token {n_tokens - 1}:")
        chip = page.locator("#next figcaption .token").first
        assert chip.get_attribute("data-position") == str(n_tokens - 1)

    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    assert "token=" not in page.url  # only the head was chosen
    type_prompt(page, OTHER)
    check_last_token(8)
    page.locator("#tokens .strip button").nth(2).click()
    assert "token=2" in page.url
    type_prompt(page, "The fox said to his")
    check_last_token(5)
    assert "token=" not in page.url and "head=2.3" in page.url
    page.locator("#back").click()  # a step of the history has the token that was chosen there
    until(page, "text => page.prompt === text", OTHER)
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 2:")
    intervene(page)  # the same prompt keeps the token
    assert page.locator("#tokens [aria-pressed=true]").get_attribute("aria-label").startswith("token 2:")


def test_an_empty_prompt_is_the_end_of_text_before_and_after_it_is_run_again(served, fairytale):
    page = served()
    for _ in range(2):
        page.locator("#ask-prompt").fill("")
        page.locator("#ask button[type=submit]").click()
        until(page, "page.prompt === '<|endoftext|>'")
        assert page.evaluate("page.ids") == [fairytale[1].eot_id]
        assert page.locator("#ask-prompt").input_value() == ""
    page.reload()
    until(page, "page.prompt === '<|endoftext|>'")


def test_a_prompt_that_is_too_long_is_refused_in_a_sentence_and_the_page_stays(served):
    page = served()
    page.locator("#ask-prompt").fill("king " * 200)
    page.locator("#ask .count-of-tokens", has_text="at most 128").wait_for()
    page.locator("#ask button[type=submit]").click()
    page.locator("#bar .problem", has_text="at most 128 tokens").wait_for()
    for place in ("#bar .problem", "#ask .count-of-tokens"):
        assert page.locator(place).text_content().startswith("The prompt must be at most 128 tokens")
    assert len(tokens_of(page)) == 8


def test_long_work_shows_its_progress_and_a_newer_request_replaces_it_in_silence(served):
    config = SIZES["small"]
    with serving(random_model(config), bytes_tokenizer(config.vocab_size)) as slow:
        page = served(where=slow)
        page.locator("#clean").fill("a" * 100)
        page.locator("#corrupted").fill("b" * 100)
        page.get_by_role("button", name="Compare by patching").click()
        page.locator("#bar progress").wait_for()
        first = page.locator("#bar progress").evaluate("bar => bar.value")
        until(page, "first => document.querySelector('#bar progress').value > first", first)
        type_prompt(page, "xyz")
        assert page.locator("#bar .problem").text_content() == ""
        assert page.locator("#compare [data-method]").count() == 0


# Interventions --------------------------------------------------------------------------------------------------------


def test_a_head_clicked_away_changes_every_figure_as_its_ablation_does(served, fairytale):
    page, ids = served(), fairytale[1].encode(PROMPT)
    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    intervene(page)
    assert page.locator("#bar .chips li").first.text_content() == "head 2.3 = 0×"
    check_next_and_lens_and_loss(page, fairytale, ablate("h.2.attn.z", heads=3), ids, 7)
    page.locator("#tokens .strip button").nth(4).click()
    check_next_and_lens_and_loss(page, fairytale, ablate("h.2.attn.z", heads=3), ids, 4)


def test_several_interventions_work_at_once_and_each_chip_can_be_removed(served, fairytale):
    model, tokenizer = fairytale
    page, ids = served(), tokenizer.encode(PROMPT)
    page.locator("#parts [data-part='h.1.mlp.out']").click()
    intervene(page, "scale", factor="0.5")
    page.locator("#model [data-layer='3'] > button").click()
    intervene(page, "mean")
    page.locator("#lens tbody tr").nth(3).locator("td").nth(5).click()
    intervene(page, "from", source=OTHER)
    assert page.locator("#bar .chips li").all_text_contents() == [
        "MLP of h.1 × 0.5×", "attention of h.3 = mean×", f'position 5, " daughter", before h.2 from "{OTHER}"×',
        "remove all"]
    other = Recorder("h.2.resid_pre")
    forward(model, tokenizer.encode(OTHER), tap=other)
    taps = [patch("h.1.mlp.out", lambda x: 0.5 * x),
            patch("h.3.attn.out", lambda x: x.mean(-2, keepdims=True)),
            patch("h.2.resid_pre", other["h.2.resid_pre"], positions=5)]
    check_next_and_lens_and_loss(page, fairytale, chain(*taps), ids, 5)
    page.get_by_role("button", name="remove attention of h.3 = mean").click()
    until(page, "document.querySelectorAll('#bar .chips li').length === 3")
    check_next_and_lens_and_loss(page, fairytale, chain(taps[0], taps[2]), ids, 5)
    page.get_by_role("button", name="remove all").click()
    until(page, "document.querySelectorAll('#bar .chips li').length === 0")
    assert page.locator("#changed-section").is_hidden() and page.locator(".was").count() == 0
    page.locator("#back").click()  # interventions are steps of the history, too
    until(page, "document.querySelectorAll('#bar .chips li').length === 3")


def test_as_code_makes_the_same_pass(served, fairytale):
    page = served()
    page.get_by_role("button", name="h.4, head 2", exact=True).click()
    intervene(page, "scale", factor="3")
    page.locator("#code summary").click()
    names = {}
    exec(page.locator("#code pre").text_content(), names)
    expected = forward(fairytale[0], fairytale[1].encode(PROMPT), tap=patch("h.4.attn.z", lambda z: 3 * z, heads=2))
    np.testing.assert_array_equal(names["logits"], expected)
    np.testing.assert_array_equal(page.evaluate("[...known.logits]"), expected[-1])


def test_interventions_on_tokens_of_another_prompt_are_removed_and_the_page_says_so(served):
    page = served()
    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    intervene(page)
    page.locator("#tokens .strip button").nth(4).click()
    intervene(page)
    type_prompt(page, "The fox said")
    page.locator("#bar .problem", has_text="were removed: 1.").wait_for()
    assert page.locator("#bar .chips li").all_text_contents() == ["head 2.3 = 0×"]


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("width", [1280, 1024])
def test_with_an_intervention_the_bars_of_the_next_token_take_the_room_that_the_texts_leave(served, width, media):
    page = served(width=width)
    table, bar = "#next .likely", "#next .likely .bar >> nth=0"
    page.emulate_media(media=media)
    alone = page.locator(bar).bounding_box()["width"]
    page.emulate_media(media="screen")
    intervene(page)
    page.emulate_media(media=media)
    assert page.locator(bar).bounding_box()["width"] >= alone - 100  # pixels: a second column of numbers
    assert page.locator(bar).bounding_box()["width"] > 0.5 * page.locator(table).bounding_box()["width"]


def test_print_names_the_interventions(served):
    page = served()
    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    intervene(page)
    intervene(page, "scale", factor="0.5")
    page.emulate_media(media="print")
    assert page.locator("#changed .at-work").is_visible()
    assert page.locator("#changed .at-work").text_content() == "Interventions: head 2.3 = 0; head 2.3 × 0.5."


def test_an_intervention_is_added_once_and_removed_by_the_keyboard_without_losing_the_focus(served):
    page = served()
    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    intervene(page)
    page.locator("#bar button[type=submit]").click()
    page.locator("#bar .problem", has_text="head 2.3 = 0 is at work already.").wait_for()
    assert page.locator("#bar .chips li").count() == 1
    intervene(page, "mean")
    page.get_by_role("button", name="remove head 2.3 = 0").press("Enter")
    until(page, "document.activeElement.getAttribute('aria-label') === 'remove head 2.3 = mean'")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'target'")
    assert page.locator("#bar .chips li").count() == 0


# Comparing ------------------------------------------------------------------------------------------------------------


def grid_of(page, method):
    return np.array(page.eval_on_selector_all(f"#compare [data-method={method}] tbody tr", "rows => rows.map((row) => "
                    "[...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))"))


def test_comparing_fills_the_library_s_grid_by_patching_and_one_click_further_by_attribution(served, fairytale):
    page, (model, tokenizer) = served(), fairytale
    clean, corrupted = tokenizer.encode("The king said to his daughter that"), tokenizer.encode(
        "The king said to his brother that")
    page.locator("#clean").fill("The king said to his daughter that")
    page.locator("#corrupted").fill("The king said to his brother that")
    page.locator("#corrupted + .count-of-tokens", has_text="7 tokens").wait_for()
    page.locator("#answer").fill(" she")
    page.locator("#foil").fill(" he")
    page.get_by_role("button", name="Compare by patching").click()
    page.locator("#compare [data-method=patching]").wait_for()
    metric = logit_difference(*(tokenizer.encode(text)[0] for text in (" she", " he")))
    acts = Recorder()
    clean_value, _ = metric(forward(model, clean, tap=acts))
    corrupted_value, _ = metric(forward(model, corrupted))
    names = [f"h.{layer}.resid_pre" for layer in range(6)] + ["h.5.resid_post"]
    patched = [[metric(forward(model, corrupted, tap=patch(name, acts[name], positions=i)))[0] - corrupted_value
                for i in range(7)] for name in names]
    difference = clean_value - corrupted_value
    np.testing.assert_allclose(grid_of(page, "patching"), np.array(patched) / difference, rtol=0, atol=0.0051)
    told = page.locator("#compare .readout b").all_text_contents()
    assert [float(text) for text in told] == pytest.approx([clean_value, corrupted_value], abs=0.001)
    page.get_by_role("button", name="Estimate by attribution").click()
    page.locator("#compare [data-method=attribution]").wait_for()
    effects = attribution_patching(model, clean, corrupted, metric).effects
    expected = np.array([effects[name] for name in names]) / difference
    np.testing.assert_allclose(grid_of(page, "attribution"), expected, rtol=0, atol=0.0051)
    assert page.locator("#compare [data-method]").count() == 2  # beside the other


@pytest.mark.parametrize("field, text, sentence", [("corrupted", "The king", "the same number of tokens"),
                                                   ("answer", "banana", "one token")])
def test_a_refused_comparison_says_so_in_its_place_and_leaves_no_earlier_answer(served, field, text, sentence):
    page = served()
    page.locator("#corrupted").fill("The king said to his brother that she")
    page.get_by_role("button", name="Compare by patching").click()
    page.locator("#compare [data-method=patching]").wait_for()
    page.locator(f"#{field}").fill(text)
    page.get_by_role("button", name="Compare by patching").click()
    page.locator("#compare .problem", has_text=sentence).wait_for()
    assert page.locator("#compare [data-method]").count() == 0
    assert page.locator("#compare .readout").text_content() == page.locator("#compare .legend").text_content() == ""
    page.locator("#corrupted").fill("The king said to his brother that she")
    page.locator("#answer").fill("")
    page.get_by_role("button", name="Compare by patching").click()
    page.locator("#compare [data-method=patching]").wait_for()
    assert page.locator("#compare .problem").text_content() == ""


# Writing on -----------------------------------------------------------------------------------------------------------


def write(page, n, seed=None):
    page.locator("#seed").fill("" if seed is None else str(seed))
    n_written = page.locator("#write .strip button").count()
    page.locator(f"#write [data-n='{n}']").click()
    until(page, "n => written.length === n && writer === null", n_written + n)


def written(page):
    return page.locator("#write .strip button .token").all_text_contents()


def test_writing_on_draws_the_library_s_tokens_with_the_settings_of_the_sliders(served, fairytale):
    page, (model, tokenizer) = served(), fairytale
    page.get_by_role("button", name="generate's default").click()
    write(page, 20, seed=7)
    expected = list(generate_tokens(model, tokenizer.encode(PROMPT), 20, temperature=0.8, top_k=40, seed=7))
    assert written(page) == shown(tokenizer, expected)
    page.get_by_role("button", name="greedy").click()
    write(page, 1)
    ids = [*tokenizer.encode(PROMPT), *expected]
    assert written(page)[20:] == shown(tokenizer, [forward(model, ids)[-1].argmax()])


def test_interventions_apply_while_the_model_writes_and_new_ones_start_again(served, fairytale):
    page, (model, tokenizer) = served(), fairytale
    page.get_by_role("button", name="greedy").click()
    page.get_by_role("button", name="h.0, head 1", exact=True).click()
    intervene(page)
    write(page, 1)
    write(page, 20)
    ids = tokenizer.encode(PROMPT)
    expected = list(generate_tokens(model, ids, 21, temperature=0, tap=ablate("h.0.attn.z", heads=1)))
    assert expected != list(generate_tokens(model, ids, 21, temperature=0))
    assert written(page) == shown(tokenizer, expected)
    page.get_by_role("button", name="remove head 0.1").click()
    until(page, "state.interventions.length === 0")
    assert written(page) == []


def test_another_token_can_be_taken_and_the_text_goes_on_from_there(served, fairytale):
    page, (model, tokenizer) = served(), fairytale
    page.get_by_role("button", name="greedy").click()
    write(page, 20)
    ids = [*tokenizer.encode(PROMPT), *generate_tokens(model, tokenizer.encode(PROMPT), 20, temperature=0)]
    page.locator("#write .strip button").nth(2).click()
    probabilities = softmax(forward(model, ids[:10])[-1])
    rows = page.eval_on_selector_all("#write .alternatives tbody tr", "rows => rows.map((row) => "
                                     "[...row.cells].slice(0, 2).map((cell) => cell.textContent))")
    best = np.argsort(-probabilities, kind="stable")[:10]
    assert [row[0] for row in rows] == shown(tokenizer, best)
    np.testing.assert_allclose([float(row[1].strip("%")) for row in rows], 100 * probabilities[best], atol=0.051)
    page.locator("#write .alternatives tbody tr").nth(3).locator("button").click()
    until(page, "written.length === 20 && writer === null")
    taken = [*ids[:10], int(best[3])]
    expected = [*taken[8:], *generate_tokens(model, taken, 17, temperature=0)]
    assert written(page) == shown(tokenizer, expected)
    page.get_by_role("button", name="Show this text on the page").click()
    until(page, "page.ids.length === 28")
    assert page.evaluate("page.ids") == [*ids[:8], *expected]
    assert page.locator("#write .strip button").count() == 0
    page.locator("#back").click()
    until(page, "page.ids.length === 8")
    page.locator("#forth").click()
    until(page, "page.ids.length === 28")


def test_writing_can_be_stopped(served):
    page = served()
    page.locator("#write [data-n='20']").click()
    page.locator("#write .strip button").first.wait_for()
    page.evaluate("document.querySelector('#write .stop').click()")
    until(page, "writer === null")
    assert 1 <= page.locator("#write .strip button").count() <= 20
    assert page.locator("#write .stop").is_disabled()


# For everybody --------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone_intervenes_compares_and_writes(served):
    page = served()
    press = page.keyboard.press

    def tab_to(selector):
        for _ in range(80):
            press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
        raise AssertionError(selector)

    tab_to("#ask-prompt")
    press("Control+A")
    page.keyboard.type("The fox said to")
    press("Enter")
    until(page, "page.ids.length === 4")
    tab_to("#kind")
    page.keyboard.type("its mean")
    tab_to("#bar button[type=submit]")
    press("Enter")
    page.locator("#bar .chips li", has_text="= mean").wait_for()
    tab_to("#bar .chips button")
    tab_to("#code summary")
    tab_to("#write [data-n='1']")
    press("Enter")
    page.locator("#write .strip button").wait_for()
    tab_to("#write .strip button")
    press("Enter")
    tab_to("#write .alternatives button")
    tab_to("#corrupted")
    page.keyboard.type("The king said to")
    tab_to("#compare button[value=patching]")
    press("Enter")
    page.locator("#compare [data-method=patching]").wait_for()
    tab_to("#compare .grid td")
    press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("before h.1, position 0")


def all_at_work(page):
    page.get_by_role("button", name="h.2, head 3", exact=True).click()
    intervene(page)
    page.locator("#corrupted").fill("The king said to his brother that she")
    page.get_by_role("button", name="Compare by patching").click()
    page.locator("#compare [data-method=patching]").wait_for()
    write(page, 20, seed=1)
    page.locator("#write .strip button").nth(2).click()
    page.locator("#code summary").click()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_serious_fault_on_the_served_page(served, colours):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`").Axe()
    page = served(colours=colours)
    all_at_work(page)
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(each["id"], [node["html"][:100] for node in each["nodes"]][:3]) for each in found
            if each["impact"] in ("serious", "critical")] == []


def test_at_150_percent_zoom_the_chosen_head_is_in_view_above_the_bar(served):
    page = served(width=853, height=533)
    for layer, head in [(0, 0), (5, 5)]:
        page.get_by_role("button", name=f"h.{layer}, head {head}", exact=True).click()
        title, canvas, bar = (page.locator(selector).bounding_box() for selector in
                              ("#attention h3", ".map canvas", "#bar"))
        assert 0 <= title["y"] and title["y"] + title["height"] <= bar["y"]
        assert min(canvas["y"] + canvas["height"], bar["y"]) - max(canvas["y"], 0) > 0.8 * canvas["height"]


def test_a_resized_window_shows_what_one_opened_at_that_size_does(served):
    sizes = """[CELL, ...["--cell", "--label"].map((name) => find(".map").style.getPropertyValue(name)),
                find(".thumbnails").style.getPropertyValue("--side"), find(".map canvas").style.width]"""
    page = served(width=1280, height=900)
    page.set_viewport_size({"width": 420, "height": 500})
    expected = served(width=420, height=500).evaluate(sizes)
    until(page, f"expected => String({sizes}) === String(expected)", expected)


@pytest.mark.parametrize("width, height", [(400, 800), (853, 533)])
def test_the_served_page_never_scrolls_sideways_and_its_bar_leaves_room(served, width, height):
    page = served(width=width, height=height)
    all_at_work(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('bar').getBoundingClientRect().height") <= 0.4 * height + 1
