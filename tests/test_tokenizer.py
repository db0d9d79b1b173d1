"""The tokenizer: every text survives, ids are exact, streams join to the text, and wrong files are refused by name."""

import json
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
import tiktoken.load
from gpt2_vocabulary import KNOWN_IDS, write_gpt2_vocabulary
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numpy_gpt2.checkpoint.vocabulary import Vocabulary, build_tokenizer, byte_alphabet, tokenizer_from_files
from numpy_gpt2.errors import CheckpointError, CheckpointWarning
from numpy_gpt2.tokenizer import END_OF_TEXT, SPLIT_PATTERN, AddedToken, Tokenizer, escaped, quoted

# OpenAI's own pattern, `src/encoder.py`. The `regex` module, which tiktoken brings along, knows \p.
OPENAI_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
LETTERS = {byte: letter for letter, byte in byte_alphabet().items()}
REAL_FILES = Path(__file__).resolve().parents[2] / "shared" / "gpt2-tokenizer"
SAMPLE = "the cat's on the mat, and the others aren't: über 2001 cafés 日本語 日本 日 …  \n\n  the    end\n" * 3


# A slow byte pair encoding, to compare with: pieces and tokens in the letters of GPT-2's byte alphabet.


def in_letters(text):
    return "".join(LETTERS[byte] for byte in text.encode())


def pieces_of(text):
    return [in_letters(piece) for piece in OPENAI_PATTERN.findall(text)]


def join_pair(tokens, pair):
    """`tokens` with `pair` joined wherever it stands, from left to right."""
    joined, position = [], 0
    while position < len(tokens):
        width = 2 if tuple(tokens[position:position + 2]) == pair else 1
        joined.append("".join(tokens[position:position + width]))
        position += width
    return joined


def slow_merge(piece, pairs):
    """The tokens of one piece: as long as a listed pair is there, join the one that is listed first."""
    rank = {pair: position for position, pair in enumerate(pairs)}
    tokens = list(piece)
    while True:
        present = [pair for pair in zip(tokens, tokens[1:]) if pair in rank]
        if not present:
            return tokens
        tokens = join_pair(tokens, min(present, key=rank.__getitem__))


def slow_encode(text, vocab, pairs):
    return [vocab[token] for piece in pieces_of(text) for token in slow_merge(piece, pairs)]


def learn_pairs(text, n_merges):
    """A byte pair encoding's training: join the most frequent pair of neighbours, again and again."""
    pieces, pairs = [list(piece) for piece in pieces_of(text)], []
    for _ in range(n_merges):
        counts = Counter(pair for piece in pieces for pair in zip(piece, piece[1:]))
        pairs.append(max(sorted(counts), key=counts.__getitem__))
        pieces = [join_pair(piece, pairs[-1]) for piece in pieces]
    return pairs


def ids_of(pairs):
    """A vocabulary in OpenAI's order: the 256 bytes, what the merges make, the end of text."""
    tokens = [*byte_alphabet(), *(left + right for left, right in pairs), END_OF_TEXT]
    return {token: token_id for token_id, token in enumerate(tokens)}


PAIRS = learn_pairs(SAMPLE, 40)
VOCAB = ids_of(PAIRS)
N_TOKENS = len(VOCAB)


def from_pairs(pairs):
    vocab = ids_of(pairs)
    end_of_text = {END_OF_TEXT: AddedToken(vocab[END_OF_TEXT])}
    return build_tokenizer(Vocabulary(vocab, [" ".join(pair) for pair in pairs], end_of_text))


TOKENIZER = from_pairs(PAIRS)


def tokenizer_json(**changes):
    """What transformers 5 writes for VOCAB and PAIRS, changed at dotted keys: {"model.dropout": 0.1}."""
    vocab = {token: token_id for token, token_id in VOCAB.items() if token != END_OF_TEXT}
    settings = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [added_token(END_OF_TEXT, VOCAB[END_OF_TEXT])],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": [list(pair) for pair in PAIRS]},
    }
    for dotted_key, value in changes.items():
        *sections, key = dotted_key.split(".")
        holder = settings
        for section in sections:
            holder = holder[section]
        holder[key] = value
    return settings


def added_token(name, token_id, **changes):
    return {"id": token_id, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **changes}


def write_files(folder, **contents):
    """Files in `folder`, from str, bytes or what JSON can hold."""
    files = {}
    for stem, content in contents.items():
        path = folder / (stem + (".txt" if stem == "merges" else ".json"))
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        files[path.name] = path
    return files


MERGES_TXT = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in PAIRS)


def refusal(files):
    """The message with which `files` are refused: one line, without the folder."""
    with pytest.raises(CheckpointError) as caught:
        tokenizer_from_files(files)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message.removeprefix(f"{next(iter(files.values())).parent}{os.sep}") if files else message


any_text = st.text()
assigned_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]))  # the Unicode version changes none of it
likely_text = st.text(st.sampled_from("the catsonm'dl,:über 2019cafés日本語…\t\n\u3000\x1c\x85\xa0\U0001f600"))
any_ids = st.lists(st.integers(0, N_TOKENS - 1))


# Encoding


@given(any_text | likely_text)
def test_any_text_survives_encoding_and_decoding(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(assigned_text | likely_text)
def test_ids_are_those_of_slow_byte_pair_encoding(text):
    assert TOKENIZER.encode(text) == slow_encode(text, VOCAB, PAIRS)


def test_learned_merges_are_used():
    assert len(TOKENIZER.encode(SAMPLE)) < len(SAMPLE.encode()) / 2


@given(any_text | likely_text)
@example("he'd she'll I've I'm it's don't we're I'D we'Re '")
def test_split_is_openais(text):
    ours = regex.findall(SPLIT_PATTERN, text)
    assert ours == OPENAI_PATTERN.findall(text)


WHITE_SPACE = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]


LONG_RUNS = [f"{end}{space * 20_000}{end}" for space in WHITE_SPACE for end in ("", "x")] + [
    " " * 20_000 + "\x1c", " " * 20_000 + "\x1cx", "\x1c" + "\n" * 20_000 + "\x1c x", " \t" * 10_001 + "\x1f",
    "a" + " " * 9_999 + "b" + " " * 10_000 + "c" + " " * 10_001 + "d" + "\n" * 10_002 + "!"]


@pytest.mark.parametrize("text", LONG_RUNS, ids=lambda text: ascii(text[:1] + text[-1:]))
def test_long_white_space_is_encoded_as_tiktoken_does(text):
    assert TOKENIZER.encode(text) == TOKENIZER._encoding.encode_ordinary(text)


@pytest.mark.parametrize("word", ["", "b"], ids=["at the end", "before a word"])
def test_a_million_spaces_are_encoded(word):
    text = "a" + " " * 1_050_000 + word
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_long_run_before_a_special_token_stays_whole():
    run = " " * 12_345
    assert TOKENIZER.encode(run + END_OF_TEXT + run, "all") == [*TOKENIZER.encode(run), TOKENIZER.eot_id,
                                                                *TOKENIZER.encode(run)]


@given(st.text(max_size=5), st.integers(0xD800, 0xDFFF).map(chr), st.text(max_size=5))
def test_a_lone_surrogate_is_refused(before, surrogate, after):
    with pytest.raises(ValueError, match="lone surrogate, '.u[^']*', at position [0-9]+"):
        TOKENIZER.encode(before + surrogate + after)


# Special tokens


def with_special_tokens(*names):
    ids = {**VOCAB, **{name: N_TOKENS + number for number, name in enumerate(names)}}
    special_tokens = {name: AddedToken(ids[name]) for name in (END_OF_TEXT, *names)}
    return build_tokenizer(Vocabulary(ids, [" ".join(pair) for pair in PAIRS], special_tokens))


@given(likely_text, likely_text)
def test_end_of_text_in_a_text_is_text_unless_allowed(before, after):
    text = before + END_OF_TEXT + after
    around = TOKENIZER.encode(before), TOKENIZER.encode(after)
    assert TOKENIZER.eot_id not in TOKENIZER.encode(text)
    assert TOKENIZER.encode(text) == slow_encode(text, VOCAB, PAIRS)
    for allowed in ("all", [END_OF_TEXT], {END_OF_TEXT}):
        assert TOKENIZER.encode(text, allowed) == [*around[0], TOKENIZER.eot_id, *around[1]]


def test_only_the_allowed_special_tokens_are_found():
    tokenizer = with_special_tokens("<pad>")
    assert tokenizer.encode("<pad>" + END_OF_TEXT, ["<pad>"]) == [N_TOKENS, *TOKENIZER.encode(END_OF_TEXT)]
    assert tokenizer.encode("<pad>" + END_OF_TEXT, "all") == [N_TOKENS, tokenizer.eot_id]


def test_of_two_special_tokens_at_one_place_the_longer_is_found():
    for names in (["<a>", "<a>+"], ["<a>+", "<a>"]):
        tokenizer = with_special_tokens(*names)
        (token_id,) = tokenizer.encode("<a>+", "all")
        assert tokenizer.token_bytes(token_id) == b"<a>+"


def test_a_special_token_is_its_own_even_where_ordinary_tokens_spell_it():
    tokenizer = with_special_tokens("日")
    (ordinary,) = tokenizer.encode("日")
    assert tokenizer.encode("日", "all") == [N_TOKENS] != [ordinary]
    assert tokenizer.decode([ordinary, N_TOKENS]) == "日日"


@pytest.mark.parametrize("names", [["<pad>"], END_OF_TEXT, "ALL"])
def test_an_unknown_special_token_is_refused(names):
    with pytest.raises(ValueError, match="allowed_special must be \"all\" or some of .*<.endoftext.>.* Got '.*'"):
        TOKENIZER.encode("", names)


def test_end_of_text_decodes_to_its_name():
    assert TOKENIZER.decode([TOKENIZER.eot_id]) == END_OF_TEXT


# Decoding


@pytest.mark.parametrize("as_one", [int, np.int64, np.uint16])
def test_one_id_decodes_to_its_token_without_a_list(as_one):
    assert [TOKENIZER.decode(as_one(i)) for i in range(N_TOKENS)] == [TOKENIZER.decode([i]) for i in range(N_TOKENS)]


def test_the_text_of_a_token_shows_the_bytes_that_are_no_whole_character():
    tokenizer = Tokenizer({b" the": 0, b"\n": 1, "é".encode(): 2, b"\xe2\x80": 3, b" \xc3": 4}, {}, {END_OF_TEXT: 5})
    assert [tokenizer.token_text(i) for i in range(6)] == [" the", "\n", "é", r"\xe2\x80", r" \xc3", END_OF_TEXT]


@given(any_ids)
def test_decoded_text_is_that_of_the_joined_bytes(ids):
    assert TOKENIZER.decode(ids) == b"".join(map(TOKENIZER.token_bytes, ids)).decode(errors="replace")
    ordinary = [token_id for token_id in ids if token_id != TOKENIZER.eot_id]
    assert TOKENIZER.decode(ordinary) == TOKENIZER._encoding.decode(ordinary)


@given(any_ids | any_text.map(TOKENIZER.encode) | st.lists(st.sampled_from([b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xed",
       b"\xa0", b"\xc2", b"\xe2", b"a"])).map(lambda parts: [VOCAB[LETTERS[part[0]]] for part in parts]))
def test_streamed_pieces_join_to_decoded_text(ids):
    pieces = list(TOKENIZER.decode_stream(ids))
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert "" not in pieces


@given(st.text(max_size=20))
def test_a_streamed_piece_comes_before_the_next_id_is_asked_for(text):
    n_asked, shown = 0, ""

    def ids():
        nonlocal n_asked
        for token_id in TOKENIZER.encode(text):
            assert shown == TOKENIZER.decode(TOKENIZER.encode(text)[:n_asked]).rstrip("\ufffd") or "\ufffd" in text
            n_asked += 1
            yield token_id

    for piece in TOKENIZER.decode_stream(ids()):
        shown += piece
    assert shown == text


def test_a_character_of_several_tokens_is_streamed_whole():
    ids = TOKENIZER.encode("a\U0001f600b")
    assert len(ids) == 6
    assert list(TOKENIZER.decode_stream(ids)) == ["a", "\U0001f600", "b"]
    assert list(TOKENIZER.decode_stream(ids[:4])) == ["a", "\ufffd"]


@pytest.mark.parametrize("token_id", [-1, N_TOKENS, 2**40])
def test_an_id_without_a_token_is_refused(token_id):
    for function in (TOKENIZER.token_bytes, lambda i: TOKENIZER.decode([0, i]),
                     lambda i: list(TOKENIZER.decode_stream([0, i]))):
        with pytest.raises(ValueError, match=f"from 0 to {N_TOKENS - 1}. Got {token_id}"):
            function(token_id)


def test_sizes_and_bytes_are_the_files():
    assert TOKENIZER.vocab_size == N_TOKENS
    assert TOKENIZER.eot_id == N_TOKENS - 1
    assert [TOKENIZER.token_bytes(i) for i in range(256)] == [bytes([byte]) for byte in byte_alphabet().values()]


# Showing


def test_a_token_is_shown_on_one_line_and_without_doubt():
    assert quoted(TOKENIZER, TOKENIZER.encode(" the")[0]) == '" the"'
    assert quoted(TOKENIZER, TOKENIZER.encode("\n")[0]) == r'"\n"'
    assert quoted(TOKENIZER, TOKENIZER.encode("é")[0]) == r'"\xc3"'
    assert quoted(TOKENIZER, TOKENIZER.eot_id) == '"<|endoftext|>"'
    assert quoted(TOKENIZER, TOKENIZER.vocab_size) == quoted(TOKENIZER, 10**6) == "(none)"


def test_what_cannot_be_printed_is_escaped():
    text = b'a" \\n\n\t\x07\xc3\xa9\xe2\x80\xff\xe2\x80\x80'.decode(errors="surrogateescape")
    assert "".join(map(escaped, text)) == r'a\" \\n\n\t\x07é\xe2\x80\xff\u2000'
    plain = "".join(set(map(chr, range(0x20, 0x7F))) - set('"\\'))
    assert "".join(map(escaped, plain)) == plain


# Files that load


def test_byte_alphabet_is_openais():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert {letter: alphabet[letter] for letter in "!~¡ÿĀĠĊŃ"} == {
        "!": 33, "~": 126, "¡": 161, "ÿ": 255, "Ā": 0, "Ġ": 32, "Ċ": 10, "Ń": 173}
    assert not any(letter.isspace() or unicodedata.category(letter) == "Cc" for letter in alphabet)


@pytest.mark.parametrize("merges", [MERGES_TXT, MERGES_TXT.partition("\n")[2], MERGES_TXT.replace("\n", "\r\n"),
                                    MERGES_TXT.rstrip("\n"), MERGES_TXT + "\n\n"],
                         ids=["header", "no header", "Windows line ends", "no final line end", "final empty lines"])
def test_merges_txt_loads_in_every_form(tmp_path, merges):
    tokenizer = tokenizer_from_files(write_files(tmp_path, vocab=VOCAB, merges=merges))
    assert tokenizer.encode(SAMPLE) == TOKENIZER.encode(SAMPLE)


def test_a_merge_is_read_to_the_last_letter_of_its_line(tmp_path):
    files = write_files(tmp_path, vocab=ids_of([("A", "X")]), merges="A X\n")
    assert len(tokenizer_from_files(files).encode("AX")) == 1
    assert refusal(write_files(tmp_path, vocab=ids_of([("A", "X")]), merges="A X \n")).startswith("merges.txt: merge 1")


@pytest.mark.parametrize("merges", ["", "\n", "#version: 0.2", "#version: 0.2\n"])
def test_a_vocabulary_of_bytes_alone_loads(tmp_path, merges):
    tokenizer = tokenizer_from_files(write_files(tmp_path, vocab=ids_of([]), merges=merges))
    assert tokenizer.encode("Ab é") == slow_encode("Ab é", ids_of([]), [])


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_ids_of_bytes_and_of_end_of_text_may_stand_in_any_order(random):
    free = [END_OF_TEXT, *byte_alphabet()]
    random.shuffle(free)
    learned = [left + right for left, right in PAIRS]
    cut = random.randrange(len(free))
    vocab = {token: i for i, token in enumerate(free[:cut] + learned + free[cut:])}
    tokenizer = build_tokenizer(Vocabulary(vocab, [" ".join(pair) for pair in PAIRS],
                                           {END_OF_TEXT: AddedToken(vocab[END_OF_TEXT])}))
    assert tokenizer.encode(SAMPLE) == slow_encode(SAMPLE, vocab, PAIRS)


@pytest.mark.parametrize("changes", [
    {}, {"model.merges": [" ".join(pair) for pair in PAIRS]}, {"model.vocab": VOCAB}, {"model.dropout": 0.0},
    {"post_processor": None}, {"post_processor": {"type": "ByteLevel", "add_prefix_space": True}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, {"truncation": {"max_length": 8}},
    {"model": {"vocab": VOCAB, "merges": [" ".join(pair) for pair in PAIRS]}},
], ids=str)
def test_tokenizer_json_loads_as_vocab_and_merges_do(tmp_path, changes):
    tokenizer = tokenizer_from_files(write_files(tmp_path, tokenizer=tokenizer_json(**changes)))
    assert tokenizer.vocab_size == N_TOKENS and tokenizer.eot_id == TOKENIZER.eot_id
    assert tokenizer.encode(SAMPLE + END_OF_TEXT, "all") == TOKENIZER.encode(SAMPLE + END_OF_TEXT, "all")


def test_a_fine_tunes_special_tokens_are_the_tokenizers(tmp_path):
    added = [added_token(END_OF_TEXT, N_TOKENS - 1), added_token("<|user|>", N_TOKENS)]
    tokenizer = tokenizer_from_files(write_files(tmp_path, tokenizer=tokenizer_json(added_tokens=added)))
    assert tokenizer.vocab_size == N_TOKENS + 1
    assert tokenizer.encode("<|user|>the", "all") == [N_TOKENS, *TOKENIZER.encode("the")]
    assert tokenizer.encode("<|user|>") == TOKENIZER.encode("<|user|>")
    assert tokenizer.decode([N_TOKENS]) == "<|user|>"


def test_tokenizer_json_counts_where_vocab_and_merges_are_there_too(tmp_path):
    files = write_files(tmp_path, vocab=b"", merges=b"", tokenizer=tokenizer_json())
    assert tokenizer_from_files(files).vocab_size == N_TOKENS


# Files that are refused


@pytest.mark.parametrize("stem", ["vocab", "merges", "tokenizer"])
def test_a_missing_file_is_named(tmp_path, stem):
    files = write_files(tmp_path, **{stem: "{}"})
    if stem == "tokenizer":
        files["tokenizer.json"].unlink()
        assert refusal(files).startswith("tokenizer.json: cannot be read")
        assert "Got none" in refusal({})
    else:
        (name,) = files
        assert refusal(files).endswith(f"expected the files tokenizer.json, or vocab.json and merges.txt. Got {name}")


UNREADABLE = {"not UTF-8": b"\xff\xfe\xfa", "deep": b'{"a":' * 100_000, "a list": b"[]", "a number": b"7", "empty": b""}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_file_that_is_no_json_object_is_refused(tmp_path, content):
    assert refusal(write_files(tmp_path, vocab=content, merges=MERGES_TXT)).startswith("vocab.json: ")
    assert refusal(write_files(tmp_path, tokenizer=content)).startswith("tokenizer.json: ")


def test_merges_txt_that_cannot_be_read_is_refused(tmp_path):
    files = write_files(tmp_path, vocab=VOCAB, merges=b"\xff")
    assert refusal(files).startswith("merges.txt: not UTF-8 text: ")
    files["merges.txt"].unlink()
    assert refusal(files).startswith("merges.txt: cannot be read: ")


def without(token):
    """VOCAB without `token`, its ids closed up."""
    return {kept: token_id for token_id, kept in enumerate(name for name in VOCAB if name != token)}


FIRST = "".join(PAIRS[0])
WRONG_VOCABS = {
    "a gap": ({**VOCAB, "a": N_TOKENS + 1}, "the ids of its .* No token has the id"),
    "a repeat": ({**VOCAB, "a": VOCAB["b"]}, "the ids of its .* No token has the id"),
    "negative": ({**VOCAB, "a": -1}, "the ids of its .* No token has the id"),
    "text": ({**VOCAB, "a": "7"}, "the id of 'a' must be a whole number. Got '7'"),
    "fraction": ({**VOCAB, "a": float(VOCAB["a"])}, "the id of 'a' must be a whole number"),
    "true": ({**VOCAB, list(VOCAB)[1]: True}, "the id of .* must be a whole number. Got True"),
    "a list": ({**VOCAB, "a": [1]}, "the id of 'a' must be a whole number"),
    "a list for no merge": ({**VOCAB, END_OF_TEXT: [1]}, "the id of '<.endoftext.>' must be a whole number. Got .1."),
    "no byte": (without("ÿ"), "expected a token for each of the 256 bytes.* 1 missing: b'.xff'$"),
    "surrogate": ({**VOCAB, "\ud800": N_TOKENS}, "token '.ud800': expected text, found half a character"),
    "empty": ({END_OF_TEXT: 0}, "expected a token for each of the 256 bytes"),
}


@pytest.mark.parametrize("vocab, message", WRONG_VOCABS.values(), ids=WRONG_VOCABS.keys())
def test_a_wrong_vocabulary_is_refused(tmp_path, vocab, message):
    files = write_files(tmp_path, vocab=vocab, merges=MERGES_TXT if len(vocab) > 1 else "")
    assert regex.match("vocab.json: " + message, refusal(files))


LINES = MERGES_TXT.splitlines()[1:]
WRONG_MERGES = {
    "no token": (LINES + ["z z"], f"merge {len(LINES) + 1} must be a pair of tokens that makes another"),
    "end of text": (LINES + [f"a {END_OF_TEXT}"], f"merge {len(LINES) + 1} must be a pair of tokens"),
    "unknown part": (["zz z"] + LINES, "merge 1 must be a pair of tokens .*, all three in vocab.json. Got 'zz z'"),
    "one word": (["zz"] + LINES, "merge 1 must be a pair of tokens.* Got 'zz'"),
    "three words": (["a b c"] + LINES, "merge 1 must be a pair of tokens.* Got 'a b c'"),
    "two spaces": (["a  b"] + LINES, "merge 1 must be a pair of tokens"),
    "an empty line": (LINES[:3] + [""] + LINES[3:], "merge 4 must be a pair of tokens.* Got ''"),
}


@pytest.mark.parametrize("lines, message", WRONG_MERGES.values(), ids=WRONG_MERGES.keys())
def test_wrong_merges_are_refused(tmp_path, lines, message):
    files = write_files(tmp_path, vocab=VOCAB, merges="\n".join(lines))
    assert regex.match("merges.txt: " + message, refusal(files))


@pytest.mark.parametrize("merge", ["xx y", "y xx"], ids=["left", "right"])
def test_a_half_that_is_no_token_is_refused_though_the_whole_is_one(tmp_path, merge):
    whole = merge.replace(" ", "")
    files = write_files(tmp_path, vocab={**VOCAB, whole: N_TOKENS}, merges=MERGES_TXT + merge)
    assert f"merge {len(LINES) + 1} must be a pair of tokens that makes another" in refusal(files)


@pytest.mark.parametrize("merge", [" ", " a", "a "], ids=repr)
def test_an_empty_half_is_refused_though_the_vocabulary_has_an_empty_token(tmp_path, merge):
    files = write_files(tmp_path, vocab={**VOCAB, "": N_TOKENS}, merges=MERGES_TXT + merge)
    assert f"merge {len(LINES) + 1} must be a pair of tokens that makes another" in refusal(files)


@pytest.mark.parametrize("token", ["日", " a", "zzz", "", "<s>"])
def test_a_token_that_nothing_makes_is_decoded_and_never_found_and_said(tmp_path, token):
    files = write_files(tmp_path, vocab={**VOCAB, token: N_TOKENS}, merges=MERGES_TXT)
    with pytest.warns(CheckpointWarning, match="vocab.json: 1 tokens are neither bytes nor made by the merges of"):
        tokenizer = tokenizer_from_files(files)
    assert tokenizer.vocab_size == N_TOKENS + 1 and tokenizer.decode([N_TOKENS]) == token
    text = f"the {token} {token}{SAMPLE}"
    assert tokenizer.encode(text, "all") == TOKENIZER.encode(text, "all")


def test_merges_left_out_are_said(tmp_path):
    files = write_files(tmp_path, vocab=VOCAB, merges=MERGES_TXT.rpartition("\n")[0].rpartition("\n")[0])
    with pytest.warns(CheckpointWarning, match="1 tokens are neither"):
        tokenizer_from_files(files)


@pytest.mark.parametrize("bytes_without, listed", [
    ("ÿ", r"1 missing: b'\xff'"), ("Āa", r"2 missing: b'\x00a'"), ("abcxÿþ", r"6 missing: b'abcx\xfe\xff'")])
def test_missing_bytes_are_counted_and_named(tmp_path, bytes_without, listed):
    kept = [token for token in ids_of([]) if token not in bytes_without]
    files = write_files(tmp_path, vocab={token: i for i, token in enumerate(kept)}, merges="")
    assert refusal(files).endswith(listed)


def test_a_vocabulary_of_no_bytes_is_refused_in_one_line(tmp_path):
    assert r"256 missing: b'\x00\x01" in refusal(write_files(tmp_path, vocab={END_OF_TEXT: 0}, merges=""))
    every_other = {token: i for i, token in enumerate([*list(byte_alphabet())[::2], END_OF_TEXT])}
    assert "128 missing: b'" in refusal(write_files(tmp_path, vocab=every_other, merges=""))


WRONG_SETTINGS = [
    ("model.type", "Unigram"), ("model.vocab", []), ("model.merges", None), ("model.merges", 7), ("model.merges", [7]),
    ("model.merges", [[1, 2]]), ("model", []), ("model", {}), ("post_processor", "ByteLevel"),
    ("post_processor.type", "RobertaProcessing"),
    ("post_processor.single", [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}},
                               {"Sequence": {"id": "A", "type_id": 0}}]),
    ("added_tokens", {}), ("added_tokens", None),
]
# transformers builds a tokenizer of its own from the vocabulary and merges, unless it is told to take all as it is.
WRONG_AS_WRITTEN = [
    ("normalizer", {"type": "StripAccents"}), ("normalizer", "NFC"), ("pre_tokenizer", None),
    ("pre_tokenizer", "ByteLevel"), ("pre_tokenizer.type", "Sequence"), ("pre_tokenizer.add_prefix_space", None),
    ("pre_tokenizer.use_regex", 7), ("model.dropout", 0.1), ("model.continuing_subword_prefix", "##"),
    ("model.end_of_word_suffix", "</w>"), ("model.ignore_merges", True), ("decoder", None),
    ("decoder.type", "WordPiece"),
]
AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize("key, value", WRONG_SETTINGS + WRONG_AS_WRITTEN, ids=str)
def test_a_tokenizer_json_that_is_not_gpt2s_is_refused_by_key(tmp_path, key, value):
    files = write_files(tmp_path, tokenizer=tokenizer_json(**{key: value}), tokenizer_config=AS_WRITTEN)
    expected = rf"tokenizer.json: not GPT-2's tokenizer: (model\.)?{key.removeprefix('model.')}"
    assert regex.match(expected, refusal(files))


@pytest.mark.parametrize("key, value", WRONG_SETTINGS, ids=str)
def test_so_it_is_under_gpt2s_own_class(tmp_path, key, value):
    assert "tokenizer.json: not GPT-2's tokenizer: " in refusal(
        write_files(tmp_path, tokenizer=tokenizer_json(**{key: value})))


@pytest.mark.parametrize("key, value", WRONG_AS_WRITTEN, ids=str)
def test_what_gpt2s_own_class_has_its_own_word_for_does_not_matter_there(tmp_path, key, value):
    tokenizer = tokenizer_from_files(write_files(tmp_path, tokenizer=tokenizer_json(**{key: value})))
    assert tokenizer.encode(SAMPLE) == TOKENIZER.encode(SAMPLE)


def test_what_was_expected_and_what_was_found_are_said(tmp_path):
    message = refusal(write_files(tmp_path, tokenizer=tokenizer_json(**{"model.dropout": 0.1}),
                                  tokenizer_config=AS_WRITTEN))
    assert message == "tokenizer.json: not GPT-2's tokenizer: model.dropout must be None. Got 0.1"


WRONG_ADDED = {
    "no name": added_token("", N_TOKENS),
    "surrogate": added_token("\ud800", N_TOKENS),
    "no id": {"content": "<x>", "special": True},
    "a text": "<x>",
    "another id": added_token(FIRST, N_TOKENS),
}


@pytest.mark.parametrize("entry", WRONG_ADDED.values(), ids=WRONG_ADDED.keys())
def test_an_added_token_that_gpt2_cannot_have_is_refused(tmp_path, entry):
    added = [added_token(END_OF_TEXT, N_TOKENS - 1), entry]
    message = refusal(write_files(tmp_path, tokenizer=tokenizer_json(added_tokens=added)))
    assert message.startswith("tokenizer.json: not GPT-2's tokenizer: added token ")


@pytest.mark.parametrize("entry, message", [
    (added_token("<x>", N_TOKENS + 1), f"added token '<x>': its id must be {N_TOKENS}, the next, without a gap. Got"),
    (added_token("<x>", 5), f"added token '<x>': its id must be {N_TOKENS - 1}, the next, without a gap. Got 5"),
    (added_token(FIRST, 5), f"added token {FIRST!r}: its id must be {VOCAB[FIRST]}, as in the vocabulary. Got 5"),
    (added_token("<x>", True), "an object with a content and an id"),
    (added_token("<x>", float("nan")), "an object with a content and an id"),
    (added_token("<x>", [1]), "an object with a content and an id"),
], ids=lambda value: ascii(value)[:40])
def test_added_tokens_must_fit_the_vocabulary(tmp_path, entry, message):
    added = [added_token(END_OF_TEXT, N_TOKENS - 1), entry]
    assert message in refusal(write_files(tmp_path, tokenizer=tokenizer_json(added_tokens=added)))


# A vocabulary of GPT-2's size: one that is made up, and OpenAI's where its files are at hand


@pytest.fixture(scope="module", params=["made up", *(["OpenAI's"] if REAL_FILES.is_dir() else [])])
def gpt2_files(request, tmp_path_factory):
    folder = REAL_FILES
    if request.param == "made up":
        folder = tmp_path_factory.mktemp("gpt2")
        write_gpt2_vocabulary(folder)
    return {name: folder / name for name in ("vocab.json", "merges.txt")}


@pytest.fixture(scope="module")
def gpt2_tokenizer(gpt2_files):
    return tokenizer_from_files(gpt2_files)


@pytest.fixture(scope="module")
def tiktokens_gpt2(gpt2_files, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(gpt2_files["merges.txt"]),
                                                              str(gpt2_files["vocab.json"]))
    return tiktoken.Encoding("gpt2", pat_str=OPENAI_PATTERN.pattern, mergeable_ranks=ranks,
                             special_tokens={END_OF_TEXT: 50256})


@pytest.mark.parametrize("text, ids", KNOWN_IDS.items())
def test_known_ids_of_gpt2(gpt2_tokenizer, text, ids):
    assert gpt2_tokenizer.encode(text) == ids
    assert gpt2_tokenizer.decode(ids) == text


def test_gpt2s_vocabulary_is_left_to_tiktoken(gpt2_tokenizer):
    assert gpt2_tokenizer.vocab_size == 50257
    assert gpt2_tokenizer._ids_are_ranks


@given(text=any_text | likely_text)
@settings(max_examples=150)
def test_ids_of_gpt2s_vocabulary_equal_tiktokens(gpt2_tokenizer, tiktokens_gpt2, text):
    assert gpt2_tokenizer.encode(text) == tiktokens_gpt2.encode_ordinary(text)
    with_end = text + END_OF_TEXT + text
    assert gpt2_tokenizer.encode(with_end, "all") == tiktokens_gpt2.encode(with_end, allowed_special="all")


@given(ids=st.lists(st.integers(0, 50256)))
def test_text_of_gpt2s_vocabulary_equals_tiktokens(gpt2_tokenizer, tiktokens_gpt2, ids):
    assert gpt2_tokenizer.decode(ids) == "".join(gpt2_tokenizer.decode_stream(ids)) == tiktokens_gpt2.decode(ids)


# What transformers makes of it


@pytest.mark.parity
@pytest.mark.parametrize("extra", [[], ["<pad>", "<|user|>"]], ids=["plain", "fine-tune"])
def test_what_transformers_saves_loads_and_encodes_the_same(tmp_path, extra):
    pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer(vocab=VOCAB, merges=PAIRS)
    theirs.add_special_tokens({"additional_special_tokens": extra})
    theirs.save_pretrained(tmp_path)
    ours = tokenizer_from_files({"tokenizer.json": tmp_path / "tokenizer.json"})
    assert ours.vocab_size == len(theirs)

    @given(st.lists(any_text | likely_text | st.sampled_from([END_OF_TEXT, *extra])).map("".join))
    @settings(max_examples=150)
    def agree(text):
        ids = theirs(text).input_ids
        assert ours.encode(text, "all") == ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)

    agree()


@pytest.fixture(scope="module")
def tokenizers_gpt2(gpt2_files):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.ByteLevelBPETokenizer(str(gpt2_files["vocab.json"]), str(gpt2_files["merges.txt"]))


@pytest.mark.parity
@given(text=assigned_text | likely_text)
@settings(max_examples=150)
def test_ids_of_gpt2s_vocabulary_equal_those_of_tokenizers(gpt2_tokenizer, tokenizers_gpt2, text):
    assert gpt2_tokenizer.encode(text) == tokenizers_gpt2.encode(text).ids


SMALL_TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)}, {}, {END_OF_TEXT: 256})


@pytest.mark.parametrize("refused, error, message", [
    (lambda tokenizer: tokenizer.with_bos("Once"), TypeError,
     "ids must be token ids: tokenizer.encode(text) gives them. Got 'Once'."),
    (lambda tokenizer: tokenizer.encode(["a"]), TypeError, "text must be a str. Got list."),
    (lambda tokenizer: tokenizer.encode(b"a"), TypeError, "text must be a str. Got bytes."),
    (lambda tokenizer: tokenizer.decode("12"), ValueError,
     "a token id must be a whole number from 0 to 256. Got '1'."),
    (lambda tokenizer: tokenizer.decode([1.5]), ValueError,
     "a token id must be a whole number from 0 to 256. Got 1.5."),
])
def test_text_for_ids_and_ids_for_text_are_refused_in_one_line(refused, error, message):
    with pytest.raises(error) as raised:
        refused(SMALL_TOKENIZER)
    assert str(raised.value) == message


def test_one_allowed_name_that_stands_in_no_list_is_shown_whole():
    with pytest.raises(ValueError, match="in a list. Got '<.endoftext.>'.$"):
        SMALL_TOKENIZER.encode("a", END_OF_TEXT)
