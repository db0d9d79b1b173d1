"""Draw the README's pictures of the page that `python -m numpy_gpt2.explore` writes: light, dark, and on a phone.

Needs Debian's chromium and the extra `browser`. Run from anywhere; the pictures lie in numpy_gpt2/explore/pictures:

    explore.png         as in the README
    explore_dark.png    the same where the system is dark
    explore_narrow.png  its beginning on a screen 360 pixels wide
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy_gpt2
from numpy_gpt2.cli.exits import BadInput, run, say
from numpy_gpt2.explore.page import page_data, prompt_ids, render

PROMPT = "The king said to his daughter that she"
FOLDER = Path(__file__).resolve().parents[2] / "numpy_gpt2" / "explore" / "pictures"
PICTURES = {  # name -> width, colours, the last figure that is in the picture
    "explore": (1240, "light", "lens"),
    "explore_dark": (1240, "dark", "lens"),
    "explore_narrow": (360, "light", "attention"),
}
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
        for name, (width, colours, last_figure) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": 1800}, color_scheme=colours)
            page.goto(file.as_uri(), timeout=120_000)  # milliseconds
            figure = page.locator(f"#{last_figure}").bounding_box()
            page.screenshot(path=FOLDER / f"{name}.png", full_page=True,
                            clip={"x": 0, "y": 0, "width": width, "height": figure["y"] + figure["height"] + 24})
            page.close()
            say(f"picture: {FOLDER / name}.png, {(FOLDER / f'{name}.png').stat().st_size / 1000:,.0f} KB")
        browser.close()


if __name__ == "__main__":
    run(main)
