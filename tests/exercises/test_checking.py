"""What a check says of a function: in a notebook, and of mistakes that no exercise knows."""

import codecs
import math
import time
import warnings

import numpy as np
import pytest
import regex

from numpy_gpt2 import bpe, ops
from numpy_gpt2.exercises import check
from numpy_gpt2.exercises.checking import check_function
from numpy_gpt2.exercises.course import exercises_by_name
from numpy_gpt2.exercises.laws import LAWS
from numpy_gpt2.tokenizer import Tokenizer


def right_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def first_line(name, function, language="en"):
    return check(name, function, language).message.split("\n")[0]


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "linear", "embed", "attend", "unembed"])
def test_float64_creeping_in_is_named(name):
    def widened(*args):
        return LAWS[name].reference(*args).astype(np.float64)

    message = first_line(name, widened)
    assert message.startswith("The numbers are right, but they are float64: expected float32.")


def test_an_input_modified_in_place_is_named():
    def softmax(x, out=None):
        x -= x.max(axis=-1, keepdims=True)
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)

    def block(x, weights, config, cache, layer, tap):
        x += 1
        x -= 1
        result = LAWS["block"].reference(x, weights, config, cache, layer, tap)
        x += result - x
        return x

    assert first_line("softmax", softmax).startswith("It changes its input x in place")
    assert first_line("block", block).startswith("It changes its input x in place")


def test_a_missing_return_a_wrong_type_and_a_wrong_shape_are_named():
    assert first_line("softmax", lambda x, out=None: None) == "It returned None: is there a `return` at its end?"
    assert first_line("softmax", lambda x, out=None: x.tolist()) == "The result is list: expected float32 [3]."
    assert first_line("softmax", lambda x, out=None: x[..., :1]) == "The result has the shape [1]: expected [3]."


def test_strange_results_are_no_reason_to_stop():
    arrays = [np.array(["a"] * 3), np.array([None] * 3), np.array([1j, 2, 3])]
    for strange in [object(), "x", {}, [[1], 2], np.mean, *arrays]:
        assert not check("softmax", lambda x, out=None: strange).passed


def test_an_exception_is_one_line_with_its_message():
    def softmax(x, out=None):
        return [][3]

    assert first_line("softmax", softmax) == "It raised IndexError: list index out of range."


class Students(Tokenizer):
    """Methods that leave the work to the engine's, by the three ways to call it."""

    def decode(self, ids):
        return self.decode(ids)

    def decode_stream(self, ids):
        yield from Tokenizer.decode_stream(self, ids)

    def append(self, layer, k, v):
        return type(self).append(self, layer, k, v)


@pytest.mark.parametrize("name, function", [
    ("decode", Students.decode),
    ("decode_stream", Students.decode_stream),
    ("append", Students.append),
    ("softmax", lambda x, out=None: ops.softmax(x)),
    ("gelu", lambda x: ops.activation("gelu_new", x)),
    ("merge", lambda piece, ranks: bpe.encode(piece.decode(), ranks)),
])
def test_a_function_that_calls_the_engines_own_is_wrong(name, function):
    assert check(name, function).message == f"It calls the engine's own {name}, which is what you are to write."
    assert check(name, LAWS[name].reference).passed  # and the engine has it back


def test_text_that_is_not_split_before_it_is_merged_is_wrong():
    assert not check("encode", lambda text, ranks: bpe.merge(text.encode(), ranks)).passed

    def with_pattern(pattern):
        return lambda text, ranks: [token for piece in regex.findall(pattern, text)
                                    for token in bpe.merge(piece.encode(), ranks)]

    assert check("encode", with_pattern(bpe.SPLIT_PATTERN)).passed
    without_contractions = bpe.SPLIT_PATTERN.partition(")|")[2]
    for pattern in [r" ?\S+", r"\s*\S+", r" ?\w+| ?[^\w\s]+|\s+", r"\w+|\W+", r"\S+|\s+", without_contractions]:
        assert not check("encode", with_pattern(pattern)).passed, pattern


def decode_stream(self, ids, collect):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token_id in collect(ids):
        if piece := decoder.decode(self.token_bytes(token_id)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def test_a_stream_that_waits_for_later_ids_is_wrong():
    def one_ahead(ids):
        ids = list(ids)[::-1]
        while ids:
            yield ids.pop()

    assert check("decode_stream", lambda self, ids: decode_stream(self, ids, iter)).passed
    for collect in (list, one_ahead):
        message = check("decode_stream", lambda self, ids: decode_stream(self, ids, collect)).message
        assert "expected.ids_taken = [1, 2, 3, 4, " in message
    assert not check("decode_stream", lambda self, ids: list(decode_stream(self, ids, iter))).passed


def test_a_stream_that_a_stray_byte_holds_up_is_wrong():
    def until_it_decodes(self, ids):
        held_back = b""
        for token_id in ids:
            held_back += self.token_bytes(token_id)
            try:
                text = held_back.decode()
            except UnicodeDecodeError:
                continue
            if text:
                yield text
            held_back = b""
        if held_back:
            yield held_back.decode(errors="replace")

    assert "[108, 111, 160, 119, 101, 114]" in check("decode_stream", until_it_decodes).message


def test_an_empty_piece_of_a_stream_is_named():
    def with_an_empty_start(self, ids):
        yield ""
        yield from decode_stream(self, ids, iter)

    assert first_line("decode_stream", with_an_empty_start) == (
        "The result.pieces has an empty text: no piece may be empty.")


def test_a_generator_in_place_of_a_list_is_named():
    def encode(text, ranks):
        return (token for piece in bpe.split(text) for token in bpe.merge(piece.encode(), ranks))

    assert first_line("encode", encode) == "The result is generator: expected list."


def test_an_array_in_a_tuple_of_numbers_is_named():
    message = check("previous_token_head", lambda patterns: (np.zeros(2), 1)).message
    assert message.startswith("The result[0] is float64 [2]: expected int.")


def test_a_factor_that_only_one_case_has_is_not_the_mistake():
    assert first_line("softmax_backward", lambda d_y, y: y - d_y) == "The result is not right."


def test_a_whole_number_is_not_a_float():
    assert first_line("sample", lambda logits, draws: np.float64(0)) == "The result is float64: expected int64."
    half = "The result[0] is float: expected int."
    assert first_line("previous_token_head", lambda patterns: (0.0, 1)) == half


def test_lists_are_shown_whole_with_their_first_difference():
    message = check("merge", lambda piece, ranks: [piece[:1], piece[1:]]).message
    assert message.split("\n")[-3:] == ["  expected = [b'er']", "  got = [b'e', b'r']",
                                        "  first difference = [0]: expected b'er' got b'e'"]
    message = check("merge", lambda piece, ranks: [piece.decode()]).message
    assert message.startswith("The result[0] is str: expected bytes.\n")


def joined_by(best_pair):
    """merge, where best_pair gives the index of the pair to join next, or None."""
    def merge(piece, ranks):
        tokens = [piece[i:i + 1] for i in range(len(piece))]
        while (i := best_pair(tokens, [ranks.get(pair) for pair in zip(tokens, tokens[1:])])) is not None:
            tokens[i:i + 2] = [tokens[i] + tokens[i + 1]]
        return tokens

    return merge


def first_lowest(tokens, ranks):
    return min((i for i, rank in enumerate(ranks) if rank is not None), key=ranks.__getitem__, default=None)


def without_rank_0(tokens, ranks):
    return first_lowest(tokens, [rank or None for rank in ranks])


def without_index_0(tokens, ranks):
    return first_lowest(tokens, ranks) or None


def best_0_replaced(tokens, ranks):
    best = where = None
    for i, rank in enumerate(ranks):
        if rank is not None and (not best or rank < best):
            best, where = rank, i
    return where


def index_of_the_left_token(tokens, ranks):
    i = first_lowest(tokens, ranks)
    return None if i is None else tokens.index(tokens[i])


@pytest.mark.parametrize("best_pair, beginning", [
    (first_lowest, "passed"),
    (without_rank_0, "Rank 0 is taken for no rank"),
    (without_index_0, "Index 0 is taken for no pair"),
    (best_0_replaced, "Rank 0 counts as the highest"),
    (index_of_the_left_token, "The pair is looked up by its left token"),
])
def test_a_zero_taken_for_nothing_and_the_wrong_index_are_named(best_pair, beginning):
    assert first_line("merge", joined_by(best_pair)).startswith(beginning)


def test_only_the_ranks_that_matter_to_a_case_are_shown():
    message = check("merge", lambda piece, ranks: []).message
    assert "  ranks = {(b'e', b'r'): 0}\n" in message
    assert "  ranks = {(b'l', b'ow'): 1, (b'o', b'w'): 0}\n" in check("encode", lambda text, ranks: []).message


def test_text_whose_ends_are_stripped_is_wrong():
    def encode(text, ranks):
        return [token for piece in bpe.split(text.strip()) for token in bpe.merge(piece.encode(), ranks)]

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace").strip()

    assert first_line("encode", encode).startswith("The spaces at the ends of the text are stripped")
    assert not check("decode", decode).passed


def test_a_missing_key_is_named_whichever_pair_is_looked_up_first():
    def merge(piece, ranks):
        tokens = [piece[i:i + 1] for i in range(len(piece))]
        while len(tokens) > 1:
            i = min(reversed(range(len(tokens) - 1)), key=lambda i: ranks[tokens[i], tokens[i + 1]])
            tokens[i:i + 2] = [tokens[i] + tokens[i + 1]]
        return tokens

    assert first_line("merge", merge).startswith("A pair without a rank raises KeyError")


def test_warnings_of_numpy_are_not_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert not check("induction_score", lambda pattern, period: pattern[..., :0].mean(axis=-1)).passed
    assert shown == []


def layer_norm_of_rows(x, weight, bias, epsilon):
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True, ddof=1)
    return (x - mean) / np.sqrt(variance + epsilon) * weight + bias


def softmax_less(x, subtracted):
    return np.exp(x - subtracted) / np.exp(x - subtracted).sum(axis=-1, keepdims=True)


def normed(x, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + np.float32(epsilon))


def layer_norm_by_absolute_deviation(x, weight, bias, epsilon):
    centered = x - x.mean(-1, keepdims=True)
    return weight * centered / (np.abs(centered).mean(-1, keepdims=True) + epsilon) + bias


def crop_in_own_words(self, length):
    if length < 0 or length >= self.length:
        raise ValueError("so long it is not")
    self.length = length


def crop_by_index(self, length):
    self.length = range(self.length + 1)[length if length >= 0 else self.length + 1]


def gelu_backward_in_float64(d_y, x):
    s = np.array([math.sqrt(2 / math.pi)])
    t = np.tanh(s * (x + 0.044715 * x**3))
    return d_y * 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * s * (1 + 3 * 0.044715 * x**2)


@pytest.mark.parametrize("name, function, beginning", [
    ("layer_norm", layer_norm_of_rows, "The variance is divided by n - 1"),  # a batch goes wrong in another way
    ("crop", crop_in_own_words, "A length of self.length is refused"),
    ("gelu_backward", gelu_backward_in_float64, "d_y multiplies only the first term"),  # float64 is the lesser mistake
    ("softmax", lambda x, out=None: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True), "It raised AxisError: axis 1 is "
     "out of bounds for array of dimension 1. Count axes from the end, axis=-1"),
    ("sample", lambda logits, draws: np.random.randint(99, size=draws.shape), "It gives another result each time"),
    ("crop", lambda self, length: self.no_such_method(), "It raised AttributeError"),
    ("gelu", lambda x: {}[object()], "It raised KeyError: <object object at 0x"),
    ("gelu", lambda x: [].index(object()), "It raised ValueError: <object object at 0x"),
    ("crop", crop_by_index, "It raised IndexError: range object index out of range. It should raise ValueError."),
    ("gelu", lambda x: -2 * right_gelu(x), "Every number is -2 times what it should be."),
    ("gelu", lambda x: right_gelu(x) + 1, "Every number is what it should be plus 1."),
    ("softmax", lambda x, out=None: softmax_less(x, x.min(axis=-1, keepdims=True)), "The smallest number is"),
    ("softmax", lambda x, out=None: softmax_less(x, np.abs(x).max(axis=-1, keepdims=True)), "The largest absolute"),
    ("softmax", lambda x, out=None: softmax_less(x, x.max()), "The maximum is the whole array's"),
    ("gelu", lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.44715 * x**3))), "The factor of the"),
    ("layer_norm", layer_norm_by_absolute_deviation, "This divides by the mean absolute deviation"),
    ("layer_norm", lambda x, weight, bias, epsilon: (normed(x, epsilon) + bias) * weight, "The bias is added before"),
    ("layer_norm", lambda x, weight, bias, epsilon: (normed(x, 0) + epsilon) * weight + bias, "epsilon is added after"),
    ("linear", lambda x, weight, bias: x @ (weight + bias), "The bias is added to the weight"),
    ("linear", lambda x, weight, bias: weight.T @ x + bias, "The product is turned round"),
    ("embed", lambda model, ids, first_position, tap: model.wte[ids] + model.wpe[ids], "wpe is indexed by token ids"),
    ("attend", lambda *args: np.swapaxes(LAWS["attend"].reference(*args), -1, -2), "The last two axes are swapped"),
])
def test_what_students_write_in_their_own_way_is_named(name, function, beginning):
    assert first_line(name, function).startswith(beginning)


def test_what_is_right_for_one_sequence_only_is_told_so():
    def split_heads(x, n_head):
        if x.ndim == 2:
            return ops.linear(x, np.eye(x.shape[-1], dtype=x.dtype), np.float32(0)).reshape(
                len(x), n_head, -1).transpose(1, 0, 2)
        return np.zeros((*x.shape[:-2], n_head, x.shape[-2], x.shape[-1] // n_head), x.dtype)

    assert "One sequence is right, a batch is not" in first_line("split_heads", split_heads)


def test_an_unknown_mistake_shows_the_smallest_case_and_the_first_difference():
    def gelu(x):
        return np.where(x > 1, np.float32(7), right_gelu(x))

    message = check("gelu", gelu).message
    assert message.split("\n") == [
        "The result is not right.",
        "The smallest case that fails:",
        "  x = float32 [4] [-1.,  0.,  1.,  2.]",
        "  expected = float32 [4] [-0.1588,  0.    ,  0.8412,  1.9546]",
        "  got = float32 [4] [-0.1588,  0.    ,  0.8412,  7.    ]",
        "  first difference = [3]: expected 1.9546 got 7"]


def test_another_order_of_summation_is_no_mistake():
    def gelu(x):
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x**2)))

    def layer_norm(x, weight, bias, epsilon):
        return weight * (x - np.mean(x, -1, keepdims=True)) / np.sqrt(np.var(x, -1, keepdims=True) + epsilon) + bias

    assert check("gelu", gelu).passed
    assert check("layer_norm", layer_norm).passed


def test_a_notebooks_result_has_passed_and_message_and_shows_as_text_and_html():
    right, wrong = check("softmax", ops.softmax), check("softmax", lambda x, out=None: x)
    assert (right.passed, right.message) == (True, "passed")
    assert wrong.passed is False
    assert repr(right) == "softmax: passed"
    assert wrong.message in repr(wrong)
    assert "<b>softmax</b>: passed" in right._repr_html_()
    assert "&lt;" in check("softmax", lambda x, out=None: "<b>")._repr_html_() or "<b>" not in wrong.message


def test_a_notebook_takes_a_class_for_a_method_and_refuses_unknown_names():
    with pytest.raises(ValueError, match="name must be an exercise's. Got 'Sofmax'. Did you mean softmax or"):
        check("Sofmax", ops.softmax)
    with pytest.raises(ValueError, match="language must be one of en, vi. Got 'fr'"):
        check("softmax", ops.softmax, "fr")


def test_vietnamese_messages_are_vietnamese():
    assert check("softmax", ops.softmax, "vi").message == "đạt"
    assert first_line("softmax", lambda x, out=None: None, "vi").startswith("Hàm trả về None")


def test_a_check_takes_less_than_a_second():
    for name, exercise in exercises_by_name().items():
        for function in (LAWS[name].reference, lambda *args: "which no known mistake gives"):
            started = time.process_time()
            check_function(exercise, function)
            assert time.process_time() - started < 1, name
