"""The browser of the tests: Chromium, which opens pages."""

import shutil

import pytest

import numpy_gpt2
from browsing import FLAGS, PROMPT, page_of


@pytest.fixture(scope="module")
def fairytale():
    return numpy_gpt2.load("fairytale")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, fairytale, tmp_path):
    """Opens the page of a prompt from a file, without a network; what the browser complains of fails the test."""
    contexts, complaints = [], []

    def open_page(prompt=PROMPT, width=1280, colours="light", html=None, height=800, address="", **options):
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(html or page_of(fairytale, prompt), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours, offline=True,
                                      **options)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(path.as_uri() + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
