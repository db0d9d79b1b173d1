"""A checkpoint's added tokens and tokenizer settings, by transformers' rules.

transformers has written them to several files over the years, which may contradict one another:

    tokenizer_config.json      the tokenizer's class and settings; an added_tokens_decoder replaces the other lists
    special_tokens_map.json    the tokens that begin and end a text, and other special tokens
    added_tokens.json          token -> id
    tokenizer.json             its added_tokens; its settings count for some classes only
    config.json                the class, if tokenizer_config.json names none

Source: `AutoTokenizer` and `PreTrainedTokenizerBase._from_pretrained` in transformers 5.24.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown
from ..tokenizer import END_OF_TEXT, AddedToken
from .generation import Configs
from .json_file import read_json_object

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MOST_ADDED = 50_000  # in added_tokens.json; each takes ten times the memory of an ordinary token
REBUILT = ("GPT2Tokenizer", None)  # the class that uses only the vocabulary and merges of tokenizer.json
AS_WRITTEN = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")  # the classes that use all of it


@dataclass(frozen=True)
class Entry:
    """A token as a file registers it, with its flags. Without an id it gets the next free one."""

    file: str  # what errors call the file
    name: str
    id: Any = None
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of tokenizer_config.json and special_tokens_map.json together."""

    values: dict[str, Any]
    special: list[tuple[str, Entry]]  # the tokens that these files call special, each with its key: "bos_token"
    is_rebuilt: bool  # whether the class uses only the vocabulary and merges of tokenizer.json


def read_tokenizer_settings(files: Mapping[str, Path], configs: Configs) -> TokenizerSettings:
    """The settings in tokenizer_config.json and special_tokens_map.json. Raises CheckpointError for unsupported ones.

    Those that are not checked here change no token: lengths, padding, chat templates.
    """
    values: dict[str, Any] = {}
    file_of: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if file in files and "added_tokens_decoder" not in values:  # which replaces special_tokens_map.json
            found = read_json_object(files[file])
            values |= found
            file_of |= dict.fromkeys(found, file)
    is_rebuilt = tokenizer_class(values, configs) in REBUILT
    for key in ("add_bos_token", "add_eos_token"):  # tokenizer.json, if there is one, decides
        if "tokenizer.json" not in files and values.get(key):
            raise not_supported(file_of[key], key, "false: add the token's name to the text", values[key])
    for key in ("split_special_tokens", "fast_tokenizer_files",
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"):
        if values.get(key):
            raise not_supported(file_of[key], key, "false", values[key])
    if not isinstance(values.get("add_prefix_space"), bool | None):
        raise not_supported(file_of["add_prefix_space"], "add_prefix_space", "true or false",
                            values["add_prefix_space"])
    return TokenizerSettings(values, list(special_tokens(values, file_of)), is_rebuilt)


def tokenizer_class(values: Mapping[str, Any], configs: Configs) -> str | None:
    """The name of transformers' class, without the "Fast" of earlier versions. Raises CheckpointError for others."""
    file, name = "tokenizer_config.json", values.get("tokenizer_class")
    if name is None and "config.json" in configs:
        file, name = "config.json", configs["config.json"].get("tokenizer_class")
    known = name.removesuffix("Fast") if isinstance(name, str) else name
    if known not in (*REBUILT, *AS_WRITTEN):
        raise CheckpointError(f"{file}: tokenizer_class must be GPT2Tokenizer or PreTrainedTokenizerFast. "
                              f"Got {shown(name)}: the model alone can be loaded (load_model).")
    return known


def special_tokens(values: Mapping[str, Any], file_of: Mapping[str, str]) -> Iterator[tuple[str, Entry]]:
    """The special tokens, each with its key, in the order in which transformers adds them."""
    others = [key for key, value in values.items()
              if key.endswith("_token") and key not in NAMED and isinstance(value, str | dict)]
    for key in (*NAMED, *others):
        if values.get(key) is not None:
            yield key, replace(entry_from(values[key], file_of[key], key), special=True)
    key = "extra_special_tokens" if values.get("extra_special_tokens") else "additional_special_tokens"
    extra = values.get(key) or []
    if not isinstance(extra, list | dict):
        raise not_supported(file_of[key], key, "a list of tokens", extra)
    for value in extra.values() if isinstance(extra, dict) else extra:
        yield key, replace(entry_from(value, file_of[key], key), special=True)


def entry_from(value: Any, file: str, key: str) -> Entry:
    """The token under a key of a file: its name, or an object with `content` and flags. Raises CheckpointError."""
    if isinstance(value, str):
        return Entry(file, checked_name(value, file, key), special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise not_supported(file, key, "a token's name, or an object with its content", value)
    flags = {flag: value.get(flag, False) for flag in FLAGS}
    if file == "special_tokens_map.json":
        flags["special"] = True
    if "normalized" not in value:
        flags["normalized"] = not flags["special"]
    for flag, is_set in flags.items():
        if not isinstance(is_set, bool):
            raise not_supported(file, f"{key}: {flag}", "true or false", is_set)
    return Entry(file, checked_name(value["content"], file, key), value.get("id"), **flags)


def checked_name(name: str, file: str, key: str) -> str:
    """The name. Raises CheckpointError if it cannot be encoded."""
    if re.search("[\ud800-\udfff]", name):
        raise not_supported(file, key, "text, without half a character (a lone surrogate)", name)
    return name


def read_added_tokens(files: Mapping[str, Path], settings: TokenizerSettings, vocabulary: Mapping[str, Any],
                      in_tokenizer_json: list[Entry]) -> dict[str, AddedToken]:
    """Every token that a file registers, by name. vocabulary: token -> id, without added tokens.

    If a token is registered twice, the last entry counts. Raises CheckpointError.
    """
    entries = registered(files, settings, in_tokenizer_json)
    known = {entry.name for entry in entries}
    special = [entry for _, entry in settings.special]
    has_default = settings.is_rebuilt and not {"bos_token", "eos_token", "unk_token"} <= settings.values.keys()
    if has_default and (END_OF_TEXT in vocabulary or END_OF_TEXT in known):
        special.append(Entry("", END_OF_TEXT, special=True))
    entries += [entry for entry in special if entry.name not in known]
    special_names = {entry.name for entry in special}

    tokens: dict[str, AddedToken] = {}
    next_id = len(vocabulary)
    for entry in entries:
        name = entry.name
        if not name:
            raise not_supported(entry.file, "added token", "a text that is not empty", name)
        token_id = tokens[name].id if name in tokens else vocabulary.get(name, next_id)
        if entry.id is not None and (type(entry.id) is not int or entry.id != token_id):
            reason = "as in the vocabulary" if name in vocabulary else "the next, without a gap"
            raise not_supported(entry.file, f"added token {shown(name)}: its id", f"{shown(token_id)}, {reason}",
                                entry.id)
        next_id += token_id == next_id
        tokens[name] = AddedToken(token_id, entry.special or name in special_names, entry.lstrip, entry.rstrip,
                                  entry.single_word, entry.normalized)
    return tokens


def registered(files: Mapping[str, Path], settings: TokenizerSettings, in_tokenizer_json: list[Entry]) -> list[Entry]:
    """The entries with an id of their own, in the order in which transformers adds them."""
    listed: list[Entry] = []
    if "added_tokens_decoder" in settings.values:
        file, key, decoder = "tokenizer_config.json", "added_tokens_decoder", settings.values["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise not_supported(file, key, "a JSON object", decoder)
        for token_id, value in decoder.items():
            if not token_id.isdecimal() or len(token_id) > 10:
                raise not_supported(file, key, "ids and their tokens", token_id)
            listed.append(replace(entry_from(value, file, key), id=int(token_id)))
    else:
        if "added_tokens.json" in files:
            special_names = {entry.name for _, entry in settings.special}
            ids = read_json_object(files["added_tokens.json"])
            if len(ids) > MOST_ADDED:
                raise CheckpointError(f"added_tokens.json: expected at most {MOST_ADDED:,} tokens. Got {len(ids):,}")
            for name, token_id in ids.items():
                if type(token_id) is not int:
                    raise not_supported("added_tokens.json", f"the id of {shown(name)}", "a whole number", token_id)
                checked_name(name, "added_tokens.json", "a token")
                is_special = name in special_names
                listed.append(Entry("added_tokens.json", name, token_id, is_special, normalized=not is_special))
        if settings.is_rebuilt:
            listed += in_tokenizer_json
    by_id = {entry.id: entry for entry in listed}
    return [*([] if settings.is_rebuilt else in_tokenizer_json), *(by_id[token_id] for token_id in sorted(by_id))]


def not_supported(file: str, key: str, expected: str, found: Any) -> CheckpointError:
    """The error for an unsupported setting."""
    kind = "not GPT-2's tokenizer: " if file == "tokenizer.json" else ""
    return CheckpointError(f"{file}: {kind}{key} must be {expected}. Got {shown(found)}")
