"""Downloading one file from the hub over HTTP, resumed after interruptions, within limits of time and size.

`huggingface_hub` provides the client, the tokens and the progress bar; the loop is ours. Its own loop stops at a reset
connection, retries for minutes when its Xet storage does not answer, and discards partial files.
"""

import os
import re
import threading
import time
from concurrent import futures
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Mapping

from ..errors import CheckpointError, HubError
from .json_file import largest_text

ANSWER_S = 8  # timeout for the response to begin, name resolution included, which has no timeout of its own
SILENCE_S = 5  # timeout between two pieces of a response
TRIES = 4  # failed attempts in a row, without a single byte, before giving up: about 25 s
PAUSE_S = 1  # between two attempts
PATIENCE_S, LEAST_BYTES = 20, 20_000  # the lowest rate: this many bytes in this many seconds, over all connections
MOST_REDIRECTS = 5


@dataclass
class Transfer:
    """A file that is being downloaded, over one connection or several."""

    url: str
    file: BinaryIO
    file_name: str
    size: int | None
    is_verifiable: bool  # whether the hub gives the file's hash, which would reveal bytes of two versions
    bar: Any
    first_etag: str = ""  # the etag of the response that the file begins with, if it is fit for If-Range
    n_restarts: int = 0
    since: float = 0.0  # when the rate was last found to be high enough, ...
    n_then: int = 0  # ... and how many bytes there were


def transfer_file(url: str, path: Path, size: int | None, file_name: str, is_verifiable: bool) -> None:
    """Fetch what is missing of a file, resuming where an attempt broke off, in this run or an earlier one."""
    from huggingface_hub.utils import tqdm
    failures = 0
    no_link = getattr(os, "O_NOFOLLOW", 0)  # which another user may have planted
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags | no_link, 0o666)) as file, \
            tqdm(desc=file_name, total=size, initial=file.tell(), unit="B", unit_scale=True,
                 disable=None) as bar:  # None: only on a terminal
        state = Transfer(url, file, file_name, size, is_verifiable, bar, since=time.monotonic(), n_then=file.tell())
        while size is None or file.tell() < size:
            before = file.tell()
            if before and not (is_verifiable or state.first_etag):
                restart(state)
            try:
                receive(state)
                return
            except (OSError, CheckpointError, HubError):
                raise  # to try again would not help
            except Exception:
                failures = failures + 1 if file.tell() <= before else 1
                if failures == TRIES:
                    raise
            time.sleep(PAUSE_S)


def receive(state: Transfer) -> None:
    """Request the rest of the file and append it, until the file is complete or too long."""
    file, size, position = state.file, state.size, state.file.tell()
    headers = {"Range": f"bytes={position}-"} if position else {}
    if position and not state.is_verifiable:
        headers["If-Range"] = state.first_etag  # "all of it, if it has changed"
    with closing(within(ANSWER_S, lambda: http_get(state.url, state.file_name, headers))) as response:
        check_response(state, response)
        for piece in response.iter_bytes():
            file.write(piece)
            state.bar.update(file.tell() - state.bar.n)
            check_rate(state)
            if size is not None and file.tell() > size:
                return  # it may never end; `verify` reports it
            check_text_size(state.file_name, file.tell())


def check_response(state: Transfer, response: Any) -> None:
    """Make sure that the body continues the file, or begin the file again. Raises for anything else."""
    if response.status_code == 206:
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if part and int(part[1]) == state.file.tell() and (state.size is None or part[2] in ("*", str(state.size))):
            return
        restart(state)
        raise RuntimeError("the server sent another part of the file than requested")
    check_is_the_file(state, response.headers)
    restart(state)  # the server sends the whole file, whether or not a part was requested
    etag = response.headers.get("ETag", "")
    state.first_etag = etag if etag.startswith('"') else ""  # a weak etag, W/"...", may be shared by other bytes


def check_is_the_file(state: Transfer, headers: Mapping[str, str]) -> None:
    """Raise HubError for a response of another length or type, such as the login page of a network.

    The part of the file that has been downloaded already is kept.
    """
    length = headers.get("Content-Length", "")
    is_size = re.fullmatch("[0-9]{1,18}", length) and "Content-Encoding" not in headers
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        found = "a web page"
    elif is_size and state.size is not None and int(length) != state.size:
        found = f"{int(length):,} bytes"
    else:
        return
    expected = "a file" if state.size is None else f"{state.size:,} bytes"
    raise HubError(f"{state.file_name}: the server sends something else: expected {expected}, found {found}. If this "
                   "network has a login page, log in first; or check proxies and HF_ENDPOINT.")


def restart(state: Transfer) -> None:
    """Begin the file again."""
    if state.file.tell():
        state.n_restarts += 1
        if state.n_restarts > TRIES:
            raise HubError(f"{state.file_name}: the server keeps beginning the file again. Try again later, or check "
                           "proxies and HF_ENDPOINT.")
        state.file.seek(0)
        state.file.truncate()
        state.since, state.n_then = time.monotonic(), 0


def check_rate(state: Transfer) -> None:
    """Raise TimeoutError for a transfer so slow that it would never end."""
    elapsed, n_new = time.monotonic() - state.since, state.file.tell() - state.n_then
    if n_new >= LEAST_BYTES:
        state.since, state.n_then = time.monotonic(), state.file.tell()
    elif elapsed > PATIENCE_S:
        raise TimeoutError(f"{state.file_name}: only {n_new:,} bytes in {elapsed:.0f} s")


def check_text_size(file_name: str, n_bytes: int) -> None:
    """Raise CheckpointError for a file of JSON or merges that is too large to be read later on."""
    if not file_name.endswith(".safetensors") and n_bytes > largest_text(file_name):
        raise CheckpointError(f"{file_name}: expected at most {largest_text(file_name):,} bytes, found {n_bytes:,} on "
                              "the hub.")


def http_get(url: str, file_name: str, headers: Mapping[str, str]) -> Any:
    """The server's response to a GET, its body unread. Follows redirects, and raises for a status of 400 or more."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, get_session
    session = get_session()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
    request = session.build_request("GET", url, headers=headers, timeout=SILENCE_S)
    for _ in range(MOST_REDIRECTS + 1):
        response = session.send(request, stream=True, follow_redirects=False)
        if response.status_code >= 400:
            response.close()  # unread: the body may be endless
            raise HfHubHTTPError(f"status {response.status_code}", response=response)
        if response.next_request is None:
            return response
        response.close()
        request = response.next_request
    raise HubError(f"{file_name}: the server redirects more than {MOST_REDIRECTS} times: check HF_ENDPOINT.")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result, or TimeoutError. The transport's own timeout starts afresh with each byte and each address."""
    outcome: futures.Future[Any] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not futures.wait([outcome], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds} s")
    return outcome.result()
