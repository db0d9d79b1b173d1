"""A checkpoint's vocabulary files, read and checked: the tokens, and the pairs that merge into one.

tiktoken gets only ids, and uses them as the order of the merges. Whether this gives the files' merges is checked here;
if not, the tokenizer uses bpe.py.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bpe import Ranks
from ..config import GPT2Config
from ..errors import CheckpointError, CheckpointWarning, shown
from ..tokenizer import END_OF_TEXT, AddedToken, Preparation, Tokenizer
from .added_tokens import TokenizerSettings, read_added_tokens, read_tokenizer_settings
from .generation import Configs, ends_of, text_ids
from .json_file import MOST_VALUES, read_configs, read_json_object, read_text_file
from .tokenizer_json import check_settings, entries_in, ids_in, merges_in, preparation_in

DEEPEST = 100  # how deeply merges may be nested for tiktoken to be used; GPT-2's own are 8 deep


@dataclass(frozen=True)
class Vocabulary:
    """The files' contents, unchecked. Tokens made by merges are written in the letters of `byte_alphabet`."""

    ids: dict[str, Any]  # token -> id, added tokens included
    merges: list[str]  # pairs of tokens, in order of priority: "Ġ t"
    added_tokens: Mapping[str, AddedToken]  # by name
    ids_file: str = "tokenizer.json"  # what errors call the files
    merges_file: str = "tokenizer.json"
    preparation: Preparation = Preparation()


def tokenizer_from_files(files: Mapping[str, Path], configs: Configs | None = None) -> Tokenizer:
    """The Tokenizer of a checkpoint whose files are given by name: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    If all three are given, tokenizer.json wins, as in transformers. Of the other files, tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, config.json and generation_config.json are read if given. configs: the
    last two, if they have been read already.
    Raises CheckpointError, in one line that names the file, for anything but GPT-2's byte-level BPE.
    """
    configs = read_configs(files) if configs is None else configs
    settings = read_tokenizer_settings(files, configs)
    vocabulary = read_vocabulary(files, settings)
    bos_id, eos_ids = begin_and_ends(files, configs, settings, vocabulary)
    own_files = {name: path for name, path in files.items() if not name.startswith("model")}
    return build_tokenizer(vocabulary, bos_id=bos_id, eos_ids=eos_ids, files=own_files)


def build_tokenizer(vocabulary: Vocabulary, **options: Any) -> Tokenizer:
    """The Tokenizer of a vocabulary. Options as for `Tokenizer`. Raises CheckpointError for an inconsistent one."""
    check_ids(vocabulary)
    pairs = checked_merges(vocabulary)
    ordinary = dict.fromkeys((*ALPHABET, *map("".join, pairs)))  # in the order of the merges
    in_bytes = {token: bytes(map(ALPHABET.__getitem__, token)) for token in ordinary}
    ids = {in_bytes[token]: vocabulary.ids[token] for token in ordinary}
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, (left, right) in enumerate(pairs):
        if left in in_bytes and right in in_bytes:  # otherwise the pair never occurs
            pair = in_bytes[left], in_bytes[right]
            ranks.pop(pair, None)  # a pair listed twice has its last rank, as in `tokenizers`
            ranks[pair] = rank
    unreachable = vocabulary.ids.keys() - ordinary.keys() - vocabulary.added_tokens.keys()
    if unreachable:
        warnings.warn(f"{vocabulary.ids_file}: {len(unreachable)} tokens are neither bytes nor made by the merges of "
                      f"{vocabulary.merges_file}, and no file registers them, so no text is encoded to them: "
                      f"{shown(min(unreachable))}, for example.", CheckpointWarning, stacklevel=4)
    in_decoding = {name: AddedToken(vocabulary.ids[name], is_special=False, is_found=False) for name in unreachable}
    normalize = vocabulary.preparation.normalize or str
    added_tokens = {name: replace(token, content=content_of(normalize(name) if token.normalized else name, vocabulary))
                    for name, token in {**in_decoding, **vocabulary.added_tokens}.items()}
    return Tokenizer(ids, ranks, added_tokens, ids_are_ranks(ids, ranks), preparation=vocabulary.preparation,
                     **options)


def content_of(name: str, vocabulary: Vocabulary) -> bytes:
    """The bytes that a token decodes to: letters of the byte alphabet mean bytes in any token, as in `tokenizers`."""
    try:
        return bytes(map(ALPHABET.__getitem__, name)) if ALPHABET.keys() >= set(name) else name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{vocabulary.ids_file}: token {shown(name)}: expected text, found half a character (a "
                              "lone surrogate)") from error


def begin_and_ends(files: Mapping[str, Path], configs: Configs, settings: TokenizerSettings, vocabulary: Vocabulary
                   ) -> tuple[int | None, tuple[int, ...]]:
    """The ids that begin and end a text: the configs', as in transformers' generation, if there are any.

    Otherwise those of the tokenizer's bos_token and eos_token. A bos_token_id that is an ordinary word's (GPT-2's
    50256, kept in a config with another vocabulary) gives way to bos_token as well.
    """
    names = {key: entry.name for key, entry in settings.special}
    default = END_OF_TEXT if settings.is_rebuilt else None
    begin, end = (names.get(key, None if key in settings.values else default) for key in ("bos_token", "eos_token"))
    found = text_ids(files, configs)
    bos_id = found.get("bos_token_id")
    name = next((token for token, token_id in vocabulary.ids.items() if token_id == bos_id), "")
    if name not in vocabulary.added_tokens and ALPHABET.keys() >= set(name):
        bos_id = vocabulary.ids.get(begin) if begin is not None else None
    if configs:
        ends = [token_id for token_id in ends_of(GPT2Config.from_dict(found)) if 0 <= token_id < len(vocabulary.ids)]
    else:
        ends = [vocabulary.ids[end]] if end in vocabulary.ids else []
    return bos_id, tuple(ends)


def read_vocabulary(files: Mapping[str, Path], settings: TokenizerSettings) -> Vocabulary:
    """The vocabulary in `tokenizer.json` or, without one, in `vocab.json` and `merges.txt`, unchecked.

    files: name in the checkpoint -> path. Raises CheckpointError.
    """
    preparation = Preparation(bool(settings.values.get("add_prefix_space")))
    if "tokenizer.json" in files:
        contents = read_json_object(files["tokenizer.json"])
        check_settings(contents, settings.is_rebuilt)
        names = "tokenizer.json", "tokenizer.json"
        ids, merges, entries = ids_in(contents), merges_in(contents), entries_in(contents)
        if not settings.is_rebuilt:
            preparation = preparation_in(contents)
    elif "vocab.json" in files and "merges.txt" in files:
        names = "vocab.json", "merges.txt"
        ids, merges, entries = read_json_object(files["vocab.json"]), read_merges(files["merges.txt"]), []
    else:
        raise CheckpointError("tokenizer: expected the files tokenizer.json, or vocab.json and merges.txt. "
                              f"Got {', '.join(sorted(files)) or 'none'}")
    added_tokens = read_added_tokens(files, settings, ids, entries)
    all_ids = ids | {name: token.id for name, token in added_tokens.items()}
    return Vocabulary(all_ids, merges, added_tokens, *names, preparation)


def read_merges(path: Path) -> list[str]:
    """The merges in OpenAI's format: one on each line, after a line with the version."""
    try:
        text = read_text_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text: {error}") from error
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n", MOST_VALUES)  # a rest is refused as a merge
    if lines == [""] or lines[0].startswith("#version"):
        del lines[0]
    return lines


# Checks ---------------------------------------------------------------------------------------------------------------


def byte_alphabet() -> dict[str, int]:
    """The letter in which vocabulary files write each byte: letter -> byte, all 256.

    The visible characters of Latin-1 stand for their own codes; the other 68 bytes are written as the characters from
    U+0100 on, in order. So 97 is "a", and 32, the space, is U+0120: "Ġ".
    Source: `bytes_to_unicode` in OpenAI's `src/encoder.py`.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(0x100 + i) for i in range(len(hidden))]
    return dict(zip(letters, visible + hidden))


ALPHABET = byte_alphabet()


def check_ids(vocabulary: Vocabulary) -> None:
    """Raise CheckpointError unless n tokens have the ids 0 to n - 1, each once: an id is a row of wte."""
    ids, file = vocabulary.ids, vocabulary.ids_file
    is_taken = bytearray(len(ids))  # for each id whether a token has it; a set would be far larger
    for token, token_id in ids.items():
        if type(token_id) is not int:  # isinstance would let True pass
            raise CheckpointError(f"{file}: the id of {shown(token)} must be a whole number. Got {shown(token_id)}")
        if 0 <= token_id < len(ids):
            is_taken[token_id] = True
    if not all(is_taken):
        raise CheckpointError(f"{file}: the ids of its {len(ids)} tokens must be 0 to {len(ids) - 1}, each once. "
                              f"No token has the id {is_taken.index(False)}")


def checked_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges as pairs. Raises CheckpointError unless their tokens, what they make, and all 256 bytes exist."""
    ids, pairs = vocabulary.ids, []
    for number, merge in enumerate(vocabulary.merges, start=1):
        left, _, right = merge.partition(" ")
        if not (left and right and left in ids and right in ids and left + right in ids
                and ALPHABET.keys() >= set(left + right)):
            raise CheckpointError(f"{vocabulary.merges_file}: merge {number} must be a pair of tokens that makes "
                                  f"another, all three in {vocabulary.ids_file}. Got {shown(merge)}")
        pairs.append((left, right))
    missing = sorted(byte for letter, byte in ALPHABET.items() if letter not in ids)
    if missing:
        raise CheckpointError(f"{vocabulary.ids_file}: expected a token for each of the 256 bytes, as `tokenizers` "
                              "trains them with initial_alphabet=ByteLevel.alphabet(). "
                              f"{len(missing)} missing: {shown(bytes(missing))}")
    return pairs


def ids_are_ranks(ids: Mapping[bytes, int], ranks: Ranks) -> bool:
    """Whether tiktoken, which knows only the ids, merges every text as the ranks say.

    By the ranks, adjacent tokens are merged if they are a listed pair, the lowest rank first (bpe.py). tiktoken knows
    no pairs: it merges any adjacent tokens that join to a token, the lowest id first. The two agree if the ids rise
    with the ranks, and if adjacent tokens that join to a token are always the listed pair.
    """
    age = {token: 0 for token in ids if len(token) == 1}  # token -> number of its merge, from 1; 0: a byte
    halves: dict[bytes, tuple[bytes, bytes]] = {}  # token -> the pair that makes it
    depth = dict.fromkeys(age, 0)  # token -> how deeply its merges are nested
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

    Both have passed this check, so the bytes of each become that token, unless a merge across the seam comes first.
    Look for one by undoing the merges: of the two tokens at the seam, split the one made later; the two that are then
    at the seam must not join to a token that is made earlier. Of equal merges, the leftmost comes first.
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
