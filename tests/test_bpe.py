"""Byte pair encoding: the merges are those of its definition, and the ids those of tiktoken and of `tokenizers`."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import numpy_gpt2
from numpy_gpt2 import bpe
from numpy_gpt2.checkpoint.loading import load_tokenizer
from numpy_gpt2.checkpoint.vocabulary import Vocabulary, build_tokenizer, byte_alphabet
from numpy_gpt2.tokenizer import END_OF_TEXT, AddedToken, Preparation, Tokenizer, split_as_tiktoken

BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
FAIRYTALE = load_tokenizer("fairytale")
any_text = st.text()  # of every plane, characters that no version of Unicode knows included
likely_text = st.text(st.sampled_from("the catsonm'dl,:über 2019cafés日本語…\t\n\u3000\x1c\x85\xa0\U0001f600"))


def merge_by_definition(piece, ranks):
    """Each merge as (rank, tokens after it): look at all adjacent pairs, merge the first of the lowest rank, repeat."""
    tokens = [piece[i:i + 1] for i in range(len(piece))]
    steps = []
    while True:
        listed = [(ranks[pair], i) for i, pair in enumerate(zip(tokens, tokens[1:])) if pair in ranks]
        if not listed:
            return steps
        rank, i = min(listed)
        tokens[i:i + 2] = [tokens[i] + tokens[i + 1]]
        steps.append((rank, list(tokens)))


@st.composite
def merges_of_abc(draw):
    """A list of merges in any order, some of tokens that are made later or never, some listed twice."""
    tokens, pairs = [b"a", b"b", b"c"], []
    for _ in range(draw(st.integers(0, 10))):
        pairs.append((draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))))
        tokens.append(b"".join(pairs[-1]))
    return draw(st.permutations(pairs))


def ranks_of(pairs):
    return {pair: rank for rank, pair in enumerate(pairs)}


# The algorithm


@given(merges_of_abc(), st.text("abc", max_size=40))
@example([(b"a", b"a"), (b"aa", b"a")], "aaa" * 5)
@example([(b"ab", b"a"), (b"a", b"b")], "abab")  # the pair that a merge makes comes before its own second occurrence
@settings(max_examples=200)
def test_merges_are_those_of_the_definition_one_by_one(pairs, text):
    piece, ranks = text.encode(), ranks_of(pairs)
    expected = merge_by_definition(piece, ranks)
    cuts = list(range(len(piece) + 1))
    steps = list(bpe.merge_steps(piece, ranks))
    assert [step.rank for step in steps] == [rank for rank, _ in expected]
    for step, (_, tokens) in zip(steps, expected):
        assert pairs[step.rank] == (piece[step.start:step.middle], piece[step.middle:step.end])
        cuts.remove(step.middle)
        assert [piece[start:end] for start, end in zip(cuts, cuts[1:])] == tokens
    assert bpe.merge(piece, ranks) == ([tokens for _, tokens in expected] or [[piece[i:i + 1] for i in cuts[:-1]]])[-1]


def test_a_piece_of_one_byte_or_none_has_no_merges():
    assert bpe.merge(b"", {(b"", b""): 0}) == []
    assert bpe.merge(b"a", {(b"a", b""): 0, (b"", b"a"): 0, (b"a", b"a"): 0}) == [b"a"]


class CountedRanks(dict):
    n_lookups = 0

    def get(self, pair, default=None):
        self.n_lookups += 1
        return super().get(pair, default)


@pytest.mark.parametrize("word", ["a" * 20_000, "ab" * 10_000, "internationalisation" * 1000],
                         ids=lambda word: word[:3])
def test_a_long_word_looks_up_at_most_three_pairs_for_each_byte(word):
    ranks = CountedRanks(FAIRYTALE.merge_ranks)
    assert b"".join(bpe.merge(word.encode(), ranks)) == word.encode()
    assert len(word) - 1 <= ranks.n_lookups <= 3 * len(word)


@given(any_text | likely_text)
def test_pieces_and_tokens_join_to_the_text(text):
    assert "".join(bpe.split(text)) == text
    assert b"".join(bpe.encode(text, FAIRYTALE.merge_ranks)) == text.encode()


def test_pieces_are_what_the_pattern_says():
    pieces = ["She", "'ll", " see", " ", " the", " 3", " bears", "...", " \n"]
    assert bpe.split("".join(pieces)) == pieces


# The same ids as tiktoken


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])) | likely_text)
def test_tokens_are_tiktokens_on_the_bundled_vocabulary(text):
    assert bpe.encode(text, FAIRYTALE.merge_ranks) == [*map(FAIRYTALE.token_bytes, FAIRYTALE.encode(text))]


@given(any_text | likely_text)
@settings(max_examples=100)
def test_ids_by_merges_are_tiktokens_whatever_the_text(text):
    assert FAIRYTALE._ids_are_ranks
    assert FAIRYTALE._encode_by_merges(text) == FAIRYTALE.encode(text)


# Signs that merge with any byte show where a text was split: "a" goes together with letters, "1" with numbers.
SEAMS = [(sign, letter) for sign in "a1!" for letter in byte_alphabet()]
UNASSIGNED_UNTIL_LATELY = "\u0558\u088f\u0c5c\U00011de0\U00016ff4\U0003fc3d"


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("a1! \n'\u3000é²" + UNASSIGNED_UNTIL_LATELY)))
@example("".join(sign + character for character in UNASSIGNED_UNTIL_LATELY + "é²\u3000…" for sign in "a1!"))
@settings(max_examples=200)
def test_a_text_is_split_where_tiktoken_splits_it(text):
    tokenizer = tokenizer_of(SEAMS)
    assert tokenizer._ids_are_ranks
    assert "".join(split_as_tiktoken(text)) == text
    assert tokenizer._encode_by_merges(text) == tokenizer.encode(text)


# Vocabularies of any order


def in_letters(token):
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    return "".join(letters[byte] for byte in token)


def vocabulary_of(pairs, shuffle=None):
    """The 256 bytes, what the pairs make and the end of text, in that order, or in the order that `shuffle` makes."""
    tokens = list(dict.fromkeys([*byte_alphabet(), *map("".join, pairs), END_OF_TEXT]))
    if shuffle:
        shuffle(tokens)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    return Vocabulary(ids, [" ".join(pair) for pair in pairs], {END_OF_TEXT: AddedToken(ids[END_OF_TEXT])})


def tokenizer_of(pairs):
    return build_tokenizer(vocabulary_of(pairs))


any_pairs = merges_of_abc().map(lambda pairs: [tuple(map(in_letters, pair)) for pair in pairs])
shuffles = st.none() | st.randoms(use_true_random=False).map(lambda random: random.shuffle)


@given(any_pairs, shuffles, st.text("abc ", max_size=40))
@example([("b", "c"), ("a", "b"), ("ab", "c")], None, "abc")  # the first merge leaves a bc
@example([("a", "a"), ("a", "aa")], None, "aaa")  # from the left, it is aa a
@example([("ab", "a"), ("a", "b")], None, "abab")
@example([("a", "b"), ("b", "c"), ("a", "b")], None, "abc")  # a pair listed twice counts where it comes last
@settings(max_examples=200)
def test_merges_in_any_order_and_ids_in_any_order_are_encoded_as_listed(pairs, shuffle, text):
    vocabulary = vocabulary_of(pairs, shuffle)
    tokenizer = build_tokenizer(vocabulary)
    ranks = ranks_of([tuple(map(str.encode, pair)) for pair in pairs])
    tokens = []
    for piece in bpe.split(text):
        steps = merge_by_definition(piece.encode(), ranks)
        tokens += steps[-1][1] if steps else [byte.encode() for byte in piece]
    assert [*map(tokenizer.token_bytes, tokenizer.encode(text))] == tokens
    assert tokenizer.encode(text) == [vocabulary.ids[in_letters(token)] for token in tokens]


def merges_alone(pair, earlier):
    """Whether the pair's own bytes become the pair, by the merges before it: then only does tiktoken merge it too."""
    steps = merge_by_definition("".join(pair).encode(), ranks_of([tuple(map(str.encode, other)) for other in earlier]))
    return steps[-1][1] == [*map(str.encode, pair)] if steps else [*map(len, pair)] == [1, 1]


@given(any_pairs)
@example([("a", "a"), ("aa", "aa")])
@example([("a", "b"), ("b", "c"), ("ab", "c")])
@settings(max_examples=200)
def test_tiktoken_encodes_exactly_where_its_merges_are_those_of_the_list(pairs):
    pairs = [*dict.fromkeys(reversed(pairs))][::-1]  # a pair listed twice counts where it comes last
    are_new = len(set(map("".join, pairs))) == len(pairs)
    agrees = are_new and all(merges_alone(pair, pairs[:number]) for number, pair in enumerate(pairs))
    assert tokenizer_of(pairs)._ids_are_ranks == agrees


def test_where_tiktoken_merges_as_listed_it_encodes(monkeypatch):
    monkeypatch.setattr(FAIRYTALE, "_encode_by_merges", None)  # so that to call it would be a TypeError
    assert FAIRYTALE.decode(FAIRYTALE.encode("the king")) == "the king"


def test_ids_that_fall_are_not_taken_for_ranks():
    vocabulary = vocabulary_of([("a", "b"), ("b", "c")], lambda tokens: tokens.sort(reverse=True))
    tokenizer = build_tokenizer(vocabulary)
    assert not tokenizer._ids_are_ranks
    assert [*map(tokenizer.token_bytes, tokenizer.encode("abc"))] == [b"ab", b"c"]


def test_special_tokens_and_streams_are_the_same_where_bpe_encodes():
    vocabulary = vocabulary_of([("b", "c"), ("a", "b"), ("ab", "c")])
    tokenizer = build_tokenizer(vocabulary)
    assert not tokenizer._ids_are_ranks
    ids = tokenizer.encode("abcé" + END_OF_TEXT + "bc", "all")
    assert ids.count(tokenizer.eot_id) == 1 and tokenizer.eot_id not in tokenizer.encode(END_OF_TEXT)
    assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(ids)) == "abcé" + END_OF_TEXT + "bc"


@pytest.mark.parametrize("preparation", [
    Preparation(), Preparation(add_prefix_space=True), Preparation(use_regex=False), Preparation(normalize=str.upper)],
    ids=["plain", "prefix", "no regex", "normalizer"])
@pytest.mark.parametrize("allowed_special", ["all", ()], ids=["special", "as text"])
@given(st.lists(st.sampled_from(["abc", "a b", " ", "é", "<x>", END_OF_TEXT])).map("".join))
def test_pieces_are_what_is_merged_around_added_tokens(preparation, allowed_special, text):
    ids = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b" a": 257, b"AB": 258}
    ranks = {(b"a", b"b"): 0, (b" ", b"a"): 1, (b"A", b"B"): 2}
    added = {END_OF_TEXT: AddedToken(259), "<x>": AddedToken(260, is_special=False)}
    tokenizer = Tokenizer(ids, ranks, added, preparation=preparation)
    pieces = tokenizer.pieces(text, allowed_special)
    merged = [ids[token] for piece in pieces for token in bpe.merge(piece.encode(), ranks)]
    encoded = tokenizer.encode(text, allowed_special)
    assert merged == [token_id for token_id in encoded if token_id < 259]
    assert encoded.count(260) == text.count("<x>")
    assert encoded.count(259) == text.count(END_OF_TEXT) * (allowed_special == "all")


# The same ids as `tokenizers`


def their_tokenizer(vocabulary):
    tokenizers = pytest.importorskip("tokenizers")
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary.ids, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return theirs


@pytest.mark.parity
def test_ids_on_the_bundled_vocabulary_are_those_of_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(str(BUNDLED / "vocab.json"), str(BUNDLED / "merges.txt"))

    @given(any_text | likely_text)
    @settings(max_examples=300)
    def test(text):
        assert FAIRYTALE._encode_by_merges(text) == theirs.encode(text).ids

    test()


@pytest.mark.parity
@given(any_pairs, shuffles, st.text("abc é'1\n", max_size=40) | any_text)
@example([("ab", "a"), ("a", "b")], None, "abab")
@example([("a", "b"), ("b", "c"), ("a", "b")], None, "abc")
@settings(max_examples=300)
def test_ids_on_any_vocabulary_are_those_of_tokenizers(pairs, shuffle, text):
    vocabulary = vocabulary_of(pairs, shuffle)
    assert build_tokenizer(vocabulary).encode(text) == their_tokenizer(vocabulary).encode(text).ids


@pytest.mark.parity
@given(st.text("etaoinshr", max_size=300), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_ids_on_trained_merges_in_any_order_are_those_of_tokenizers(text, random):
    pairs = [tuple(map(in_letters, pair)) for pair in list(FAIRYTALE.merge_ranks)[:300]]
    random.shuffle(pairs)
    vocabulary = vocabulary_of(pairs, random.shuffle)
    assert build_tokenizer(vocabulary).encode(text) == their_tokenizer(vocabulary).encode(text).ids
