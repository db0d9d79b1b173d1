"""Text to token ids and back: GPT-2's byte pair encoding, with the vocabulary that a checkpoint brings along.

    "Hello world!"  ->  "Hello", " world", "!"           split (SPLIT_PATTERN), so that no token spans two words
                    ->  b"H" b"e" b"l" b"l" b"o", ...    take each piece as UTF-8 bytes
                    ->  b"Hello", b" world", b"!"        merge: again and again the pair that comes first in the list
                    ->  15496, 995, 0                    look up

tiktoken does all four steps, fast. What this file does is to read the vocabulary and to make sure, before tiktoken gets
it, that tiktoken will merge as the files say.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository; byte pair encoding: Sennrich et al. 2016, section 3.2.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # shortens: what stands in a file can be long, an error is one line
from typing import Any

import tiktoken

from .config import CheckpointError, read_json_object

END_OF_TEXT = "<|endoftext|>"  # stands between the documents that GPT-2 was trained on

# At each place the first alternative that fits is taken.
SPLIT_PATTERN = "|".join([
    r"'(?:s|t|re|ve|m|ll|d)",  # English contractions: it's, don't, we're, I've, I'm, she'll, he'd
    r" ?\p{L}+",  # letters, with the space before them if there is one
    r" ?\p{N}+",  # digits, likewise
    r" ?[^\s\p{L}\p{N}]+",  # punctuation and all other signs, likewise
    r"\s++$",  # white space at the end. OpenAI's pattern leaves it to the next line, which matches the same
    r"\s+(?!\S)",  # white space without its last character, which goes with the word that follows
    r"\s+",  # that last character, where it is no space
])

# To try `(?!\S)` ever further back, tiktoken remembers every character of the white space, and panics at about a
# million. Hence the line above for the end of a text, and a cut before the last character of a long run inside it,
# where that alternative ends in any case. (U+001C to U+001F are white space to Python's \s but not to tiktoken's.)
LONG_RUN_CUT = re.compile(r"(?=[^\S\x1c-\x1f][\S\x1c-\x1f])(?<=\s{10000})")


class Tokenizer:
    """GPT-2's tokenizer with one checkpoint's vocabulary: what `tokenizer_from_files` returns.

    `vocab_size`: the number of tokens; ids run from 0 to vocab_size - 1.
    `eot_id`: the id of `<|endoftext|>`.
    """

    def __init__(self, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> None:
        """`ranks` holds the ids of the ordinary tokens; of two possible merges, tiktoken prefers the lower id."""
        self._encoding = tiktoken.Encoding("numpy_gpt2", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks,
                                           special_tokens=special_tokens)
        self._special_tokens = special_tokens
        self.vocab_size = len(ranks) + len(special_tokens)
        self.eot_id = special_tokens[END_OF_TEXT]

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        The name of a special token inside the text, `<|endoftext|>` say, is plain text, unless `allowed_special` holds
        that name or is "all" (tiktoken's word for it).
        Raises ValueError for a name that is no special token, and for a text with a lone surrogate (half a character:
        a Python str can hold it, UTF-8 cannot).
        """
        refuse_lone_surrogates(text)
        names = self._special_tokens.keys() if allowed_special == "all" else set(allowed_special)
        unknown = names - self._special_tokens.keys()
        if unknown:
            raise ValueError(f"allowed_special must be \"all\" or some of {list(self._special_tokens)}. "
                             f"Got {min(unknown)!r}.")
        ids = []
        for part in split_at(text, names):
            if part in names:
                ids.append(self._special_tokens[part])
            else:
                ids.extend(self._encode_ordinary(part))
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        return [token_id for part in LONG_RUN_CUT.split(text) for token_id in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an id without a token."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` in pieces, none empty: what an id decides is yielded before the next id is asked for.

        The pieces join to `decode(ids)`. A token can end inside a character; its bytes are then held back until the
        rest has come, so that no U+FFFD appears which the whole text does not have.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            piece = decoder.decode(self.token_bytes(token_id))
            if piece:
                yield piece
        unfinished_character = decoder.decode(b"", final=True)
        if unfinished_character:
            yield unfinished_character

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters. Raises ValueError for an id without a token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"a token id must be at least 0 and less than the vocabulary's size, {self.vocab_size}. "
                             f"Got {token_id}.")
        return self._encoding.decode_single_token_bytes(token_id)


def refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate, {text[error.start]!a}, at position {error.start}: "
                         "UTF-8 has no bytes for it.") from error


def split_at(text: str, names: Collection[str]) -> list[str]:
    """`text` cut before and after each of `names` in it. Where two of them begin, the longer one counts."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)


@dataclass(frozen=True)
class Vocabulary:
    """What the files say, unchecked. A token that is not special is written in the letters of `byte_alphabet`."""

    ids: dict[str, Any]  # token -> id, special tokens included
    merges: list[str]  # the pairs of tokens to join, the first of them first: "Ġ t"
    special_tokens: dict[str, Any]  # name -> id. They are found whole, never merged
    ids_file: str = "tokenizer.json"  # what errors call the files
    merges_file: str = "tokenizer.json"


def tokenizer_from_files(files: Mapping[str, Path]) -> Tokenizer:
    """The Tokenizer of a checkpoint whose files are given by name: `vocab.json` and `merges.txt`, or `tokenizer.json`.

    Where all three are given, the first two count.
    Raises CheckpointError, one line that names the file, for anything that is not GPT-2's byte-level BPE.
    """
    if "vocab.json" in files and "merges.txt" in files:
        return build_tokenizer(read_vocab_and_merges(files["vocab.json"], files["merges.txt"]))
    if "tokenizer.json" in files:
        return build_tokenizer(read_tokenizer_json(files["tokenizer.json"]))
    found = ", ".join(sorted(files)) or "none"
    raise CheckpointError(f"tokenizer: expected the files vocab.json and merges.txt, or tokenizer.json. Got {found}")


def read_vocab_and_merges(vocab_path: Path, merges_path: Path) -> Vocabulary:
    """OpenAI's format: a JSON object of tokens and ids, and a text file with a merge on each line."""
    ids = read_json_object(vocab_path, "vocab.json")
    special_tokens = {END_OF_TEXT: ids[END_OF_TEXT]} if END_OF_TEXT in ids else {}
    try:
        text = merges_path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"merges.txt: cannot be read as UTF-8 text: {error}") from error
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""] or lines[0].startswith("#version"):
        del lines[0]
    return Vocabulary(ids, lines, special_tokens, "vocab.json", "merges.txt")


# What a tokenizer.json must say: each key, and the values that mean what GPT-2 does. Not listed is what changes no
# token: truncation and padding, a stand-in for unknown bytes (none is unknown), the bookkeeping of offsets.
GPT2_SETTINGS: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("normalizer", "type"): (None,),
    ("pre_tokenizer", "type"): ("ByteLevel",),
    ("pre_tokenizer", "add_prefix_space"): (False,),
    ("pre_tokenizer", "use_regex"): (True, None),
    ("model", "type"): ("BPE", None),
    ("model", "dropout"): (None, 0),
    ("model", "continuing_subword_prefix"): ("", None),
    ("model", "end_of_word_suffix"): ("", None),
    ("model", "ignore_merges"): (False, None),
    ("post_processor", "type"): ("ByteLevel", "TemplateProcessing", None),
    ("post_processor", "single"): ([{"Sequence": {"id": "A", "type_id": 0}}], None),  # the text, nothing added
    ("decoder", "type"): ("ByteLevel",),
}


def read_tokenizer_json(path: Path) -> Vocabulary:
    """The format of the `tokenizers` library, all that transformers 5 writes."""
    settings = read_json_object(path, "tokenizer.json")
    for (section, key), supported in GPT2_SETTINGS.items():
        value = json_object_in(settings, section).get(key)
        if value not in supported:
            raise not_gpt2(f"{section}.{key}", shown(supported[0]), value)
    model = json_object_in(settings, "model")
    try:  # older files have "Ġ t", newer ones ["Ġ", "t"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError) as error:
        raise not_gpt2("model.merges", "a list of pairs of tokens", model.get("merges")) from error
    ids = json_object_in(model, "vocab")
    special_tokens = read_special_tokens(settings.get("added_tokens"), ids)
    return Vocabulary({**ids, **special_tokens}, merges, special_tokens)


def json_object_in(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key)
    if not isinstance(value, dict | None):
        raise not_gpt2(key, "a JSON object", value)
    return value or {}


def read_special_tokens(entries: Any, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens among `added_tokens`, name -> id: `<|endoftext|>`, and those that a fine-tune brings along.

    An added token that is not special is a word of its own in any text, whatever stands around it: not in GPT-2.
    """
    if not isinstance(entries, list):
        raise not_gpt2("added_tokens", "a list", entries)
    special_tokens = {}
    for entry in entries:
        match entry:
            case {"content": str(name), "id": token_id, "special": True,
                  "lstrip": False, "rstrip": False, "single_word": False} if name and name.isprintable():
                special_tokens[name] = token_id
            case _:
                raise not_gpt2("added token", "special and printable, its lstrip, rstrip and single_word false", entry)
        if name in ids and ids[name] != token_id:
            raise not_gpt2(f"added token {shown(name)}", f"the id {shown(ids[name])} of model.vocab", token_id)
    return special_tokens


def not_gpt2(key: str, expected: str, found: Any) -> CheckpointError:
    return CheckpointError(f"tokenizer.json: not GPT-2's tokenizer: {key} must be {expected}. Got {shown(found)}")


def byte_alphabet() -> dict[str, int]:
    """The letter in which vocabulary files write each byte: letter -> byte, all 256.

    The visible characters of Latin-1 stand for their own codes; the other 68 bytes have the characters from U+0100 on,
    in order. So 97 is "a", and 32, the space, is U+0120: "Ġ".
    Source: `bytes_to_unicode` in OpenAI's `src/encoder.py`.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(0x100 + i) for i in range(len(hidden))]
    return dict(zip(letters, visible + hidden))


ALPHABET = byte_alphabet()


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The Tokenizer of a vocabulary that stands every check. Raises CheckpointError."""
    check_ids(vocabulary)
    ordinary = vocabulary.ids.copy()
    for name in vocabulary.special_tokens:
        del ordinary[name]
    check_merges(vocabulary, ordinary)
    ranks = {bytes([ALPHABET[letter] for letter in token]): token_id for token, token_id in ordinary.items()}
    return Tokenizer(ranks, vocabulary.special_tokens)


def check_ids(vocabulary: Vocabulary) -> None:
    """n tokens need the ids 0 to n - 1, each once: an id is a row of wte."""
    ids, file = vocabulary.ids, vocabulary.ids_file
    for token, token_id in ids.items():
        if type(token_id) is not int:  # isinstance would let True pass
            raise CheckpointError(f"{file}: the id of {shown(token)} must be a whole number. Got {shown(token_id)}")
    missing = set(range(len(ids))) - set(ids.values())
    if missing:
        raise CheckpointError(f"{file}: the ids of its {len(ids)} tokens must be 0 to {len(ids) - 1}, each once. "
                              f"No token has the id {min(missing)}")
    if END_OF_TEXT not in vocabulary.special_tokens:
        raise CheckpointError(f"{file}: expected the special token {END_OF_TEXT}, found none")


def check_merges(vocabulary: Vocabulary, ordinary: Mapping[str, int]) -> None:
    """Make sure that tiktoken merges as the file says, whatever the text. `ordinary`: token -> id, none special.

    By the file, neighbours are joined if they are a pair in the list, the first pair of the list first. tiktoken knows
    no pairs: it joins any neighbours that make a token, the lowest id first. The two agree if the tokens are the bytes
    and what the merges make of them, if ids rise with the list, and if neighbours that make a token are never any but
    the pair in the list.
    """
    age = dict.fromkeys(ALPHABET, 0)  # token -> the merge that makes it, counted from 1; the bytes are there before
    halves: dict[str, tuple[str, str]] = {}  # token -> the pair that makes it
    lowest_id = 0
    for number, merge in enumerate(vocabulary.merges, start=1):
        left, _, right = merge.partition(" ")
        token = left + right
        token_id = ordinary.get(token, -1)
        expected = ""
        if left not in age or right not in age:
            expected = "a pair of tokens that are bytes or made by earlier merges"
        elif token_id < lowest_id:
            expected = f"a pair that makes a token of {vocabulary.ids_file} with an id of at least {lowest_id}"
        elif not stay_apart(left, right, age, halves):
            expected = "the pair that the earlier merges make of these bytes"
        if expected:
            raise CheckpointError(f"{vocabulary.merges_file}: merge {number} must be {expected}. Got {shown(merge)}")
        age[token], halves[token] = number, (left, right)
        lowest_id = token_id + 1
    missing = ALPHABET.keys() - ordinary.keys()
    if missing:
        raise CheckpointError(f"{vocabulary.ids_file}: expected a token for every byte. {min(missing)!r} is missing")
    surplus = ordinary.keys() - age.keys()
    if surplus:
        raise CheckpointError(f"{vocabulary.ids_file}: expected bytes in GPT-2's alphabet, what the merges of "
                              f"{vocabulary.merges_file} make, and special tokens. Got {shown(min(surplus))}")


def stay_apart(left: str, right: str, age: Mapping[str, int], halves: Mapping[str, tuple[str, str]]) -> bool:
    """Whether the merges in `age`, applied to the bytes of `left + right`, end with `left` and `right`.

    Each of the two has stood this check, so its own bytes become it, unless a merge across the seam comes first. Look
    for one by running the merges backwards: of the two tokens at the seam, take the younger apart; now the two at the
    seam must not be a pair that would have been joined earlier. Of equal merges, the one further left comes first.
    """
    while age[left] > 0 or age[right] > 0:
        if age[left] > age[right]:
            latest_rival = age[left] - 1
            left = halves[left][1]
        else:
            latest_rival = age[right]
            right = halves[right][0]
        joined = left + right
        if joined in age and age[joined] <= latest_rival:
            return False
    return True
