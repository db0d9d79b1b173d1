"""A small Hugging Face Hub on loopback: a real HTTP server that answers what `huggingface_hub` asks of the real one.

    HEAD, GET /{repo}/resolve/{revision}/{file}

As the real hub does, it answers for a small file with a redirect to itself, and for a large one (here: every
.safetensors) with a redirect to another host, the "CDN", which is this server on a second port. The headers tell the
commit, the etag and the size; `X-Error-Code` tells what is not there. Both serve ranges, with If-Range, and compress
for whoever accepts that. Every request is logged, every byte of a file is counted, and any file can be given a fault.
"""

import gzip
import hashlib
import os
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Iterator, Mapping
from unittest.mock import patch
from urllib.parse import unquote

from huggingface_hub import constants

RESOLVE_CACHE = "/api/resolve-cache"  # where the redirect of a small file leads


@dataclass
class Fault:
    """What goes wrong with one file; each applies to the method it names, as many times as `times` says."""

    method: str = "HEAD"
    status: int | None = None  # answer with this status ...
    code: str = ""  # ... this X-Error-Code ...
    headers: dict[str, str] = field(default_factory=dict)  # ... and these headers
    stall: bool = False  # never answer
    break_after: int | None = None  # after so many bytes of the body the transfer breaks ...
    later: int = 0  # ... and each time so many bytes later ...
    by: str = "close"  # ... because the connection is closed ("close"), reset ("reset"), or falls silent ("stall")
    spoil: bool = False  # the right number of wrong bytes
    ignore_range: bool = False  # answer with the whole file whatever part was asked for
    slow: float = 0.0  # wait so many seconds in the middle of the body
    drip: float = 0.0  # so many seconds from one byte of the body to the next
    drip_head: float = 0.0  # so many seconds from one header to the next, without end
    endless: bool = False  # a body without end
    unsized: bool = False  # no Content-Length: the body ends where the connection does
    content_range: str | None = ""  # in place of the true one; None: no such header
    body: bytes = b""  # another body ...
    kind: str = ""  # ... of this type
    compress: bool = False  # whatever the client accepts
    cdn_etag: str | None = None  # the CDN's etag, whatever the bytes, in every answer
    then: bytes = b""  # what the file is from this request on
    times: int = 1_000_000

    def strikes(self, method: str) -> bool:
        """Whether it hits this request; if so, it is used up by one."""
        if method != self.method or self.times == 0:
            return False
        self.times -= 1
        if self.break_after is not None:
            self.break_after += self.later
        return True


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = "1" * 40
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files
    faults: dict[str, Fault] = field(default_factory=dict)  # file -> fault
    on_xet: bool = False  # whether large files are said to lie in Xet storage too, as the hub says of all today

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in ("main", self.commit):
            return self.commit, self.files
        return (revision, self.older[revision]) if revision in self.older else None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def etag_of(content: bytes, is_large: bool) -> str:
    git_blob = b"blob %d\0" % len(content) + content
    return sha256(content) if is_large else hashlib.sha1(git_blob).hexdigest()


class HubServer:
    """`with HubServer() as hub: hub.repos["owner/name"] = Repo({...})`; `hub.url` is what HF_ENDPOINT should be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[str] = []  # "HEAD owner/name file"
        self.ranges: dict[str, list[int]] = {}  # "owner/name file" -> the first byte that each GET asked for
        self.bytes_sent: Counter[str] = Counter()  # "owner/name file" -> bytes of the body, over all its GETs
        self.tokens_seen: set[str] = set()  # "hub" or "CDN", whoever was sent an Authorization header
        self.closing = threading.Event()
        self.hub = self._serve(self._answer_as_hub)
        self.cdn = self._serve(self._answer_as_cdn)
        self.url = f"http://127.0.0.1:{self.hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self.cdn.server_port}"

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    def _serve(self, answer: Callable[["Handler"], None]) -> ThreadingHTTPServer:
        server = QuietServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"answer": answer}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _answer_as_hub(self, handler: "Handler") -> None:
        is_redirected = handler.path.startswith(RESOLVE_CACHE)
        parts = handler.path.removeprefix(RESOLVE_CACHE).lstrip("/").split("/")
        if len(parts) != 5 or parts[2] != "resolve":
            self.log.append(f"{handler.command} {handler.path}")
            return handler.refuse(404, "")
        owner, name, _, revision, file_name = map(unquote, parts)
        repo_name = f"{owner}/{name}"
        if "Authorization" in handler.headers:
            self.tokens_seen.add("hub")
        if not is_redirected:
            self.log.append(f"{handler.command} {repo_name} {file_name}")
        if repo_name not in self.repos:
            return handler.refuse(404, "RepoNotFound")
        repo = self.repos[repo_name]
        if self._went_wrong(handler, repo, file_name):
            return None
        found = repo.at(revision)
        if found is None:
            return handler.refuse(404, "RevisionNotFound")
        commit, files = found
        if file_name not in files:
            return handler.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = files[file_name]
        is_large = file_name.endswith(".safetensors")
        etag = f'"{etag_of(content, is_large)}"'
        if is_large:
            xet = {"X-Xet-Hash": "f" * 64, "X-Xet-Refresh-Route": f"{self.url}/xet-token"} if repo.on_xet else {}
            return handler.send(302, b"", {
                "Location": f"{self.cdn_url}/{repo_name}/{commit}/{file_name}?signed=yes", "X-Repo-Commit": commit,
                "X-Linked-Etag": etag, "X-Linked-Size": str(len(content)), **xet})
        if not is_redirected:
            return handler.send(307, b"", {"Location": f"{RESOLVE_CACHE}/{repo_name}/resolve/{commit}/{file_name}",
                                           "X-Repo-Commit": commit})
        return self._send_file(handler, repo_name, file_name, content, {"ETag": etag, "X-Repo-Commit": commit})

    def _answer_as_cdn(self, handler: "Handler") -> None:
        owner, name, commit, file_name = handler.path.partition("?")[0].lstrip("/").split("/")
        repo = self.repos[f"{owner}/{name}"]
        self.log.append(f"CDN {handler.command} {owner}/{name} {file_name}")
        if "Authorization" in handler.headers:
            self.tokens_seen.add("CDN")
        if self._went_wrong(handler, repo, file_name):
            return
        found = repo.at(commit)
        assert found is not None
        content = found[1][file_name]
        etag = repo.faults.get(file_name, Fault()).cdn_etag
        etag = f'"cdn {sha256(content)[:8]}"' if etag is None else etag
        self._send_file(handler, f"{owner}/{name}", file_name, content, {"ETag": etag})

    def _went_wrong(self, handler: "Handler", repo: Repo, file_name: str) -> bool:
        """Act out a fault that comes instead of an answer."""
        fault = repo.faults.get(file_name, Fault())
        if not (fault.stall or fault.status) or not fault.strikes(handler.command):
            return False
        if fault.status:
            handler.refuse(fault.status, fault.code, fault.headers)
        else:
            self.closing.wait()
        return True

    def _send_file(self, handler: "Handler", repo_name: str, file_name: str, content: bytes,
                   headers: dict[str, str]) -> None:
        """The file from the byte that was asked for, as far as its fault lets it come."""
        fault = self.repos[repo_name].faults.get(file_name, Fault())
        fault = fault if fault.strikes(handler.command) else Fault()
        if fault.then:
            self.repos[repo_name].files[file_name] = fault.then
        is_same = handler.headers.get("If-Range", headers.get("ETag", "")) == headers.get("ETag", "")
        first, end = (0, len(content)) if fault.ignore_range or not is_same else handler.range_wanted(len(content))
        body = fault.body or content[first:end]
        is_part = (first, end) != (0, len(content)) and not fault.body
        if first or is_part:
            true_range = f"bytes {first}-{end - 1}/{len(content)}"
            headers = {**headers, "Content-Range": true_range if fault.content_range == "" else fault.content_range}
        if "gzip" in handler.headers.get("Accept-Encoding", "") or fault.compress:
            body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
        if fault.drip_head:
            return self._drip_head(handler, fault.drip_head)
        headers = {**headers, "Content-Type": fault.kind}
        handler.send_head(206 if is_part else 200, headers, None if fault.unsized or fault.endless else len(body))
        if handler.command == "HEAD":
            return
        if fault.spoil:
            body = bytes(len(body))
        if fault.break_after is not None:
            body = body[:fault.break_after]
        key, half = f"{repo_name} {file_name}", len(body) // 2
        self.ranges.setdefault(key, []).append(first)
        while fault.endless and not self.closing.is_set():
            self._write(handler, key, b"[" * 2**16)
        if fault.drip:
            for i in range(len(body)):
                self._write(handler, key, body[i:i + 1])
                self.closing.wait(fault.drip)
        else:
            self._write(handler, key, body[:half])
            self.closing.wait(fault.slow)
            self._write(handler, key, body[half:])
        if fault.unsized:
            handler.close_connection = True
        if fault.break_after is not None:
            self._break_off(handler, fault.by)

    def _write(self, handler: "Handler", key: str, part: bytes) -> None:
        self.bytes_sent[key] += len(part)  # before it is sent: whoever has got all may ask at once
        handler.wfile.write(part)

    def _drip_head(self, handler: "Handler", seconds: float) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.closing.wait(seconds):
            handler.wfile.write(b"X: x\r\n")

    def _break_off(self, handler: "Handler", by: str) -> None:
        """End a transfer before its end."""
        handler.close_connection = True
        if by == "stall":
            self.closing.wait()
        if by == "reset":
            self.closing.wait(0.3)  # what was sent shall arrive before the connection is torn down
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(handler.connection.detach())


@contextmanager
def environment(endpoint: str, cache: Path, offline: bool = False) -> Iterator[None]:
    """huggingface_hub in this process as HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE make it in a new one."""
    values = {"ENDPOINT": endpoint,
              "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
              "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_TELEMETRY": True}
    with patch.multiple(constants, **values), patch.dict(os.environ, {"NO_PROXY": "127.0.0.1"}):
        yield


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that leaves in the middle of an answer is no news


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[["Handler"], None]

    def do_HEAD(self) -> None:
        type(self).answer(self)

    do_GET = do_HEAD

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send(status, b"refused\n", {"X-Error-Code": code, **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_head(status, headers, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def send_head(self, status: int, headers: "Mapping[str, str | None]", n_bytes: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if n_bytes is not None:
            self.send_header("Content-Length", str(n_bytes))
        self.end_headers()

    def range_wanted(self, size: int) -> tuple[int, int]:
        """The first byte that is asked for, and the first after those."""
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(first), min(size, int(last) + 1) if last else size

    def log_message(self, format: str, *args: object) -> None:
        pass  # the log of HubServer is enough
