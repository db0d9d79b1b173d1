"""One file from the hub into its cache, over HTTP: taken up again where it broke off, verified before anyone sees it.

`huggingface_hub` brings the client, the tokens, the progress bar and the place of the cache; the loop is ours. Its own
download ends at a connection that is reset, tries for minutes where its Xet storage does not answer, throws away what
had come by then, and lets others see a file before its sha256 can be compared.

The cache's layout is documented: blobs/<etag> holds a file's bytes, and snapshots/<commit>/<file> is a link to them.
"""

import errno
import hashlib
import os
import queue
import re
import shutil
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping

from ..errors import CheckpointError, HubError
from .json_file import LARGEST_TEXT, largest_text
from .tensors import check_header, header_length

ANSWER_S = 8  # how long an answer may take to begin, in all: looking up a name has no limit of its own
SILENCE_S = 5  # how long the hub may keep silent in the middle of an answer
TRIES = 4  # how often in a row a transfer may break without a single byte; then it is given up, after some 25 s
PAUSE_S = 1  # between two of them
PATIENCE_S, LEAST_BYTES = 20, 20_000  # in so many seconds so many bytes must come, over however many connections
MOST_REDIRECTS = 5
WAIT_S = 2  # after which it is said that another process downloads this file


def download_file(url: str, repo: str, commit: str, file_name: str, etag: str, size: int | None) -> Path:
    """Where the file lies in the cache, once it is there: downloaded and verified, unless the cache has its bytes.

    etag, size: what the hub says of the file. Raises HubError for damage, CheckpointError for a text larger than any
    of GPT-2's, OSError for a disk that does not take the file, and whatever the transport raises.
    """
    from huggingface_hub import constants
    if not file_name.endswith(".safetensors"):
        check_text_size(file_name, size or 0)
    cache, folder = Path(constants.HF_HUB_CACHE), "models--" + repo.replace("/", "--")
    name = blob_name(etag, commit, file_name)
    blob = cache / folder / "blobs" / name
    link = cache / folder / "snapshots" / commit / file_name
    lock = cache / ".locks" / folder / f"{name}.lock"
    for path in (blob, link, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, file_name):
        if link.exists():
            return link
        if not blob.exists():
            partial = blob.with_name(f"{name}.partial")
            if size is None:
                partial.unlink(missing_ok=True)  # nobody could say whether it is the beginning of this file
            check_disk(partial, size)
            try:
                transfer(url, partial, size, file_name, hash_in(etag) is not None)
            except OSError as error:
                if error.errno is not None:  # not of the hub: the disk is full, so what came is in the way
                    error.filename = str(partial)
                    partial.unlink(missing_ok=True)
                raise
            verify(partial, etag, size, file_name)
            os.replace(partial, blob)
        make_link(link, blob)
    return link


def check_text_size(file_name: str, n_bytes: int) -> None:
    """Raise CheckpointError for a file of JSON or merges that nobody would read, before it is fetched."""
    most = largest_text(file_name)
    if n_bytes > most:
        raise CheckpointError(f"{file_name}: expected at most {most:,} bytes, found {n_bytes:,} on the hub.")


def hash_in(etag: str) -> str | None:
    """The sha256 or sha1 in an etag, in the forms that mirrors give it; None for an etag of another kind."""
    match = re.fullmatch("(?:sha256-)?([0-9a-f]{64}|[0-9a-f]{40})(?:-gzip)?", etag.lower())
    return match[1] if match else None


def blob_name(etag: str, commit: str, file_name: str) -> str:
    """What the cache calls the bytes: the etag. One that is no hash may stand for other bytes elsewhere, in another
    file or commit, so the name says which file of which commit they are."""
    if hash_in(etag) is not None:
        return etag
    return "unverified-" + hashlib.sha256(f"{etag} {commit} {file_name}".encode()).hexdigest()


@contextmanager
def locked(path: Path, file_name: str) -> Iterator[None]:
    """Of two processes one downloads; the other waits for it, and says so."""
    from huggingface_hub.utils import WeakFileLock
    line = f"waiting for another process that downloads {file_name} (its lock: {path})"
    notice = threading.Timer(WAIT_S, lambda: print(line, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        with WeakFileLock(path):
            notice.cancel()
            yield
    finally:
        notice.cancel()


def check_disk(partial: Path, size: int | None) -> None:
    """Raise OSError where the disk has no room for the rest of the file: better now than after half an hour."""
    rest = (size or 0) - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(partial.parent).free
    if rest > free:
        raise OSError(errno.ENOSPC, f"No space left on device ({rest:,} bytes are wanted, {free:,} are free)",
                      str(partial.parent))


def download_header(url: str, path: Path) -> bytes:
    """The first bytes of a safetensors file up to the end of its header. Raises CheckpointError for a larger one.

    path: what errors call the file. The rest is not sent for; what has come with it is thrown away.
    """
    start = b""
    with closing(get(url, path.name, {"Range": f"bytes=0-{LARGEST_TEXT + 8}"})) as response:
        for piece in response.iter_bytes():
            start += piece
            if len(start) >= 8 + header_length(start):
                break
    check_header(start, path)
    return start


# The transfer ---------------------------------------------------------------------------------------------------------


@dataclass
class Transfer:
    """A file that is on its way, over one connection or several."""

    url: str
    file: BinaryIO
    file_name: str
    size: int | None
    is_verifiable: bool  # whether the hub gives the file's hash, so that bytes of two versions would be noticed
    bar: Any
    began_with: str = ""  # the etag of the answer that the file's first byte came with, if it is one for If-Range
    n_restarts: int = 0
    since: float = 0.0  # when it was last seen to be fast enough, ...
    n_then: int = 0  # ... and how many bytes had come by then


def transfer(url: str, path: Path, size: int | None, file_name: str, is_verifiable: bool) -> None:
    """Fetch what is missing of a file, going on where an attempt broke off, this run's or an earlier one's."""
    from huggingface_hub.utils import tqdm
    failures = 0
    with open(path, "ab", opener=open_no_link) as file, \
            tqdm(desc=file_name, total=size, initial=file.tell(), unit="B", unit_scale=True,
                 disable=None) as bar:  # None: only on a terminal
        state = Transfer(url, file, file_name, size, is_verifiable, bar, since=time.monotonic(), n_then=file.tell())
        while size is None or file.tell() < size:
            before = file.tell()
            if before and not (is_verifiable or state.began_with):
                restart(state)
            try:
                receive(state)
                return
            except (OSError, CheckpointError, HubError):
                raise  # the disk does not take it, or the hub does not give it: no broken transfer
            except Exception:
                failures = failures + 1 if file.tell() <= before else 1
                if failures == TRIES:
                    raise
            time.sleep(PAUSE_S)


def open_no_link(path: str, flags: int) -> int:
    """Open a file, unless it is a link, which somebody else may have put there."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def receive(state: Transfer) -> None:
    """Append to the file what the hub sends from there on, until it has sent all that it promised, or more."""
    file, size = state.file, state.size
    position = file.tell()
    headers = {"Range": f"bytes={position}-"} if position else {}
    if position and not state.is_verifiable:
        headers["If-Range"] = state.began_with  # if the file is another one now: all of it
    with closing(within(ANSWER_S, lambda: get(state.url, state.file_name, headers))) as response:
        check_answer(state, response)
        for piece in response.iter_bytes():
            file.write(piece)
            state.bar.update(file.tell() - state.bar.n)
            check_rate(state)
            if size is not None and file.tell() > size:
                return  # it may never end; `verify` says that this is not the file
            if not state.file_name.endswith(".safetensors"):
                check_text_size(state.file_name, file.tell())


def get(url: str, file_name: str, headers: Mapping[str, str]) -> Any:
    """The server's answer to a GET, its body unread. Redirects are followed, and a refusal is raised."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, get_session
    session = get_session()
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
    request = session.build_request("GET", url, headers=headers, timeout=SILENCE_S)
    for _ in range(MOST_REDIRECTS + 1):
        response = session.send(request, stream=True, follow_redirects=False)
        if response.status_code >= 400:
            response.close()  # unread: it would be read to its end, if it has one
            raise HfHubHTTPError(f"status {response.status_code}", response=response)
        if response.next_request is None:
            return response
        response.close()
        request = response.next_request
    raise HubError(f"{file_name}: the server redirects more than {MOST_REDIRECTS} times: check HF_ENDPOINT.")


def check_answer(state: Transfer, response: Any) -> None:
    """See to it that the body goes on where the file ends, or begin the file again. Raises for anything else."""
    if response.status_code == 206:
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if part and int(part[1]) == state.file.tell() and (state.size is None or part[2] in ("*", str(state.size))):
            return
        restart(state)
        raise RuntimeError("the server sent another part of the file than it was asked for")
    check_is_the_file(state, response)
    restart(state)  # it sends the whole file, whatever was asked for
    etag = response.headers.get("ETag", "")
    state.began_with = etag if etag.startswith('"') else ""  # not W/"...", which stands for more than these bytes


def check_is_the_file(state: Transfer, response: Any) -> None:
    """Raise HubError for an answer of another length or kind: a page to log in to the network, say.

    What had come of the file before is left alone.
    """
    length, kind = response.headers.get("Content-Length", ""), response.headers.get("Content-Type", "")
    is_plain = "Content-Encoding" not in response.headers
    is_wrong_size = state.size is not None and is_plain and length.isdecimal() and int(length) != state.size
    if is_wrong_size or kind.lower().startswith("text/html"):
        wanted = "the file" if state.size is None else f"{state.size:,} bytes"
        found = f"{int(length):,} bytes" if length.isdecimal() and len(length) < 20 else "an answer"
        raise HubError(f"{state.file_name}: the server sends something else: expected {wanted}, found {found}"
                       f"{' of HTML' if 'html' in kind.lower() else ''}. Log in to this network first, if it asks for "
                       "that; or check proxies and HF_ENDPOINT.")


def restart(state: Transfer) -> None:
    """Begin the file again."""
    if state.file.tell():
        state.n_restarts += 1
        if state.n_restarts > TRIES:
            raise HubError(f"{state.file_name}: the server begins the file again and again. Try again later, or check "
                           "proxies and HF_ENDPOINT.")
        state.file.seek(0)
        state.file.truncate()
        state.since, state.n_then = time.monotonic(), 0


def check_rate(state: Transfer) -> None:
    """Raise TimeoutError where so little comes that it would never end."""
    elapsed, n_new = time.monotonic() - state.since, state.file.tell() - state.n_then
    if n_new >= LEAST_BYTES:
        state.since, state.n_then = time.monotonic(), state.file.tell()
    elif elapsed > PATIENCE_S:
        raise TimeoutError(f"{state.file_name}: only {n_new:,} bytes came in {elapsed:.0f} s")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result, or TimeoutError. A timeout of the transport alone starts afresh with each byte or address."""
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except Exception as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if error is not None:
        raise error
    return result


# What came ------------------------------------------------------------------------------------------------------------


def verify(path: Path, etag: str, size: int | None, file_name: str) -> None:
    """Compare a file with the size and hash that the hub gives. On a mismatch it is removed, and HubError raised.

    The hub names a large file by its sha256, and a small one as git does: by the sha1 of the word blob, its length in
    bytes and its bytes. An etag of another kind, a mirror's perhaps, says nothing here.
    """
    n_bytes, wanted = path.stat().st_size, hash_in(etag) or ""
    if size is not None and n_bytes != size:
        expected, found = f"{size:,} bytes", f"{n_bytes:,} bytes"
    elif len(wanted) == 64:
        expected, found = f"sha256 {wanted}", f"sha256 {hex_digest(path, hashlib.sha256())}"
    elif len(wanted) == 40:
        git_hash = hashlib.sha1(b"blob %d\0" % n_bytes)
        expected, found = f"git's sha1 {wanted}", f"git's sha1 {hex_digest(path, git_hash)}"
    else:
        return
    if expected != found:
        path.unlink()
        raise HubError(f"{file_name}: the download is damaged and was removed: expected {expected}, found {found}. "
                       "Try again; if it happens again, check proxies and HF_ENDPOINT.")


def hex_digest(path: Path, digest: Any) -> str:
    """What a hash of hashlib's is once it has read the file, a megabyte at a time."""
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_link(link: Path, blob: Path) -> None:
    """Let the snapshot's file be a link to the bytes, or, where no link may be made (Windows), the bytes themselves."""
    link.unlink(missing_ok=True)  # a link that leads nowhere
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        os.replace(blob, link)
