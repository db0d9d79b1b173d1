"""Loading by name over real HTTP, from a small hub on loopback. Each test has a repository of its own.

huggingface_hub reads its environment when it is imported. That the environment counts is tested in processes of their
own; all else in this process, with the constants changed that huggingface_hub has made of it.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from hub_server import Fault, HubServer, Repo, environment
from huggingface_hub import constants
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from numpy_gpt2.checkpoint import hub as module
from numpy_gpt2.checkpoint import loading
from numpy_gpt2.checkpoint.hub import checked_revision, current_commit, explained, look_up
from numpy_gpt2.checkpoint.loading import load_model
from numpy_gpt2.checkpoint.saving import save
from numpy_gpt2.checkpoint.transfer import within
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet
from numpy_gpt2.config import GPT2Config
from numpy_gpt2.checkpoint.wanted import WEIGHTS, IncompleteCheckpoint
from numpy_gpt2.errors import CheckpointError, CheckpointWarning, HubError, shown
from numpy_gpt2.summary.metadata import read_metadata
from numpy_gpt2.weights import random_model


FUNCTIONS: dict[str, Any] = {"load": loading.load, "load_model": loading.load_model,
                             "load_tokenizer": loading.load_tokenizer, "read_metadata": read_metadata}


@dataclass
class Computer:
    """Someone's computer: a cache, and what lies behind HF_ENDPOINT."""

    home: Path
    endpoint: str
    is_offline: bool = False

    def call(self, function: str, *arguments: Any) -> dict[str, Any]:
        """What a function of loading.py gives, or with what it fails, on this computer."""
        start = time.monotonic()
        with environment(self.endpoint, self.home / "hub", self.is_offline), \
                warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                loaded = FUNCTIONS[function](*arguments)
                model = loaded[0] if function == "load" else loaded
                answer: dict[str, Any] = {"wte": model.wte.tolist() if hasattr(model, "wte") else None}
            except Exception as error:
                kinds = [CheckpointError, HubError, ValueError]
                answer = {"error": [kind.__name__ for kind in kinds if isinstance(error, kind)], "message": str(error)}
        answer["warnings"] = [str(one.message) for one in caught]
        answer["kinds"] = [one.category for one in caught]
        return answer | {"seconds": time.monotonic() - start}

    def run(self, program: str) -> "subprocess.CompletedProcess[str]":
        """A process of its own on this computer."""
        inherited = {name: value for name, value in os.environ.items()
                     if not name.startswith("HF_") and "proxy" not in name.lower()}
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint,
                    "HF_HUB_OFFLINE": str(int(self.is_offline)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return subprocess.run([sys.executable, "-c", program], env=inherited | settings, text=True, timeout=60,
                              cwd=Path(__file__).parents[2], capture_output=True)

    def snapshot(self, repo: str) -> dict[str, set[str]]:
        """What the cache holds of a repository: commit -> file names."""
        folder = self.home / "hub" / ("models--" + repo.replace("/", "--")) / "snapshots"
        return {commit.name: {path.name for path in commit.iterdir()} for commit in folder.glob("*")}

    def blobs(self, repo: str) -> int:
        return len(list((self.home / "hub" / ("models--" + repo.replace("/", "--")) / "blobs").glob("*")))


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub") / "home"


@pytest.fixture(scope="module")
def online(home: Path, hub: HubServer) -> Computer:
    return Computer(home, hub.url)


@pytest.fixture(scope="module")
def unreachable(home: Path) -> Iterator[Computer]:
    """One whose hub is a port where nobody listens; its cache is that of `online`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening: the port refuses, and nobody else gets it
        yield Computer(home, f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.fixture(scope="module")
def offline(home: Path, hub: HubServer) -> Computer:
    return Computer(home, hub.url, is_offline=True)


def checkpoint_bytes(folder: Path, seed: int = 0) -> dict[str, bytes]:
    """The files of a tiny checkpoint, and some that nobody should ask for."""
    config = GPT2Config(vocab_size=257, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    save(random_model(config, seed), folder)
    vocabulary = {letter: i for i, letter in enumerate(byte_alphabet())} | {"<|endoftext|>": 256}
    return {
        "config.json": (folder / "config.json").read_bytes(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": b"#version: 0.2\n",
        "tokenizer.json": json.dumps(tokenizer_json(vocabulary)).encode(),
        "pytorch_model.bin": b"a pickle",
        "README.md": b"words",
    }


def tokenizer_json(vocabulary: dict[str, int]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end_of_text = {"id": 256, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                   "normalized": True, "special": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end_of_text], "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocabulary, "merges": []}}


WHOLE = {"config.json", "model.safetensors", "tokenizer.json"}
ABSENT = {"generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return checkpoint_bytes(tmp_path)


def wte_in(files: dict[str, bytes]) -> Any:
    return from_safetensors(files["model.safetensors"])["wte.weight"].tolist()


def test_first_load_downloads_only_what_is_wanted_and_the_second_asks_nothing(hub, online, unreachable, offline, files):
    hub.repos["class/whole"] = Repo(files)
    hub.log.clear()
    assert online.call("load", "class/whole")["wte"] == wte_in(files)
    assert {line.split()[-1] for line in hub.log} == WHOLE | ABSENT
    assert sum(line.startswith("HEAD") and line.split()[-1] in ABSENT for line in hub.log) == len(ABSENT)
    assert sum(line.startswith("GET") for line in hub.log) == 3  # each of them once
    assert sum(line.startswith("CDN GET") for line in hub.log) == 1  # where the hub sent us for the large one
    assert online.snapshot("class/whole") == {"1" * 40: WHOLE}
    hub.log.clear()
    for computer in (online, unreachable, offline):
        for function in ("load", "load_model", "load_tokenizer"):
            assert "error" not in computer.call(function, "class/whole")
    assert hub.log == []


@pytest.mark.parametrize("name", ["EleutherAI/x", "0/x", "a.b_c-d/E.f_g-h"])
def test_owner_and_repository_are_looked_for_on_the_hub(name):
    assert look_up(name) == name


@pytest.mark.parametrize("name, hint", [
    ("größe/x", ""), ("/x", ""), (".a/x", ""), ("a/b/c", ""), ("gpt2-tiny", ""), ("GPT3-XL", " Did you mean gpt2-xl?"),
    ("fairytail", " Did you mean fairytale?")])
def test_a_name_that_means_nothing_is_refused_with_what_it_may_have_meant(name, hint):
    with pytest.raises(ValueError) as error:
        look_up(name)
    assert str(error.value) == (
        f"no checkpoint {name!r}: expected one of fairytale, small, medium, large, xl, gpt2, gpt2-medium, gpt2-large, "
        f"gpt2-xl, distilgpt2, a folder that exists, or owner/repo on the hub.{hint}")


def test_unreachable_hub_is_said_quickly_with_the_ways_out_and_nothing_else(unreachable):
    answer = unreachable.call("load", "class/never-seen")
    assert answer["error"] == ["HubError"]
    for word in ("cannot be reached", "HF_HOME", "folder", "HF_ENDPOINT", "fairytale"):
        assert word in answer["message"]
    assert "\n" not in answer["message"]
    assert answer["seconds"] < 10


@pytest.mark.slow
def test_silent_hub_is_said_within_ten_seconds(hub, online, files):
    hub.repos["class/silent"] = Repo(files, faults={"config.json": Fault(stall=True)})
    answer = online.call("load", "class/silent")
    assert answer["error"] == ["HubError"] and "cannot be reached" in answer["message"]
    assert answer["seconds"] < 10


@pytest.mark.parametrize("answer_s, silence_s, said", [(0.2, 9, "no answer within 0.2 s"), (9, 0.2, "timed out")])
def test_an_answer_has_a_limit_and_so_has_each_silence(hub, online, files, monkeypatch, answer_s, silence_s, said):
    monkeypatch.setattr(module, "ANSWER_S", answer_s)
    monkeypatch.setattr(module, "SILENCE_S", silence_s)
    hub.repos["class/mute"] = Repo(files, faults={"config.json": Fault(stall=True)})
    answer = online.call("load", "class/mute")
    assert answer["error"] == ["HubError"] and said in answer["message"]
    assert answer["seconds"] < 5


def test_a_call_that_never_returns_is_given_up():
    others, end = threading.enumerate(), threading.Event()
    with pytest.raises(TimeoutError, match="no answer within 0.05 s"):
        within(0.05, end.wait)
    assert [thread.daemon for thread in threading.enumerate() if thread not in others] == [True]  # it may be left alone
    end.set()


def test_within_hands_on_results_and_errors():
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_offline_is_said_without_a_request(hub, offline, files):
    hub.repos["class/not-cached"] = Repo(files)
    hub.log.clear()
    answer = offline.call("load", "class/not-cached")
    assert answer["error"] == ["HubError"] and "HF_HUB_OFFLINE forbids" in answer["message"]
    assert hub.log == []


def test_a_full_disk_is_said_by_name():
    error = explained(OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/x"), "class/any", "main")
    assert isinstance(error, HubError)
    assert str(error) == ("/cache/blobs/x: cannot be written: No space left on device. Free some space, or set "
                          "HF_HOME to another folder.")


@pytest.mark.parametrize("endpoint, error, reason", [
    ("https://hub", RuntimeError("it broke."), "it broke."), ("https://hub", RuntimeError("it broke"), "it broke."),
    ("https://hub", RuntimeError(), "RuntimeError."), ("https://hub", RuntimeError("it is X"), "it is X."),
    ("https://me:secret@hub", RuntimeError("secret"), "RuntimeError.")])
def test_whatever_the_transport_says_becomes_one_sentence(monkeypatch, endpoint, error, reason):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert str(explained(error, "class/any", "main")) == \
        f"the hub (https://hub) cannot be reached, or the connection broke: {reason} {module.WAYS_OUT}"


@pytest.mark.parametrize("status, code, error, words", [
    (401, "RepoNotFound", "HubError", "log in"),
    (401, "GatedRepo", "HubError", "log in"),
    (403, "GatedRepo", "HubError", "ask for access"),
    (403, "", "HubError", "403"),
    (404, "RepoNotFound", "ValueError", "no repository"),
    (404, "RevisionNotFound", "ValueError", "no revision"),
    (404, "EntryNotFound", "ValueError", "config.json"),
    (404, "", "ValueError", "config.json"),
    (429, "", "HubError", "too many requests"),
    (500, "", "HubError", "500 for class/refused-500-as-plain: see its status page, or try again later. Ways out: "),
])
def test_a_refusal_is_one_line_that_says_what_to_do(hub, online, files, status, code, error, words):
    name = f"class/refused-{status}-as-{code or 'plain'}"
    hub.repos[name] = Repo(files, faults={"config.json": Fault(status=status, code=code)})
    answer = online.call("load", name)
    assert answer["error"] == [error]
    assert words in answer["message"] and name in answer["message"] and "\n" not in answer["message"]
    assert answer["seconds"] < 10


def test_the_wait_that_the_hub_asks_for_is_told(hub, online, files):
    hub.repos["class/busy"] = Repo(files, faults={"config.json": Fault(status=429, headers={"Retry-After": "90"})})
    assert "90 s" in online.call("load", "class/busy")["message"]


@pytest.mark.parametrize("wait", ["Wed, 21 Oct 2026 07:28:00 GMT", "\x1b[31m9"])
def test_a_wait_that_is_no_number_of_seconds_is_left_out(hub, online, files, wait):
    hub.repos["class/busier"] = Repo(files, faults={"config.json": Fault(status=429, headers={"Retry-After": wait})})
    message = online.call("load", "class/busier")["message"]
    assert "too many requests" in message and "asks you to wait" not in message and message.isprintable()


def test_unknown_repository_and_revision_are_argument_errors(hub, online, files):
    hub.repos["class/pinned"] = Repo(files)
    assert online.call("load", "class/absent")["error"] == ["ValueError"]
    answer = online.call("load", "class/pinned", "no-such-branch")
    assert answer["error"] == ["ValueError"] and "class/pinned has no revision 'no-such-branch'" in answer["message"]
    assert online.call("load", "class/--")["error"] == ["ValueError"]


@pytest.mark.parametrize("revision", ["../../../x", "a/../b", "/etc/x", "a//b", "", "x/", "-x", ".x", "a/.git", "a\\b",
                                      "a\nb", "a\x1b[31mb", "a b", "C:x", "x" * 201, 5, "a\0b", "a\u202eb"])
def test_a_revision_that_git_would_not_have_is_refused_before_anything_is_asked(revision, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # to import it is now an error
    with pytest.raises(ValueError) as error:
        load_model("class/any", revision=revision)
    assert str(error.value) == f"revision must be a branch, a tag or a commit. Got {shown(revision)}."


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "feature/x_y-z", "0" * 40, "größe", "a@b", "1"])
def test_a_revision_that_git_has_is_asked_for(revision):
    assert checked_revision(revision) == revision


@pytest.mark.parametrize("header", ["X-Repo-Commit", "ETag"])
@pytest.mark.parametrize("value", ["../../../planted", "x/planted", "", "x" * 201, ".", "a b", "é"])
def test_a_commit_and_an_etag_that_would_lead_out_of_the_cache_are_refused(hub, online, files, header, value):
    headers = {"X-Repo-Commit": "1" * 40, "ETag": "2" * 40, header: value}
    hub.repos["class/planting"] = Repo(files, faults={"config.json": Fault(status=200, headers=headers)})
    answer = online.call("load", "class/planting")
    assert answer["error"] == ["HubError"]
    assert answer["message"].endswith("/class/planting/resolve/main/config.json: the server does not answer as a hub "
                                      "does (no commit, or no etag): check HF_ENDPOINT and proxies.")
    assert not list(online.home.parent.rglob("*planted*"))


@pytest.mark.parametrize("endpoint, said", [
    ("localhost:8000", "HF_ENDPOINT must be a URL, such as https://huggingface.co. Got 'localhost:8000'"),
    ("", "HF_ENDPOINT must be a URL"), ("http://", "HF_ENDPOINT must be a URL"), ("ftp://x", "HF_ENDPOINT must be a"),
    ("http://127.0.0.1:1", "the hub (http://127.0.0.1:1) cannot be reached"),
    ("http://127.0.0.1:99999", "the hub (http://127.0.0.1:99999) cannot be reached"),
    ("http://user:secret@127.0.0.1:1", "the hub (http://127.0.0.1:1) cannot be reached"),
    ("http://user:se/cr@et@127.0.0.1:1", "the hub (http://127.0.0.1:1) cannot be reached"),
    ("user:secret@host", "HF_ENDPOINT must be a URL"),
])
def test_a_wrong_endpoint_is_named_in_one_line_and_its_password_never(monkeypatch, endpoint, said):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(HubError) as error:
        current_commit("class/any", "main")
    message = str(error.value)
    assert message.startswith(said) and "\n" not in message
    assert "cret" not in message and "user" not in message


def test_the_password_of_a_server_that_is_no_hub_is_not_shown(hub, files, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.repos["class/plain"] = Repo(files, faults={"config.json": Fault(status=200)})
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url.replace("//", "//user:secret@") +
                        "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(HubError, match="^http://127.0.0.1:[^@]*: the server does not answer as a hub"):
        current_commit("class/plain", "main")


def test_a_server_that_is_no_hub_is_said(hub, online, files):
    hub.repos["class/plain"] = Repo(files, faults={"config.json": Fault(status=200)})
    answer = online.call("load", "class/plain")
    assert answer["error"] == ["HubError"] and "does not answer as a hub" in answer["message"]


def test_a_damaged_download_is_said_and_leaves_nothing(hub, online, files):
    repo = hub.repos["class/damaged"] = Repo(files, faults={"model.safetensors": Fault("GET", spoil=True)})
    answer = online.call("load", "class/damaged")
    assert answer["error"] == ["HubError"]
    assert answer["message"].startswith("model.safetensors: the download is damaged")
    assert online.snapshot("class/damaged") == {"1" * 40: {"config.json"}}
    assert online.blobs("class/damaged") == 1
    repo.faults.clear()
    assert online.call("load", "class/damaged")["wte"] == wte_in(files)


def test_a_file_is_as_long_as_the_hub_says(hub, online, files):
    hub.repos["class/short"] = Repo(files, faults={"model.safetensors": Fault("GET", body=b"short")})
    answer = online.call("load", "class/short")
    assert f"expected {len(files['model.safetensors']):,} bytes, found 5 bytes" in answer["message"]


@pytest.mark.parametrize("function", ["load", "read_metadata"])
def test_what_is_refused_between_question_and_download_is_said_of_the_repository(hub, online, files, function):
    hub.repos["class/closing"] = Repo(files, faults={"model.safetensors": Fault("GET", status=403)})
    assert online.call(function, "class/closing")["message"].startswith("the hub answered 403 for class/closing: ")


def test_a_repository_on_xet_storage_is_fetched_over_http(hub, online, files):
    hub.repos["class/on-xet"] = Repo(files, on_xet=True)
    hub.log.clear()
    assert online.call("load", "class/on-xet")["wte"] == wte_in(files)
    assert sum(line.startswith("CDN GET") for line in hub.log) == 1
    assert not any("xet-token" in line for line in hub.log)


def test_shards_are_downloaded_with_their_index(hub, online, unreachable, files):
    tensors = from_safetensors(files.pop("model.safetensors"))
    halves = [dict(list(tensors.items())[:3]), dict(list(tensors.items())[3:])]
    shards = {f"model-0000{i}-of-00002.safetensors": half for i, half in enumerate(halves, 1)}
    files |= {name: to_safetensors(half) for name, half in shards.items()}
    files["unnamed.safetensors"] = to_safetensors(halves[0])
    weight_map = {tensor: name for name, half in shards.items() for tensor in half}
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    hub.repos["class/shards"] = Repo(files)
    for computer in (online, unreachable):
        assert computer.call("load", "class/shards")["wte"] == tensors["wte.weight"].tolist()
    expected = WHOLE - {"model.safetensors"} | {*shards, "model.safetensors.index.json"}
    assert online.snapshot("class/shards") == {"1" * 40: expected}


def test_vocabulary_and_merges_will_do(hub, online, unreachable, files):
    del files["tokenizer.json"]
    files |= {"added_tokens.json": b'{"<x>": 257}', "generation_config.json": b'{"eos_token_id": 3}'}
    hub.repos["class/old-style"] = Repo(files)
    for computer in (online, unreachable):
        assert "error" not in computer.call("load", "class/old-style")
    assert online.snapshot("class/old-style") == {"1" * 40: {"config.json", "model.safetensors", "vocab.json",
                                                             "merges.txt", "added_tokens.json",
                                                             "generation_config.json"}}
    hub.log.clear()
    assert "error" not in online.call("load", "class/old-style")
    assert hub.log == []  # it is known that there is no tokenizer.json


def forget_absences(home, repo):
    shutil.rmtree(home / "hub" / ("models--" + repo.replace("/", "--")) / ".no_exist")


def test_what_the_cache_does_not_know_counts_as_absent_where_the_hub_cannot_be_asked(hub, online, unreachable, offline,
                                                                                     files):
    hub.repos["class/by-others"] = Repo(files)
    assert "error" not in online.call("load", "class/by-others")
    forget_absences(online.home, "class/by-others")
    for computer in (unreachable, offline):
        answer = computer.call("load", "class/by-others")
        assert answer["wte"] == wte_in(files)
        for answer in (answer, computer.call("load", "class/by-others", "1" * 40)):
            assert answer["kinds"] == [CheckpointWarning]
        (warning,) = answer["warnings"]
        assert warning.startswith("class/by-others: loaded from the cache, without checking whether the hub also has "
                                  "generation_config.json, tokenizer_config.json, special_tokens_map.json, "
                                  "added_tokens.json: ")
    hub.log.clear()
    assert online.call("load", "class/by-others")["warnings"] == []
    assert {line.split()[-1] for line in hub.log} == ABSENT | {"config.json"}  # of which the commit is learnt
    hub.log.clear()
    assert online.call("load", "class/by-others")["warnings"] == [] and hub.log == []


def test_a_file_that_would_win_over_what_the_cache_has_is_said_too(hub, online, unreachable, files):
    del files["tokenizer.json"]
    hub.repos["class/old-by-others"] = Repo(files)
    assert "error" not in online.call("load", "class/old-by-others")
    forget_absences(online.home, "class/old-by-others")
    (warning,) = unreachable.call("load_tokenizer", "class/old-by-others")["warnings"]
    assert "whether the hub also has tokenizer.json, generation_config.json, tokenizer_config.json, " in warning


def test_a_pinned_commit_is_taken_from_the_cache_where_the_hub_cannot_be_asked(hub, online, unreachable, tmp_path):
    first, second = (checkpoint_bytes(tmp_path / str(seed), seed) for seed in (1, 2))
    hub.repos["class/pinned-cache"] = Repo(first, older={"2" * 40: second})
    for revision in ("2" * 40, None):  # main's files are there too, and are not taken
        assert "error" not in online.call("load", "class/pinned-cache", revision)
    forget_absences(online.home, "class/pinned-cache")
    (online.home / "hub" / "models--class--pinned-cache" / ".no_exist" / ("1" * 40)).mkdir(parents=True)
    for name in ABSENT:
        (online.home / "hub" / "models--class--pinned-cache" / ".no_exist" / ("1" * 40) / name).touch()
    answer = unreachable.call("load", "class/pinned-cache", "2" * 40)
    assert answer["wte"] == wte_in(second)
    assert "also has generation_config.json, tokenizer_config.json, special" in answer["warnings"][0]


def test_what_transformers_got_as_gpt2_is_found_before_the_network_is_asked(hub, online, unreachable, tmp_path):
    files = checkpoint_bytes(tmp_path)
    hub.repos["class/twin"] = Repo(files)
    assert "error" not in online.call("load", "class/twin")
    cache = online.home / "hub"
    shutil.copytree(cache / "models--class--twin", cache / "models--gpt2-xl", symlinks=True)
    hub.log.clear()
    for computer in (online, unreachable):
        for name in ("gpt2-xl", "xl", "openai-community/gpt2-xl"):
            assert computer.call("load_model", name)["wte"] == wte_in(files)
    assert hub.log == []


def test_no_other_repository_has_a_second_place_in_the_cache(hub, online, unreachable, files):
    hub.repos["class/first"] = Repo(files)
    assert "error" not in online.call("load", "class/first")
    cache = online.home / "hub"
    shutil.copytree(cache / "models--class--first", cache / "models--second", symlinks=True)
    assert unreachable.call("load", "class/second")["error"] == ["HubError"]


def test_missing_weights_are_said_and_no_pickle_is_taken(hub, online, files):
    del files["model.safetensors"]
    hub.repos["class/pickle-only"] = Repo(files)
    hub.log.clear()
    answer = online.call("load", "class/pickle-only")
    assert answer["error"] == ["CheckpointError"]
    assert answer["message"] == (
        "class/pickle-only: a file is missing: expected model.safetensors, or model.safetensors.index.json. Where a "
        "repository has other formats only, in transformers, from_pretrained() and save_pretrained() write "
        "model.safetensors; or it has a revision with model.safetensors (see its pull requests).")
    with environment(hub.url, online.home), pytest.raises(IncompleteCheckpoint) as error:
        loading.load_model("class/pickle-only")
    assert error.value.wanted == WEIGHTS
    assert not any("pytorch_model.bin" in line for line in hub.log)


def test_a_revision_pins_the_commit_and_a_branch_stays_where_the_cache_has_it(hub, online, unreachable, tmp_path):
    first, second = (checkpoint_bytes(tmp_path / str(seed), seed) for seed in (1, 2))
    repo = hub.repos["class/moving"] = Repo(first)
    assert online.call("load", "class/moving")["wte"] == wte_in(first)
    repo.files, repo.commit, repo.older = second, "2" * 40, {"1" * 40: first}
    assert online.call("load", "class/moving")["wte"] == wte_in(first)  # in the cache: nothing asked
    assert online.call("load", "class/moving", "2" * 40)["wte"] == wte_in(second)
    assert [path.name for path in online.home.glob("hub/models--class--moving/refs/*")] == ["main"]
    for computer in (online, unreachable):  # both commits are in the cache now
        assert computer.call("load", "class/moving")["wte"] == wte_in(first)
        assert computer.call("load", "class/moving", "1" * 40)["wte"] == wte_in(first)
        assert computer.call("load", "class/moving", "2" * 40)["wte"] == wte_in(second)


class RepoWithPullRequest(Repo):
    def at(self, revision: str) -> "tuple[str, dict[str, bytes]] | None":
        return super().at("2" * 40 if revision == "refs/pr/1" else revision)


def test_a_pull_request_is_a_revision_and_is_found_in_the_cache(hub, online, unreachable, tmp_path):
    first, second = (checkpoint_bytes(tmp_path / str(seed), seed) for seed in (1, 2))
    hub.repos["class/asked"] = RepoWithPullRequest(first, older={"2" * 40: second})
    for computer in (online, unreachable):
        assert computer.call("load", "class/asked", "refs/pr/1")["wte"] == wte_in(second)


def test_of_a_partial_snapshot_only_the_rest_is_asked_for(hub, online, files):
    hub.repos["class/half"] = Repo(files)
    assert "error" not in online.call("load_tokenizer", "class/half")
    hub.log.clear()
    assert online.call("load", "class/half")["wte"] == wte_in(files)
    assert {line.split()[-1] for line in hub.log} == {"config.json", "model.safetensors"}


def test_a_partial_snapshot_is_completed_from_one_commit_only(hub, online, unreachable, tmp_path):
    first, second = (checkpoint_bytes(tmp_path / str(seed), seed) for seed in (1, 2))
    repo = hub.repos["class/partial"] = Repo(first)
    assert "error" not in online.call("load_tokenizer", "class/partial")
    assert unreachable.call("load", "class/partial")["error"] == ["HubError"]
    repo.files, repo.commit, repo.older = second, "2" * 40, {"1" * 40: first}
    assert online.call("load", "class/partial")["wte"] == wte_in(second)
    assert online.snapshot("class/partial")["2" * 40] == WHOLE
    assert unreachable.call("load", "class/partial")["wte"] == wte_in(second)


class MovingRepo(Repo):
    """A repository whose branch moves on as soon as it has been asked about once."""

    def at(self, revision: str) -> "tuple[str, dict[str, bytes]] | None":
        found = super().at(revision)
        if revision == "main" and not self.older:
            self.older = {self.commit: self.files}
            self.commit, self.files = "2" * 40, {name: b"another" for name in self.files}
        return found


def test_all_files_are_of_one_commit_though_the_branch_moves_meanwhile(hub, online, unreachable, files):
    hub.repos["class/restless"] = MovingRepo(files)
    for computer in (online, unreachable):
        assert computer.call("load", "class/restless")["wte"] == wte_in(files)
    assert online.snapshot("class/restless") == {"1" * 40: WHOLE}


def test_the_environment_counts_and_nothing_is_said_on_standard_error(hub, online, unreachable, offline, files):
    hub.repos["class/by-process"] = Repo(files)
    program = ("import numpy_gpt2\n"
               "for name in ('class/by-process', 'class/never-seen'):\n"
               "    try: print(numpy_gpt2.load_model(name).wte.tolist())\n"
               "    except (numpy_gpt2.HubError, ValueError) as error: print(error)\n")
    for computer, said in ((online, "no repository"), (unreachable, "cannot be reached"),
                           (offline, "HF_HUB_OFFLINE forbids")):
        process = computer.run(program)
        loaded, refused = process.stdout.splitlines()
        assert (loaded, process.stderr) == (str(wte_in(files)), "")
        assert "class/never-seen" in refused or said == "cannot be reached"
        assert said in refused


# Headers alone --------------------------------------------------------------------------------------------------------


def test_the_headers_of_all_shards_are_read_and_no_weights_kept(hub, online, files):
    tensors = list(from_safetensors(files.pop("model.safetensors")).items())
    shards = {"a.safetensors": dict(tensors[:5]), "b.safetensors": dict(tensors[5:])}
    index = {"weight_map": {tensor: shard for shard, arrays in shards.items() for tensor in arrays}}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(),
              **{name: to_safetensors(arrays) for name, arrays in shards.items()}}
    hub.repos["class/header"] = Repo(files)
    with environment(hub.url, online.home / "hub"):
        assert set(read_metadata("class/header").types) == {name for name, _ in tensors}
    assert online.snapshot("class/header") == {"1" * 40: {"config.json", "model.safetensors.index.json"}}


HEADERS: dict[str, tuple[dict[str, object], str]] = {
    "longer than any GPT-2's": ({"body": (2**62).to_bytes(8, "little"), "endless": True}, "at most 8,388,608 bytes"),
    "endless brackets": ({"body": (10**6).to_bytes(8, "little") + b"[" * 10**6}, "at most 500,000 values"),
    "nested too deeply": ({"body": (20_000).to_bytes(8, "little") + b"[" * 20_000}, "not a whole safetensors file"),
    "no header": ({"body": bytes(100)}, "not a whole safetensors file"),
    "no object": ({"body": b"\x02" + bytes(7) + b"[]"}, "expected a JSON object as the header"),
    "no tensor": ({"body": b"\x09" + bytes(7) + b'{"a": {}}'}, "tensor 'a': expected a JSON object with dtype"),
    "cut short": ({"body": b"\x09\x00"}, "not a whole safetensors file"),
    "refused": ({"status": 503}, "the hub answered 503"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_refused_in_one_line_and_bounded_memory(hub, online, files, case):
    fault, said = HEADERS[case]
    name = f"class/{case.replace(' ', '-').replace(chr(39), '')}"
    hub.repos[name] = Repo(files, faults={"model.safetensors": Fault("GET", **fault)})
    answer = online.call("read_metadata", name)
    assert len(answer["error"]) == 1 and "\n" not in answer["message"]
    assert answer["message"].startswith((f"{name}/model.safetensors: ", "the hub answered 503 for ")) \
        and said in answer["message"]
    assert hub.bytes_sent[f"{name} model.safetensors"] < 2 * 10**7


def test_the_wte_of_the_served_checkpoint_is_not_trivial(files):
    assert np.ptp(wte_in(files)) > 0
