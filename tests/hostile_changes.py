"""What can go wrong with a checkpoint from a stranger: a function for each, which draws what it needs and spoils it."""

import os
import pickle
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable

import numpy as np
from checkpoint_forms import ADDED_TOKEN, BESIDE, INDEX, SHARDS, TOKENS, WIDTHS, Said, as_text, stored
from hypothesis import strategies as st

from numpy_gpt2.tokenizer import END_OF_TEXT

# With what is said ----------------------------------------------------------------------------------------------------


whole_numbers = st.integers(-2**65, 2**65) | st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 2**63, 2**64, 10**4299])
scalars = (st.none() | st.booleans() | whole_numbers | st.floats() | st.text(max_size=5)
           | st.sampled_from(["gpt2", "x" * 10_000, "\n", "\u2028", "\x1b[31m", "\ud800"]))
odd_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                          | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6)
tensor_names = st.sampled_from(["h.2.ln_1.weight", "h.0.attn.bias", "score.weight", "lm_head.weight", "wte.weight",
                                "transformer.wte.weight", "h.00.ln_1.bias", "__metadata__", ""]) | st.text(max_size=4)


def put(draw: Any, holder: Any, value: Any) -> None:
    """Put a value at some place of what JSON can hold: the deeper, the less often."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(holder[key], (dict, list)) and draw(st.booleans()):
        put(draw, holder[key], value)
    else:
        holder[key] = value


def another_setting(draw: Any, said: Said) -> None:
    said.config[draw(st.sampled_from([*said.config, "scale_attn_weights", "n_inner"]))] = draw(odd_values)


def a_setting_left_out(draw: Any, said: Said) -> None:
    del said.config[draw(st.sampled_from(list(said.config)))]


def a_setting_that_is_merely_another(draw: Any, said: Said) -> None:
    key = draw(st.sampled_from(["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"]))
    said.config[key] = draw(st.integers(1, 300))


def a_tensor_left_out(draw: Any, said: Said) -> None:
    del said.tensors[draw(st.sampled_from(list(said.tensors)))]


def a_tensor_more(draw: Any, said: Said) -> None:
    dtype, shape = draw(st.sampled_from(list(WIDTHS))), draw(st.lists(st.integers(0, 5), max_size=3))
    name = draw(tensor_names)
    said.tensors[name] = (dtype, shape, bytes(WIDTHS[dtype] * int(np.prod(shape))))
    said.shard_of[name] = draw(st.sampled_from(SHARDS))


def another_type(draw: Any, said: Said) -> None:
    name, dtype = draw(st.sampled_from(list(said.tensors))), draw(st.sampled_from(list(WIDTHS)))
    _, shape, _ = said.tensors[name]
    said.tensors[name] = (dtype, shape, bytes(WIDTHS[dtype] * int(np.prod(shape))))


def weights_that_are_not_finite(draw: Any, said: Said) -> None:
    name, value = draw(st.sampled_from(list(said.tensors))), draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    dtype, shape, content = said.tensors[name]
    if dtype in ("F64", "F32", "F16", "BF16"):
        with np.errstate(over="ignore"):
            said.tensors[name] = (dtype, shape, stored(np.full(shape, value, np.float32), dtype))


def another_shard(draw: Any, said: Said) -> None:
    names = [*SHARDS, INDEX, "model.safetensors", "missing.safetensors", "../elsewhere/model.safetensors", "..", ".",
             "/etc/passwd", "/proc/self/mem", "sub/model.safetensors", "sub\\model.safetensors", "C:x.safetensors",
             "a\rb.safetensors", "a\x1b[1m.safetensors", "a\ud800.safetensors", "x" * 300 + ".safetensors",
             "pytorch_model.bin", "\0.safetensors"]
    name = draw(st.sampled_from(list(said.shard_of)))
    said.shard_of[name] = draw(st.sampled_from(names) | odd_values)
    said.is_sharded = True


def another_id(draw: Any, said: Said) -> None:
    token = draw(st.sampled_from(list(said.vocab)) | st.text(max_size=3))
    said.vocab[token] = draw(st.integers(-1, 300) | odd_values)


def a_token_left_out(draw: Any, said: Said) -> None:
    del said.vocab[draw(st.sampled_from(list(said.vocab)))]


def another_vocabulary(draw: Any, said: Said) -> None:
    n_tokens = draw(st.integers(9, 300))
    said.vocab = {token: i for i, token in enumerate([*TOKENS, *map(str, range(n_tokens))][:n_tokens])}


def another_merge(draw: Any, said: Said) -> None:
    merge = draw(st.sampled_from(["t h", "h", "", " ", "h  e", "he h e", f"h {END_OF_TEXT}", "\ud800 \x85", "a\rb"])
                 | st.text(max_size=4) | odd_values)
    said.merges.insert(draw(st.integers(0, len(said.merges))), merge)


def merges_in_another_order(draw: Any, said: Said) -> None:
    said.merges = draw(st.permutations(said.merges))


def an_added_token(draw: Any, said: Said) -> None:
    name = draw(st.sampled_from([END_OF_TEXT, "<pad>", "a", "", "\n", "日", "<" + "x" * 100_000 + ">"]))
    added = {**ADDED_TOKEN, "content": name, "id": draw(st.integers(256, 262))}
    said.tokenizer["added_tokens"] = [dict(ADDED_TOKEN), added]
    said.has_tokenizer_json = True


def another_tokenizer_setting(draw: Any, said: Said) -> None:
    put(draw, said.tokenizer, draw(odd_values))
    said.has_tokenizer_json = True


def another_file_beside(draw: Any, said: Said) -> None:
    """One of the smaller files: as it should be, or with something else at some place."""
    name = draw(st.sampled_from(list(BESIDE)))
    said.beside[name] = deepcopy(BESIDE[name])
    if draw(st.booleans()):
        put(draw, said.beside[name], draw(odd_values))


def another_added_token(draw: Any, said: Said) -> None:
    name = draw(st.sampled_from([END_OF_TEXT, "<x>", "a", "", "the", "\u65e5", "<" + "x" * 100_000 + ">"]))
    flags = {flag: draw(st.booleans()) for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    token_id = draw(st.integers(257, 262) | st.sampled_from([-1, 2**31, 2**63, 10**300]))
    if draw(st.booleans()):
        said.beside["added_tokens.json"] = {name: token_id}
    else:
        said.beside["tokenizer_config.json"] = {"added_tokens_decoder": {str(token_id): {"content": name, **flags}}}


SAID_WRONG = [another_file_beside, another_added_token,
              another_setting, a_setting_left_out, a_setting_that_is_merely_another, a_tensor_left_out, a_tensor_more,
              another_type, weights_that_are_not_finite, another_shard, another_id, a_token_left_out,
              another_vocabulary, another_merge, merges_in_another_order, an_added_token, another_tokenizer_setting]

# With the headers -----------------------------------------------------------------------------------------------------


shapes = st.sampled_from([[2**40, 2**40], [2**62, 4], [2**63], [-1], [-4, -4], [0], [], [4.0], ["4"], [True], None, "4",
                          4, [[4]], [1] * 10_000, [10**30], [0, 2**60]])
offset_pairs = (st.lists(st.integers(-8, 8000), min_size=2, max_size=2)
                | st.sampled_from([[0, 0], [16, 0], [0, 2**63], [2**64, 2**64], [-16, 0], [0.0, 16.0], [0], None, {},
                                   [0, 16, 32], "0"]))


def another_entry(draw: Any, header: dict[str, Any]) -> None:
    """Another type, shape or place in the file than that of the data."""
    names = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    if not names:
        return
    entry = header[draw(st.sampled_from(names))]
    kind = draw(st.sampled_from(["dtype", "shape", "data_offsets", "the same place", "a list", "one more", "any"]))
    if kind == "dtype":
        entry["dtype"] = draw(st.sampled_from([*WIDTHS, "F128", "F4", "f32", "", 5, None]))
    elif kind == "shape":
        entry["shape"] = deepcopy(draw(shapes))  # the next thing to go wrong may write into it
    elif kind == "data_offsets":
        entry["data_offsets"] = deepcopy(draw(offset_pairs))
    elif kind == "the same place":
        entry["data_offsets"] = header[draw(st.sampled_from(names))].get("data_offsets")
    elif kind == "a list":
        header[draw(st.sampled_from(names))] = list(entry.values())
    elif kind == "one more":
        entry["more"] = draw(odd_values)
    else:
        put(draw, header, draw(odd_values))


def another_name(draw: Any, header: dict[str, Any]) -> None:
    name = draw(st.sampled_from(list(header)))
    header[draw(tensor_names)] = header.pop(name)


HEADERS_WRONG = [another_entry, another_name]

# With the texts -------------------------------------------------------------------------------------------------------


DEEP = 100_000
MEMBERS = [  # each put in front of what an object holds
    b'"n_embd": 8', b'"model_type": "llama"', b'"weight_map": {}', b'"model": {}', b'"a": 7', b'"h": 104',
    b'"wte.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}', b'"__metadata__": {}',
    b'"n_head": ' + b"[" * DEEP + b"]" * DEEP, b'"x": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b'"x": ' + b"[" * 900 + b"]" * 900, b'"eos_token_id": ' + b"[" * 980 + b"]" * 980,
    b'"n_embd": NaN', b'"layer_norm_epsilon": -Infinity', b'"n_layer": 1e999', b'"x": ' + b"1" * 5000,
    b'"vocab_size": ' + b"1" * 4300, b'"x": "\xff"', b'"x": "\xed\xa0\x80"', b'"\\ud800": 1', b'"x": "\x00"',
    b"", b"1", b'"x"',
]
LARGE_MEMBERS = [  # the first two nearly as large as is let through, the others larger
    b'"x": [' + b"[]," * 240_000 + b"1]", b", ".join(b'"%07x": 0' % i for i in range(450_000)),
    b'"x": [' + b"[]," * 400_000 + b"1]", b'"x": "' + b"a" * 9_000_000 + b'"',
]


def another_member(draw: Any, text: bytes) -> bytes:
    before, brace, after = text.partition(b"{")
    return before + brace + draw(st.sampled_from(MEMBERS + LARGE_MEMBERS)) + b", " + after


def another_coding(draw: Any, text: bytes) -> bytes:
    coding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32-le", "utf-7", "latin-1"]))
    return text.decode("utf-8", errors="replace").encode(coding, errors="replace")


def another_text(draw: Any, text: bytes) -> bytes:
    return draw(st.sampled_from([b"", b"[]", b"{}", b"null", b"7", b'"gpt2"', b"[" * DEEP, b"{", b"\0" * 100,
                                 b" " * 10_000, b"\n" * 10_000, b"\r\n"]) | odd_values.map(as_text))


TEXTS_WRONG = [another_member, another_coding, another_text]

# With the bytes -------------------------------------------------------------------------------------------------------


def other_bytes(draw: Any, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def cut_short(draw: Any, content: bytes) -> bytes:
    return content[:draw(st.integers(0, len(content)))]


def drawn_out(draw: Any, content: bytes) -> bytes:
    return content + draw(st.binary(min_size=1, max_size=20) | st.sampled_from([b"\n", b"\0" * 4096, content]))


def doubled_inside(draw: Any, content: bytes) -> bytes:
    start, end = sorted(draw(st.integers(0, len(content))) for _ in range(2))
    return content[:end] + content[start:end] + content[end:]


def another_length(draw: Any, content: bytes) -> bytes:
    length = draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * len(content))
                  | st.sampled_from([100_000_000, 2**63, 8 * 2**20, 8 * 2**20 + 1]))
    return struct.pack("<Q", length) + content[8:]


BYTES_WRONG = [other_bytes, cut_short, drawn_out, doubled_inside, another_length]

# With the folder ------------------------------------------------------------------------------------------------------


def a_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def nothing(path: Path, content: bytes) -> None:
    pass


def a_directory(path: Path, content: bytes) -> None:
    path.mkdir()


def a_pipe(path: Path, content: bytes) -> None:
    os.mkfifo(path)  # to open it would be to wait for ever


def a_link(path: Path, content: bytes) -> None:
    blob = path.parent / f"blob-{path.name}"
    blob.write_bytes(content)
    path.symlink_to(blob.name)


def a_link_out_of_the_folder(path: Path, content: bytes) -> None:
    path.symlink_to(f"../elsewhere/{path.name}")


def a_link_to_itself(path: Path, content: bytes) -> None:
    path.symlink_to(path.name)


def a_link_to_nothing(path: Path, content: bytes) -> None:
    path.symlink_to("nowhere")


def a_link_to_an_endless_file(path: Path, content: bytes) -> None:
    path.symlink_to("/dev/zero")


def a_terabyte_of_holes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.truncate(path, 2**40)


def a_pickle_instead(path: Path, content: bytes) -> None:
    (path.parent / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


class Bomb:
    """What says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


Place = Callable[[Path, bytes], None]
PLACES: list[Place] = [nothing, a_directory, a_pipe, a_link, a_link_out_of_the_folder, a_link_to_itself,
                       a_link_to_nothing, a_link_to_an_endless_file, a_terabyte_of_holes, a_pickle_instead]
