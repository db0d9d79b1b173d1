"""Coverage-guided fuzzing of single files of a checkpoint, run by fuzz_checkpoints.py --seconds."""

import json
import random
import shutil
import struct
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from fuzz_watch import STUCK, Watch

WORDS = ["dtype", "shape", "data_offsets", "__metadata__", "F32", "F64", "BF16", "I8", "n_embd", "n_layer", "n_head",
         "vocab_size", "n_positions", "n_inner", "model_type", "gpt2", "eos_token_id", "weight_map", "wte.weight",
         "transformer.", "lm_head.weight", "h.0.attn.bias", "model.safetensors", "../", "null", "true", "NaN",
         "Infinity", "1e999", "18446744073709551616", "\\u0120", "<|endoftext|>", "special", "content", "merges"]
ODD_VALUES = [None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 1e308, "", "F16", "I32", [], [[]], {}, {"a": 1}, [1, -1],
              "\ud800", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}]


def fuzz(state: Path, seconds: int) -> None:
    """Run libFuzzer, which ends the process. An input is a byte that chooses a file, then the file's contents."""
    import atheris
    with atheris.instrument_imports(include=["numpy_gpt2"]):
        from numpy_gpt2 import CheckpointError, load_model, load_tokenizer
        from numpy_gpt2.errors import CheckpointWarning
    from checkpoint_forms import CONFIG, as_bytes, good, headers_of, written
    from hostile_folders import check_refusal

    warnings.simplefilter("ignore", CheckpointWarning)  # showing one opens its source file
    place = state / "current"
    shutil.rmtree(place, ignore_errors=True)
    targets = []  # for each choice: the loader, the file, its valid content, and the data after it if that is a header
    layouts = {"whole": {}, "json": {"has_tokenizer_json": True},
               "shards": {"is_sharded": True, "dtype": "BF16", "config": replace(CONFIG, tie_word_embeddings=False)}}
    for kind, options in layouts.items():
        said = good(**options)
        text = written(said, headers_of(said))
        (place / kind).mkdir(parents=True)
        for name, content in as_bytes(text).items():
            (place / kind / name).write_bytes(content)
            is_tokenizers = name in ("vocab.json", "merges.txt", "tokenizer.json")
            targets.append((load_tokenizer if is_tokenizers else load_model, place / kind / name, content, None))
            if name in text.data:
                targets.append((load_model, place / kind / name, text.texts[name], text.data[name]))
    watch = Watch()
    with watch:
        load_model(place / "whole")
    watch.usual.update(watch.opened)

    def try_one(data: bytes) -> None:
        if not data:
            return
        load, path, _, header_of = targets[data[0] % len(targets)]
        good_content = path.read_bytes()
        path.write_bytes(data[1:] if header_of is None else struct.pack("<Q", len(data) - 1) + data[1:] + header_of)
        try:
            with watch:
                load(path.parent)
        except CheckpointError as error:
            check_refusal(error, path.parent)
        finally:
            path.write_bytes(good_content)
        assert not watch.complaint(path.parent), watch.complaint(path.parent)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            try:
                return data[:1] + with_another_value(data[1:], rng)
            except (ValueError, RecursionError):
                pass  # no JSON, or nothing in it
        return atheris.Mutate(data, max_size)

    corpus = state / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, (_, _, content, _) in enumerate(targets):
        (corpus / f"good-{number}").write_bytes(bytes([number]) + content)
    (state / "words").write_text("".join(f'"{word}"\n'.replace("\\", "\\\\") for word in WORDS))
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-dict={state / 'words'}",
                   f"-artifact_prefix={state}/failed-", "-max_len=16384", f"-timeout={STUCK}", "-rss_limit_mb=2048",
                   "-print_final_stats=1", "-report_slow_units=60"], try_one, custom_mutator=mutate)
    atheris.Fuzz()


def with_another_value(text: bytes, rng: random.Random) -> bytes:
    """JSON with one value replaced, removed, renamed or added. Raises ValueError."""
    value = json.loads(text)
    places = list(places_in(value))
    if not places:
        raise ValueError("nothing to replace")
    holder, key = rng.choice(places)
    other_holder, other_key = rng.choice(places)
    other_value = deepcopy(rng.choice([other_holder[other_key], rng.choice(ODD_VALUES)]))
    other_name = str(rng.choice([other_key, rng.choice(WORDS), rng.choice(WORDS) + str(key)]))
    kind = rng.randrange(5)
    if kind == 0:
        holder[key] = other_value
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder[key], dict):
        holder[key] = list(holder[key].values())
    elif kind == 3 and isinstance(holder, dict):
        holder[other_name] = holder.pop(key)
    elif kind == 4 and isinstance(holder, dict):
        holder[other_name] = other_value
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


def places_in(value: object):
    """(container, key) of every value in the JSON, at any depth."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])
