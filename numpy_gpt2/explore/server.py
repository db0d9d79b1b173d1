"""The live page: an HTTP server for browsers on this machine only.

Any page that is open in a browser can send requests to this machine, so each request is checked:

    it comes over the loopback interface          no other machine can connect
    Host is this server's own address             DNS rebinding: another name that resolves to 127.0.0.1 is refused
    Origin, if present, is this server's too      requests from other pages are refused
    it has the access token                       from the address that the command prints, then from a cookie
    it is complete in time and not too long       otherwise it is refused

`GET /` returns the page. `POST` with a JSON object to one of ANSWERS returns JSON objects, one per line: progress,
tokens, then {"done": ...} or {"error": ...}. No file is ever served.
"""

import hmac
import json
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Mapping
from urllib.parse import parse_qs

import numpy as np

from ..errors import one_line
from .answers import compare, continue_text, run_prompt, tokenize
from .prompts import Engine
from .rendering import content_security_policy
from .turns import Job, Refusal, Turns

HOST = "127.0.0.1"
MOST_BYTES = 2**18  # of a request's body: far more than two prompts of 128 tokens
SECONDS_TO_ASK = 10.0  # timeout for receiving a complete request
SECONDS_TO_READ = 30.0  # timeout for the browser to receive the response

Answer = Callable[[Engine, Mapping[str, Any], Job], dict[str, Any]]
ANSWERS: Mapping[str, Answer] = {"/run": run_prompt, "/compare": compare, "/next": continue_text, "/tokens": tokenize}

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": content_security_policy(served=True) + "; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer(ThreadingHTTPServer):
    """Serves one page and answers its requests, each in a thread of its own."""

    daemon_threads = True  # so that Ctrl-C does not wait for open connections
    allow_reuse_address = sys.platform != "win32"  # on Windows it would let another program take the same port

    def __init__(self, engine: Engine, page: str, port: int = 0) -> None:
        """port: 0 for any free port. Raises OSError if the port is unavailable."""
        super().__init__((HOST, port), PageRequest)
        self.engine = engine
        self.page = page.encode("utf-8")
        self.token = secrets.token_urlsafe(32)
        self.turns = Turns()
        self.port: int = self.server_address[1]
        self.cookie = f"numpy_gpt2_{self.port}"  # all ports of a host share their cookies
        self.address = f"http://{HOST}:{self.port}/?token={self.token}"
        self.hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        if self.port == 80:  # the default, which browsers omit
            self.hosts |= {HOST, "localhost"}

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own looks up the host name, which may be slow

    def handle_error(self, *_: object) -> None:
        """Ignore broken connections; `PageRequest` handles all other errors."""


class PageRequest(BaseHTTPRequestHandler):
    """One request; a connection carries only one."""

    server: PageServer
    timeout = SECONDS_TO_READ
    default_request_version = "HTTP/1.0"  # for malformed requests: 0.9 would get a response without headers

    def setup(self) -> None:
        super().setup()
        self.has_begun = False  # the response
        self.clock = threading.Timer(SECONDS_TO_ASK, self.stop_reading)
        self.clock.daemon = True
        self.clock.start()

    def stop_reading(self) -> None:
        with suppress(OSError):  # the connection is already closed
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        self.clock.cancel()
        super().finish()
        self.drain()

    def drain(self) -> None:
        """Read the rest of a refused request: a browser that is still sending would not read the response."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            end = time.monotonic() + 1
            while self.connection.recv(2**16) and time.monotonic() < end:
                pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every HTTP method goes through the same checks
            return self.handle_request
        raise AttributeError(name)

    def handle_request(self) -> None:
        with suppress(OSError), np.errstate(all="ignore"):  # OSError: the browser has disconnected
            try:
                self.route()
            except Refusal as refusal:
                self.refuse(refusal)
            except ValueError as error:
                self.refuse(Refusal(400, one_line(error)))
            except FloatingPointError as error:
                self.refuse(Refusal(422, one_line(error)))
            except MemoryError:
                self.refuse(Refusal(503, "not enough memory: shorten the prompt, or use a smaller model."))
            except OSError:
                raise
            except Exception as error:
                self.refuse(Refusal(500, f"a bug in numpy_gpt2: {type(error).__name__}: {one_line(error)}"))

    def route(self) -> None:
        """Respond, or raise Refusal."""
        path, _, query = self.path.partition("?")
        self.check_source()
        self.check_token(query)
        expected = {"/": "GET", **dict.fromkeys(ANSWERS, "POST")}.get(path)
        if expected is None:
            raise Refusal(404, f"not found: only / and {', '.join(ANSWERS)} exist.")
        if self.command != expected:
            raise Refusal(405, f"{path} must be requested with {expected}.")
        if path != "/":
            self.answer(ANSWERS[path])
        elif query:
            self.begin(303, {"Location": "/", "Set-Cookie": f"{self.server.cookie}={self.server.token}; Path=/; "
                             "HttpOnly; SameSite=Strict"})
        else:
            self.begin(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(self.server.page))})
            self.wfile.write(self.server.page)

    # Access

    def check_source(self) -> None:
        """Raise Refusal for a request from another site's page, or under another host name."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refusal(403, f"the address must be http://{HOST}:{self.server.port}/.")
        origins = self.headers.get_all("Origin", [])
        is_foreign = any(origin != f"http://{hosts[0]}" for origin in origins)
        if self.command != "GET":  # GET: links from other pages are allowed
            is_foreign |= self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        if is_foreign:
            raise Refusal(403, "only the page that this server sent may send it requests.")

    def check_token(self, query: str) -> None:
        """Raise Refusal if neither the address nor a cookie has the access token."""
        given = parse_qs(query).get("token", [])
        for cookie in ";".join(self.headers.get_all("Cookie", [])).split(";"):
            name, _, value = cookie.strip().partition("=")
            given += [value] if name == self.server.cookie else []
        token = self.server.token.encode()
        if not any(hmac.compare_digest(value.encode("utf-8", "replace"), token) for value in given):
            raise Refusal(401, "open the address that the command printed, with its token: this browser then has "
                          "access until the command ends, through bookmarks too.")

    # Requests

    def answer(self, answer: Answer) -> None:
        """Read the request, compute, and send JSON lines."""
        request = self.read_json()
        page = request.get("page", secrets.token_hex())
        if not isinstance(page, str) or len(page) > 64:
            raise Refusal(400, "'page' must be a string of at most 64 characters.")
        if answer is tokenize:  # quick: it neither replaces nor delays the page's other requests
            page = secrets.token_hex()
        with Job(self.server.turns, page, self.send_line) as job:
            done = answer(self.server.engine, request, job)
        self.send_line({"done": done})

    def read_json(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "a request must be JSON, with Content-Type application/json.")
        length = self.headers.get("Content-Length")
        if length is None:
            raise Refusal(411, "a request must have a Content-Length.")
        if not re.fullmatch("[0-9]{1,18}", length):
            raise Refusal(400, "Content-Length must be a whole number.")
        if int(length) > MOST_BYTES:
            raise Refusal(413, f"a request must be at most {MOST_BYTES:,} bytes. Got {int(length):,}.")
        body = self.rfile.read(int(length))
        self.clock.cancel()
        if len(body) < int(length):
            raise Refusal(408, f"a request must be complete within {SECONDS_TO_ASK:g} s. Got {len(body):,} of "
                          f"{int(length):,} bytes.")
        try:
            request = json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"a request must be JSON: {one_line(error)}") from error
        if not isinstance(request, dict):
            raise Refusal(400, "a request must be a JSON object.")
        return request

    # Responses

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_begun = True
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_line(self, line: Mapping[str, Any]) -> None:
        """Send a JSON object as one line, unbuffered."""
        data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
        if not self.has_begun:
            self.begin(200, {"Content-Type": "application/x-ndjson"})
        self.wfile.write(data)

    def refuse(self, refusal: Refusal) -> None:
        """Send the refusal: as text for GET, as JSON otherwise, as a last line if the response has begun."""
        if self.has_begun:
            self.send_line({**refusal.line, "status": refusal.status})
            return
        is_text = self.command == "GET"
        body = (str(refusal) if is_text else json.dumps(refusal.line)).encode("utf-8") + b"\n"
        self.begin(refusal.status, {"Content-Type": f"{'text/plain' if is_text else 'application/json'}; charset=utf-8",
                                    "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors that http.server itself detects."""
        self.refuse(Refusal(code, one_line(ValueError(message or HTTPStatus(code).phrase))))

    def version_string(self) -> str:
        return "numpy_gpt2"

    def log_message(self, *_: object) -> None:
        """Log nothing: the command prints its own messages."""


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
