"""Laws of writing: whatever happens, a folder loads as the model before, or as the new one, or says how to finish."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from numpy_gpt2 import CheckpointError, GPT2Config, load_model, load_tokenizer, named_parameters, random_model, save
from numpy_gpt2.checkpoint import saving
from numpy_gpt2.checkpoint.saving import interrupted_save, locked, write_whole
from numpy_gpt2.tokenizer import Tokenizer

OLD = random_model(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2), 1)
NEW = random_model(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=4), 2)  # of the same shapes
TOKENIZER = load_tokenizer("fairytale")
FILES = ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.copyfile", "shutil.rmtree"}

posix = pytest.mark.skipif(os.name == "nt", reason="fork, modes and locks of POSIX")


def is_equal(model, expected):
    return model.config == expected.config and all(
        np.array_equal(array, other) for (_, array), (_, other) in zip(named_parameters(model),
                                                                       named_parameters(expected)))


def save_and_die(folder: Path, step: int) -> bool:
    """`save` in a process that is gone, without any cleaning up, before it takes its step number so and so.

    Returns whether it died."""
    child = os.fork()
    if child == 0:
        n_steps = 0

        def count(event: str, _: object) -> None:
            nonlocal n_steps
            n_steps += event in STEPS
            if n_steps == step:
                os._exit(9)

        sys.addaudithook(count)
        save(NEW, folder, tokenizer=TOKENIZER)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@posix
def test_a_save_that_is_killed_at_any_step_leaves_the_old_or_the_new_or_says_how_to_finish(tmp_path, monkeypatch):
    listdir = os.listdir
    monkeypatch.setattr(saving.os, "listdir", lambda path: sorted(listdir(path)))  # config.json first
    outcomes = set()
    for step in range(1, 100):
        folder = tmp_path / str(step)
        save(OLD, folder, tokenizer=TOKENIZER)
        died = save_and_die(folder, step)
        seen = shutil.copytree(folder, tmp_path / f"{step} as others see it", ignore=shutil.ignore_patterns(".save-*"))
        if (seen / "config.json").exists():  # without it, it is a checkpoint for nobody
            model = load_model(seen)
            assert is_equal(model, OLD) or is_equal(model, NEW)
        try:
            model = load_model(folder)
            outcomes.add("old" if is_equal(model, OLD) else "new")
            assert is_equal(model, OLD) or is_equal(model, NEW)
        except CheckpointError as error:
            outcomes.add("refused")
            with pytest.raises(CheckpointError, match="a save was interrupted"):
                load_tokenizer(folder)
            finish(folder, str(error))
            assert is_equal(load_model(folder), NEW)
        if not died:
            break
        save(NEW, folder)
        assert sorted(os.listdir(folder)) == FILES  # what the dead left is gone
        assert is_equal(load_model(folder), NEW)
    assert not died and outcomes == {"old", "refused", "new"}


def finish(folder: Path, message: str) -> None:
    """Do what the message says."""
    complete = interrupted_save(folder)
    assert complete is not None and "\n" not in message
    assert f"move the files in {complete.name} here, config.json last" in message
    for path in sorted(complete.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(folder / path.name)


@posix
def test_a_killed_first_save_leaves_no_checkpoint(tmp_path):
    assert save_and_die(tmp_path, 6)
    with pytest.raises(CheckpointError, match="a file is missing: expected config.json"):
        load_model(tmp_path)


@posix
def test_a_save_waits_for_another_and_does_not_take_its_files_for_leftovers(tmp_path):
    save(OLD, tmp_path)
    waiting = threading.Thread(target=save, args=(NEW, tmp_path))
    with locked(tmp_path):
        (tmp_path / ".save-x.partial").mkdir()  # of a writer that is alive
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and (tmp_path / ".save-x.partial").exists()
        assert is_equal(load_model(tmp_path), OLD)
    waiting.join(10)
    assert is_equal(load_model(tmp_path), NEW)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_leftovers_that_cannot_be_removed_stop_no_save(tmp_path):
    (tmp_path / ".save-x.partial").write_text("a file, where a folder was expected")
    save(NEW, tmp_path)
    assert is_equal(load_model(tmp_path), NEW)


@posix
def test_two_processes_that_save_and_one_that_loads_never_make_a_third_model(tmp_path):
    program = ("import sys\n"
               "from numpy_gpt2 import GPT2Config, random_model, save\n"
               "model = random_model(GPT2Config(11, 8, 4, 1, int(sys.argv[2])), int(sys.argv[2]))\n"
               "for _ in range(60): save(model, sys.argv[1])\n")
    models = [random_model(GPT2Config(11, 8, 4, 1, n), n) for n in (1, 2)]
    save(models[0], tmp_path)
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)]) for n in (1, 2)]
    n_loaded = 0
    while any(writer.poll() is None for writer in writers):
        try:
            model = load_model(tmp_path)
        except CheckpointError:
            continue
        assert any(is_equal(model, expected) for expected in models)
        n_loaded += 1
    assert n_loaded > 0 and [writer.returncode for writer in writers] == [0, 0]


@posix
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    save(OLD, tmp_path)
    (tmp_path / "model.safetensors").chmod(0o640)
    save(NEW, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
    page = tmp_path / "page.html"
    page.write_bytes(b"old")
    page.chmod(0o604)
    write_whole(page, b"new")
    assert page.read_bytes() == b"new" and page.stat().st_mode & 0o777 == 0o604


def test_a_page_is_never_half_there_and_nothing_is_left_of_one_that_failed(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_bytes(b"old")
    seen = []

    def fail(source, target):
        seen.append((source.read_bytes(), target.read_bytes()))
        raise ZeroDivisionError

    monkeypatch.setattr(saving.os, "replace", fail)
    with pytest.raises(ZeroDivisionError):
        write_whole(page, b"new")
    assert seen == [(b"new", b"old")]
    assert os.listdir(tmp_path) == ["page.html"] and page.read_bytes() == b"old"


@posix
def test_a_link_that_somebody_put_in_the_way_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(saving.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / ".page.html.guessed.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "page.html", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_the_names_of_unfinished_files_cannot_be_foreseen(tmp_path, monkeypatch):
    names = set()
    replace = os.replace
    monkeypatch.setattr(saving.os, "replace", lambda source, target: names.add(Path(source).name) or
                        replace(source, target))
    for _ in range(2):
        write_whole(tmp_path / "page.html", b"x")
    assert len(names) == 2


def test_a_whole_save_over_another_model_leaves_only_its_own_files(tmp_path):
    save(OLD, tmp_path, tokenizer=TOKENIZER)
    shutil.copytree(tmp_path, tmp_path / ".save-dead.partial")
    shutil.copytree(tmp_path, tmp_path / ".save-dead.complete")
    save(NEW, tmp_path)
    assert is_equal(load_model(tmp_path), NEW) and sorted(os.listdir(tmp_path)) == FILES


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int8", "no type", None, 7, [1]])
def test_another_type_is_refused_before_anything_is_written(tmp_path, dtype):
    with pytest.raises(ValueError) as error:
        save(NEW, tmp_path / "new", dtype)
    assert str(error.value) == f'dtype must be "float32" or "float16". Got {dtype!r}.'
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError) as error:
        save(NEW, tmp_path / "new", tokenizer=Tokenizer({bytes([byte]): byte for byte in range(256)}, {}, {}))
    assert str(error.value) == "tokenizer must be one that load or load_tokenizer has read from files. Got another."


def test_no_file_of_another_tokenizer_stays_beside_the_saved_one(tmp_path):
    for name in saving.TOKENIZER_FILES:
        (tmp_path / name).write_text("of another")
    save(NEW, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", "model.safetensors", *saving.TOKENIZER_FILES])
    save(NEW, tmp_path, tokenizer=TOKENIZER)
    assert sorted(os.listdir(tmp_path)) == FILES


def test_a_config_that_the_tokenizer_came_with_and_that_is_broken_now_is_named(tmp_path):
    save(NEW, tmp_path / "old", tokenizer=TOKENIZER)
    tokenizer = load_tokenizer(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError) as error:
        save(NEW, tmp_path / "new", tokenizer=tokenizer)
    assert str(error.value).startswith(f"{tmp_path / 'old' / 'config.json'}: expected a JSON object")


def test_config_json_has_a_line_for_each_setting(tmp_path):
    save(NEW, tmp_path)
    assert '\n  "n_embd": 4,\n' in (tmp_path / "config.json").read_text()


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(arrays, path, metadata):
        shutil.rmtree(path.parent)  # so that there is nothing to clean up, which must not hide what went wrong
        raise SafetensorError("the disk\nis full")

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(OSError) as error:
        save(NEW, tmp_path)
    assert str(error.value) == f"{tmp_path / 'model.safetensors'}: cannot be written: the disk is full"
    assert os.listdir(tmp_path) == []


def test_another_model_s_generation_config_does_not_decide_where_the_saved_one_ends(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}', encoding="utf-8")
    save(NEW, tmp_path)
    assert load_model(tmp_path).config.eos_token_id == NEW.config.eos_token_id
