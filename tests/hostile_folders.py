"""Checkpoint folders as a stranger might write them: a good one, with one to three things wrong."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_forms import CONFIG, as_bytes, good, headers_of, written
from hostile_changes import BYTES_WRONG, HEADERS_WRONG, PLACES, SAID_WRONG, TEXTS_WRONG, Place, a_file
from hypothesis import strategies as st

from numpy_gpt2 import CheckpointError, generate_tokens, load
from numpy_gpt2.errors import CheckpointWarning


@st.composite
def folders(draw: Any) -> dict[str, tuple[Place, bytes]]:
    """For each file how it lies in the folder, and its bytes."""
    said = good(dtype=draw(st.sampled_from(["F32", "F32", "F64", "F16", "BF16"])),
                prefix=draw(st.sampled_from(["", "transformer."])),
                is_sharded=draw(st.booleans()),
                has_tokenizer_json=draw(st.booleans()),
                config=replace(CONFIG, tie_word_embeddings=draw(st.booleans())))
    wrong = draw(st.lists(st.sampled_from(["said", "said", "headers", "headers", "texts", "bytes", "places"]),
                          min_size=1, max_size=3))
    for _ in range(wrong.count("said")):
        draw(st.sampled_from(SAID_WRONG))(draw, said)
    headers = headers_of(said)
    for _ in range(wrong.count("headers")):
        header, _ = headers[draw(st.sampled_from(list(headers)))]
        draw(st.sampled_from(HEADERS_WRONG))(draw, header)
    text = written(said, headers)
    for _ in range(wrong.count("texts")):
        name = draw(st.sampled_from(list(text.texts)))
        text.texts[name] = draw(st.sampled_from(TEXTS_WRONG))(draw, text.texts[name])
    files = as_bytes(text)
    for _ in range(wrong.count("bytes")):
        name = draw(st.sampled_from(list(files)))
        files[name] = draw(st.sampled_from(BYTES_WRONG))(draw, files[name])
    places = dict.fromkeys(files, a_file)
    for _ in range(wrong.count("places")):
        places[draw(st.sampled_from(list(files)))] = draw(st.sampled_from(PLACES))
    return {name: (places[name], content) for name, content in files.items()}


def write_folder(place: Path, files: dict[str, tuple[Place, bytes]]) -> Path:
    """`place/checkpoint`, and beside it `place/elsewhere` with the same files, for links and paths that lead there."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "elsewhere").mkdir(parents=True)
    (place / "checkpoint").mkdir()
    for name, (put_there, content) in files.items():
        (place / "elsewhere" / name).write_bytes(content)
        put_there(place / "checkpoint" / name, content)
    return place / "checkpoint"


def check_refusal(error: CheckpointError, folder: Path) -> None:
    message = str(error).removeprefix(str(folder))
    assert message.isprintable() and len(message) < 1500, f"not one short line: {message!r}"
    assert any(ending in message for ending in (".json", ".txt", ".safetensors")), f"names no file: {message!r}"


def outcome(folder: Path) -> str:
    """Load the folder: "loaded" or "refused". An AssertionError, or whatever else was raised, where neither is right.

    What loads must run, be it to say that its numbers are not finite. A refusal is one line that names a file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", CheckpointWarning)
            model, tokenizer = load(folder)
    except CheckpointError as error:
        check_refusal(error, folder)
        return "refused"
    text = tokenizer.decode(tokenizer.encode("the \u65e5\n"))
    assert text.removeprefix(" ") == "the \u65e5\n"  # some have add_prefix_space
    try:
        with np.errstate(all="ignore"):
            list(generate_tokens(model, [0], 2, temperature=0))
    except FloatingPointError as error:
        assert "logits are not finite" in str(error)
    return "loaded"
