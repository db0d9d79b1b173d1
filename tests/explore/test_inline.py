"""The page inside a notebook: it is the page of `explore`, whole, in a frame that keeps it apart."""

import html

import pytest

import numpy_gpt2
from numpy_gpt2.explore.page import page_data, prompt_ids
from numpy_gpt2.explore.rendering import render
from test_html import Page

PROMPT = 'The king said "</script>" & \'so\''


@pytest.fixture(scope="module")
def fairytale():
    return numpy_gpt2.load("fairytale")


def test_the_frame_holds_the_page_whole_in_a_sandbox(fairytale):
    shown = numpy_gpt2.show(*fairytale, PROMPT, height=500)
    page = Page(shown)
    [frame] = page.found("iframe")
    data = page_data(*fairytale, prompt_ids(*fairytale, PROMPT), "a GPT-2 of 6 layers and 6 heads")
    assert frame["srcdoc"] == render(data) == html.unescape(shown.split('srcdoc="')[1].split('"')[0])
    assert frame["sandbox"] == "allow-scripts" and "height:500px" in frame["style"]
    assert [tag for tag, _ in page.elements] == ["iframe"] and shown._repr_html_() == shown


def test_a_prompt_that_no_page_can_show_is_refused(fairytale):
    with pytest.raises(ValueError, match="at most 128 tokens"):
        numpy_gpt2.show(*fairytale, "king " * 200)


@pytest.mark.slow
def test_the_page_runs_in_its_frame(opened, fairytale):
    page = opened(html=f"<!doctype html><meta charset=utf-8>{numpy_gpt2.show(*fairytale, PROMPT)}")
    frame = page.frame_locator("iframe")
    frame.locator("#tokens .strip button").nth(2).click()
    assert frame.locator("#tokens .strip button").nth(2).get_attribute("aria-pressed") == "true"
    assert frame.locator("#title").text_content() == "Inside a GPT-2 of 6 layers and 6 heads"
    assert "#" not in page.url  # the address is the notebook's
