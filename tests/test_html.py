"""Laws of what notebooks show: everything is there, escaped, well-formed, and needs no script and no network."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import (STAGES, GPT2Config, KVCache, Recorder, Scores, forward, named_parameters, random_model,
                        show_attention)
from numpy_gpt2.html import FAINTEST, MOST_TOKENS, Markup, element, fold, label, table

TINY = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)
VOID = {"br", "hr", "img"}


class Page(HTMLParser):
    """The elements of a piece of HTML, each with its attributes and texts; fails where one is not closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def found(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_is_plain(page):
    """No script, no style sheet, nothing to load."""
    assert not {tag for tag, _ in page.elements} & {"script", "style", "link", "img", "iframe"}
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")} | attributes.keys() & {"src", "href"}


# Escaping -------------------------------------------------------------------------------------------------------------


@given(st.text() | st.text("<>&'\"/ab="))
def test_every_text_comes_out_as_it_went_in_and_makes_no_element(text):
    text = text.replace("\r", "").replace("\0", "")  # what a parser normalises
    page = Page(element("p", text, element("b", text), title=text))
    assert [tag for tag, _ in page.elements] == ["p", "b"]
    assert "".join(page.texts) == 2 * text and page.found("p") == [{"title": text}]


def test_markup_is_not_escaped_twice_and_says_in_a_terminal_that_it_is_for_notebooks():
    inner = element("i", "<x>")
    assert element("p", inner) == "<p><i>&lt;x&gt;</i></p>" == element("p", inner)._repr_html_()
    assert repr(inner) == "<HTML, 16 characters: shown by a notebook>" and "<x>" not in repr(inner)
    assert isinstance(table(("a",), [("<b>",)]), Markup) and "&lt;b&gt;" in fold("<b>", "<b>")


def test_numbers_are_to_the_right_and_grouped():
    page = Page(table(("name", "n"), [("x", 1234567), ("y", 0.123456)]))
    assert page.texts == ["name", "n", "x", "1,234,567", "y", "0.1235"]
    assert ["right" in one["style"] for one in page.found("td")] == [False, True, False, True]


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_model_shows_every_array_its_shape_and_its_count(is_tied):
    model = random_model(replace(TINY, tie_word_embeddings=is_tied))
    page = Page(model._repr_html_())
    check_is_plain(page)
    n_parameters = sum(array.size for _, array in named_parameters(model))
    assert page.texts[0] == f"GPT2, {n_parameters:,} parameters"
    assert page.texts.count("weight") == page.texts.count("bias") == 6 * TINY.n_layer + 1
    for array in (model.wte, model.h[0].attn.c_attn.weight, model.ln_f.bias):
        assert f"[{', '.join(map(str, array.shape))}]" in page.texts and f"{array.size:,}" in page.texts
    assert ("wte itself (tied)" in page.texts) == is_tied
    assert len(page.found("details")) == len(page.found("summary")) == 1 + 2 + TINY.n_layer * 9 + 1
    assert "open" not in page.found("details")[0]  # folded


def test_a_part_shows_its_own_arrays_and_a_config_its_settings():
    model = random_model(TINY)
    assert Page(model.h[1].mlp._repr_html_()).texts[0] == f"MLP, {8 * 32 + 32 + 32 * 8 + 8} parameters"
    texts = Page(TINY._repr_html_()).texts
    assert texts[texts.index("n_embd") + 1] == "8" and texts[texts.index("n_inner") + 1] == "32"


# Activations, stages, scores ------------------------------------------------------------------------------------------


def rows_of(page):
    """The texts of each row of its tables."""
    rows = re.findall("<tr>(.*?)</tr>", page, re.DOTALL)
    return [["".join(Page(cell).texts) for cell in re.findall("(<t[hd][^>]*>.*?</t[hd]>)", row)] for row in rows]


def test_a_recorder_shows_each_array_once_with_its_shape_and_statistics_of_what_is_finite():
    model, acts = random_model(TINY), Recorder()
    forward(model, [1, 2, 3], tap=acts)
    shown = acts._repr_html_()
    page = Page(shown)
    check_is_plain(page)
    assert page.texts[0] == f"Recorder: {len(acts)} arrays, {sum(array.size for array in acts.values()):,} numbers"
    assert len(page.found("details")) == 1 + TINY.n_layer
    rows = {row[0]: row[1:] for row in rows_of(shown)}
    assert {name for name in rows if name != "name"} == set(acts)
    for name, array in acts.items():
        finite = array[np.isfinite(array)].astype(float)
        expected = [finite.mean(), finite.std(), finite.min(), finite.max()]
        assert rows[name][0] == f"[{', '.join(map(str, array.shape))}]"
        np.testing.assert_allclose([float(cell) for cell in rows[name][1:]], expected, rtol=1e-3, atol=1e-6)


def test_a_recorder_of_nothing_and_an_array_of_nothing_finite_are_shown_too():
    assert Page(Recorder()._repr_html_()).texts == ["Recorder: 0 arrays, 0 numbers"]
    acts = Recorder()
    acts("logits", np.full((1, 2), np.nan))
    assert rows_of(acts._repr_html_())[1] == ["logits", "[1, 2]", "", "", "", ""]


def test_a_stage_says_in_a_line_what_it_is_and_in_a_notebook_what_it_means():
    stage = next(stage for stage in STAGES if stage.name == "h.i.attn.pattern")
    assert repr(stage) == "Stage('h.i.attn.pattern': [n_head, n_new, n_all], softmax(scores))"
    texts = Page(stage._repr_html_()).texts
    assert texts[1:] == ["h.i.attn.pattern", "equation", "softmax(scores)", "shape", "[n_head, n_new, n_all]",
                         "what it is", stage.sentence]


def test_scores_say_what_counts_and_not_their_arrays():
    scores = Scores(np.log([0.5, 0.125, 0.25]), np.array([1, 3, 1]), *[np.zeros((3, 0))] * 2)
    assert repr(scores) == "Scores(3 tokens, mean_loss 1.3863, perplexity 4.00)"
    assert rows_of(scores._repr_html_()) == [
        ["Scores", ""], ["tokens scored", "3"], ["mean loss, nats per token", "1.386"], ["perplexity", "4"],
        ["the likeliest (rank 1)", "66.7%"], ["least likely: log-probability", "-2.079"]]
    masked = replace(scores, log_probs=np.log([0.5, 1, 0.25]), mask=np.array([True, False, True]))
    assert repr(masked) == "Scores(2 tokens, mean_loss 1.0397, perplexity 2.83)"
    assert rows_of(masked._repr_html_())[4:] == [["the likeliest (rank 1)", "100.0%"],
                                                 ["least likely: log-probability", "-1.386"]]
    none = replace(scores, mask=np.zeros(3, bool))
    assert repr(none) == "Scores(0 tokens)" and rows_of(none._repr_html_())[1:] == [["tokens scored", "0"]]


# Attention ------------------------------------------------------------------------------------------------------------


def recorded(n_cached=0):
    model, acts = random_model(TINY), Recorder("h.*.attn.pattern")
    ids = [1, 2, 3, 4, 5]
    cache = KVCache(model, 6)
    if n_cached:
        forward(model, ids[:n_cached], cache=cache)
    forward(model, ids[n_cached:], cache=cache, tap=acts)
    return acts


@pytest.mark.parametrize("n_cached", [0, 3])
def test_a_heat_map_has_a_cell_for_each_weight_as_dark_as_it_is_large(n_cached):
    tokens = ["<b>", " old", "\n", "a\u202eb", "x" * 30]
    acts = recorded(n_cached)
    page = Page(show_attention(acts, 1, 0, tokens))
    check_is_plain(page)
    pattern = acts["h.1.attn.pattern"][0]  # [n_new, 5]
    cells = [one for one in page.found("rect") if "fill-opacity" in one]
    drawn = pattern[pattern >= FAINTEST]
    np.testing.assert_allclose([float(one["fill-opacity"]) for one in cells], drawn, atol=5.1e-4)
    assert len(cells) == sum(range(n_cached + 1, 6))
    names = [label(token) for token in tokens]
    assert names == ["<b>", "·old", "↵", "aU+202Eb", "x" * 13 + "…"]
    assert [text for text in page.texts if text in names] == names + names[n_cached:]
    weight = pattern[-1, 1]
    assert f"{names[4]} attends to {names[1]}: {weight:.3f}" in page.texts
    assert len({one["x"] for one in cells}) == 5 and len({one["y"] for one in cells}) == 5 - n_cached


def test_a_weight_of_almost_nothing_is_not_drawn():
    page = Page(show_attention({"h.0.attn.pattern": np.array([[[1, 0], [0.9999, 0.0001]]])}, 0, 0, ["a", "b"]))
    assert len([one for one in page.found("rect") if "fill-opacity" in one]) == 2


@pytest.mark.parametrize("layer, head, tokens, error, clue", [
    (0, 2, "abcde", ValueError, "head must be from 0 to 1. Got 2."),
    (0, -1, "abcde", ValueError, "Got -1."),
    (0, 0, "abcd", ValueError, "the pattern's 5 tokens, at most 128. Got 4."),
    (7, 0, "abcde", KeyError, "h.7.attn.pattern"),
])
def test_a_heat_map_of_what_is_not_there_is_refused(layer, head, tokens, error, clue):
    with pytest.raises(error) as refused:
        show_attention(recorded(), layer, head, list(tokens))
    assert clue in str(refused.value)


def test_a_heat_map_of_too_many_tokens_or_of_a_batch_is_refused():
    n = MOST_TOKENS + 1
    with pytest.raises(ValueError, match="at most 128. Got 129"):
        show_attention({"h.0.attn.pattern": np.zeros((1, n, n))}, 0, 0, ["x"] * n)
    with pytest.raises(ValueError, match=r"of one text. Got \[2, 1, 3, 3\]"):
        show_attention({"h.0.attn.pattern": np.zeros((2, 1, 3, 3))}, 0, 0, ["x"] * 3)


# The import -----------------------------------------------------------------------------------------------------------


def test_what_notebooks_show_is_imported_only_when_used():
    code = ("import sys; late = {'html', 'numpy_gpt2.html', 'numpy_gpt2.explore'} - set(sys.modules); "
            "import numpy_gpt2; "  # coverage, where it watches, has imported html before
            "assert not late & set(sys.modules); numpy_gpt2.show; assert late <= set(sys.modules); "
            "from numpy_gpt2 import *; show_attention")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error_and_the_known_ones_are_listed():
    assert {"show", "show_attention", "forward"} <= set(dir(numpy_gpt2))
    with pytest.raises(AttributeError, match="has no attribute 'shew'"):
        numpy_gpt2.shew
