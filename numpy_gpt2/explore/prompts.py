"""Prompts and tokens in requests to the server: parsed from text or ids, checked, and as Python code."""

from dataclasses import dataclass, field
from typing import Any, Collection, Mapping, NamedTuple

from ..errors import check_int, shown
from ..tokenizer import Tokenizer
from ..weights import GPT2
from .page import check_fits_page


@dataclass(frozen=True)
class Engine:
    """What every answer needs: the model, its tokenizer, and a cache of pages."""

    model: GPT2
    tokenizer: Tokenizer
    name: str  # the argument of `load`
    allowed_special: Collection[str] = ()
    kept: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)  # ids -> page without interventions


class Prompt(NamedTuple):
    """The ids [n_tokens] of a prompt, and a Python expression for them."""

    ids: list[int]
    code: str


def check_keys(name: str, given: Any, keys: Collection[str]) -> None:
    """Raise ValueError unless this is a JSON object with no keys but these."""
    if not isinstance(given, dict):
        raise ValueError(f"{name} must be a JSON object. Got {shown(given)}.")
    for key in given.keys() - set(keys):
        raise ValueError(f"{name} must have no keys but {', '.join(keys)}. Got {shown(key)}.")


def parse_prompt(engine: Engine, request: Mapping[str, Any], text_key: str = "prompt", ids_key: str = "ids") -> Prompt:
    """The prompt under one of two keys, within the page's limit. Raises ValueError."""
    prompt = parse_text(engine, request, text_key, ids_key)
    check_fits_page(engine.model, prompt.ids)
    return prompt


def parse_text(engine: Engine, request: Mapping[str, Any], text_key: str, ids_key: str) -> Prompt:
    """The prompt under one of two keys, of any length. Raises ValueError."""
    text, ids = request.get(text_key), request.get(ids_key)
    if (text is None) == (ids is None):
        found = "neither" if ids is None else "both"
        raise ValueError(f"either {text_key!r} or {ids_key!r} must be given. Got {found}.")
    if text is None:
        return Prompt(parse_ids(engine, ids, ids_key), str(ids))
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} must be a string. Got {shown(text)}.")
    if text == "":
        return Prompt(engine.tokenizer.with_bos(), "tokenizer.with_bos()")
    special = f", allowed_special={engine.allowed_special!r}" if engine.allowed_special else ""
    return Prompt(engine.tokenizer.encode(text, engine.allowed_special), f"tokenizer.encode({text!r}{special})")


def parse_ids(engine: Engine, ids: Any, key: str) -> list[int]:
    """A list of ids that have a token. Raises ValueError."""
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{key!r} must be a list of token ids. Got {shown(ids)}.")
    return [check_int(f"an id of {key!r}", token_id, 0, n_known(engine) - 1) for token_id in ids]


def parse_token(engine: Engine, token: int | str, key: str) -> int:
    """A token by its id or its text. Raises ValueError."""
    if not isinstance(token, str):
        return check_int(repr(key), token, 0, n_known(engine) - 1)
    ids = engine.tokenizer.encode(token, engine.allowed_special)
    if len(ids) != 1:
        parts = " + ".join(repr(engine.tokenizer.decode([token_id])) for token_id in ids[:10]) or "none"
        raise ValueError(f"{key!r} must be one token. Got {shown(token)}, which is {len(ids)}: {parts}.")
    return parse_ids(engine, ids, key)[0]


def n_known(engine: Engine) -> int:
    """The number of ids that both the model and its tokenizer have."""
    return min(engine.tokenizer.vocab_size, engine.model.config.vocab_size)
