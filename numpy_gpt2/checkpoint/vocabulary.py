"""A checkpoint's vocabulary files, read and checked: which tokens there are, and which neighbours merge into one.

tiktoken is given ids, and takes them for ranks. Whether it will then merge as the files say is found out here; where it
would not, the tokenizer merges with bpe.py.
"""

import unicodedata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from ..bpe import Ranks
from ..config import GPT2Config
from ..errors import CheckpointError, CheckpointWarning, shown
from ..tokenizer import END_OF_TEXT, AddedToken, Preparation, Tokenizer
from .added_tokens import (Entry, TokenizerSettings, entry_from, not_supported, read_added_tokens,
                           read_tokenizer_settings, special_names)
from .generation import Configs, text_ids
from .json_file import MOST_VALUES, read_configs, read_json_object, read_text_file

DEEPEST = 100  # merges of what merges made, one in the other, up to which tiktoken is checked: GPT-2's own go 8 deep


@dataclass(frozen=True)
class Vocabulary:
    """What the files say, unchecked. A token that merges make is written in the letters of `byte_alphabet`."""

    ids: dict[str, Any]  # token -> id, added tokens included
    merges: list[str]  # the pairs of tokens to join, the first of them first: "Ġ t"
    added_tokens: Mapping[str, Any]  # name -> id of a special token, or AddedToken
    ids_file: str = "tokenizer.json"  # what errors call the files
    merges_file: str = "tokenizer.json"
    preparation: Preparation = Preparation()


def tokenizer_from_files(files: Mapping[str, Path], configs: Configs | None = None) -> Tokenizer:
    """The Tokenizer of a checkpoint whose files are given by name: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Where all three are given, the first counts, as in transformers. So do, where they are given, tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, config.json and generation_config.json. configs: the last two, if they
    have been read already.
    Raises CheckpointError, one line that names the file, for anything that is not GPT-2's byte-level BPE.
    """
    configs = read_configs(files) if configs is None else configs
    settings = read_tokenizer_settings(files, configs)
    vocabulary = read_vocabulary(files, settings)
    bos_id, eos_ids = begin_and_ends(files, configs, settings, vocabulary)
    own_files = {name: path for name, path in files.items() if not name.startswith("model")}
    return build_tokenizer(vocabulary, bos_id=bos_id, eos_ids=eos_ids, files=own_files)


def build_tokenizer(vocabulary: Vocabulary, **options: Any) -> Tokenizer:
    """The Tokenizer of a vocabulary. Options as for `Tokenizer`. Raises CheckpointError for one that is not whole."""
    check_ids(vocabulary)
    made = check_merges(vocabulary)
    ordinary = dict.fromkeys(ALPHABET) | made
    in_bytes = {token: bytes([ALPHABET[letter] for letter in token]) for token in ordinary}
    ids = {in_bytes[token]: vocabulary.ids[token] for token in ordinary}
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, merge in enumerate(vocabulary.merges):
        left, _, right = merge.partition(" ")
        if left in in_bytes and right in in_bytes:  # else it never meets its halves
            pair = in_bytes[left], in_bytes[right]
            ranks.pop(pair, None)  # of a pair listed twice the last counts, as in `tokenizers`
            ranks[pair] = rank
    added_tokens = {name: AddedToken(vocabulary.ids[name], is_special=False, is_found=False)
                    for name in vocabulary.ids.keys() - ordinary.keys() - vocabulary.added_tokens.keys()}
    if added_tokens:
        warnings.warn(f"{vocabulary.ids_file}: {len(added_tokens)} tokens are neither bytes nor made by the merges of "
                      f"{vocabulary.merges_file}, and no file registers them: none is found in a text, "
                      f"{shown(min(added_tokens))} for one.", CheckpointWarning, stacklevel=4)
    for name, token in vocabulary.added_tokens.items():
        added_tokens[name] = token if isinstance(token, AddedToken) else AddedToken(token)
    normalize = vocabulary.preparation.normalize or str
    added_tokens = {name: replace(token, content=content_of(normalize(name) if token.normalized else name, vocabulary))
                    for name, token in added_tokens.items()}
    return Tokenizer(ids, ranks, added_tokens, ids_are_ranks(ids, ranks), preparation=vocabulary.preparation,
                     **options)


def content_of(name: str, vocabulary: Vocabulary) -> bytes:
    """What a token decodes to: `tokenizers` takes the letters of the byte alphabet for bytes, whatever token it is."""
    try:
        return name.translate(AS_LATIN_1).encode("latin-1") if ALPHABET.keys() >= set(name) else name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{vocabulary.ids_file}: token {shown(name)}: expected text, found half a character (a "
                              "lone surrogate)") from error


def begin_and_ends(files: Mapping[str, Path], configs: Configs, settings: TokenizerSettings, vocabulary: Vocabulary
                   ) -> tuple[int | None, tuple[int, ...]]:
    """The ids that begin and end a text. What the configs say counts, as in transformers' generation.

    Where there is no config, the tokenizer's own bos_token and eos_token. It is they that begin a text as well where
    the config's id is that of an ordinary word: a size without its first meaning, left from GPT-2.
    """
    names, _ = special_names(settings)
    default = END_OF_TEXT if settings.is_rebuilt else None
    begin, end = (names[key].name if key in names else None if key in settings.values else default
                  for key in ("bos_token", "eos_token"))
    found = text_ids(files, configs)
    config = GPT2Config.from_dict(found)
    unmade = {token: token_id for token, token_id in vocabulary.ids.items()
              if token in vocabulary.added_tokens or not ALPHABET.keys() >= set(token)}
    bos_id = found.get("bos_token_id")
    if bos_id not in unmade.values():
        bos_id = vocabulary.ids.get(begin) if begin is not None else None
    if not configs:
        ends = [vocabulary.ids[end]] if end in vocabulary.ids else []
    else:
        ends = list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else [config.eos_token_id]
    return bos_id, tuple(token_id for token_id in ends if token_id is not None and 0 <= token_id < len(vocabulary.ids))


def read_vocabulary(files: Mapping[str, Path], settings: TokenizerSettings) -> Vocabulary:
    """What `tokenizer.json` says, or `vocab.json` and `merges.txt`, unchecked. Where all three are given, the first.

    files: name in the checkpoint -> where it lies. Raises CheckpointError.
    """
    if "tokenizer.json" in files:
        return read_tokenizer_json(files, settings)
    if "vocab.json" in files and "merges.txt" in files:
        return read_vocab_and_merges(files, settings)
    found = ", ".join(sorted(files)) or "none"
    raise CheckpointError(f"tokenizer: expected the files tokenizer.json, or vocab.json and merges.txt. Got {found}")


def read_vocab_and_merges(files: Mapping[str, Path], settings: TokenizerSettings) -> Vocabulary:
    """OpenAI's format: a JSON object of tokens and ids, and a text file with a merge on each line."""
    ids = read_json_object(files["vocab.json"], "vocab.json")
    try:
        text = read_text_file(files["merges.txt"], "merges.txt").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"merges.txt: not UTF-8 text: {error}") from error
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n", MOST_VALUES)  # what is left then is no merge
    if lines == [""] or lines[0].startswith("#version"):
        del lines[0]
    added_tokens = read_added_tokens(files, settings, ids, [])
    all_ids = ids | {name: token.id for name, token in added_tokens.items()}
    preparation = Preparation(bool(settings.values.get("add_prefix_space")))
    return Vocabulary(all_ids, lines, added_tokens, "vocab.json", "merges.txt", preparation)


# What a tokenizer.json must say: each key, and the values that mean what GPT-2 does. Not listed is what changes no
# token: truncation and padding, a stand-in for unknown bytes (none is unknown), the bookkeeping of offsets.
GPT2_SETTINGS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("model", "type"): ("BPE", None),
    ("post_processor", "type"): ("ByteLevel", "TemplateProcessing", None),
    ("post_processor", "single"): ([{"Sequence": {"id": "A", "type_id": 0}}], None),  # the text, nothing added
}
# And where transformers does not build its own tokenizer of the vocabulary and merges alone:
AS_WRITTEN_SETTINGS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("pre_tokenizer", "type"): ("ByteLevel",),
    ("pre_tokenizer", "add_prefix_space"): (False, True),
    ("pre_tokenizer", "use_regex"): (True, False, None),
    ("model", "dropout"): (None, 0),
    ("model", "continuing_subword_prefix"): ("", None),
    ("model", "end_of_word_suffix"): ("", None),
    ("model", "ignore_merges"): (False, None),
    ("decoder", "type"): ("ByteLevel",),
}


def read_tokenizer_json(files: Mapping[str, Path], settings: TokenizerSettings) -> Vocabulary:
    """The format of the `tokenizers` library, all that transformers 5 writes."""
    contents = read_json_object(files["tokenizer.json"], "tokenizer.json")
    for (section, key), supported in (GPT2_SETTINGS | ({} if settings.is_rebuilt else AS_WRITTEN_SETTINGS)).items():
        value = json_object_in(contents, section).get(key)
        if value not in supported:
            raise not_supported("tokenizer.json", f"{section}.{key}", shown(supported[0]), value)
    model = json_object_in(contents, "model")
    try:  # older files have "Ġ t", newer ones ["Ġ", "t"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError) as error:
        raise not_supported("tokenizer.json", "model.merges", "a list of pairs of tokens",
                            model.get("merges")) from error
    ids = json_object_in(model, "vocab")
    added_tokens = read_added_tokens(files, settings, ids, entries_in(contents.get("added_tokens")))
    all_ids = ids | {name: token.id for name, token in added_tokens.items()}
    if settings.is_rebuilt:
        preparation = Preparation(bool(settings.values.get("add_prefix_space")))
    else:
        splitting = json_object_in(contents, "pre_tokenizer")
        preparation = Preparation(bool(splitting.get("add_prefix_space")), splitting.get("use_regex") is not False,
                                  normalizer(json_object_in(contents, "normalizer")))
    return Vocabulary(all_ids, merges, added_tokens, preparation=preparation)


def entries_in(listed: Any) -> list[Entry]:
    """The `added_tokens` of a tokenizer.json."""
    if not isinstance(listed, list):
        raise not_supported("tokenizer.json", "added_tokens", "a list", listed)
    entries = []
    for one in listed:
        if not isinstance(one, dict) or type(one.get("id")) is not int:
            raise not_supported("tokenizer.json", "added token", "an object with a content and an id", one)
        entries.append(entry_from(one, "tokenizer.json", "added token"))
    return entries


def normalizer(settings: Mapping[str, Any]) -> Callable[[str], str] | None:
    """The function that a normalizer of tokenizer.json is, or None where it is null."""
    kind = settings.get("type")
    if kind is None:
        return None
    if kind == "Sequence" and isinstance(settings.get("normalizers"), list) and len(settings["normalizers"]) < 10:
        steps = [normalizer(step) for step in settings["normalizers"] if isinstance(step, dict)]
        return lambda text: reduce(lambda so_far, step: step(so_far) if step else so_far, steps, text)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return partial(unicodedata.normalize, kind)
    if kind == "Lowercase":
        return lambda text: "".join(map(str.lower, text))  # each character by itself
    raise not_supported("tokenizer.json", "normalizer.type", "None, NFC, NFD, NFKC, NFKD or Lowercase", kind)


def json_object_in(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key, empty if there is none. Raises CheckpointError for what is no object."""
    value = settings.get(key)
    if not isinstance(value, dict | None):
        raise not_supported("tokenizer.json", key, "a JSON object", value)
    return value or {}


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
AS_LATIN_1 = {ord(letter): chr(byte) for letter, byte in ALPHABET.items()}


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


def check_merges(vocabulary: Vocabulary) -> dict[str, None]:
    """The tokens that the merges make, in their order. Raises CheckpointError unless they, and all 256 bytes, exist."""
    ids = vocabulary.ids
    made: dict[str, None] = {}
    for number, merge in enumerate(vocabulary.merges, start=1):
        left, _, right = merge.partition(" ")
        if not (left and right and left in ids and right in ids and left + right in ids
                and ALPHABET.keys() >= set(left + right)):
            raise CheckpointError(f"{vocabulary.merges_file}: merge {number} must be a pair of tokens that makes "
                                  f"another, all three in {vocabulary.ids_file}. Got {shown(merge)}")
        made[left + right] = None
    missing = [byte for letter, byte in ALPHABET.items() if letter not in ids]
    if missing:
        raise CheckpointError(f"{vocabulary.ids_file}: expected a token for each of the 256 bytes, as `tokenizers` "
                              "trains them with initial_alphabet=ByteLevel.alphabet(). "
                              f"{len(missing)} missing: {spans(missing):.200}")
    return made


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
