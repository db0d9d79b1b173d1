"""A small Hugging Face Hub on loopback: a real HTTP server that answers what `huggingface_hub` asks of the real one.

    HEAD, GET /{repo}/resolve/{revision}/{file}

As the real hub does, it answers for a small file with a redirect to itself, and for a large one (here: every
.safetensors) with a redirect to another host, the "CDN", which is this server on a second port. The headers tell the
commit, the etag and the size; `X-Error-Code` tells what is not there. Every request is logged, and any file can be
given a fault.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable

RESOLVE_CACHE = "/api/resolve-cache"  # where the redirect of a small file leads


@dataclass
class Fault:
    """What goes wrong with one file; each applies to the method it names, as many times as `times` says."""

    method: str = "HEAD"
    status: int | None = None  # answer with this status ...
    code: str = ""  # ... this X-Error-Code ...
    headers: dict[str, str] = field(default_factory=dict)  # ... and these headers
    stall: bool = False  # never answer
    break_after: int | None = None  # close the connection after so many bytes of the body
    spoil: bool = False  # the right number of wrong bytes
    times: int = 1_000_000


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = "1" * 40
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files
    faults: dict[str, Fault] = field(default_factory=dict)  # file -> fault

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
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"answer": answer}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _answer_as_hub(self, handler: "Handler") -> None:
        is_redirected = handler.path.startswith(RESOLVE_CACHE)
        parts = handler.path.removeprefix(RESOLVE_CACHE).lstrip("/").split("/")
        if len(parts) != 5 or parts[2] != "resolve":
            self.log.append(f"{handler.command} {handler.path}")
            return handler.refuse(404, "")
        owner, name, _, revision, file_name = parts
        repo_name = f"{owner}/{name}"
        if handler.command == "GET" or not is_redirected:
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
            return handler.send(302, b"", {
                "Location": f"{self.cdn_url}/{repo_name}/{commit}/{file_name}?signed=yes", "X-Repo-Commit": commit,
                "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))})
        if not is_redirected:
            return handler.send(307, b"", {"Location": f"{RESOLVE_CACHE}/{repo_name}/resolve/{commit}/{file_name}",
                                           "X-Repo-Commit": commit})
        fault = repo.faults.get(file_name, Fault())
        return handler.send(200, content, {"ETag": etag, "X-Repo-Commit": commit}, fault)

    def _answer_as_cdn(self, handler: "Handler") -> None:
        owner, name, commit, file_name = handler.path.partition("?")[0].lstrip("/").split("/")
        repo = self.repos[f"{owner}/{name}"]
        self.log.append(f"CDN {handler.command} {owner}/{name} {file_name}")
        if self._went_wrong(handler, repo, file_name):
            return
        found = repo.at(commit)
        assert found is not None
        handler.send(200, found[1][file_name], {"ETag": '"of the CDN"'}, repo.faults.get(file_name, Fault()))

    def _went_wrong(self, handler: "Handler", repo: Repo, file_name: str) -> bool:
        """Act out a fault that comes instead of an answer."""
        fault = repo.faults.get(file_name)
        if fault is None or fault.method != handler.command:
            return False
        if fault.stall:
            self.closing.wait()
            return True
        if fault.status is not None:
            handler.refuse(fault.status, fault.code, fault.headers)
            return True
        return False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[["Handler"], None]

    def do_HEAD(self) -> None:
        type(self).answer(self)

    do_GET = do_HEAD

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send(status, b"refused\n", {"X-Error-Code": code, **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        first = self.first_byte_wanted() if status == 200 else 0
        if first:
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        body = body[first:]
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.method == "GET" and fault.times > 0:
            if fault.spoil:
                body = bytes(len(body))
            if fault.break_after is not None:
                fault.times -= 1
                body = body[:fault.break_after]
                self.close_connection = True
        self.wfile.write(body)

    def first_byte_wanted(self) -> int:
        wanted = self.headers.get("Range", "bytes=0-")
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def log_message(self, format: str, *args: object) -> None:
        pass  # the log of HubServer is enough
