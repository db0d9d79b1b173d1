"""One file from the hub into its cache, verified before anyone else sees it.

The cache's layout is documented: blobs/<etag> holds a file's bytes, and snapshots/<commit>/<file> is a link to them.
(`huggingface_hub`'s own download exposes a file before its sha256 can be compared.)
"""

import errno
import hashlib
import os
import re
import shutil
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator

from ..errors import HubError
from .transfer import check_text_size, transfer_file

WAIT_S = 2  # before saying that another process is downloading the file


def download_file(url: str, repo: str, commit: str, file_name: str, etag: str, size: int | None) -> Path:
    """The file's path in the cache, after downloading and verifying it unless the cache has its bytes.

    etag, size: as the hub reports them. Raises HubError for damage, CheckpointError for a text file larger than any
    GPT-2's, OSError if the file cannot be written, and whatever the transport raises.
    """
    check_text_size(file_name, size or 0)
    # An etag that is not a hash may be that of other bytes in another file or commit: there the name depends on both.
    is_verifiable = hash_in(etag) is not None
    unverified = "unverified-" + hashlib.sha256(f"{etag} {commit} {file_name}".encode()).hexdigest()
    name, folder = etag if is_verifiable else unverified, cache_folder(repo)
    blob = folder / "blobs" / name
    link = folder / "snapshots" / commit / file_name
    lock = folder.parent / ".locks" / folder.name / f"{name}.lock"
    for path in (blob, link, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, file_name):
        if link.exists():
            return link
        if not blob.exists():
            partial = blob.with_name(f"{name}.partial")
            if size is None:
                partial.unlink(missing_ok=True)  # it may be the beginning of another file
            check_disk(partial, size)
            try:
                transfer_file(url, partial, size, file_name, is_verifiable)
            except OSError as error:
                if error.errno is not None:  # a local error, such as a full disk, not one of the network
                    error.filename = str(partial)
                    partial.unlink(missing_ok=True)
                raise
            verify(partial, etag, size, file_name)
            os.replace(partial, blob)
        make_link(link, blob)
    return link


def cache_folder(repo: str) -> Path:
    """The folder of a repository in huggingface_hub's cache."""
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE, "models--" + repo.replace("/", "--"))


def hash_in(etag: str) -> str | None:
    """The sha256 or sha1 in an etag, in any of the forms that mirrors use; None if the etag is not a hash."""
    match = re.fullmatch("(?:sha256-)?([0-9a-f]{64}|[0-9a-f]{40})(?:-gzip)?", etag.lower())
    return match[1] if match else None


@contextmanager
def locked(path: Path, file_name: str) -> Iterator[None]:
    """Let one process download at a time; a process that waits for another says so on standard error."""
    from huggingface_hub.utils import WeakFileLock
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=WAIT_S))
        except TimeoutError:
            print(f"waiting for another process that downloads {file_name} (its lock: {path})", file=sys.stderr)
            stack.enter_context(WeakFileLock(path))
        yield


def check_disk(partial: Path, size: int | None) -> None:
    """Raise OSError if the disk has no room for the rest of the file: better now than after half an hour."""
    rest = (size or 0) - (partial.stat().st_size if partial.exists() else 0)
    free = shutil.disk_usage(partial.parent).free
    if rest > free:
        raise OSError(errno.ENOSPC, f"No space left on device ({rest:,} bytes are needed, {free:,} are free)",
                      str(partial.parent))


def verify(path: Path, etag: str, size: int | None, file_name: str) -> None:
    """Compare a file with the size and hash that the hub reports. On a mismatch, remove it and raise HubError.

    The hub identifies a large file by its sha256, and a small one as git does: by the sha1 of the word blob, its length
    in bytes and its bytes. An etag that is no hash, as a mirror may have, cannot be compared.
    """
    n_bytes, wanted = path.stat().st_size, hash_in(etag)
    if size is not None and n_bytes != size:
        expected, found = f"{size:,} bytes", f"{n_bytes:,} bytes"
    elif wanted is None:
        return
    else:
        kind, digest = "sha256", hashlib.sha256()
        if len(wanted) == 40:
            kind, digest = "git's sha1", hashlib.sha1(b"blob %d\0" % n_bytes)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        expected, found = f"{kind} {wanted}", f"{kind} {digest.hexdigest()}"
    if expected != found:
        path.unlink()
        raise HubError(f"{file_name}: the download is damaged and was removed: expected {expected}, found {found}. "
                       "Try again; if it happens again, check proxies and HF_ENDPOINT.")


def make_link(link: Path, blob: Path) -> None:
    """Make the snapshot's file a link to the bytes or, where links are not allowed (Windows), the bytes themselves."""
    link.unlink(missing_ok=True)  # a broken link
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        os.replace(blob, link)
