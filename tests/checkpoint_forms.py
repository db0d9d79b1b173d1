"""A good checkpoint in the forms that it goes through on its way into a folder, so that each can be spoilt.

What it says (settings, tensors, tokens), the JSON that says it, and the bytes of the files.
"""

import json
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from numpy_gpt2 import GPT2Config, named_parameters, random_model
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet
from numpy_gpt2.tokenizer import END_OF_TEXT

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BESIDE: dict[str, Any] = {
    "added_tokens.json": {"<x>": 260, "<y>": 261}, "generation_config.json": {"eos_token_id": [259, 261]},
    "special_tokens_map.json": {"bos_token": "<x>", "pad_token": {"content": "<y>", "lstrip": True}},
    "tokenizer_config.json": {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}}
MERGES = ["h e", "Ġ t", "Ġt he"]
TOKENS = [*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), END_OF_TEXT]
CONFIG = GPT2Config(vocab_size=len(TOKENS), n_positions=4, n_embd=4, n_layer=2, n_head=2)
ADDED_TOKEN = {"id": len(TOKENS) - 1, "content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass
class Said:
    """What the folder says. A tensor is (type, shape, bytes)."""

    config: Any
    tensors: dict[str, tuple[str, list[int], bytes]]
    vocab: Any
    merges: Any
    tokenizer: Any  # what tokenizer.json says beside vocabulary and merges
    is_sharded: bool
    shard_of: dict[str, Any]
    has_tokenizer_json: bool
    beside: dict[str, Any] = field(default_factory=dict)  # the smaller JSON files that a tokenizer or an end hangs on


@dataclass
class Written:
    """The text of each file, which is JSON but for merges.txt. The text of a safetensors file is its header."""

    texts: dict[str, bytes]
    data: dict[str, bytes]  # what stands behind the headers


def stored(array: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return array.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).tobytes()


@cache
def arrays_of(config: GPT2Config) -> dict[str, np.ndarray]:
    return dict(named_parameters(random_model(config)))


def good(dtype: str = "F32", prefix: str = "", is_sharded: bool = False,
         has_tokenizer_json: bool = False, config: GPT2Config = CONFIG) -> Said:
    """A checkpoint with nothing wrong."""
    tensors = {(name if name == "lm_head.weight" else prefix + name): (dtype, list(array.shape), stored(array, dtype))
               for name, array in arrays_of(config).items()}
    tokenizer = {
        "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "added_tokens": [dict(ADDED_TOKEN)],
    }
    shard_of = {name: SHARDS[i % 2] for i, name in enumerate(tensors)}
    return Said(config.to_dict(), tensors, {token: i for i, token in enumerate(TOKENS)}, list(MERGES), tokenizer,
                is_sharded, shard_of, has_tokenizer_json)


def laid_out(tensors: dict[str, tuple[str, list[int], bytes]]) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return header, data


def headers_of(said: Said) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The headers and the data of the weights' files."""
    if not said.is_sharded:
        return {"model.safetensors": laid_out(said.tensors)}
    return {shard: laid_out({name: tensor for name, tensor in said.tensors.items() if said.shard_of.get(name) == shard})
            for shard in SHARDS}


def as_text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


def written(said: Said, headers: dict[str, tuple[dict[str, Any], bytes]]) -> Written:
    texts = {"config.json": as_text(said.config)}
    texts |= {name: as_text(header) for name, (header, _) in headers.items()}
    texts |= {name: as_text(content) for name, content in said.beside.items()}
    if said.is_sharded:
        texts[INDEX] = as_text({"metadata": {}, "weight_map": said.shard_of})
    if said.has_tokenizer_json:
        model = {"type": "BPE", "vocab": said.vocab, "merges": said.merges}
        texts["tokenizer.json"] = as_text({**said.tokenizer, "model": model})
    else:
        texts["vocab.json"] = as_text(said.vocab)
        lines = map(str, said.merges) if isinstance(said.merges, list) else [repr(said.merges)]
        texts["merges.txt"] = "\n".join(["#version: 0.2", *lines]).encode("utf-8", errors="surrogatepass")
    return Written(texts, {name: data for name, (_, data) in headers.items()})


def as_bytes(written: Written) -> dict[str, bytes]:
    """The bytes of each file."""
    files = dict(written.texts)
    for name, data in written.data.items():
        files[name] = struct.pack("<Q", len(files[name])) + files[name] + data
    return files
