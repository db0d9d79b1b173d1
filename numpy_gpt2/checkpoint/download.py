"""One file from the hub into its cache, over HTTP: taken up again where it broke off, verified before anyone sees it.

`huggingface_hub` brings the client, the tokens, the progress bar and the place of the cache; the loop is ours. Its own
download ends at a connection that is reset, tries for minutes where its Xet storage does not answer, throws away what
had come by then, and lets others see a file before its sha256 can be compared.

The cache's layout is documented: blobs/<etag> holds a file's bytes, and snapshots/<commit>/<file> is a link to them.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import HubError

SILENCE_S = 5  # how long the hub may keep silent in the middle of an answer
TRIES = 4  # how often in a row a transfer may break without a single byte; then it is given up, after some 25 s
PAUSE_S = 1  # between two of them


def download_file(url: str, repo: str, commit: str, file_name: str, etag: str, size: int | None) -> Path:
    """Where the file lies in the cache, once it is there: downloaded and verified, unless the cache has its bytes.

    etag, size: what the hub says of the file. Raises HubError for damage, OSError for a disk that does not take the
    file, and whatever the transport raises.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock
    cache, folder = Path(constants.HF_HUB_CACHE), "models--" + repo.replace("/", "--")
    blob = cache / folder / "blobs" / etag
    link = cache / folder / "snapshots" / commit / file_name
    lock = cache / ".locks" / folder / f"{etag}.lock"
    for path in (blob, link, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # of two processes one downloads, the other waits for it
        if link.exists():
            return link
        if not blob.exists():
            partial = blob.with_name(f"{etag}.partial")
            check_disk(partial, size)
            try:
                transfer(url, partial, size, file_name)
            except OSError as error:
                if error.errno is not None:  # not of the hub: the disk is full, so what came is in the way
                    error.filename = str(partial)
                    partial.unlink(missing_ok=True)
                raise
            verify(partial, etag, size, file_name)
            os.replace(partial, blob)
        make_link(link, blob)
    return link


def check_disk(partial: Path, size: int | None) -> None:
    """Raise OSError where the disk has no room for the rest of the file: better now than after half an hour."""
    rest = (size or 0) - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(partial.parent).free
    if rest > free:
        raise OSError(errno.ENOSPC, f"No space left on device ({rest:,} bytes are wanted, {free:,} are free)",
                      str(partial.parent))


def transfer(url: str, partial: Path, size: int | None, file_name: str) -> None:
    """Fetch what is missing of a file, going on where an attempt broke off, this run's or an earlier one's."""
    from huggingface_hub.utils import tqdm
    if size is None:
        partial.unlink(missing_ok=True)  # nobody could say whether it is whole
    failures = 0
    with open(partial, "ab") as file, tqdm(desc=file_name, total=size, initial=file.tell(), unit="B", unit_scale=True,
                                           disable=None) as bar:  # None: only on a terminal
        while size is None or file.tell() < size:
            before = file.tell()
            try:
                receive(url, file, bar, size)
                return
            except Exception as error:
                if isinstance(error, OSError):
                    raise  # the disk does not take it, or the hub does not give it: no broken transfer
                failures = failures + 1 if file.tell() == before else 1
                if failures == TRIES:
                    raise
            time.sleep(PAUSE_S)


def receive(url: str, file: BinaryIO, bar: Any, size: int | None) -> None:
    """Append to the file what the hub sends from there on, until it has sent all that it promised, or more."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    with get_session().stream("GET", url, headers=headers, timeout=SILENCE_S, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # it sends the whole file, whatever was asked for
            file.seek(0)
            file.truncate()
        for piece in response.iter_bytes():
            file.write(piece)
            bar.update(file.tell() - bar.n)
            if size is not None and file.tell() > size:
                return  # it may never end; `verify` says that this is not the file


def verify(path: Path, etag: str, size: int | None, file_name: str) -> None:
    """Compare a file with the size and hash that the hub gives. On a mismatch it is removed, and HubError raised.

    The hub names a large file by its sha256, and a small one as git does: by the sha1 of the word blob, its length in
    bytes and its bytes. An etag of another kind, a mirror's perhaps, says nothing here.
    """
    n_bytes = path.stat().st_size
    if size is not None and n_bytes != size:
        expected, found = f"{size:,} bytes", f"{n_bytes:,} bytes"
    elif re.fullmatch("[0-9a-f]{64}", etag):
        expected, found = f"sha256 {etag}", f"sha256 {hex_digest(path, hashlib.sha256())}"
    elif re.fullmatch("[0-9a-f]{40}", etag):
        git_hash = hashlib.sha1(b"blob %d\0" % n_bytes)
        expected, found = f"git's sha1 {etag}", f"git's sha1 {hex_digest(path, git_hash)}"
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
