"""The page with the engine behind it: an HTTP server for the browsers of this machine, and for nobody else.

Any page that is open in a browser can send requests to this machine, so each is checked:

    it comes over the loopback interface          nobody on the network can connect
    Host is this server's own address             a foreign name that is made to resolve to 127.0.0.1 is refused
    Origin, where there is one, too               a foreign page's request is refused
    it has the token                              known from the address that the command prints, then from a cookie
    it ends in time, and is not too long          or it is refused

`GET /` is the page. `POST` with an object of JSON to one of ANSWERS is answered line by line, as objects of JSON:
how far it is, tokens, then {"done": ...} or {"error": ...}. No file is ever served.
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
SECONDS_TO_ASK = 10.0  # in which a request has to be complete
SECONDS_TO_READ = 30.0  # in which the browser has to take what is sent

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
    """Serves one page, and answers its requests, a thread for each."""

    daemon_threads = True  # Ctrl-C waits for no browser
    allow_reuse_address = sys.platform != "win32"  # where it would let another program take the same port

    def __init__(self, engine: Engine, page: str, port: int = 0) -> None:
        """port: 0 takes any that is free. Raises OSError where the port cannot be had."""
        super().__init__((HOST, port), PageRequest)
        self.engine = engine
        self.page = page.encode("utf-8")
        self.token = secrets.token_urlsafe(32)
        self.turns = Turns()
        self.port: int = self.server_address[1]
        self.cookie = f"numpy_gpt2_{self.port}"  # all ports of a host share their cookies
        self.address = f"http://{HOST}:{self.port}/?token={self.token}"
        self.hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        if self.port == 80:  # which browsers leave out
            self.hosts |= {HOST, "localhost"}

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own would look up a name, which may take long

    def handle_error(self, *_: object) -> None:
        """A connection that breaks harms nobody, and `PageRequest` has answered everything else."""


class PageRequest(BaseHTTPRequestHandler):
    """One request, the only one of its connection."""

    server: PageServer
    timeout = SECONDS_TO_READ
    default_request_version = "HTTP/1.0"  # for what is no HTTP: 0.9 would be answered without headers

    def setup(self) -> None:
        super().setup()
        self.has_begun = False  # to answer
        self.clock = threading.Timer(SECONDS_TO_ASK, self.stop_reading)
        self.clock.daemon = True
        self.clock.start()

    def stop_reading(self) -> None:
        with suppress(OSError):  # it has ended in the meantime
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        self.clock.cancel()
        super().finish()
        self.drain()

    def drain(self) -> None:
        """Read the rest of a refused request: a browser that is still sending would not see the answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            end = time.monotonic() + 1
            while self.connection.recv(2**16) and time.monotonic() < end:
                pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every method of HTTP is handled here, so that each is checked
            return self.handle_request
        raise AttributeError(name)

    def handle_request(self) -> None:
        with suppress(OSError), np.errstate(all="ignore"):  # OSError: nobody reads the answer any more
            try:
                self.route()
            except Refusal as refusal:
                self.refuse(refusal)
            except ValueError as error:
                self.refuse(Refusal(400, one_line(error)))
            except FloatingPointError as error:
                self.refuse(Refusal(422, one_line(error)))
            except MemoryError:
                self.refuse(Refusal(503, "not enough memory: shorten the prompt, or take a smaller model."))
            except OSError:
                raise
            except Exception as error:
                self.refuse(Refusal(500, f"a mistake in numpy_gpt2: {type(error).__name__}: {one_line(error)}"))

    def route(self) -> None:
        """Answer, or raise Refusal."""
        path, _, query = self.path.partition("?")
        self.check_source()
        self.check_token(query)
        expected = {"/": "GET", **dict.fromkeys(ANSWERS, "POST")}.get(path)
        if expected is None:
            raise Refusal(404, f"there is nothing but / and {', '.join(ANSWERS)}.")
        if self.command != expected:
            raise Refusal(405, f"{path} must be asked with {expected}.")
        if path != "/":
            self.answer(ANSWERS[path])
        elif query:
            self.begin(303, {"Location": "/", "Set-Cookie": f"{self.server.cookie}={self.server.token}; Path=/; "
                             "HttpOnly; SameSite=Strict"})
        else:
            self.begin(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(self.server.page))})
            self.wfile.write(self.server.page)

    # Who asks

    def check_source(self) -> None:
        """Raise Refusal for a request by a page of another site, or to another name."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refusal(403, f"the address must be http://{HOST}:{self.server.port}/.")
        origins = self.headers.get_all("Origin", [])
        is_foreign = any(origin != f"http://{hosts[0]}" for origin in origins)
        if self.command != "GET":  # a link on another page may lead here
            is_foreign |= self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        if is_foreign:
            raise Refusal(403, "only the page that this server sent may ask it.")

    def check_token(self, query: str) -> None:
        """Raise Refusal where neither the address nor a cookie has the token."""
        given = parse_qs(query).get("token", [])
        for cookie in ";".join(self.headers.get_all("Cookie", [])).split(";"):
            name, _, value = cookie.strip().partition("=")
            given += [value] if name == self.server.cookie else []
        token = self.server.token.encode()
        if not any(hmac.compare_digest(value.encode("utf-8", "replace"), token) for value in given):
            raise Refusal(401, "open the address that the command printed, with its token: then this browser has "
                          "access until the command ends, by bookmarks too.")

    # What is asked

    def answer(self, answer: Answer) -> None:
        """Read the request, compute, and send lines."""
        request = self.read_json()
        page = request.get("page", secrets.token_hex())
        if not isinstance(page, str) or len(page) > 64:
            raise Refusal(400, "'page' must be a text of at most 64 characters.")
        if answer is tokenize:  # computes nothing that another request would have to wait for
            page = secrets.token_hex()
        with Job(self.server.turns, page, self.send_line) as job:
            done = answer(self.server.engine, request, job)
        self.send_line({"done": done})

    def read_json(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "a request must be JSON, of the type application/json.")
        length = self.headers.get("Content-Length")
        if length is None:
            raise Refusal(411, "a request must tell its Content-Length.")
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
            raise Refusal(400, "a request must be an object of JSON.")
        return request

    # What is answered

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_begun = True
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_line(self, line: Mapping[str, Any]) -> None:
        """Send an object of JSON as one line, at once."""
        data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
        if not self.has_begun:
            self.begin(200, {"Content-Type": "application/x-ndjson"})
        self.wfile.write(data)

    def refuse(self, refusal: Refusal) -> None:
        """Send one sentence: as text to whoever opens a page, as JSON to a script, as a last line after others."""
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
        """What http.server itself refuses."""
        self.refuse(Refusal(code, one_line(ValueError(message or HTTPStatus(code).phrase))))

    def version_string(self) -> str:
        return "numpy_gpt2"

    def log_message(self, *_: object) -> None:
        """The command's own lines are all that is printed."""


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
