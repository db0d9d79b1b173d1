"""A checkpoint's added tokens and tokenizer settings, by transformers' rules.

transformers has written them to several files over the years, which may contradict one another:

    tokenizer_config.json      the tokenizer's class and settings; an added_tokens_decoder replaces the other lists
    special_tokens_map.json    the tokens that begin and end a text, and other special tokens
    added_tokens.json          token -> id
    tokenizer.json             its added_tokens; its settings count for some classes only
    config.json                the class, if tokenizer_config.json names none

Source: `AutoTokenizer` and `PreTrainedTokenizerBase._from_pretrained` in transformers 5.24.
"""

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
    """A token as a file registers it. Without an id it gets the next free one."""

    file: str  # what errors call the file
    name: str
    id: Any = None
    is_special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of all files together."""

    values: dict[str, Any]  # of tokenizer_config.json and special_tokens_map.json
    files: dict[str, str]  # key -> what errors call the file that has it
    is_rebuilt: bool  # whether the class uses only the vocabulary and merges of tokenizer.json


def read_tokenizer_settings(files: Mapping[str, Path], configs: Configs) -> TokenizerSettings:
    """The settings in tokenizer_config.json and special_tokens_map.json. Raises CheckpointError for unsupported ones.

    Those that are not checked here change no token: lengths, padding, chat templates.
    """
    values: dict[str, Any] = {}
    file_of: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if file in files and "added_tokens_decoder" not in values:  # which replaces special_tokens_map.json
            found = read_json_object(files[file], file)
            values |= found
            file_of |= dict.fromkeys(found, file)
    class_name = tokenizer_class(values, configs)
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
    return TokenizerSettings(values, file_of, class_name in REBUILT)


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


def read_added_tokens(files: Mapping[str, Path], settings: TokenizerSettings, vocabulary: Mapping[str, Any],
                      in_tokenizer_json: list[Entry]) -> dict[str, AddedToken]:
    """Every token that a file registers, by name. vocabulary: token -> id, without added tokens.

    If a token is registered twice, the last entry counts. Raises CheckpointError.
    """
    entries = list(registered(files, settings, in_tokenizer_json))
    named, others = special_names(settings)
    special = {entry.name for entry in (*named.values(), *others)}
    known = {entry.name for entry in entries}
    entries += [entry for entry in (*named.values(), *others) if entry.name not in known]
    if settings.is_rebuilt and (END_OF_TEXT in vocabulary or END_OF_TEXT in known):
        if not {"bos_token", "eos_token", "unk_token"} <= settings.values.keys():  # the class has it for all three
            special.add(END_OF_TEXT)
            if END_OF_TEXT not in known:
                entries.append(Entry("", END_OF_TEXT, is_special=True))

    tokens: dict[str, AddedToken] = {}
    next_id = len(vocabulary)
    for entry in entries:
        if not entry.name:
            raise not_supported(entry.file, "added token", "a text that is not empty", entry.name)
        if entry.name in tokens:
            token_id = tokens[entry.name].id
        else:
            token_id = vocabulary.get(entry.name, next_id)
        if entry.id is not None and (type(entry.id) is not int or entry.id != token_id):
            reason = "as in the vocabulary" if entry.name in vocabulary else "the next, without a gap"
            raise not_supported(entry.file, f"added token {shown(entry.name)}: its id", f"{shown(token_id)}, {reason}",
                                entry.id)
        next_id += token_id == next_id
        tokens[entry.name] = AddedToken(token_id, entry.is_special or entry.name in special, entry.lstrip,
                                        entry.rstrip, entry.single_word, entry.normalized)
    return tokens


def registered(files: Mapping[str, Path], settings: TokenizerSettings, in_tokenizer_json: list[Entry]
               ) -> Iterator[Entry]:
    """The entries with an id of their own, in the order in which transformers adds them."""
    if not settings.is_rebuilt:
        yield from in_tokenizer_json
    by_id: dict[Any, Entry] = {}
    if "added_tokens_decoder" in settings.values:
        decoder = settings.values["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise not_supported("tokenizer_config.json", "added_tokens_decoder", "a JSON object", decoder)
        for token_id, value in decoder.items():
            key = "added_tokens_decoder"
            if not token_id.isdecimal() or len(token_id) > 10:
                raise not_supported("tokenizer_config.json", key, "ids and their tokens", token_id)
            by_id[int(token_id)] = replace(entry_from(value, "tokenizer_config.json", key), id=int(token_id))
    else:
        if "added_tokens.json" in files:
            named, others = special_names(settings)
            special = {entry.name for entry in (*named.values(), *others)}
            listed = read_json_object(files["added_tokens.json"], "added_tokens.json")
            if len(listed) > MOST_ADDED:
                raise CheckpointError(f"added_tokens.json: expected at most {MOST_ADDED:,} tokens. Got {len(listed):,}")
            for name, token_id in listed.items():
                if type(token_id) is not int:
                    raise not_supported("added_tokens.json", f"the id of {shown(name)}", "a whole number", token_id)
                checked_name(name, "added_tokens.json", "a token")
                by_id[token_id] = Entry("added_tokens.json", name, token_id, name in special,
                                        normalized=name not in special)
        for entry in in_tokenizer_json if settings.is_rebuilt else ():
            by_id[entry.id] = entry
    yield from (entry for _, entry in sorted(by_id.items()))


def special_names(settings: TokenizerSettings) -> tuple[dict[str, Entry], list[Entry]]:
    """The special tokens with a role, by role ("bos_token"), and the others."""
    named: dict[str, Entry] = {}
    keys = [key for key in settings.values if key.endswith("_token") and key not in NAMED
            and isinstance(settings.values[key], str | dict)]
    for key in (*NAMED, *keys):
        value = settings.values.get(key)
        if value is not None:
            named[key] = replace(entry_from(value, settings.files[key], key), is_special=True)
    extra_key = "extra_special_tokens" if settings.values.get("extra_special_tokens") else "additional_special_tokens"
    extra = settings.values.get(extra_key) or []
    if not isinstance(extra, list | dict):
        raise not_supported(settings.files[extra_key], extra_key, "a list of tokens", extra)
    values = extra.values() if isinstance(extra, dict) else extra
    return named, [replace(entry_from(value, settings.files[extra_key], extra_key), is_special=True)
                   for value in values]


FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def entry_from(value: Any, file: str, key: str) -> Entry:
    """The token under a key of a file: its name, or an object with `content` and flags. Raises CheckpointError."""
    if isinstance(value, str):
        return Entry(file, checked_name(value, file, key), is_special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise not_supported(file, key, "a token's name, or an object with its content", value)
    if file == "special_tokens_map.json":
        value = {**value, "special": True}
    flags = {flag: value.get(flag, False) for flag in FLAGS}
    if "normalized" not in value:
        flags["normalized"] = not flags["special"]
    for flag in FLAGS:
        if not isinstance(flags[flag], bool):
            raise not_supported(file, f"{key}: {flag}", "true or false", flags[flag])
    return Entry(file, checked_name(value["content"], file, key), value.get("id"), flags["special"], flags["lstrip"],
                 flags["rstrip"], flags["single_word"], flags["normalized"])


def checked_name(name: str, file: str, key: str) -> str:
    """The name. Raises CheckpointError if it cannot be encoded."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise not_supported(file, key, "text, without half a character (a lone surrogate)", name) from error
    return name


def not_supported(file: str, key: str, expected: str, found: Any) -> CheckpointError:
    """The error for an unsupported setting."""
    kind = "not GPT-2's tokenizer: " if file == "tokenizer.json" else ""
    return CheckpointError(f"{file}: {kind}{key} must be {expected}. Got {shown(found)}")
