"""Take the READMEs' screenshots of `python -m numpy_gpt2.explore` and `python -m numpy_gpt2.score --html`.

Needs Debian's chromium and the extra `browser`. Run from anywhere; writes to numpy_gpt2/explore/pictures:

    explore.png        the page up to the logit lens
    attention.png      the attention of all heads and of one
    intervention.png   the live page with an intervention: the logit lens, next to the unmodified pass's
    scored_text.png    the beginning of the experiments' text, coloured by surprisal
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy_gpt2
from numpy_gpt2.cli.exits import BadInput, run, say
from numpy_gpt2.explore.answers import server_data
from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.prompts import Engine
from numpy_gpt2.explore.rendering import render
from numpy_gpt2.explore.server import PageServer

PROMPT = "The king said to his daughter that she"
PRINCESS = "The princess was so beautiful that"
PRINCE = "The prince was so beautiful that"
FOLDER = Path(__file__).resolve().parents[2] / "numpy_gpt2" / "explore" / "pictures"
STORY = Path(__file__).resolve().parents[1] / "experiments" / "story.txt"
WIDTH = 1240
MARGIN = 24
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise BadInput("a picture of the page needs chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BadInput("a picture of the page needs playwright: pip install 'numpy_gpt2[browser]'") from error
    model, tokenizer = numpy_gpt2.load("fairytale")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        draw_static_page(browser, model, tokenizer)
        draw_intervention(browser, model, tokenizer)
        draw_scored_text(browser)
        browser.close()


def draw_static_page(browser, model, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "explore.html")
        data = page_data(model, tokenizer, prompt_ids(model, tokenizer, PROMPT), "fairytale")
        file.write_text(render(data), encoding="utf-8")
        page = browser.new_page(viewport={"width": WIDTH, "height": 1800}, color_scheme="light")
        page.goto(file.as_uri(), timeout=120_000)  # milliseconds
        title, attention, lens = (page.locator(f"#{name}").bounding_box()
                                  for name in ("attention-title", "attention", "lens"))
        draw(page, "explore", 0, 0, WIDTH, lens["y"] + lens["height"] + MARGIN)
        draw(page, "attention", title["x"] - MARGIN, title["y"] - MARGIN, attention["width"] + 2 * MARGIN,
             attention["y"] + attention["height"] - title["y"] + 2 * MARGIN)


def draw_intervention(browser, model, tokenizer):
    """The princess's residual stream becomes the prince's before block 2."""
    engine = Engine(model, tokenizer, "fairytale")
    data = page_data(model, tokenizer, prompt_ids(model, tokenizer, PRINCESS), "fairytale")
    with PageServer(engine, render({**data, "server": server_data(engine, PRINCESS)})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page(viewport={"width": 900, "height": 620}, color_scheme="light")
        page.goto(server.address, timeout=120_000)
        page.locator("#lens tbody tr").nth(3).locator("td").nth(1).click()
        page.evaluate("choose({ layer: 2 })")  # the cell after a block is the stream before the next
        page.locator("#target").select_option("position")
        page.locator("#kind").select_option("from")
        page.locator("#source").fill(PRINCE)
        page.locator("#bar button[type=submit]").click()
        page.locator("#bar .chips li").wait_for()
        page.locator("#tokens .strip button").last.click()
        page.locator("h1").hover()
        page.locator("#lens-title").evaluate("title => scrollTo(0, title.getBoundingClientRect().top + scrollY - 16)")
        path = FOLDER / "intervention.png"
        page.screenshot(path=path)
        say_size(path)
        server.shutdown()


def draw_scored_text(browser):
    with tempfile.TemporaryDirectory() as folder:
        text, file = Path(folder, "story.txt"), Path(folder, "story.html")
        text.write_text(STORY.read_text(encoding="utf-8")[:860], encoding="utf-8")
        subprocess.run([sys.executable, "-m", "numpy_gpt2.score", text, "--html", file], check=True,
                       stdout=subprocess.DEVNULL)
        page = browser.new_page(viewport={"width": 860, "height": 620}, color_scheme="light")
        page.goto(file.as_uri(), timeout=120_000)
        page.locator(".text bdi", has_text="hedge").first.hover()
        page.screenshot(path=FOLDER / "scored_text.png")
        say_size(FOLDER / "scored_text.png")


def draw(page, name, x, y, width, height):
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path, full_page=True, clip={"x": x, "y": y, "width": width, "height": height})
    say_size(path)


def say_size(path):
    say(f"picture: {path}, {path.stat().st_size / 1000:,.0f} KB")


if __name__ == "__main__":
    run(main)
