"""From a name to a model: which files the name stands for, what they hold, and the arrays in memory.

    name -> checkpoint_files -> headers, checked against the config -> arrays, read one by one -> GPT2

A checkpoint comes from a stranger, so everything is checked before it is used: the headers of the weights' files say
every tensor's name, type and shape, and nothing large is allocated before all of them fit the config.

Source of the file format: https://github.com/huggingface/safetensors (eight bytes that give the header's length, the
header in JSON, then the tensors' bytes). It holds numbers only; a pickle, which can hold code, is never opened.
"""

import json
import math
import os
import re
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .config import CheckpointError, GPT2Config
from .hub import CONFIG, INDEX, TOKENIZER, WEIGHTS, HubError, checkpoint_files, one_line
from .model import BLOCK_PARTS, GPT2, MLP, Attention, Block, Conv1D, LayerNorm, named_parameters
from .tokenizer import Tokenizer, tokenizer_from_files

__all__ = ["CheckpointError", "HubError", "build_model", "checkpoint_files", "load", "load_model", "load_tokenizer",
           "parameter_shapes", "random_model", "save"]

# The types a checkpoint's weights may have: safetensors' name, and how NumPy reads the bytes. NumPy has no bfloat16,
# so these two bytes are read as a number and widened by hand.
STORED_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


# Loading --------------------------------------------------------------------------------------------------------------


def load(name: str | Path, revision: str | None = None, dtype: Any = "float32") -> tuple[GPT2, Tokenizer]:
    """The model and the tokenizer of a checkpoint.

    name: a built-in name ("fairytale", "small" to "xl", "gpt2" to "gpt2-xl"), a folder, or "owner/repo" on the hub.
    revision: of a repository on the hub, a branch, a tag or a commit. dtype: of the arrays in memory, "float32", or
    "float64" for studies of exactness; the file may hold either, or float16, or bfloat16.
    Raises CheckpointError (a file), HubError (the network) or ValueError (an argument).
    """
    dtype = checked_dtype(dtype)
    files = checkpoint_files(name, revision, (CONFIG, WEIGHTS, TOKENIZER))
    tokenizer = tokenizer_from_files(files)  # first: it is the quicker of the two to fail
    return read_model(files, dtype), tokenizer


def load_model(name: str | Path, revision: str | None = None, dtype: Any = "float32") -> GPT2:
    """The model of a checkpoint, without its tokenizer. Arguments and errors as for `load`."""
    dtype = checked_dtype(dtype)
    files = checkpoint_files(name, revision, (CONFIG, WEIGHTS))
    return read_model(files, dtype)


def load_tokenizer(name: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, without its weights. Arguments and errors as for `load`."""
    files = checkpoint_files(name, revision, (TOKENIZER,))
    return tokenizer_from_files(files)


def checked_dtype(dtype: Any) -> np.dtype:
    """float32 or float64, by any of their names in NumPy. Raises ValueError for another."""
    try:
        checked = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:
        checked = None
    if checked not in (np.float32, np.float64):
        raise ValueError(f'dtype must be "float32" or "float64". Got {dtype!r}.')
    return checked


# From files to headers, and checks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie, and what they are: all that a header says of it."""

    path: Path
    name: str  # as the file has it
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the beginning of the file


def read_header(path: Path) -> list[StoredTensor]:
    """What a safetensors file says it holds. Raises CheckpointError where that is not what lies in it."""
    try:
        with safe_open(path, framework="np", backend="pread"):
            pass  # it checks, once and for all: lengths, types, and that the tensors cover the file without overlap
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {one_line(error)}") from error
    header.pop("__metadata__", None)
    return [StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()]


def stored_tensors(files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """Every tensor of the weights' files under its name in the official layout, which has no `transformer.` prefix."""
    tensors: dict[str, StoredTensor] = {}
    for file_name, path in files.items():
        if not file_name.endswith(".safetensors"):
            continue
        for tensor in read_header(path):
            name = tensor.name.removeprefix("transformer.")
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name!r} is there twice, also in {tensors[name].path}.")
            tensors[name] = tensor
    return tensors


def named_shapes(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The pairs of `parameter_shapes` one by one: a config that claims a billion layers costs nothing to compare."""
    n_embd, n_inner = config.n_embd, config.n_inner
    weights: dict[str, tuple[int, ...]] = {
        "ln_1": (n_embd,),
        "attn.c_attn": (n_embd, 3 * n_embd),
        "attn.c_proj": (n_embd, n_embd),
        "ln_2": (n_embd,),
        "mlp.c_fc": (n_embd, n_inner),
        "mlp.c_proj": (n_inner, n_embd),
    }
    yield "wte.weight", (config.vocab_size, n_embd)
    yield "wpe.weight", (config.n_positions, n_embd)
    for i in range(config.n_layer):
        for part in BLOCK_PARTS:
            yield f"h.{i}.{part}.weight", weights[part]
            yield f"h.{i}.{part}.bias", weights[part][-1:]  # one for each output
    yield "ln_f.weight", (n_embd,)
    yield "ln_f.bias", (n_embd,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, n_embd)


def parameter_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter of a checkpoint with this config, in the checkpoint's order."""
    return dict(named_shapes(config))


def check_tensors(config: GPT2Config, tensors: Mapping[str, StoredTensor], place: Path) -> None:
    """Raise CheckpointError unless the headers have every parameter of this config, in its shape and a known type."""
    expected = set()
    for name, shape in named_shapes(config):
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{place}: tensor {name!r}: expected shape {shape} by config.json, "
                                  "found no such tensor.")
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.path}: tensor {name!r}: expected shape {shape} by config.json, "
                                  f"found {tensor.shape}.")
        if tensor.dtype not in STORED_TYPES:
            raise CheckpointError(f"{tensor.path}: tensor {name!r}: expected type {', '.join(STORED_TYPES)}, "
                                  f"found {tensor.dtype}.")
        expected.add(name)
    for name in tensors.keys() - expected:
        if belongs_to_the_pass(name):
            raise CheckpointError(f"{tensors[name].path}: tensor {name!r}: expected no such tensor in a GPT-2 of "
                                  f"{config.n_layer} layers by config.json.")


def belongs_to_the_pass(name: str) -> bool:
    """Whether to leave a surplus tensor out would be to compute something else than the checkpoint means.

    A thirteenth block or a LoRA matrix would. The causal masks that older files hold (they are not parameters), and
    heads for other tasks beside the blocks, such as `score.weight`, would not.
    """
    if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", name):
        return False
    return name.startswith(("h.", "wte.", "wpe.", "ln_f."))


# From headers to arrays -----------------------------------------------------------------------------------------------


def read_model(files: Mapping[str, Path], dtype: np.dtype) -> GPT2:
    """The model in these files: first all headers and all checks, then the arrays."""
    config_path = files["config.json"]
    config = GPT2Config.from_json(config_path, str(config_path))
    tensors = stored_tensors(files)
    config = checked_config(config, tensors, files.get("model.safetensors") or files[INDEX])
    arrays = {name: read_tensor(tensors[name], dtype) for name, _ in named_shapes(config)}
    return build_model(config, arrays)


def checked_config(config: GPT2Config, tensors: Mapping[str, StoredTensor], place: Path) -> GPT2Config:
    """The config, once the headers are found to have what it says; untied where a stored `lm_head` is not `wte`."""
    has_head = "lm_head.weight" in tensors
    check_tensors(replace(config, tie_word_embeddings=False) if has_head else config, tensors, place)
    if config.tie_word_embeddings and has_head:
        return replace(config, tie_word_embeddings=same_values(tensors["wte.weight"], tensors["lm_head.weight"]))
    return config


def same_values(wte: StoredTensor, lm_head: StoredTensor) -> bool:
    """Whether an unembedding that the config calls tied really is. Else the file is right, as for transformers 5."""
    return np.array_equal(read_tensor(wte, np.dtype(np.float32)), read_tensor(lm_head, np.dtype(np.float32)))


def read_tensor(tensor: StoredTensor, dtype: np.dtype) -> np.ndarray:
    """One tensor's bytes as an array of this type. float32 from a float32 file is read in place, without a copy."""
    try:
        raw = np.fromfile(tensor.path, STORED_TYPES[tensor.dtype], math.prod(tensor.shape), offset=tensor.offset)
        raw = raw.reshape(tensor.shape)
    except (OSError, ValueError) as error:  # the file has changed since its header was read
        raise CheckpointError(f"{tensor.path}: tensor {tensor.name!r}: cannot be read: {one_line(error)}") from error
    if tensor.dtype == "BF16":
        raw = widen_bfloat16(raw)
    with np.errstate(over="ignore", invalid="ignore"):  # a number too large, or a NaN, loads as such
        return in_memory_order(raw.astype(dtype, copy=False))


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32, exactly: a bfloat16 is the upper half of the float32 of the same value."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def in_memory_order(array: np.ndarray) -> np.ndarray:
    """The one place that chooses the memory order of the weights. Shape and values stay whatever the strides."""
    return np.ascontiguousarray(array)


def build_model(config: GPT2Config, arrays: Mapping[str, np.ndarray]) -> GPT2:
    """Arrays under the names and in the shapes of `parameter_shapes`, as a model. Nothing is checked or copied."""
    def norm(name: str) -> LayerNorm:
        return LayerNorm(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def conv(name: str) -> Conv1D:
        return Conv1D(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    def block(name: str) -> Block:
        return Block(
            ln_1=norm(f"{name}.ln_1"),
            attn=Attention(c_attn=conv(f"{name}.attn.c_attn"), c_proj=conv(f"{name}.attn.c_proj")),
            ln_2=norm(f"{name}.ln_2"),
            mlp=MLP(c_fc=conv(f"{name}.mlp.c_fc"), c_proj=conv(f"{name}.mlp.c_proj")),
        )

    wte = arrays["wte.weight"]
    lm_head = wte if config.tie_word_embeddings else arrays["lm_head.weight"]
    blocks = tuple(block(f"h.{i}") for i in range(config.n_layer))
    return GPT2(config, wte, arrays["wpe.weight"], blocks, norm("ln_f"), lm_head)


# Making and saving ----------------------------------------------------------------------------------------------------


def random_model(config: GPT2Config, seed: int = 0) -> GPT2:
    """A model that has learnt nothing, float32, the same for the same seed.

    Weights are normal with deviation 0.02, positions with 0.01, as GPT-2 was initialised. Unlike there, gains and
    biases are not exactly 1 and 0 but random about them, so that a pass which leaves one out gives other numbers.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in named_shapes(config):
        array = rng.standard_normal(shape, dtype=np.float32)
        array *= 0.01 if name == "wpe.weight" else 0.02
        if re.search(r"ln_\w\.weight", name):
            array += 1
        arrays[name] = in_memory_order(array)
    return build_model(config, arrays)


def save(model: GPT2, folder: str | Path, dtype: Any = "float32",
         tokenizer_files: Mapping[str, Path] | None = None) -> None:
    """Write the model as a folder that `load_model`, and transformers, can read: config.json and model.safetensors.

    dtype: "float32" or "float16", of the tensors in the file. tokenizer_files: name -> file, copied beside them
    (`checkpoint_files(name, None, [TOKENIZER])` has those of a checkpoint), which `load` needs too.
    A file appears under its name when it is whole, config.json last, without which the folder is no checkpoint.
    Raises ValueError where a weight is too large for the type, OSError where the folder cannot be written.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f'dtype must be "float32" or "float16". Got {dtype.name!r}.')
    arrays = {name: narrowed(name, array, dtype) for name, array in named_parameters(model)}
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (tokenizer_files or {}).items():
        write_whole(folder / name, partial(shutil.copyfile, source))
    # transformers opens a file only if it says that it follows PyTorch's layout, as all checkpoints of GPT-2 do
    write_whole(folder / "model.safetensors", lambda path: save_file(arrays, path, metadata={"format": "pt"}))
    write_whole(folder / "config.json", lambda path: path.write_text(config, encoding="utf-8"))


def narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the file's type, in C order, which safetensors takes for granted."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype)
    if np.isinf(narrow).sum() != np.isinf(array).sum():
        raise ValueError(f"tensor {name!r} must be at most {np.finfo(dtype).max} to be saved as {dtype.name}. "
                         f"Got {np.abs(array[np.isfinite(array)]).max()}.")
    return narrow


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write under another name, then rename, which is one step: nobody ever sees half a file under this name."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial_path.touch()
        usual_mode = partial_path.stat().st_mode
        write(partial_path)
        partial_path.chmod(usual_mode)  # safetensors makes files that only their owner can read
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
