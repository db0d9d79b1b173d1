"""Laws of the walk: it stops at every stage, shows what is there, answers every command, and changes nothing."""

import inspect
import io
import re
import sys
import time

import numpy as np
import pytest

import numpy_gpt2
from numpy_gpt2 import SIZES, GPT2Config, KVCache, Recorder, forward, model as model_module, random_model
from numpy_gpt2.lens import residual_logits, top_tokens
from numpy_gpt2.cli.tables import display_width
from numpy_gpt2.step.grids import fitted, grid, middle_left_out
from numpy_gpt2.step.previews import SHADES, Screen, preview, statistics, thumbnails
from numpy_gpt2.step.walk import COMMANDS, Walk, check_size, walk_through
from numpy_gpt2.tap import stage_names, stage_of
from numpy_gpt2.tokenizer import quoted

CONFIG = GPT2Config(vocab_size=4096, n_positions=48, n_embd=12, n_layer=3, n_head=2, n_inner=10)
MODEL = random_model(CONFIG)
TOKENIZER = numpy_gpt2.load_tokenizer("fairytale")
PROMPT = "Once upon a time"
IDS = TOKENIZER.encode(PROMPT)
NAMES = stage_names(CONFIG)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def walk(capsys):
    """walk("next", "print q", ...): what a walk with these commands writes, after which its input ends."""
    def run(*commands, ids=IDS, model=MODEL, **options):
        walk_through(model, TOKENIZER, ids, commands=commands, **options)
        return capsys.readouterr().out

    return run


def line_with(text):
    """The number of the only line of model.py that has this text."""
    number, = [i for i, line in enumerate(inspect.getsource(model_module).splitlines(), 1) if text in line]
    return number


def stops(text):
    """The names of the stages that were shown, in order."""
    return re.findall(r"^(\S+) = .*\(\d+ of \d+\)$", text, re.MULTILINE)


def last(text):
    """The line before the prompt at which the input ended."""
    return text.rstrip().removesuffix(Walk.prompt.rstrip()).rstrip().splitlines()[-1]


# The pass -------------------------------------------------------------------------------------------------------------


def test_each_stage_of_the_pass_is_a_stop_in_order(walk):
    assert stops(walk(*["next"] * len(NAMES))) == NAMES


def test_an_empty_line_is_next(walk):
    assert stops(walk("", "n", "", "quit")) == NAMES[:4]


def test_a_walk_changes_no_logit(capsys):
    expected = forward(MODEL, IDS)
    looks = [look for _ in NAMES for look in ("print value.fill(0)", "print 1 * value", "heads", "logits", "next")]
    np.testing.assert_array_equal(walk_through(MODEL, TOKENIZER, IDS, commands=looks), expected)
    np.testing.assert_array_equal(walk_through(MODEL, TOKENIZER, IDS, commands=["continue"]), expected)


def test_the_end_says_what_the_model_predicts(walk):
    text = walk("continue")
    end = text[text.index("The pass is done."):]
    for token in top_tokens(forward(MODEL, IDS)[-1], TOKENIZER, 5):
        assert f'"{token.text}"' in end and f"{token.probability:.3f}" in end


@pytest.mark.parametrize("commands", [["quit"], ["q"], [], ["EOF"], ["next", "quit", "print 1"]])
def test_whoever_leaves_gets_no_logits(commands, capsys):
    cache = KVCache(MODEL)
    assert walk_through(MODEL, TOKENIZER, IDS, cache=cache, commands=commands) is None
    assert "The pass is done" not in capsys.readouterr().out
    assert cache.length == 0


def test_a_pass_over_one_more_token_shows_the_cache_at_work(walk):
    cache = KVCache(MODEL)
    forward(MODEL, IDS, cache=cache)
    text = walk("until *.k_all", "print k.shape, k_all.shape", "tokens", "continue", ids=[*IDS, 5], cache=cache)
    assert "n_all 5: 4 from the cache + 1 new" in text
    assert "((2, 1, 6), (2, 5, 6))" in text
    assert len(re.findall(r"in the cache$", text, re.MULTILINE)) == 4
    assert cache.length == 5


# What a stop shows ----------------------------------------------------------------------------------------------------


def test_a_stop_shows_name_equation_sentence_shape_type_statistics_and_source(walk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    for name in NAMES:
        text = walk("quit", stop_at=name)
        stage, value = stage_of(name), acts[name]
        assert f"{name} = {stage.equation}" in text and stage.sentence in text
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(stage.shape, value.shape))
        assert f"[{axes}] float32, {statistics(value)}" in text
        assert re.search(rf'^  numpy_gpt2/model\.py:\d+  .*tap.*\("{re.escape(re.sub("h.[0-9].", "", name))}"', text,
                         re.MULTILINE), name
        for token_id in IDS[-1:] if name == "logits" else IDS:
            assert f'"{TOKENIZER.decode([token_id])}"' in text, name


def test_statistics_leave_out_what_is_not_finite_and_say_so():
    assert statistics(np.array([1.0, 3.0])) == "mean 2, std 1, min 1, max 3"
    assert statistics(np.array([1.0, 3.0, -np.inf, -np.inf])) == "mean 2, std 1, min 1, max 3 (-inf left out: 2 of 4)"
    assert statistics(np.array([-np.inf])) == "nothing finite"


def screen(width=100, height=30, ids=IDS, n_cached=0, head=0):
    return Screen(TOKENIZER, ids, n_cached, head, width, height)


def numbers(line):
    return [float(word) for word in re.sub(r'^\d+ "(\\.|[^"])*"', "", line).split()]


def test_previews_show_the_numbers_that_are_there():
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    for name, expected in {
        "wte": np.linalg.norm(acts["wte"], axis=-1)[:, np.newaxis],
        "h.1.resid_mid": np.linalg.norm(acts["h.1.resid_mid"], axis=-1)[:, np.newaxis],
        "h.1.attn.qkv": np.stack([np.linalg.norm(acts["h.1.attn.qkv"][:, part * 12:part * 12 + 12], axis=-1)
                                  for part in range(3)], axis=-1),
        "h.1.attn.k": np.linalg.norm(acts["h.1.attn.k"], axis=-1).T,
        "h.1.attn.v_all": np.linalg.norm(acts["h.1.attn.v_all"], axis=-1).T,
        "h.1.attn.scores": acts["h.1.attn.scores"][1],
        "h.1.attn.pattern": acts["h.1.attn.pattern"][1],
    }.items():
        _, _, *rows = preview(name, acts[name], screen(head=1))
        np.testing.assert_allclose([numbers(row) for row in rows], expected, atol=0.0051, err_msg=name)


def test_a_masked_score_and_its_weight_are_shown_as_they_are():
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    _, _, *scores = preview("h.0.attn.scores", acts["h.0.attn.scores"], screen())
    _, _, *pattern = preview("h.0.attn.pattern", acts["h.0.attn.pattern"], screen())
    assert [row.split().count("-inf") for row in scores] == [3, 2, 1, 0]
    assert [row.split()[-3:].count("0") for row in pattern] == [3, 2, 1, 0]


def test_neurons_are_counted_and_the_strongest_named():
    value = np.array([[-1, 2.5, 0, 7, -3, 0.25, -1, -1, -1, -1]], dtype=np.float32)
    row = preview("h.0.mlp.post", value, screen(ids=IDS[:1]))[-1]
    assert row.split()[2:] == ["30.0%", "#3", "7.00", "#1", "2.50", "#5", "0.25"]


def test_thumbnails_show_every_head_and_leave_the_future_blank():
    least_to_most = np.tril(np.linspace(0, 8, 9).reshape(3, 3))  # 0; 3 4; 6 7 8, and nine shades
    lines = thumbnails(np.stack([np.eye(3), least_to_most]), screen(ids=IDS[:3]))
    assert lines[-4] == "head 0  head 1"
    assert [line[:6].rstrip() for line in lines[-3:]] == ["@", ".@", "..@"]
    assert [line[8:] for line in lines[-3:]] == [SHADES[0], SHADES[3:5], SHADES[6:9]]


LOOKS = ("show", "heads", "heads 0", "logits", "print value", "print 'x' * 5000", "tokens", "where", "help", "foo")


@pytest.mark.parametrize("n_tokens", [1, 48])
@pytest.mark.parametrize("columns, rows", [(1, 1), (20, 24), (100, 10), (200, 24)])
def test_no_command_fills_more_than_a_screen(walk, monkeypatch, n_tokens, columns, rows):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    inside_one_block = [*LOOKS, "next"] * 20
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*inside_one_block, "until ln_f", *LOOKS, "n", *LOOKS])))
    text = walk(ids=np.random.default_rng(0).integers(4096, size=n_tokens).tolist())
    answers = text.split("step> ")[1:]  # what stands before it greets, too
    assert len(answers) > 20 * len(LOOKS)
    for answer in answers:
        assert len(answer.splitlines()) < max(rows, 10)
        assert max(map(len, answer.splitlines()), default=0) <= max(columns, 20)


def test_what_is_left_out_is_left_out_in_the_middle_and_said(walk, monkeypatch):
    monkeypatch.setenv("LINES", "24")
    text = walk(stop_at="h.0.attn.pattern", ids=list(range(48)))
    assert re.search(r"^\.\.\. \d+ more$", text, re.MULTILINE)
    assert re.search(r"^0 ", text, re.MULTILINE) and re.search(r"^47 ", text, re.MULTILINE)


def shown_and_left_out(note, what):
    return map(int, re.fullmatch(rf"the (\d+) {what}; (\d+) left out", note).groups())


@pytest.mark.parametrize("width", [64, 80])
@pytest.mark.parametrize("name", ["h.0.attn.pattern", "h.0.attn.scores"])
def test_of_many_keys_those_with_the_largest_weights_are_shown_and_the_others_counted(name, width):
    pattern = np.zeros((1, 30, 30), dtype=np.float32)
    pattern[:, np.arange(30), np.arange(30)] = 0.25  # a quarter to itself, a tenth to key 0, the rest to key 7
    pattern[:, :, 0] += 0.1
    pattern[:, :, 7] += 0.65
    pattern = np.tril(pattern) / np.tril(pattern).sum(axis=-1, keepdims=True)
    scores = np.log(pattern, where=pattern > 0, out=np.full_like(pattern, -np.inf))
    value = pattern if name.endswith("pattern") else scores
    title, note, headings, *_ = preview(name, value, screen(width, ids=list(range(30))))
    n_shown, n_left_out = shown_and_left_out(note, "keys with the largest weights")
    shown = [int(position) for position in re.findall(r"(?:^| )(\d+) ", headings)]
    assert len(shown) == n_shown and n_shown + n_left_out == 30
    assert shown == sorted(shown) and {0, 7} < set(shown)


def test_of_many_heads_those_with_the_largest_norms_are_shown_and_the_others_counted():
    value = np.ones((20, 2, 4), dtype=np.float32)
    value[[3, 17]] = 9
    _, note, headings, *_ = preview("h.0.attn.q", value, screen(width=60, ids=IDS[:2]))
    n_shown, n_left_out = shown_and_left_out(note, "heads with the largest norms")
    assert n_shown + n_left_out == 20 and len(re.findall("head", headings)) == n_shown
    assert "head 3" in headings and "head 17" in headings


@pytest.mark.parametrize("stop_at", ["h.1.attn.pattern", "h.1.attn.q", "h.1.mlp.post", "h.1.resid_mid"])
def test_at_80_columns_the_code_is_shown_whole_and_the_preview_with_its_headings(walk, monkeypatch, stop_at):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    text = walk(stop_at=stop_at, ids=list(range(48)))
    code, = re.findall(r"model\.py:\d+  (.*?)\n\n", text, re.DOTALL)
    code = re.sub(r"\s+", " ", code)
    assert code.count("(") == code.count(")") and "#" not in code
    assert "".join(code.split()) in "".join(inspect.getsource(model_module).split())
    preview_lines = text[text.rindex("\n\n") + 2:].splitlines()
    assert preview_lines[-1] == "step> " and "... " not in "".join(preview_lines[:3])
    assert len(text.splitlines()) <= 24 + 1  # with the greeting


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_wide_characters_stay_in_their_columns(columns):
    wide = ["王王", "é", "e\u0301", "ab", "王" * 30]
    lines = grid("王" * 25, wide, ["王", "b"], lambda i, j: "12.5", columns, 30)
    assert max(map(display_width, lines)) <= columns
    rows = [line for line in lines if "12.5" in line]
    assert len(rows) == 5 and len({display_width(row) for row in rows}) == 1
    assert len({display_width(row[:row.rindex("12.5")]) for row in rows}) == 1
    assert "".join(fitted("ab王" * 30, 7)) == "ab王" * 30
    assert [display_width(text) for text in wide] == [4, 1, 1, 2, 60]


def test_a_line_of_wide_characters_breaks_before_the_edge(walk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "21")
    text = walk("print '王' * 30")
    assert max(map(display_width, text.splitlines())) <= 21 and text.count("王") == 30


@pytest.mark.parametrize("n, room, shown", [
    (3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 5, [0, 1, None, 7, 8]), (9, 4, [0, None, 7, 8]),
    (9, 1, [None, 8]), (9, -3, [None, 8]), (1, 0, [0])])
def test_as_much_is_shown_as_there_is_room_for(n, room, shown):
    assert middle_left_out(n, room) == shown


def test_tokens_are_shown_escaped_on_their_line(walk):
    ids = TOKENIZER.encode('a\n"b"\t\\ é王')
    text = walk("tokens", ids=ids)
    assert r'"\n"' in text and r'\"' in text and r'"\t"' in text and r'\xe7' in text


# Where to stop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command, stop", [
    ("layer 1", "h.1.resid_pre"), ("l 2", "h.2.resid_pre"), ("until h.1.attn.pattern", "h.1.attn.pattern"),
    ("u h.2.attn.*", "h.2.attn.qkv"), ("u *.[qk]", "h.0.attn.q"), ("u logits", "logits"), ("n", "wpe"),
    ("u pattern", "h.0.attn.pattern"), ("u attn.out", "h.0.attn.out"), ("u mlp.*", "h.0.mlp.pre"),
    ("u *_all", "h.0.attn.k_all"), ("u h.1.pattern", "h.1.attn.pattern"), ("u ln_f", "ln_f")])
def test_it_stops_where_it_is_told(walk, command, stop):
    assert stops(walk(command)) == ["wte", stop]


def test_the_same_glob_again_is_the_next_stage_that_it_fits(walk):
    assert stops(walk("u *.z", "u *.z", "u *.z")) == ["wte", "h.0.attn.z", "h.1.attn.z", "h.2.attn.z"]
    assert stops(walk("u z", "u z", "u z", "u z")) == ["wte", "h.0.attn.z", "h.1.attn.z", "h.2.attn.z"]


@pytest.mark.parametrize("stop_at, stop", [
    ("h.1.attn.pattern", "h.1.attn.pattern"), ("h.1.attn.p*", "h.1.attn.pattern"), ("pattern", "h.0.attn.pattern"),
    ("mlp.out", "h.0.mlp.out")])
def test_the_first_stop_can_be_chosen(walk, stop_at, stop):
    assert stops(walk(stop_at=stop_at)) == [stop]


@pytest.mark.parametrize("stop_at", ["h.3.attn.q", "patern", "", "h.1.attn.patern"])
def test_a_first_stop_that_is_nowhere_is_refused_with_the_nearest(stop_at):
    with pytest.raises(ValueError, match=re.escape(repr(stop_at)) + "; the nearest are "):
        walk_through(MODEL, TOKENIZER, IDS, stop_at=stop_at)


def test_a_pass_too_large_to_keep_is_refused_before_it_begins():
    check_size(SIZES["xl"], 256, 256)
    check_size(SIZES["small"], 1024, 1024)
    with pytest.raises(ValueError, match="at most 4 GB. With 1024 tokens these would be 17.8 GB: shorten the prompt"):
        check_size(SIZES["xl"], 1024, 1024)
    many = GPT2Config(vocab_size=4096, n_positions=48, n_embd=2, n_layer=4000, n_head=1)
    with pytest.raises(ValueError, match="at most 500 layers. Got 4000"):
        walk_through(random_model(many), TOKENIZER, IDS)


# What is refused, each in one line that says why ----------------------------------------------------------------------


@pytest.mark.parametrize("command, answer", [
    ("until h.1.attn.patern", "error: no stage here is called 'h.1.attn.patern'; the nearest are h.1.attn.pattern, "),
    ("until", "error: no stage here is called ''; the nearest are "),
    ("u h.3.ln_1", "error: no stage here is called 'h.3.ln_1'; the nearest are h."),
    ("u h.0.*", "error: h.0.resid_post has been passed; to see it again: show h.0.resid_post"),
    ("u h.1.attn.pattern", "error: h.1.attn.pattern has been passed; "),
    ("l 0", "error: h.0.resid_pre has been passed; "),
    ("l 3", "error: layer must be a number from 0 to 2. Got '3'."),
    ("layer", "error: layer must be a number from 0 to 2. Got ''."),
    ("layer -1", "error: layer must be a number from 0 to 2. Got '-1'."),
    ("heads 2", "error: head must be a number from 0 to 1. Got '2'."),
    ("heads all", "error: head must be a number from 0 to 1. Got 'all'."),
    ("show h.2.ln_1", "error: no stage so far is called 'h.2.ln_1'; the nearest are "),
    ("show patern", "error: no stage so far is called 'patern'; the nearest are pattern, "),
    ("nxt", "error: no command is called 'nxt'; the nearest are next, "),
    ("foo bar", "error: no command is called 'foo'; the nearest are "),
    ("!ls", "error: no command is called '!ls'; "),
    ("next 3", "error: next takes nothing after it. Got '3'."),
    ("q.shape", "error: quit takes nothing after it. Got '.shape'."),
    ("help foo", "error: no command is called 'foo'; "),
    ("p 1 / 0", "error: ZeroDivisionError: division by zero"),
    ("p (", "error: SyntaxError: "),
    ("p nothing", "error: NameError: name 'nothing' is not defined"),
    ("p z", "error: NameError: z is still to come"),
    ("p acts['h.2.attn.q'].shape", "error: KeyError: h.2.attn.q is still to come"),
    ("p acts['h.7.attn.q']", "error: KeyError: 'h.7.attn.q' is not among "),
    ("p h.0.attn.q.shape", 'error: h.0.attn.q.shape is not Python: write acts["h.0.attn.q"].shape'),
    ("p 2 * h.1.attn.k_all", 'error: h.1.attn.k_all is not Python: write acts["h.1.attn.k_all"]'),
    ("p h.1.ln_1", 'error: h.1.ln_1 is not Python: write acts["h.1.ln_1"]'),
    ("p h.1.ln_1.weight", "error: h.1.ln_1.weight is not Python: write model.h[1].ln_1.weight"),
    ("p h.1.attn.c_attn.bias", "error: h.1.attn.c_attn.bias is not Python: write model.h[1].attn.c_attn.bias"),
    ("p acts['h.0.attn.q'] @ nothing", "error: NameError: name 'nothing' is not defined"),
    ("p q = 1", "error: NameError: q is a name of the walk: assign to another one"),
    ("softmax = 1", "error: NameError: softmax is a name of the walk: assign to another one"),
    ("value == 1", "error: no command is called 'value'; "),
    ("p value.fill(0)", "error: ValueError: assignment destination is read-only"),
    ("back 2", "error: back takes nothing after it. Got '2'."),
    ("p q @ q", "error: ValueError: "),
    ("p {}['x']", "error: KeyError: x"),
    ("p [][0]", "error: IndexError: "),
    ("p __import__('sys').no", "error: AttributeError: "),
])
def test_what_cannot_be_done_is_one_line_and_the_walk_goes_on(walk, monkeypatch, command, answer):
    monkeypatch.setenv("COLUMNS", "300")
    before = walk(stop_at="h.1.attn.pattern")
    text = walk(command, stop_at="h.1.attn.pattern")
    assert text[:len(before) - len("step> \n")] == before[:-len("step> \n")]
    said = text[len(before) - len("step> \n"):].splitlines()
    assert said[0].startswith(answer) and said[1:] == ["step> "]


def test_what_has_no_heads_says_what_has(walk, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert last(walk("heads", stop_at="h.1.ln_1")) == (
        "error: h.1.ln_1 has no heads; these have: attn.q, attn.k, attn.v, attn.k_all, attn.v_all, attn.scores, "
        "attn.pattern, attn.z")


# What is looked at ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression, printed", [
    ("value is pattern", "True"), ("pattern.shape", "(2, 4, 4)"), ('acts["h.0.attn.q"].shape', "(2, 4, 6)"),
    ('acts["h.1.attn.q"] is q', "True"), ("np.allclose(pattern.sum(-1), 1)", "True"),
    ("(acts['h.0.attn.q'] == q).all()", "False"), ("wte.shape, wpe.shape", "((4, 12), (4, 12))"),
    ("(resid_pre + qkv[:, :12]).shape", "(4, 12)"), ("model.h[1].attn.c_attn.weight.shape", "(12, 36)"),
    ("np.array_equal(softmax(scores), pattern)", "True"),
    ("np.allclose(layer_norm(resid_pre, model.h[1].ln_1.weight, model.h[1].ln_1.bias, 1e-5), ln_1)", "True"),
    ("gelu(linear(ln_1, model.h[1].mlp.c_fc.weight, model.h[1].mlp.c_fc.bias)).shape", "(4, 10)"),
    ("np.array_equal(split_heads(merge_heads(q), 2), q)", "True"), ("(s := q[0].shape)", "(4, 6)"), ("None", "None"),
    ("tokens", "['Once', ' upon', ' a', ' time']"), ("ids == model.config.n_layer", "False"), ("len(ids)", "4"),
    ("cache.length", "0"), ("[tokens[i] for i in [1]]", "[' upon']"), ("np.float32(0.5)", "0.5"),
    ("np.ones(3)", "[1. 1. 1.]")])
def test_print_evaluates_python_over_the_arrays_by_their_names(walk, expression, printed):
    assert last(walk(f"print {expression}", stop_at="h.1.attn.pattern")) == printed
    assert last(walk(f"p {expression}", stop_at="h.1.attn.pattern")) == printed


def test_assignments_persist(walk):
    look = ["print s = q[0] @ k[0].T", "print s.shape", "t2 = s.shape[0] + 1", "print (u := t2 * 10)", "next",
            "print def double(x): return x * t2", "print import math", "print double(u), math.pi > 3, s.shape"]
    assert last(walk(*look, stop_at="h.1.attn.pattern")) == "(250, True, (4, 4))"


def test_what_was_assigned_gives_way_to_a_stage_that_is_called_the_same(walk):
    assert last(walk("z = 3", "print z", "next", "print z.shape", stop_at="h.1.attn.pattern")) == "(2, 4, 6)"


@pytest.mark.parametrize("expression", ["'x' * 10**8", "[0] * 10**7", "['x' * 10**7] * 3", "np.zeros(10**7)"])
def test_a_print_of_any_length_is_a_screenful_at_once(walk, expression):
    start = time.monotonic()
    text = walk(f"print {expression}")
    assert time.monotonic() - start < 20  # wrapped to lines as a whole, 'x' * 10**8 takes minutes
    assert len(text.splitlines()) < 2 * 40


def test_print_alone_prints_the_stage(walk):
    assert walk("p", stop_at="wpe") == walk("p value", stop_at="wpe") == walk("p wpe", stop_at="wpe")


def test_of_two_names_that_end_alike_the_later_one_is_meant(walk):
    assert last(walk("p out is acts['h.1.attn.out']", stop_at="h.1.mlp.post")) == "True"
    assert last(walk("p out is acts['h.1.mlp.out']", stop_at="h.1.mlp.out")) == "True"
    assert last(walk("p q", stop_at="h.1.ln_1")) == "error: NameError: q is still to come"  # not h.0's
    assert last(walk("p q", "until ln_1", "p q", stop_at="h.0.attn.q")) == "error: NameError: q is still to come"


def test_after_the_last_block_its_arrays_are_still_known_by_their_last_names(walk):
    assert last(walk("p q is acts['h.2.attn.q']", stop_at="logits")) == "True"


def test_show_shows_an_earlier_stage_again(walk):
    assert stops(walk("show", "sh q", "show h.0.attn.z", "show h.0.z", "show mlp.out", stop_at="h.1.attn.pattern")) == [
        "h.1.attn.pattern", "h.1.attn.pattern", "h.1.attn.q", "h.0.attn.z", "h.0.attn.z"]


def test_back_looks_at_earlier_stages_and_next_comes_forward_again(walk):
    text = walk("back", "b", "print value is k_all", "heads", "logits", "next", "n", "n", "where",
                stop_at="h.1.attn.scores")
    assert stops(text) == ["h.1.attn.scores", "h.1.attn.v_all", "h.1.attn.k_all", "h.1.attn.v_all", "h.1.attn.scores",
                           "h.1.attn.pattern"]
    assert "True" in text and "if it stopped at h.1.resid_pre" in text and "[attn.pattern]" in text


def test_back_sees_the_block_the_lens_and_the_lines_of_the_stage_that_is_looked_at(walk):
    text = walk("back", "back", "print q is acts['h.0.attn.q']", "logits", "where", "layer 2", stop_at="h.1.ln_1")
    assert "step> " in text and "True" in text and "if it stopped at h.0.resid_post" in text
    assert re.search(r"^h\.0: resid_pre .*\[resid_post\]$", text.replace("\n  ", " "), re.MULTILINE)
    assert "forward > transform > block\n" in text and stops(text)[-1] == "h.2.resid_pre"


def test_before_the_first_stage_there_is_nothing_to_go_back_to(walk):
    assert last(walk("next", "back", "back")) == "error: wte is the first stage"


def test_heads_shows_all_or_chooses_one(walk):
    text = walk("hd", "heads 1", "next", stop_at="h.1.attn.scores")
    assert "head 0  head 1" in text
    assert text.index("head 0 of 2: a row") < text.index("head 1 of 2 is shown from here on")
    assert text.count("head 1 of 2: a row") == 2  # at once, and at the next stop
    assert "head 0  head 1" in walk("heads", stop_at="h.1.attn.q")


@pytest.mark.parametrize("stop_at, stream", [
    ("wte", "wte"), ("wpe", "wte + wpe"), ("h.0.resid_pre", "h.0.resid_pre"), ("h.1.attn.q", "h.1.resid_pre"),
    ("h.1.mlp.pre", "h.1.resid_mid"), ("h.2.resid_post", "h.2.resid_post"), ("logits", "h.2.resid_post")])
def test_logits_are_the_lens_on_the_latest_residual_stream_and_say_which(walk, stop_at, stream):
    acts = Recorder()
    forward(MODEL, IDS, tap=acts)
    text = walk("logits", stop_at=stop_at)
    assert f"if it stopped at {stream}\n" in text
    residual = sum(acts[name] for name in stream.split(" + "))
    rows = text[text.index("if it stopped at"):].splitlines()[2:6]
    for row, logits in zip(rows, residual_logits(MODEL, residual)):
        best = top_tokens(logits, TOKENIZER, 3)
        assert all(f" {quoted(TOKENIZER, token.id)} " in row for token in best)
        assert [float(number) for number in re.findall(r'" (\d\.\d+)', row)] == pytest.approx(
            [token.probability for token in best], abs=6e-4)


def test_tokens_lists_position_id_and_text(walk):
    lines = walk("t").splitlines()[-5:-1]
    assert [line.split(maxsplit=2) for line in lines] == [
        [str(i), str(token_id), f'"{TOKENIZER.decode([token_id])}"'] for i, token_id in enumerate(IDS)]


def test_where_marks_the_place_in_the_model_and_in_its_source(walk):
    text = walk("w", stop_at="h.1.attn.pattern")
    assert "wte wpe h.0 [h.1] h.2 ln_f logits\nh.1: resid_pre " in text and "attn.scores [attn.pattern]" in text
    assert "wte [wpe] h.0 h.1 h.2 ln_f logits\nforward > transform > embed\n" in walk("w", stop_at="wpe")
    assert "forward > transform > block > attention > attend\n" in text
    number = int(re.search(r"numpy_gpt2/model\.py:(\d+)  pattern = tap", text).group(1))
    assert number == line_with('tap("attn.pattern", ')


def test_help_names_every_command_and_its_short_form_and_none_collide(walk):
    text = walk("help")
    assert walk("?") == walk("h") == text
    for command, (short, _, _) in COMMANDS.items():
        assert re.search(rf"^{command}\b.* {short} ", text, re.MULTILINE)
        assert re.search(rf"^{command}\b.* {short} ", walk(f"help {short}"), re.MULTILINE)
    forms = [*COMMANDS, *(short for short, _, _ in COMMANDS.values())]
    assert len(set(forms)) == len(forms)
    assert {name.removeprefix("do_") for name in dir(Walk) if name.startswith("do_")} == {*COMMANDS, "EOF"}


def test_names_of_commands_and_stages_are_completed():
    walk = Walk(MODEL, TOKENIZER, IDS, KVCache(MODEL))
    assert walk.completenames("l") == ["layer", "logits"]
    assert walk.completedefault("h.1.attn.p", "until h.1.attn.p", 6, 16) == ["h.1.attn.pattern"]
    assert walk.completedefault("patt", "until patt", 6, 10) == ["pattern"]


# The debugger ---------------------------------------------------------------------------------------------------------


def test_pdb_steps_through_model_py_and_comes_back_at_the_next_stop(walk, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("p q.shape\nn\np pattern.shape\nc\nprint z.shape\nquit\n"))
    text = walk("pdb", stop_at="h.1.attn.pattern")
    assert "pdb, in attend: " in text
    assert re.search(r"model\.py\(\d+\)attend\(\)\n-> return .*pattern @ v", text)
    assert "(2, 4, 6)" in text and "(2, 4, 4)" in text
    assert stops(text) == ["h.1.attn.pattern", "h.1.attn.z"]
    assert sys.gettrace() is None


def test_pdb_never_steps_into_the_walk(walk, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("s\n" * 400 + "quit\n"))
    text = walk("pdb", stop_at="h.2.mlp.out")
    files = {path.rsplit("/")[-1] for path in re.findall(r"^> (.*)\(\d+\)\w+\(\)", text, re.MULTILINE)}
    assert files >= {"model.py", "ops.py"}
    assert files.isdisjoint({"walk.py", "tap.py", "debugger.py", "expressions.py", "fnmatch.py", "re.py"})
    assert "The pass is done." in text


def test_pdb_can_be_quit_and_its_input_can_end(monkeypatch, capsys):
    for commands in ("n\nq\n", "n\n", ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(commands))
        assert walk_through(MODEL, TOKENIZER, IDS, stop_at="h.1.attn.pattern", commands=["pdb"]) is None
        assert sys.gettrace() is None


def test_a_breakpoint_set_in_pdb_is_met_later_in_the_walk(walk, monkeypatch):
    number = line_with('tap("mlp.post"')
    monkeypatch.setattr(sys, "stdin", io.StringIO(
        f"b {model_module.__file__}:{number}\nc\nnext\np pre.shape\nn\nclear 1\nc\nprint 6 * 7\n"))
    text = walk("pdb", stop_at="h.1.ln_2")
    assert stops(text) == ["h.1.ln_2", "h.1.mlp.pre", "h.1.mlp.out"]  # stepping over the tap of post, it asks nothing
    assert f"model.py({number})mlp()\n-> post = tap" in text and "(4, 10)" in text and "42" in text
    assert sys.gettrace() is None
