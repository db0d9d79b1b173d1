"""Draw the READMEs' pictures of the page that `python -m numpy_gpt2.explore` writes.

Needs Debian's chromium and the extra `browser`. Run from anywhere; the pictures lie in numpy_gpt2/explore/pictures:

    explore.png     the page up to the logit lens
    attention.png   the attention of all heads and of one
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy_gpt2
from numpy_gpt2.cli.exits import BadInput, run, say
from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.rendering import render

PROMPT = "The king said to his daughter that she"
FOLDER = Path(__file__).resolve().parents[2] / "numpy_gpt2" / "explore" / "pictures"
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
    data = page_data(model, tokenizer, prompt_ids(model, tokenizer, PROMPT), "fairytale")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "explore.html")
        file.write_text(render(data), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 1800}, color_scheme="light")
        page.goto(file.as_uri(), timeout=120_000)  # milliseconds
        title, attention, lens = (page.locator(f"#{name}").bounding_box()
                                  for name in ("attention-title", "attention", "lens"))
        draw(page, "explore", 0, 0, WIDTH, lens["y"] + lens["height"] + MARGIN)
        draw(page, "attention", title["x"] - MARGIN, title["y"] - MARGIN, attention["width"] + 2 * MARGIN,
             attention["y"] + attention["height"] - title["y"] + 2 * MARGIN)
        browser.close()


def draw(page, name, x, y, width, height):
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path, full_page=True, clip={"x": x, "y": y, "width": width, "height": height})
    say(f"picture: {path}, {path.stat().st_size / 1000:,.0f} KB")


if __name__ == "__main__":
    run(main)
