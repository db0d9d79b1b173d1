"""From a name to a model: its files, their contents, and the arrays in memory.

    name -> checkpoint_files -> headers, checked against the config -> arrays, read one by one -> GPT2

A checkpoint is untrusted, so everything is checked before it is used: the headers of the weights files give every
tensor's name, type and shape, and nothing large is allocated before all of them match the config.
"""

import math
import os
import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np

from ..config import SIZES, GPT2Config
from ..errors import CheckpointError, CheckpointWarning, shown
from ..matmul import allocate_parameter
from ..tokenizer import Tokenizer
from ..weights import GPT2, build_model, named_shapes
from .generation import Configs, differences, text_ids
from .hub import RELEASED, checkpoint_files, look_up
from .json_file import config_from, read_configs
from .memory import check_memory
from .tensors import STORED_TYPES, StoredTensor, checked_dtype, read_rows, stored_tensors
from .vocabulary import tokenizer_from_files
from .wanted import CONFIG, GENERATION, INDEX, TOKENIZER, WEIGHTS, optional

# Loading --------------------------------------------------------------------------------------------------------------


def load(name: str | Path = "fairytale", revision: str | None = None, dtype: Any = "float32") -> tuple[GPT2, Tokenizer]:
    """The model and the tokenizer of a checkpoint.

    If its config scales attention scores by another factor than 1 / sqrt(d_head), the weights of q include it.
    name: a built-in name ("fairytale", "small" to "xl", "gpt2" to "gpt2-xl"), a folder, or "owner/repo" on the hub.
        Default: the bundled checkpoint, "fairytale".
    revision: of a repository on the hub, a branch, a tag or a commit. dtype: of the arrays in memory, "float32", or
    "float64" for studies of exactness; the file may hold either, or float16, or bfloat16.
    Raises CheckpointError (a file), HubError (the network), MemoryError (too large) or ValueError (an argument).
    """
    dtype = checked_dtype(dtype, "float32", "float64")
    check_released(name, dtype)
    files = checkpoint_files(name, revision, (CONFIG, GENERATION, WEIGHTS, TOKENIZER))
    with unchanged_while_read(files):
        configs = read_configs(files)
        tokenizer = tokenizer_from_files(files, configs)  # first, because it fails sooner
        model = read_model(files, configs, dtype)
    n_tokens, n_ids = tokenizer.vocab_size, model.config.vocab_size
    if n_tokens > n_ids:
        warnings.warn(f"{files['config.json']}: vocab_size {n_ids}: the model has no rows for the tokenizer's ids "
                      f"{n_ids} to {n_tokens - 1}: it can neither read nor write them.", CheckpointWarning,
                      stacklevel=2)
    return model, tokenizer


def load_model(name: str | Path = "fairytale", revision: str | None = None, dtype: Any = "float32") -> GPT2:
    """The model of a checkpoint, without its tokenizer. Arguments and errors as for `load`."""
    dtype = checked_dtype(dtype, "float32", "float64")
    check_released(name, dtype)
    files = checkpoint_files(name, revision, (CONFIG, GENERATION, WEIGHTS))
    with unchanged_while_read(files):
        return read_model(files, read_configs(files), dtype)


def load_tokenizer(name: str | Path = "fairytale", revision: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, without its weights. Arguments and errors as for `load`."""
    files = checkpoint_files(name, revision, (TOKENIZER, optional("config.json"), GENERATION))
    with unchanged_while_read(files):
        return tokenizer_from_files(files)


def check_released(name: str | Path, dtype: np.dtype) -> None:
    """Raise MemoryError before the download, not after it, if a released size does not fit into memory."""
    place = look_up(str(name))
    for size, config in SIZES.items():
        if place == RELEASED[size]:
            check_memory(config, dtype)


@contextmanager
def unchanged_while_read(files: Mapping[str, Path]) -> Iterator[None]:
    """Raise CheckpointError if a file is replaced or written to in the meantime, which could mix two models.

    It replaces any CheckpointError that the change may have caused.
    """
    before = {path: file_state(path) for path in files.values()}
    failure = None
    try:
        yield
    except CheckpointError as error:
        failure = error
    for path, state in before.items():
        if file_state(path) != state:
            raise CheckpointError(f"{path}: changed while the checkpoint was read: load it again when it has been "
                                  "written.") from failure
    if failure is not None:
        raise failure


def file_state(path: Path) -> tuple[int, ...] | None:
    """Numbers that change when the file is replaced or written to. None: there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# Quantized weights: their types, and the endings of tensors stored with them (bitsandbytes, GPTQ, AWQ).
QUANTIZED_TYPES = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")
QUANTIZED_ENDINGS = (".absmax", ".quant_map", ".SCB", ".qweight", ".qzeros", ".scales", ".weight_scale")


# Checking the headers -------------------------------------------------------------------------------------------------


def check_tensors(config: GPT2Config, tensors: Mapping[str, StoredTensor], place: Path) -> None:
    """Raise CheckpointError unless the headers have every parameter of this config, in its shape and a known type."""
    check_kind(tensors)
    expected = set()
    for name, shape in named_shapes(config):
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{place}: tensor {name!r}: expected shape {shape}, from config.json, "
                                  "found no such tensor.")
        if tensor.shape == shape[::-1] != shape and ".c_" in name:
            raise CheckpointError(f"{tensor.path}: tensor {name!r}: expected shape {shape}, as GPT-2 stores it (inputs "
                                  f"first), found {tensor.shape}: transpose the c_attn, c_proj and c_fc weights.")
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.path}: tensor {name!r}: expected shape {shape}, from config.json, "
                                  f"found {shown(tensor.shape)}.")
        if tensor.dtype not in STORED_TYPES:
            raise CheckpointError(f"{tensor.path}: tensor {name!r}: expected type {', '.join(STORED_TYPES)}, "
                                  f"found {tensor.dtype}.")
        expected.add(name)
    for name in tensors.keys() - expected:
        if belongs_to_the_pass(name):
            raise CheckpointError(f"{tensors[name].path}: tensor {shown(name)}: expected no such tensor in a GPT-2 "
                                  f"with the {config.n_layer} layers of config.json.")


def check_kind(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError, saying what to do instead, for quantized weights and for LoRA adapters."""
    for name, tensor in tensors.items():
        if ".lora_" in name:
            raise CheckpointError(f"{tensor.path}: tensor {shown(name)}: a LoRA adapter, expected a whole GPT-2. In "
                                  "PEFT, merge_and_unload() and save_pretrained() write one.")
        is_quantized = tensor.dtype in QUANTIZED_TYPES or name.endswith(QUANTIZED_ENDINGS)
        if is_quantized and belongs_to_the_pass(name):
            raise CheckpointError(f"{tensor.path}: tensor {shown(name)}: quantized ({tensor.dtype}), expected type "
                                  f"{', '.join(STORED_TYPES)}. In transformers, model.dequantize() and "
                                  "save_pretrained() write such a checkpoint.")


def belongs_to_the_pass(name: str) -> bool:
    """Whether an unexpected tensor belongs to the forward pass, so that ignoring it would change the result.

    True of a thirteenth block or a LoRA matrix; false of the causal masks in older files, which are not parameters, and
    of heads for other tasks, such as `score.weight`.
    """
    if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name):
        return False
    return name.startswith(("h.", "wte.", "wpe.", "ln_f."))


# From headers to arrays -----------------------------------------------------------------------------------------------


def read_model(files: Mapping[str, Path], configs: Configs, dtype: np.dtype) -> GPT2:
    """The model in these files: first all headers and all checks, then the arrays."""
    settings = configs["config.json"]
    config = config_from({**settings, **text_ids(files, configs)}, files["config.json"])
    try:
        tensors = stored_tensors(files)
    except MemoryError:  # safetensors maps a file to check it, which `ulimit -v` counts
        check_memory(config, dtype)
        raise
    config = checked_config(config, tensors, files.get("model.safetensors") or files[INDEX])
    check_memory(config, dtype)
    arrays = {name: read_tensor(tensors[name], dtype) for name, _ in named_shapes(config)}
    scale_queries(config, settings, arrays)
    for difference in differences(files, configs, config):
        warnings.warn(difference, CheckpointWarning, stacklevel=3)
    return build_model(config, arrays)


def scale_queries(config: GPT2Config, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Multiply the weights of q by the config's scale of attention scores, beyond the pass's 1 / sqrt(d_head).

    A score is q @ k, so scaling q scales the score. stanford-crfm's models also divide by the layer's number.
    """
    for layer in range(config.n_layer):
        scale = query_scale(config, settings, layer)
        if scale != 1.0:
            for part in ("weight", "bias"):
                arrays[f"h.{layer}.attn.c_attn.{part}"][..., :config.n_embd] *= scale


def query_scale(config: GPT2Config, settings: Mapping[str, Any], layer: int) -> float:
    """The config's scale of a layer's attention scores, beyond 1 / sqrt(d_head)."""
    scale = math.sqrt(config.d_head) if settings.get("scale_attn_weights") is False else 1.0
    return scale / (layer + 1) if settings.get("scale_attn_by_inverse_layer_idx") else scale


def checked_config(config: GPT2Config, tensors: Mapping[str, StoredTensor], place: Path) -> GPT2Config:
    """The config, after checking the headers against it; untied if the stored `lm_head` differs from `wte`."""
    has_head = "lm_head.weight" in tensors
    check_tensors(replace(config, tie_word_embeddings=False) if has_head else config, tensors, place)
    if config.tie_word_embeddings and has_head:
        is_tied = all(map(np.array_equal, read_rows(tensors["wte.weight"]), read_rows(tensors["lm_head.weight"])))
        return replace(config, tie_word_embeddings=is_tied)  # if they differ, the file wins, as in transformers 5
    return config


def read_tensor(tensor: StoredTensor, dtype: np.dtype) -> np.ndarray:
    """One tensor as an array of this type."""
    array = allocate_parameter(tensor.name, tensor.shape, dtype)
    n_read = 0
    for rows in read_rows(tensor):
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaNs are kept
            array[n_read:n_read + len(rows)] = rows
        n_read += len(rows)
    return array
