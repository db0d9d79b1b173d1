"""A checkpoint's vocabulary files, read and checked: which tokens there are, and which neighbours merge into one.

tiktoken is given ids, and takes them for ranks. Whether it will then merge as the files say is found out here; where it
would not, the tokenizer merges with bpe.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bpe import Ranks
from ..errors import CheckpointError, shown
from ..tokenizer import END_OF_TEXT, Tokenizer
from .json_file import MOST_VALUES, read_json_object, read_text_file

DEEPEST = 100  # merges of what merges made, one in the other, up to which tiktoken is checked: GPT-2's own go 8 deep


@dataclass(frozen=True)
class Vocabulary:
    """What the files say, unchecked. A token that is not special is written in the letters of `byte_alphabet`."""

    ids: dict[str, Any]  # token -> id, special tokens included
    merges: list[str]  # the pairs of tokens to join, the first of them first: "Ġ t"
    special_tokens: dict[str, Any]  # name -> id. They are found whole, never merged
    ids_file: str = "tokenizer.json"  # what errors call the files
    merges_file: str = "tokenizer.json"


def tokenizer_from_files(files: Mapping[str, Path]) -> Tokenizer:
    """The Tokenizer of a checkpoint whose files are given by name: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Where all three are given, the first counts, as in transformers.
    Raises CheckpointError, one line that names the file, for anything that is not GPT-2's byte-level BPE.
    """
    return build_tokenizer(read_vocabulary(files))


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The Tokenizer of a vocabulary. Raises CheckpointError for one that is not whole."""
    check_ids(vocabulary)
    ordinary = vocabulary.ids.copy()
    for name in vocabulary.special_tokens:
        del ordinary[name]
    check_merges(vocabulary, ordinary)
    in_bytes = {token: bytes([ALPHABET[letter] for letter in token]) for token in ordinary}
    ids = {in_bytes[token]: token_id for token, token_id in ordinary.items()}
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, merge in enumerate(vocabulary.merges):
        left, _, right = merge.partition(" ")
        pair = in_bytes[left], in_bytes[right]
        ranks.pop(pair, None)  # of a pair listed twice the last counts, as in `tokenizers`
        ranks[pair] = rank
    return Tokenizer(ids, ranks, vocabulary.special_tokens, ids_are_ranks(ids, ranks))


def read_vocabulary(files: Mapping[str, Path]) -> Vocabulary:
    """What `tokenizer.json` says, or `vocab.json` and `merges.txt`, unchecked. Where all three are given, the first.

    files: name in the checkpoint -> where it lies. Raises CheckpointError.
    """
    if "tokenizer.json" in files:
        return read_tokenizer_json(files["tokenizer.json"])
    if "vocab.json" in files and "merges.txt" in files:
        return read_vocab_and_merges(files["vocab.json"], files["merges.txt"])
    found = ", ".join(sorted(files)) or "none"
    raise CheckpointError(f"tokenizer: expected the files vocab.json and merges.txt, or tokenizer.json. Got {found}")


def read_vocab_and_merges(vocab_path: Path, merges_path: Path) -> Vocabulary:
    """OpenAI's format: a JSON object of tokens and ids, and a text file with a merge on each line."""
    ids = read_json_object(vocab_path, "vocab.json")
    special_tokens = {END_OF_TEXT: ids[END_OF_TEXT]} if END_OF_TEXT in ids else {}
    try:
        text = read_text_file(merges_path, "merges.txt").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"merges.txt: not UTF-8 text: {error}") from error
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n", MOST_VALUES)  # what is left then is no merge
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
    """The object under a key, empty if there is none. Raises CheckpointError for what is no object."""
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
    """The error for a setting of tokenizer.json that GPT-2 does not have."""
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


def check_ids(vocabulary: Vocabulary) -> None:
    """n tokens need the ids 0 to n - 1, each once: an id is a row of wte."""
    ids, file = vocabulary.ids, vocabulary.ids_file
    is_taken = bytearray(len(ids))  # for each id whether a token has it: a set would be many times as large
    for token, token_id in ids.items():
        if type(token_id) is not int:  # isinstance would let True pass
            raise CheckpointError(f"{file}: the id of {shown(token)} must be a whole number. Got {shown(token_id)}")
        if 0 <= token_id < len(ids):
            is_taken[token_id] = True
    if not all(is_taken):
        raise CheckpointError(f"{file}: the ids of its {len(ids)} tokens must be 0 to {len(ids) - 1}, each once. "
                              f"No token has the id {is_taken.index(False)}")
    if END_OF_TEXT not in vocabulary.special_tokens:
        raise CheckpointError(f"{file}: expected the special token {END_OF_TEXT}, found none")


def check_merges(vocabulary: Vocabulary, ordinary: Mapping[str, int]) -> None:
    """The tokens must be the 256 bytes and what the merges make of them. `ordinary`: token -> id, none special."""
    made = set()
    for number, merge in enumerate(vocabulary.merges, start=1):
        left, _, right = merge.partition(" ")
        if not (left and right and left in ordinary and right in ordinary and left + right in ordinary):
            raise CheckpointError(f"{vocabulary.merges_file}: merge {number} must be a pair of tokens that makes "
                                  f"another, all three in {vocabulary.ids_file}. Got {shown(merge)}")
        made.add(left + right)
    missing = [byte for letter, byte in ALPHABET.items() if letter not in ordinary]
    if missing:
        raise CheckpointError(f"{vocabulary.ids_file}: expected a token for each of the 256 bytes, as `tokenizers` "
                              "trains them with initial_alphabet=ByteLevel.alphabet(). "
                              f"{len(missing)} missing: {spans(missing):.200}")
    surplus = ordinary.keys() - ALPHABET.keys() - made
    if surplus:
        raise CheckpointError(f"{vocabulary.ids_file}: expected bytes in GPT-2's alphabet, what the merges of "
                              f"{vocabulary.merges_file} make, and special tokens. Got {shown(min(surplus))}")


def spans(values: list[int]) -> str:
    """Bytes in hexadecimal, neighbours together: "0x00-0x1f 0x7f"."""
    ends = [(byte, byte) for byte in sorted(values)]
    for i in range(len(ends) - 1, 0, -1):
        if ends[i - 1][1] + 1 == ends[i][0]:
            ends[i - 1:i + 1] = [(ends[i - 1][0], ends[i][1])]
    return " ".join(f"{first:#04x}" if first == last else f"{first:#04x}-{last:#04x}" for first, last in ends)


def ids_are_ranks(ids: Mapping[bytes, int], ranks: Ranks) -> bool:
    """Whether tiktoken, which knows only the ids, merges as the ranks say, whatever the text.

    By the list, adjacent tokens are merged if they are a pair in it, the first of the list first (bpe.py). tiktoken
    knows no pairs: it merges any adjacent tokens that make a token, the lowest id first. The two agree if the ids rise
    with the list, and if adjacent tokens that make a token are never any but the pair in the list.
    """
    age = {token: 0 for token in ids if len(token) == 1}  # token -> the merge that makes it, from 1; bytes come before
    halves: dict[bytes, tuple[bytes, bytes]] = {}  # token -> the pair that makes it
    depth = dict.fromkeys(age, 0)  # token -> how many merges deep it is
    lowest_id = 0
    for number, (left, right) in enumerate(ranks, start=1):  # in the order of their ranks
        token = left + right
        if left not in age or right not in age or ids[token] < lowest_id:
            return False
        depth[token] = 1 + max(depth[left], depth[right])
        if depth[token] > DEEPEST:  # stay_apart would take minutes for chains of thousands
            return False
        if not stay_apart(left, right, age, halves):
            return False
        age[token], halves[token] = number, (left, right)
        lowest_id = ids[token] + 1
    return True


def stay_apart(left: bytes, right: bytes, age: Mapping[bytes, int],
               halves: Mapping[bytes, tuple[bytes, bytes]]) -> bool:
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
