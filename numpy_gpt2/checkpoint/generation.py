"""A checkpoint's generation settings: the ids that begin and end a text, and settings that are not applied here.

transformers' generate reads them from generation_config.json, or from config.json if there is no such file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import GPT2Config
from ..errors import shown
from .json_file import config_from

Configs = Mapping[str, Mapping[str, Any]]  # the settings in config.json and generation_config.json, if they exist

# Settings that change the text of transformers' generate even without sampling, and the values that change nothing.
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "no_repeat_ngram_size": (0,), "bad_words_ids": (), "sequence_bias": (),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "min_length": (0,), "min_new_tokens": (0,),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (),
    "stop_strings": (), "guidance_scale": (1,), "num_beams": (1,), "penalty_alpha": (0,)}


def text_ids(files: Mapping[str, Path], configs: Configs) -> dict[str, Any]:
    """The bos_token_id and eos_token_id in generation_config.json or, if it has none, in config.json.

    In transformers only generation_config.json counts: without an eos_token_id in it, generation runs to its length.
    Raises CheckpointError.
    """
    found: dict[str, Any] = {}
    for name, settings in configs.items():  # generation_config.json comes last
        ids: dict[str, Any] = {key: settings[key] for key in ("bos_token_id", "eos_token_id") if key in settings}
        config_from({"model_type": "gpt2", **ids}, files[name])  # checks them
        found |= {key: value for key, value in ids.items() if value is not None or name == "config.json"}
    return found


def ends_of(config: GPT2Config) -> tuple[int, ...]:
    """The ids that end a text; there may be none."""
    ends = config.eos_token_id
    return ends if isinstance(ends, tuple) else () if ends is None else (ends,)


def differences(files: Mapping[str, Path], configs: Configs, config: GPT2Config) -> Iterator[str]:
    """Each way in which a text may differ from that of transformers' generate with these files, in a line."""
    name = "generation_config.json" if "generation_config.json" in configs else "config.json"
    settings = configs[name]
    if name != "config.json" and settings.get("eos_token_id") is None and config.eos_token_id is not None:
        yield (f"{files[name]}: no eos_token_id, so texts end at config.json's, {shown(config.eos_token_id)}; in "
               "transformers they would end at the length alone.")
    for end in ends_of(config):
        is_leftover = end == GPT2Config.eos_token_id  # the default, in configs whose vocabulary is another
        if not is_leftover and not 0 <= end < config.vocab_size:
            yield (f"{files['config.json']}: eos_token_id {end}: the model has the ids 0 to {config.vocab_size - 1}, "
                   "so no text ends with it.")
    ignored = [f"{key} {shown(settings[key])}" for key, neutral in NOT_APPLIED.items()
               if settings.get(key) is not None and settings[key] not in neutral]
    if ignored:
        yield f"{files[name]}: ignored, though transformers' generate applies it by default: {', '.join(ignored)}."
