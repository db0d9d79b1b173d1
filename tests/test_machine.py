"""What a machine may be short of: memory, a disk, a terminal, a locale; and every command line through it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from outside import writable_copy

import numpy_gpt2
from numpy_gpt2 import SIZES, GPT2Config, random_model, save
from numpy_gpt2.checkpoint import loading, memory
from numpy_gpt2.checkpoint.memory import available_memory, check_memory, weights_bytes
from numpy_gpt2.cli.exits import BadInput
from numpy_gpt2.generate import stop_string
from numpy_gpt2.weights import named_shapes, parameter_shapes
from strategies import configs

ROOT = Path(__file__).parent.parent
BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
FLOAT32 = np.dtype(np.float32)


def run(*arguments: Any, shell: str = '"$@"', env: "dict[str, str] | None" = None) -> "subprocess.CompletedProcess":
    """`python -m numpy_gpt2.NAME ...`, which the shell may put into a plight; stdout and stderr as bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(env or {})}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(["sh", "-c", shell, "sh", *command], env=environment, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "naïve ☃ text.txt"
    path.write_bytes("The king said: naïve ☃\r\n".encode())
    return path


@pytest.fixture(params=["generate", "score", "score --tokens", "summary", "tokens --merges"])
def command(request: pytest.FixtureRequest, text_file: Path) -> list[str]:
    """Each command line that there is, as its users would begin."""
    name, *options = request.param.split()
    given = {"generate": ["naïve ☃", "--max-new-tokens", "3", "--seed", "1"], "score": [str(text_file)], "summary": [],
             "tokens": ["naïve ☃"]}
    return [f"numpy_gpt2.{name}", *given[name], *options]


# Memory ---------------------------------------------------------------------------------------------------------------


@given(configs())
def test_weights_take_the_bytes_of_all_parameters(config):
    n_parameters = sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())
    assert weights_bytes(config, FLOAT32) == 4 * n_parameters
    assert weights_bytes(config, np.dtype(np.float64)) == 2 * weights_bytes(config, FLOAT32)


def test_what_weights_take_is_known_at_once_however_many_layers_a_config_claims():
    assert weights_bytes(GPT2Config(n_layer=2**31 - 1), FLOAT32) > 10**16


MEMINFO = "MemTotal:       8000 kB\nMemFree: 100 kB\nMemAvailable:   5000 kB\nActive(anon): 7 kB\nSwapFree:  1000 kB\n"
CASES: "dict[str, tuple[dict[str, str], int | None]]" = {
    "nothing is known": ({}, None),
    "an old kernel": ({"proc/meminfo": "MemTotal: 8000 kB\nMemFree: 100 kB\n"}, None),
    "the machine": ({"proc/meminfo": MEMINFO}, 6000 * 1024),
    "a machine that says nothing of swap": ({"proc/meminfo": "MemAvailable:   5000 kB\n"}, 5000 * 1024),
    "a container": ({
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000000\n",
        "sys/fs/cgroup/memory.current": "2000000\n",
        "sys/fs/cgroup/memory.stat": "anon 9\ninactive_file 500000\n"}, 3_500_000),
    "a job inside a slice": ({
        "proc/self/cgroup": "0::/slice/job\n", "sys/fs/cgroup/slice/job/memory.max": "max\n",
        "sys/fs/cgroup/slice/job/memory.current": "10\n", "sys/fs/cgroup/slice/memory.max": "1000\n",
        "sys/fs/cgroup/slice/memory.current": "400\n"}, 600),
    "a machine with version 1, whose limits are not read": ({
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/docker/1f\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n"}, 6000 * 1024),
    "more used than allowed": ({
        "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "5\n",
        "sys/fs/cgroup/a/memory.current": "9\n"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_least_of_what_is_left_is_available(tmp_path, case):
    files, expected = CASES[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_memory(tmp_path) == expected


@pytest.mark.parametrize("limit, status, expected", [
    (10_000, "Name:\tpython\nVmSize:\t       3 kB\n", 10_000 - 3 * 1024),
    (10_000, "Name:\tpython\n", None),  # what is used is not known
    (-1, "VmSize:\t       3 kB\n", None)])  # no limit
def test_a_limit_of_the_process_leaves_what_it_has_not_used(tmp_path, monkeypatch, limit, status, expected):
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (limit, limit)}.__getitem__)
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(status)
    assert available_memory(tmp_path) == expected


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="needs Linux")
def test_this_machine_tells_what_is_available():
    available = available_memory()
    assert available is not None and 10**7 < available < 10**15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_that_does_not_fit_is_refused_to_the_byte_and_one_that_fits_is_named(monkeypatch, dtype):
    dtype = np.dtype(dtype)
    need = weights_bytes(SIZES["large"], dtype)
    for available in (None, need):
        monkeypatch.setattr(memory, "available_memory", lambda: available)
        check_memory(SIZES["large"], dtype)
    monkeypatch.setattr(memory, "available_memory", lambda: need - 1)
    with pytest.raises(MemoryError) as error:
        check_memory(SIZES["large"], dtype)
    line = {"float32": "take 3.10 GB, and 3.10 GB is available: use a smaller model, medium (1.42 GB), or close",
            "float64": "take 6.19 GB, and 6.19 GB is available: use a smaller model, medium (2.84 GB), or close"}
    assert str(error.value).startswith(f"the weights as {dtype.name} {line[dtype.name]} ")
    monkeypatch.setattr(memory, "available_memory", lambda: 10**8)
    with pytest.raises(MemoryError, match="0.10 GB is available: use a smaller model, fairytale, or"):
        check_memory(SIZES["small"], dtype)
    monkeypatch.setattr(memory, "available_memory", lambda: weights_bytes(SIZES["medium"], dtype))
    with pytest.raises(MemoryError, match=r"use a smaller model, medium \("):
        check_memory(SIZES["large"], dtype)


def test_gigabytes_are_a_thousand_million_bytes():
    assert memory.gigabytes(1_375_000_000) == "1.38 GB"  # where 1.37 would begin


@pytest.mark.parametrize("name", ["xl", "gpt2-xl", "openai-community/gpt2-xl"])
@pytest.mark.parametrize("load", [numpy_gpt2.load, loading.load_model])
def test_a_released_size_that_does_not_fit_is_refused_before_its_download(monkeypatch, name, load):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    monkeypatch.setattr(loading, "checkpoint_files", None)  # so that to ask for a file would be a TypeError
    with pytest.raises(MemoryError, match="take 6.23 GB, and 1.00 GB is available: use a smaller model, small"):
        load(name)


def test_a_folder_that_does_not_fit_is_refused_before_a_tensor_is_read(tmp_path, monkeypatch):
    save(random_model(GPT2Config(11, 8, 4, 1, 1)), tmp_path)
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    monkeypatch.setattr(loading, "read_tensor", None)
    with pytest.raises(MemoryError, match="is available"):
        loading.load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_a_file_cannot_even_be_checked_its_weights_are_said_not_to_fit(tmp_path, monkeypatch, dtype):
    def no_room(files):
        raise MemoryError("cannot map the file")

    config = GPT2Config(11, 8, 4, 1, 1)
    save(random_model(config), tmp_path)
    monkeypatch.setattr(loading, "stored_tensors", no_room)
    monkeypatch.setattr(memory, "available_memory", lambda: weights_bytes(config, np.dtype(dtype)) - 1)
    with pytest.raises(MemoryError, match=f"the weights as {dtype} take .* use a smaller model"):
        loading.load_model(tmp_path, dtype=dtype)
    monkeypatch.setattr(memory, "available_memory", lambda: weights_bytes(config, np.dtype(dtype)))
    with pytest.raises(MemoryError, match="cannot map the file"):
        loading.load_model(tmp_path, dtype=dtype)


def hollow_checkpoint(folder: Path, config: GPT2Config, dtype: str, n_bytes: int) -> None:
    """A whole checkpoint of zeros, however large, that takes no room on a disk which stores no zeros."""
    header, end = {}, 0
    for name, shape in named_shapes(config):
        start, end = end, end + n_bytes * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(BUNDLED / name, folder)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("dtype, n_bytes", [("F32", 4), ("F16", 2)])  # a file that could not be mapped, and one that is
def test_too_little_memory_is_one_line_and_exit_1(tmp_path, dtype, n_bytes):
    config = GPT2Config(vocab_size=4096, n_positions=4_000_000, n_embd=192, n_layer=1, n_head=6)
    hollow_checkpoint(tmp_path, config, dtype, n_bytes)
    process = run("numpy_gpt2.generate", "--model", tmp_path, shell='ulimit -v 2600000; exec "$@"')
    error = process.stderr.decode()
    assert (process.returncode, process.stdout, error.count("\n")) == (1, b"", 1)
    assert error.startswith("error: not enough memory: the weights as float32 take 3.08 GB, and ")
    assert "use a smaller model, " in error


# Disk -----------------------------------------------------------------------------------------------------------------


def test_a_save_onto_a_full_disk_is_an_os_error_and_leaves_nothing_half_written(tmp_path):
    program = ("import numpy_gpt2, sys\n"
               "model = numpy_gpt2.random_model(numpy_gpt2.GPT2Config(257, 512, 256, 4, 4))\n"
               "try: numpy_gpt2.save(model, sys.argv[1])\n"
               "except OSError as error: print(error)\n")
    process = subprocess.run(["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", sys.executable, "-c", program, tmp_path],
                             capture_output=True, timeout=60, cwd=ROOT)
    assert process.stdout.decode().startswith(f"{tmp_path / 'model.safetensors'}: cannot be written: "), process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_on_a_full_disk_is_one_line_and_exit_1(command):
    process = run(*command, shell='exec "$@" >/dev/full')
    assert process.returncode == 1
    assert process.stderr.decode().splitlines()[1:] == ["error: No space left on device"]  # after the model's name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that can be made read-only")
def test_a_read_only_cache_will_do_where_the_files_are_there(tmp_path):
    home = tmp_path / "ổ đĩa é ☃"
    snapshot = home / "hub" / "models--class--any" / "snapshots" / ("1" * 40)
    shutil.copytree(BUNDLED, snapshot)
    (home / "hub" / "models--class--any" / "refs").mkdir()
    (home / "hub" / "models--class--any" / "refs" / "main").write_text("1" * 40)
    read_only = 'mount --bind "$HF_HOME" "$HF_HOME" && mount -o remount,ro,bind "$HF_HOME" && ! touch "$HF_HOME/x" && '
    shell = f"unshare --mount --map-root-user sh -c '{read_only}" + ' exec "$@"\' sh "$@"'
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    if run("numpy_gpt2", shell=shell.replace('exec "$@"', "exec true"), env=environment).returncode:
        pytest.skip("may not mount")
    for arguments in (["generate", "The king", "--model"], ["summary"]):
        process = run(f"numpy_gpt2.{arguments[0]}", *arguments[1:], "class/any", shell=shell, env=environment)
        assert process.returncode == 0, process.stderr


# Streams, terminals, locales ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("redirect, pipe", [
    ("", "| head -n 1"), ("", "| true"), (">&-", ""), ("2>&-", ""), ("<&- >&- 2>&-", "")])
def test_streams_that_are_closed_early_or_from_the_start_are_no_error(command, tmp_path, redirect, pipe):
    status = tmp_path / "status"
    process = run(*command, shell=f'{{ "$@" {redirect}; echo $? >{status}; }} {pipe}')
    assert status.read_text() == "0\n"
    assert process.stderr.count(b"\n") == (0 if "2>&-" in redirect else 1), process.stderr


LOCALES = {
    "C": {"LC_ALL": "C"},
    "C, taken at its word": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "no terminal's name": {"TERM": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES)
def test_no_locale_stops_a_command_and_none_changes_what_the_model_reads(command, locale):
    expected = run(*command).stdout.decode()
    process = run(*command, env=LOCALES[locale])
    assert process.returncode == 0, process.stderr
    in_ascii = "".join(letter if letter.isascii() else "?" for letter in expected)
    assert process.stdout.decode() in (expected, in_ascii)


def test_a_stop_string_is_the_text_that_was_typed_in_any_locale():
    typed = "naïve ☃".encode().decode("ascii", errors="surrogateescape")  # as Python hands it on where LC_ALL is C
    assert stop_string(typed) == stop_string(os.fsdecode("naïve ☃".encode())) == "naïve ☃"
    with pytest.raises(BadInput, match="--stop is not UTF-8 text: byte 0xe9 at offset 3"):
        stop_string(b"caf\xe9".decode("ascii", errors="surrogateescape"))


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["20", "1"])
def test_a_narrow_terminal_is_no_error(command, columns):
    for arguments in (command, [command[0], "--help"]):
        assert run(*arguments, env={"COLUMNS": columns}).returncode == 0
    if "summary" in command[0] and columns == "20":
        lines = run(*command, env={"COLUMNS": columns}).stdout.decode().splitlines()
        assert max(map(len, lines)) <= 20


# Names and line ends --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with Windows line ends, in a folder whose name few would choose."""
    folder = tmp_path / "mô hình é ☃"
    writable_copy(BUNDLED, folder)
    for name in ("config.json", "vocab.json", "merges.txt"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    return folder


@pytest.mark.slow
def test_windows_line_ends_and_any_name_of_a_folder_change_nothing(folder, command):
    place = ["--json", folder] if "summary" in command[0] else ["--model", folder]
    expected, process = run(*command, *place[:-1], "fairytale"), run(*command, *place)
    assert process.returncode == 0, process.stderr
    assert process.stdout.replace(json.dumps(str(folder)).encode(), b'"fairytale"') == expected.stdout


@pytest.mark.slow
def test_windows_line_ends_in_a_prompt_are_line_ends(text_file):
    from_file = run("numpy_gpt2.generate", "--prompt-file", text_file, "--seed", "1")
    assert from_file.stdout == run("numpy_gpt2.generate", "The king said: naïve ☃", "--seed", "1").stdout


@pytest.mark.slow
def test_a_folder_whose_name_is_no_text_is_drawn_all_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    shutil.copytree(os.fsencode(BUNDLED), folder)
    process = run("numpy_gpt2.summary", folder, "--counts", "--plot", tmp_path / "picture.png")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "picture.png").stat().st_size > 1000
