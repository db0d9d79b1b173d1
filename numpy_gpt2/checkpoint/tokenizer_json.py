"""tokenizer.json, the format of the `tokenizers` library and the only vocabulary file that transformers 5 writes.

Source: https://github.com/huggingface/tokenizers
"""

import unicodedata
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

from ..errors import shown
from ..tokenizer import Preparation
from .added_tokens import Entry, entry_from, not_supported

# The supported values of each key. Keys that are not listed change no token: truncation and padding, a substitute for
# unknown bytes (there are none), offsets.
GPT2_SETTINGS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("model", "type"): ("BPE", None),
    ("post_processor", "type"): ("ByteLevel", "TemplateProcessing", None),
    ("post_processor", "single"): ([{"Sequence": {"id": "A", "type_id": 0}}], None),  # the text, nothing added
}
# The same for the classes that use all of tokenizer.json:
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


def check_settings(contents: Mapping[str, Any], is_rebuilt: bool) -> None:
    """Raise CheckpointError for a tokenizer.json that is not GPT-2's byte-level BPE."""
    for (section, key), supported in (GPT2_SETTINGS | ({} if is_rebuilt else AS_WRITTEN_SETTINGS)).items():
        value = json_object_in(contents, section).get(key)
        if value not in supported:
            raise not_supported("tokenizer.json", f"{section}.{key}", shown(supported[0]), value)


def ids_in(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Token -> id, without added tokens."""
    return json_object_in(json_object_in(contents, "model"), "vocab")


def merges_in(contents: Mapping[str, Any]) -> list[str]:
    """The merges of a tokenizer.json: "Ġ t" in older files, ["Ġ", "t"] in newer ones."""
    model = json_object_in(contents, "model")
    try:
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (KeyError, TypeError) as error:
        raise not_supported("tokenizer.json", "model.merges", "a list of pairs of tokens",
                            model.get("merges")) from error


def preparation_in(contents: Mapping[str, Any]) -> Preparation:
    """The settings for preparing a text before it is encoded."""
    splitting = json_object_in(contents, "pre_tokenizer")
    return Preparation(bool(splitting.get("add_prefix_space")), splitting.get("use_regex") is not False,
                       normalizer(json_object_in(contents, "normalizer")))


def entries_in(contents: Mapping[str, Any]) -> list[Entry]:
    """The added tokens."""
    listed = contents.get("added_tokens")
    if not isinstance(listed, list):
        raise not_supported("tokenizer.json", "added_tokens", "a list", listed)
    entries = []
    for one in listed:
        if not isinstance(one, dict) or type(one.get("id")) is not int:
            raise not_supported("tokenizer.json", "added token", "an object with a content and an id", one)
        entries.append(entry_from(one, "tokenizer.json", "added token"))
    return entries


def normalizer(settings: Mapping[str, Any]) -> Callable[[str], str] | None:
    """The function of a normalizer, or None for null."""
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
    """The object under a key; empty if there is none. Raises CheckpointError if the value is not an object."""
    value = settings.get(key)
    if not isinstance(value, dict | None):
        raise not_supported("tokenizer.json", key, "a JSON object", value)
    return value or {}
