"""Laws of one download: it goes on where it broke, nobody sees a file before it is verified, and nothing is fetched
twice. A real HTTP server on loopback breaks the transfers."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from hub_server import Fault, HubServer, Repo, environment, etag_of
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache, utils
from huggingface_hub.errors import HfHubHTTPError
from test_hub import checkpoint_bytes

from numpy_gpt2.checkpoint import download as module
from numpy_gpt2.checkpoint import transfer
from numpy_gpt2.checkpoint.download import download_file
from numpy_gpt2.checkpoint.hub import fetch_header
from numpy_gpt2.checkpoint.json_file import LARGEST_TEXT
from numpy_gpt2.checkpoint.tensors import StoredTensor
from numpy_gpt2.checkpoint.transfer import PAUSE_S, SILENCE_S, TRIES, check_text_size
from numpy_gpt2.errors import CheckpointError, HubError

posix = pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")

NAME = "model.safetensors"
KEY = f"class/any {NAME}"  # of the server's counts
COMMIT = "1" * 40
CONTENT = np.random.default_rng(0).bytes(300_000)
HALF = len(CONTENT) // 2


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repos["class/any"] = Repo({NAME: CONTENT, "vocab.json": CONTENT[:1000]})
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this repository in an empty cache; what is waited for is over soon."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "SILENCE_S", 0.5)
    monkeypatch.setattr(transfer, "PAUSE_S", 0)
    return tmp_path / "models--class--any"


def fetch(hub: HubServer, name: str = NAME, size: int | None = -1, etag: str = "", commit: str = COMMIT,
          **fault: Any) -> Path:
    """Download a file of the repository, which has this fault; size -1 and etag "": the true ones."""
    content = hub.repos["class/any"].files[name]
    hub.repos["class/any"].faults = {name: Fault("GET", **fault)} if fault else {}
    url = f"{hub.url}/class/any/resolve/{commit}/{name}"
    etag = etag or etag_of(content, is_large=name == NAME)
    return download_file(url, "class/any", commit, name, etag, len(content) if size == -1 else size)


def header(hub: HubServer) -> list[StoredTensor]:
    """What the header of the repository's weights lists."""
    with environment(hub.url, Path(constants.HF_HUB_CACHE)):
        return fetch_header("class/any", COMMIT, NAME)


def files_in(cache: Path) -> set[str]:
    """Everything in the repository's folder of the cache that is a file or a link, hashes left out."""
    return {str(path.relative_to(cache)).replace(COMMIT, "commit").replace(etag_of(CONTENT, True), "etag")
            for path in cache.rglob("*") if not path.is_dir()}


WHOLE = {"blobs/etag", f"snapshots/commit/{NAME}"}


def test_a_file_lies_in_the_cache_as_huggingface_hub_would_put_it(hub, cache):
    path = fetch(hub)
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == WHOLE
    assert try_to_load_from_cache("class/any", NAME, revision=COMMIT) == str(path)
    report = scan_cache_dir(cache.parent)
    assert [repo.size_on_disk for repo in report.repos] == [len(CONTENT)] and not report.warnings


# Transfers that break -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["close", "reset", "stall"])
@pytest.mark.parametrize("n", [1, HALF, len(CONTENT) - 1])
def test_a_transfer_that_breaks_goes_on_where_it_broke(hub, by, n):
    assert fetch(hub, break_after=n, by=by, times=1).read_bytes() == CONTENT
    first, second = hub.ranges[KEY]
    assert first == 0 and (second == n or by == "reset")  # a reset may tear away what had not been read yet
    assert hub.bytes_sent[KEY] == n + len(CONTENT) - second  # and nothing else is sent twice


def test_a_transfer_may_break_any_number_of_times_while_something_comes(hub):
    n_breaks = 3 * transfer.TRIES
    assert fetch(hub, break_after=1000, times=n_breaks).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [1000 * i for i in range(n_breaks + 1)]


@pytest.mark.parametrize("fault", [{"break_after": 0}, {"break_after": 0, "by": "reset"}, {"stall": True}], ids=str)
def test_a_transfer_that_brings_nothing_is_given_up_after_some_tries(hub, cache, fault):
    with pytest.raises(Exception) as error:
        fetch(hub, **fault)
    assert not isinstance(error.value, OSError)
    assert sum(line.startswith("GET") for line in hub.log) == transfer.TRIES
    assert not WHOLE & files_in(cache)


def test_a_later_start_goes_on_where_an_earlier_one_gave_up(hub, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    with pytest.raises(Exception, match="peer closed"):
        fetch(hub, break_after=HALF)
    assert files_in(cache) == {"blobs/etag.partial"}
    assert fetch(hub).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [0, HALF]
    assert files_in(cache) == WHOLE


def test_a_later_start_finds_a_file_that_was_whole_and_only_verifies_it(hub, cache):
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / f"{etag_of(CONTENT, True)}.partial").write_bytes(CONTENT)
    assert fetch(hub).read_bytes() == CONTENT
    assert hub.log == []


def test_a_server_that_sends_the_whole_file_again_is_understood(hub):
    assert fetch(hub, break_after=HALF, times=2, ignore_range=True).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [0, 0, HALF]


# What the server says of what it sends --------------------------------------------------------------------------------


def start_of_file(cache: Path, n: int = HALF) -> Path:
    """So much of the file as an earlier run has fetched."""
    path = cache / "blobs" / f"{etag_of(CONTENT, True)}.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:n])
    return path


@pytest.mark.parametrize("fault", [
    {"body": b"<html>Log in!", "kind": "text/html"}, {"body": b"Log in!"}, {"body": b"Log in!", "kind": "text/plain"},
    {"unsized": True, "ignore_range": True, "kind": "TEXT/HTML"},
    {"body": CONTENT, "kind": "text/html; charset=utf-8"}],
    ids=["a page", "another length", "another type", "HTML", "HTML as long"])
def test_an_answer_of_another_kind_leaves_what_had_come_alone(hub, cache, fault):
    partial = start_of_file(cache, len(CONTENT) - 1)
    found = "a web page" if "html" in fault.get("kind", "").lower() else "7 bytes"
    with pytest.raises(HubError) as error:
        fetch(hub, **fault)
    assert str(error.value) == (
        f"{NAME}: the server sends something else: expected 300,000 bytes, found {found}. If this network has a login "
        "page, log in first; or check proxies and HF_ENDPOINT.")
    assert partial.read_bytes() == CONTENT[:-1]
    assert fetch(hub).read_bytes() == CONTENT
    assert hub.ranges[KEY][-1] == len(CONTENT) - 1


@pytest.mark.parametrize("content_range", [
    f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", f"bytes {HALF + 1}-{len(CONTENT) - 1}/{len(CONTENT)}",
    f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT) + 1}", "bytes", "lines 1-2/3", None])
def test_a_part_that_was_not_asked_for_is_not_taken(hub, cache, content_range):
    start_of_file(cache)
    assert fetch(hub, content_range=content_range, times=1).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [HALF, 0]


def test_a_part_that_was_not_asked_for_is_said_where_it_is_not_tried_again(hub, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    start_of_file(cache)
    with pytest.raises(RuntimeError) as error:
        fetch(hub, content_range="bytes")
    assert str(error.value) == "the server sent another part of the file than requested"


def test_a_part_of_a_file_whose_size_is_not_told_is_taken(hub, cache):
    start_of_file(cache)
    assert fetch(hub, content_range=f"bytes {HALF}-{len(CONTENT) - 1}/*", times=1).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [HALF]


OTHER = CONTENT[::-1]


@pytest.mark.parametrize("etag", ["version", "x" * 64, "f" * 63])
def test_what_no_hash_can_verify_is_never_made_of_two_versions(hub, cache, etag):
    assert fetch(hub, etag=etag, break_after=HALF, then=OTHER, times=1).read_bytes() == OTHER
    assert hub.ranges[KEY] == [0, 0]


def test_what_no_hash_can_verify_goes_on_where_it_broke_while_it_is_the_same(hub, cache):
    assert fetch(hub, etag="version", break_after=HALF, times=1).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [0, HALF]


def test_what_no_hash_can_verify_is_not_joined_to_what_another_run_left(hub, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    with pytest.raises(Exception, match="peer closed"):
        fetch(hub, etag="version", break_after=HALF)
    hub.repos["class/any"].files[NAME] = OTHER
    assert fetch(hub, etag="version").read_bytes() == OTHER


@pytest.mark.parametrize("cdn_etag", ['W/"x"', "", "x"])
def test_without_an_etag_to_ask_by_an_unverifiable_file_begins_again(hub, cache, cdn_etag):
    path = fetch(hub, etag="version", break_after=HALF, then=OTHER, times=1, cdn_etag=cdn_etag)
    assert path.read_bytes() == OTHER
    assert hub.ranges[KEY] == [0, 0]


def test_a_page_in_place_of_a_file_of_unknown_size_is_refused(hub):
    with pytest.raises(HubError, match=f"^{NAME}: the server sends something else: expected a file, found a web page"):
        fetch(hub, size=None, body=b"Log in!", kind="text/html")


def test_a_server_that_compresses_though_asked_not_to_is_understood(hub):
    assert fetch(hub, compress=True).read_bytes() == CONTENT


SHA256 = etag_of(CONTENT, True)


@pytest.mark.parametrize("etag", [SHA256.upper(), f"{SHA256}-gzip", f"sha256-{SHA256}", f"SHA256-{SHA256}-gzip",
                                  etag_of(CONTENT, False).upper()])
def test_a_hash_in_the_forms_of_mirrors_verifies_too(hub, cache, etag):
    with pytest.raises(HubError, match="the download is damaged and was removed: expected (sha256|git's sha1) "):
        fetch(hub, etag=etag, spoil=True)
    assert fetch(hub, etag=etag).read_bytes() == CONTENT


def test_one_etag_for_all_files_and_commits_makes_no_file_another(hub, cache):
    path = fetch(hub, etag="same")
    assert path.read_bytes() == CONTENT and re.fullmatch("unverified-[0-9a-f]{64}", path.resolve().name)
    assert fetch(hub, "vocab.json", etag="same").read_bytes() == CONTENT[:1000]
    repo = hub.repos["class/any"]
    repo.commit, repo.files = "2" * 40, {NAME: OTHER}
    assert fetch(hub, etag="same", commit="2" * 40).read_bytes() == OTHER


def test_the_server_is_asked_for_the_bytes_as_they_are(hub, cache):
    fetch(hub, break_after=1000, times=1)
    assert hub.bytes_sent[KEY] == len(CONTENT)


# What never ends ------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.6)
    monkeypatch.setattr(transfer, "ANSWER_S", 0.6)


@pytest.mark.parametrize("fault", [
    {"drip": 0.05}, {"break_after": 1}, {"break_after": 10, "by": "reset"}, {"break_after": 10, "drip": 0.2},
    {"drip_head": 0.05}], ids=str)
def test_what_comes_too_slowly_to_end_is_given_up(hub, cache, impatient, fault):
    start_of_file(cache)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="only [0-9]{1,4} bytes in 1 s|^no answer within 0.6 s"):
        fetch(hub, **fault)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("elapsed, n_new, is_too_slow", [
    (20.0, 0, False), (20.1, 19_999, True), (20.1, 20_000, False), (1e6, 20_000, False), (1e6, 0, True)])
def test_the_lowest_rate_is_20_000_bytes_in_20_seconds(monkeypatch, elapsed, n_new, is_too_slow):
    monkeypatch.setattr(transfer.time, "monotonic", lambda: 7 + elapsed)
    state = transfer.Transfer("", BytesIO(), NAME, None, True, None, since=7, n_then=100)
    state.file.seek(100 + n_new)
    if is_too_slow:
        with pytest.raises(TimeoutError, match=f"^{NAME}: only {n_new:,} bytes in {elapsed:.0f} s$"):
            transfer.check_rate(state)
    else:
        transfer.check_rate(state)
        assert (state.since, state.n_then) == ((7 + elapsed, 100 + n_new) if n_new == 20_000 else (7, 100))


def test_what_comes_slowly_but_fast_enough_is_not_given_up(hub, cache, impatient, monkeypatch):
    monkeypatch.setattr(transfer, "LEAST_BYTES", 5)
    hub.repos["class/any"].files[NAME] = CONTENT[:40]
    assert fetch(hub, drip=0.03).read_bytes() == CONTENT[:40]


def test_a_file_that_is_begun_again_and_again_is_given_up(hub, cache):
    with pytest.raises(HubError) as error:
        fetch(hub, break_after=HALF, later=1000, ignore_range=True)
    assert str(error.value) == (f"{NAME}: the server keeps beginning the file again. Try again later, or check proxies "
                                "and HF_ENDPOINT.")
    assert sum(line.startswith("CDN GET") for line in hub.log) == TRIES + 2


@pytest.mark.parametrize("name, most", [("vocab.json", 2**23), ("tokenizer.json", 2**24)])
def test_a_text_has_its_limit_to_the_byte_and_weights_have_none(name, most):
    check_text_size(name, most)
    with pytest.raises(CheckpointError) as error:
        check_text_size(name, most + 1)
    assert str(error.value) == f"{name}: expected at most {most:,} bytes, found {most + 1:,} on the hub."
    check_text_size(NAME, 2**40)


def test_of_a_file_of_weights_no_more_is_asked_for_than_a_header_may_have(hub):
    hub.repos["class/any"].files[NAME] = b"\xff" * 7 + b"\x00" + b"[" * (LARGEST_TEXT + 1000)
    with pytest.raises(CheckpointError, match=f"^class/any/{NAME}: header: expected at most 8,388,608 bytes, found m"):
        header(hub)
    assert hub.bytes_sent[KEY] == 8 + LARGEST_TEXT + 1


def test_a_header_is_there_when_its_last_byte_is(hub):
    hub.repos["class/any"].files[NAME] = b"\x02" + bytes(7) + b"{}" + CONTENT
    hub.repos["class/any"].faults = {NAME: Fault("GET", break_after=10, by="stall")}
    assert header(hub) == []


@pytest.mark.parametrize("size", [None, -1, 10**9])
def test_a_text_without_end_is_refused(hub, cache, size):
    with pytest.raises((CheckpointError, HubError), match="^vocab.json: (expected at most 8,388,608 bytes|the down)"):
        fetch(hub, "vocab.json", size=size, endless=True)
    assert hub.bytes_sent["class/any vocab.json"] < 2 * 2**24


def test_a_text_that_is_too_large_is_not_even_asked_for(hub, cache):
    with pytest.raises(CheckpointError, match="expected at most 8,388,608 bytes, found 8,388,609 on the hub"):
        fetch(hub, "vocab.json", size=2**23 + 1)
    assert hub.log == []


def test_the_body_of_a_refusal_is_not_read(hub, cache):
    with pytest.raises(HfHubHTTPError):
        fetch(hub, status=500, endless=True)
    assert hub.bytes_sent[KEY] < 10**8


def test_redirects_without_end_are_given_up(hub, cache):
    said = f"^{NAME}: the server redirects more than 5 times: check HF_ENDPOINT.$"
    with pytest.raises(HubError, match=said):
        fetch(hub, status=302, headers={"Location": f"/class/any/resolve/{COMMIT}/{NAME}"})
    with pytest.raises(HubError, match=said):
        header(hub)
    assert len(hub.log) == 2 * 6


# Two at once ----------------------------------------------------------------------------------------------------------


def test_of_two_at_once_one_downloads_and_the_other_says_that_it_waits(hub, cache, monkeypatch, capfd):
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    hub.repos["class/any"].faults = {NAME: Fault("GET", slow=0.4)}
    monkeypatch.setattr(transfer, "SILENCE_S", 5)
    url, etag = f"{hub.url}/class/any/resolve/{COMMIT}/{NAME}", etag_of(CONTENT, True)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: download_file(url, "class/any", COMMIT, NAME, etag, len(CONTENT)), range(2)))
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert hub.ranges[KEY] == [0]
    assert capfd.readouterr().err.count(f"waiting for another process that downloads {NAME}") == 1


def test_who_need_not_wait_says_nothing(hub, cache, monkeypatch, capfd):
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    monkeypatch.setattr(transfer, "SILENCE_S", 5)
    fetch(hub, slow=0.4)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs O_NOFOLLOW")
def test_a_link_that_somebody_put_in_the_way_is_not_followed(hub, cache, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial = start_of_file(cache)
    partial.unlink()
    partial.symlink_to(victim)
    with pytest.raises(OSError):
        fetch(hub)
    assert victim.read_bytes() == b"precious"
    assert fetch(hub).read_bytes() == CONTENT


@pytest.mark.parametrize("n", [0, HALF])
def test_a_file_of_unknown_size_is_whole_when_the_server_says_so(hub, cache, n):
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / f"{etag_of(CONTENT, True)}.partial").write_bytes(CONTENT[:n])
    assert fetch(hub, size=None, break_after=HALF, times=1).read_bytes() == CONTENT
    assert hub.ranges[KEY] == [0, HALF]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416, 429, 500, 503])
def test_a_refusal_in_place_of_the_file_is_no_broken_transfer(hub, cache, status):
    with pytest.raises(HfHubHTTPError) as error:
        fetch(hub, status=status)
    assert error.value.response.status_code == status and str(error.value).startswith(f"status {status}")
    assert len(hub.log) == 1
    assert not WHOLE & files_in(cache)


# What is verified -----------------------------------------------------------------------------------------------------


def test_a_damaged_small_file_is_said_and_removed_and_the_next_start_is_well(hub, cache):
    with pytest.raises(HubError, match="^vocab.json: the download is damaged and was removed: expected git's sha1 "):
        fetch(hub, "vocab.json", spoil=True)
    assert not any("vocab.json" in name or "blobs" in name for name in files_in(cache))
    assert fetch(hub, "vocab.json").read_bytes() == CONTENT[:1000]


def test_no_more_is_taken_than_was_promised(hub, cache, monkeypatch):
    received = []
    monkeypatch.setattr(module, "verify", lambda path, *rest: received.append(path.stat().st_size))
    fetch(hub, size=10, unsized=True)
    assert received[0] < len(CONTENT)


@pytest.mark.parametrize("case", ["other bytes", "too few", "too many", "another beginning"])
def test_a_damaged_file_is_said_and_removed_and_the_next_start_is_well(hub, cache, case):
    if case == "another beginning":
        (cache / "blobs").mkdir(parents=True)
        (cache / "blobs" / f"{etag_of(CONTENT, True)}.partial").write_bytes(bytes(HALF))
    size = len(CONTENT) + {"too few": 1, "too many": -1}.get(case, 0)
    fault = {"spoil": True} if case == "other bytes" else {"unsized": True}
    with pytest.raises(HubError) as error:
        fetch(hub, size=size, **fault)
    assert re.fullmatch(
        f"{NAME}: the download is damaged and was removed: expected (.*), found (?!\\1).*[.] Try again; if it happens "
        "again, check proxies and HF_ENDPOINT[.]", str(error.value))
    assert files_in(cache) == set()
    assert fetch(hub).read_bytes() == CONTENT


def test_nobody_sees_a_file_before_it_is_verified(hub, cache, monkeypatch):
    seen = []
    verify = module.verify
    monkeypatch.setattr(module, "verify", lambda *arguments: seen.append(files_in(cache)) or verify(*arguments))
    fetch(hub)
    assert seen == [{"blobs/etag.partial"}]


def test_a_small_file_is_known_by_its_size_alone(hub, cache):
    assert fetch(hub, "vocab.json").read_bytes() == CONTENT[:1000]
    with pytest.raises(HubError, match="expected 1,001 bytes, found 1,000 bytes"):
        shutil.rmtree(cache)
        fetch(hub, "vocab.json", size=1001)


# The cache ------------------------------------------------------------------------------------------------------------


def test_bytes_that_another_commit_brought_are_not_fetched_again(hub, cache):
    fetch(hub).unlink()
    hub.log.clear()
    assert fetch(hub).read_bytes() == CONTENT
    assert hub.log == []


def test_a_link_that_leads_nowhere_is_replaced(hub, cache):
    path = fetch(hub)
    path.resolve().unlink()
    assert path.is_symlink() and not path.exists()
    assert fetch(hub).read_bytes() == CONTENT
    assert files_in(cache) == WHOLE


def test_where_links_may_not_be_made_the_snapshot_has_the_file_itself(hub, cache, monkeypatch):
    def refuse(*_):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert fetch(hub).read_bytes() == CONTENT
    assert files_in(cache) == {f"snapshots/commit/{NAME}"}
    hub.log.clear()
    fetch(hub)
    assert hub.log == []


def test_a_token_goes_to_the_hub_and_to_nobody_else(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub)
    assert hub.tokens_seen == {"hub"}


def test_a_disk_without_room_for_the_rest_is_said_before_anything_is_fetched(hub, cache, monkeypatch):
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / f"{etag_of(CONTENT, True)}.partial").write_bytes(CONTENT[:1000])
    usage = type(shutil.disk_usage(cache))
    rest = len(CONTENT) - 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, rest - 1))
    with pytest.raises(OSError, match="No space left on device .299,000 bytes are needed, 298,999 are free") as error:
        fetch(hub)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(cache / "blobs"))
    assert hub.log == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, rest))
    assert fetch(hub).read_bytes() == CONTENT


@pytest.mark.parametrize("size, free, fits", [(300_000, 299_999, False), (300_000, 300_000, True), (None, 0, True)])
def test_a_file_of_which_nothing_is_there_needs_room_for_all_of_it(tmp_path, monkeypatch, size, free, fits):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, free))
    with nullcontext() if fits else pytest.raises(OSError):
        module.check_disk(tmp_path / "x.partial", size)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_that_cannot_be_written_is_named_and_removed(hub, cache, monkeypatch, is_there):
    def fail(url, path, *rest):
        path.write_bytes(b"a beginning") if is_there else None
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "transfer_file", fail)
    with pytest.raises(OSError) as error:
        fetch(hub)
    assert error.value.filename == str(cache / "blobs" / f"{etag_of(CONTENT, True)}.partial")
    assert files_in(cache) == set()


@posix
def test_a_file_is_there_for_whom_the_user_s_mask_lets_read_and_write_it(hub):
    mask = os.umask(0)
    try:
        mode = fetch(hub).stat().st_mode
    finally:
        os.umask(mask)
    assert mode & 0o777 == 0o666


class Bar:
    """In place of the progress bar: how it was made, and how far it came."""

    made: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        Bar.made, self.n = options, options["initial"]

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        Bar.made["reached"] = self.n

    def update(self, n: int) -> None:
        self.n += n


def test_the_bar_begins_where_the_file_does_and_ends_with_it(hub, cache, monkeypatch):
    monkeypatch.setattr(utils.tqdm, "__new__", lambda cls, **options: Bar(**options))
    start_of_file(cache)
    fetch(hub, break_after=1000, times=1)
    assert Bar.made == {"desc": NAME, "total": len(CONTENT), "initial": HALF, "unit": "B", "unit_scale": True,
                        "disable": None, "reached": len(CONTENT)}


# As a user meets it: processes, which POSIX can limit and interrupt ---------------------------------------------------


@pytest.fixture
def files(hub: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """A tiny checkpoint, which the server has as class/tiny."""
    files = checkpoint_bytes(tmp_path / "checkpoint")
    hub.repos["class/tiny"] = Repo(files)
    return files


def start(hub: HubServer, home: Path, limit: int | None = None) -> "subprocess.Popen[bytes]":
    """`generate` from class/tiny: not deaf to Ctrl-C, and, with a limit, unable to write a file of more bytes."""
    def in_the_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    if limit is not None:
        environment["COVERAGE_PROCESS_START"] = ""  # what coverage writes at the end would be too large, too
    command = [sys.executable, "-m", "numpy_gpt2.generate", "Hi", "--max-new-tokens", "3", "--seed", "1"]
    return subprocess.Popen([*command, "--model", "class/tiny"], env=environment, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
                            preexec_fn=in_the_child)


@pytest.mark.slow
def test_two_processes_that_start_at_once_download_once(hub, files, tmp_path):
    hub.repos["class/tiny"].faults = {NAME: Fault("GET", slow=3)}
    processes = [start(hub, tmp_path / "home") for _ in range(2)]
    outcomes = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]
    assert outcomes[0] == outcomes[1] and outcomes[0][1] == 0
    assert len(hub.ranges[f"class/tiny {NAME}"]) == 1


@pytest.mark.slow
def test_after_ctrl_c_in_mid_download_the_next_start_fetches_the_rest(hub, files, tmp_path):
    key, half = f"class/tiny {NAME}", len(files[NAME]) // 2
    hub.repos["class/tiny"].faults = {NAME: Fault("GET", break_after=half, by="stall", times=1)}
    process = start(hub, tmp_path / "home")
    while hub.bytes_sent[key] < half:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.strip()) == (130, b"", b"")
    process = start(hub, tmp_path / "home")
    assert process.communicate(timeout=60)[0].startswith(b"Hi") and process.returncode == 0
    assert hub.ranges[key] == [0, half] and hub.bytes_sent[key] == len(files[NAME])


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault(stall=True), Fault("GET", stall=True)], ids=["the question", "the file"])
def test_a_hub_that_falls_silent_is_said_in_one_line_within_half_a_minute(hub, files, tmp_path, fault):
    hub.repos["class/tiny"].faults = {NAME: fault}
    assert 8 + TRIES * (SILENCE_S + PAUSE_S) < 35  # the question, and the tries; a busy machine may take longer
    process = start(hub, tmp_path / "home")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (1, b"")
    assert errors.startswith(b"error: the hub (http") and errors.count(b"\n") == 1
    assert sum(line == f"GET class/tiny {NAME}" for line in hub.log) == (TRIES if fault.method == "GET" else 0)


@pytest.mark.slow
def test_a_disk_that_fills_while_a_file_comes_is_said_by_its_name(hub, files, tmp_path):
    too_little = len(files[NAME]) - 1  # for the weights, though not for the files before them
    process = start(hub, tmp_path / "home", limit=too_little)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count(b"\n")) == (1, b"", 1)
    assert errors.startswith(f"error: {tmp_path}".encode()) and b"cannot be written: File too large." in errors
    assert not list(tmp_path.rglob("*.partial"))  # it would only make the disk fuller
    process = start(hub, tmp_path / "home")
    assert process.communicate(timeout=60)[0].startswith(b"Hi")
