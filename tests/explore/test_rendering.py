"""Laws of the page as a file: nothing in its data is taken for markup, and nothing but its own script runs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from numpy_gpt2 import SIZES, random_model
from numpy_gpt2.explore.page import page_data
from numpy_gpt2.explore.rendering import (DATA, FOLDER, SCRIPTS, SERVED_SCRIPTS, content_security_policy, read, render,
                                          script_safe_json, sha256, template)
from test_page import MODEL, NASTY, TOKENIZER, bytes_tokenizer


class Scripts(HTMLParser):
    """What a browser takes for the page's scripts, and all its attributes."""

    def __init__(self):
        super().__init__()
        self.scripts, self.attributes, self.is_inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")
            self.is_inside = True

    def handle_endtag(self, tag):
        self.is_inside = self.is_inside and tag != "script"

    def handle_data(self, text):
        if self.is_inside:
            self.scripts[-1] += text


@pytest.fixture(autouse=True)
def made_anew():
    """No test is given a page that was made before it."""
    template.cache_clear()


def parsed(page):
    parser = Scripts()
    parser.feed(page)
    return parser


@given(st.text() | st.text("</script >&!-'\"\u2028"))
@example(NASTY)
def test_no_text_in_the_data_can_end_the_element_that_holds_them(text):
    safe = script_safe_json({text: [text]})
    assert json.loads(safe) == {text: [text]}
    assert safe.isascii() and not re.search("[<>&]", safe)


def test_the_data_are_compact_and_never_what_json_does_not_have():
    assert script_safe_json({"a": [1, 2], "b": "<&>"}) == r'{"a":[1,2],"b":"\u003c\u0026\u003e"}'
    with pytest.raises(ValueError):
        script_safe_json({"a": float("nan")})


@pytest.mark.parametrize("served", [False, True])
def test_the_page_is_its_parts_one_after_the_other(served):
    page = render({"server": 1} if served else {"other": 1})
    assert page == template(served).replace(DATA, '{"server":1}' if served else '{"other":1}')
    style, = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert style == "\n" + read("page.css")
    names = SCRIPTS + SERVED_SCRIPTS if served else SCRIPTS
    scripts = [(FOLDER / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in names]
    assert parsed(page).scripts[1] == '\n"use strict";\n\n' + "\n".join(scripts)
    assert content_security_policy(served) in page and content_security_policy() == content_security_policy(False)


def test_the_data_come_out_of_the_page_as_they_went_in():
    ids = TOKENIZER.encode(NASTY)
    data = page_data(MODEL, TOKENIZER, ids, NASTY)
    scripts = parsed(render(data)).scripts
    assert len(scripts) == len(parsed(template()).scripts) == 2
    assert json.loads(scripts[0]) == json.loads(json.dumps(data))
    assert json.loads(scripts[0])["prompt"] == NASTY
    assert scripts[1] == parsed(template()).scripts[1]


@pytest.mark.parametrize("served", [False, True])
def test_only_the_page_s_own_style_and_script_may_run_and_only_its_server_be_asked(served):
    page = template(served)
    policy, = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    (style,), scripts = re.findall("<style>(.*?)</style>", page, re.DOTALL), parsed(page).scripts
    assert policy.split("; ") == ["default-src 'none'", f"style-src '{sha256(style)}'",
                                  f"script-src '{sha256(scripts[1])}'", "img-src data:", "base-uri 'none'",
                                  "form-action 'none'", *(["connect-src 'self'"] if served else [])]
    assert page.index("Content-Security-Policy") < page.index("<style")  # before what it is about


def test_the_hash_of_an_empty_script_is_the_one_that_browsers_compute():
    assert sha256("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_every_script_of_the_folder_is_on_the_page():
    assert sorted(SCRIPTS + SERVED_SCRIPTS) == sorted(path.stem for path in (FOLDER / "scripts").iterdir())
    for name in SCRIPTS + SERVED_SCRIPTS:
        assert read(f"scripts/{name}.js") in template(served=True)
        assert (read(f"scripts/{name}.js") in template()) == (name in SCRIPTS)


def test_a_static_page_shows_and_asks_nothing_that_needs_an_engine():
    static, served = template(), template(served=True)
    for part in ("fetch(", 'id="bar"', 'id="ask"', 'id="write"', 'id="compare"', "<form", "<textarea"):
        assert part in served and part not in static
    assert "served -->" not in static + served
    assert len(parsed(served).scripts) == 2


def test_the_template_has_one_place_for_the_data_and_nothing_from_elsewhere():
    assert template().count(DATA) == 1
    assert not re.search(r"https?:|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(",
                         template())
    names = {name for name, _ in parsed(template()).attributes}
    assert names.isdisjoint({"src", "srcset", "onclick", "onload"})


@pytest.mark.slow
def test_a_page_of_40_tokens_of_small_s_size_is_below_2_megabytes():
    config = SIZES["small"]
    tokenizer = bytes_tokenizer(config.vocab_size)
    assert tokenizer.vocab_size == config.vocab_size
    ids = np.random.default_rng(0).integers(config.vocab_size, size=40).tolist()
    page = render(page_data(random_model(config), tokenizer, ids, "small"))
    assert len(page.encode()) < 2_000_000
