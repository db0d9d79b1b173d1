"""What the tests of the page in a browser share."""

import time
import unicodedata

from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.rendering import render

PROMPT = "The king said to his daughter that she"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def page_of(fairytale, prompt):
    model, tokenizer = fairytale
    return render(page_data(model, tokenizer, prompt_ids(model, tokenizer, prompt), "fairytale"))


def table_of(page, figure):
    """The table of numbers behind a figure, opened: its rows, without the head, as lists of texts."""
    details = page.locator(f"#{figure} details")
    if details.get_attribute("open") is None:
        details.locator("summary").click()
        page.locator(f"#{figure} .numbers tbody tr").first.wait_for(state="attached")  # it is written when it is opened
    return page.eval_on_selector_all(f"#{figure} .numbers tbody tr",
                                     "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")


def set_slider(page, name, value):
    """As a hand would: the slider's place, then its event."""
    page.locator(f"#{name}").evaluate("""(slider, value) => {
        slider.value = STEPS[slider.id].indexOf(value);
        slider.dispatchEvent(new Event("input")) }""", value)


def as_shown(tokenizer, token_id):
    """A token's text as the page shows it: every character with a shape, bytes where it is not whole characters."""
    data = tokenizer.token_bytes(token_id)
    try:
        return "".join(map(sign_of, data.decode()))
    except UnicodeDecodeError:
        return data.hex(" ").upper()


def sign_of(character):
    if character in " \n\t":
        return {" ": "·", "\n": "↵", "\t": "⇥"}[character]
    kind = unicodedata.category(character)[0]  # M: marks, which stand on others; C, Z: control, format, separators
    return "◌" + character if kind == "M" else f"U+{ord(character):04X}" if kind in "CZ" else character


def until(page, condition, arg=None, seconds=60):
    """Waits until an expression of JavaScript is true. (Playwright's own way needs eval, which the page forbids.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)  # milliseconds
