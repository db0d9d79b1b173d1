"""The files that loading needs from a checkpoint, and other formats that people have instead."""

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from ..errors import CheckpointError, shown
from .json_file import read_json_object

# Alternative sets of files for one purpose; the first complete set is used.
Wanted = tuple[tuple[str, ...], ...]


def optional(file_name: str) -> Wanted:
    """A file that is read if it exists."""
    return ((file_name,), ())


INDEX = "model.safetensors.index.json"
CONFIG: Wanted = (("config.json",),)
WEIGHTS: Wanted = (("model.safetensors",), (INDEX,))  # in one file, or in the shards that the index names
TOKENIZER: Wanted = (("tokenizer.json",), ("vocab.json", "merges.txt"))
GENERATION = optional("generation_config.json")
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # where they exist

# Other formats that people have instead of these files, and what to do.
SAVE_AGAIN = "in transformers, from_pretrained() and save_pretrained() write model.safetensors"
LORA = "a LoRA adapter: in PEFT, merge_and_unload() and save_pretrained() write a whole checkpoint"
GGUF = "a file of llama.cpp: load the checkpoint that it was made from"
OPENAI = "OpenAI's own TensorFlow format: the same weights are on the hub (--model gpt2)"
NOT_BPE = "not GPT-2's byte pair encoding: the model alone can be loaded (load_model)"
OTHER_KINDS = {
    CONFIG: {"adapter_config.json": LORA,
             "*.gguf": GGUF,
             "model.ckpt.*": OPENAI,
             "encoder.json": OPENAI},
    WEIGHTS: {"adapter_model.*": LORA,
              "pytorch_model*.bin*": f"a pickle, which can run code and is not opened: {SAVE_AGAIN}",
              "*.h5": f"TensorFlow's format: {SAVE_AGAIN} (version 4, with from_tf=True)",
              "flax_model.msgpack": f"Flax's format: {SAVE_AGAIN} (version 4, with from_flax=True)",
              "model.ckpt.*": OPENAI,
              "*.gguf": GGUF},
    TOKENIZER: {"vocab.txt": f"a vocabulary of WordPiece (BERT's), {NOT_BPE}",
                "*.model": f"a vocabulary of SentencePiece, {NOT_BPE}",
                "encoder.json": "OpenAI's own names: rename encoder.json to vocab.json, and vocab.bpe to merges.txt"},
}


# A function that gets a file: its name in the checkpoint -> its path, or None if the checkpoint has no such file.
FileGetter = Callable[[str], Path | None]


class IncompleteCheckpoint(CheckpointError):
    """A required file is missing."""

    def __init__(self, message: str, wanted: Wanted) -> None:
        super().__init__(message)
        self.wanted = wanted


def files_in_folder(folder: Path, wanted: Sequence[Wanted]) -> dict[str, Path]:
    """The files of a folder. If it has others instead, the error says what they are and how to get the right ones."""
    def get(file_name: str) -> Path | None:
        path = folder / file_name
        return path if os.path.isfile(path) else None  # links are followed

    try:
        return choose_files(wanted, get, str(folder))
    except IncompleteCheckpoint as error:
        for pattern, meaning in OTHER_KINDS.get(error.wanted, {}).items():
            found = [file_name for file_name in sorted(os.listdir(folder)) if fnmatch(file_name, pattern)]
            if found:
                raise IncompleteCheckpoint(f"{error} Found {found[0]}, {meaning}.", error.wanted) from None
        raise


def choose_files(wanted: Sequence[Wanted], get: FileGetter, place: str) -> dict[str, Path]:
    """For each purpose the first set of files that `get` finds completely. Raises IncompleteCheckpoint if none is."""
    files: dict[str, Path] = {}
    beside = BESIDE_TOKENIZER if TOKENIZER in wanted else ()
    for alternatives in (*wanted, *map(optional, beside)):
        files |= first_complete(alternatives, get, place)
    if INDEX in files:
        for shard in shard_names(files[INDEX]):
            files |= first_complete(((shard,),), get, place)
    return files


def first_complete(alternatives: Wanted, get: FileGetter, place: str) -> dict[str, Path]:
    """The first of the alternatives that `get` finds completely: name -> path. Raises IncompleteCheckpoint."""
    for file_names in alternatives:
        found: dict[str, Path] = {}
        for file_name in file_names:
            path = get(file_name)
            if path is None:
                break
            found[file_name] = path
        else:
            return found
    expected = ", or ".join(" and ".join(file_names) for file_names in alternatives)
    raise IncompleteCheckpoint(f"{place}: a file is missing: expected {expected}.", alternatives)


def shard_names(index: Path) -> list[str]:
    """The files that a sharded checkpoint's index names: bare names, so that none is outside its folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f'{index}: expected an object under "weight_map", found {type(weight_map).__name__}.')
    for tensor, shard in weight_map.items():
        is_name = isinstance(shard, str) and re.fullmatch(r"[^/\\:]{1,200}\.safetensors", shard)
        if not is_name or not shard.isprintable():  # else it may spoil the line of an error
            raise CheckpointError(f"{index}: tensor {shown(tensor)}: expected the bare name of a .safetensors file "
                                  f"beside the index, found {shown(shard)}.")
    return sorted(set(weight_map.values()))
