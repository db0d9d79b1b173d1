"""`explore --serve` over real sockets: what its page is answered, and what everybody else is refused."""

import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import numpy_gpt2
from numpy_gpt2 import SIZES, random_model
from numpy_gpt2.explore import answers, server, turns
from numpy_gpt2.explore.answers import server_data
from numpy_gpt2.explore.page import page_data
from numpy_gpt2.explore.prompts import Engine
from numpy_gpt2.explore.rendering import render
from numpy_gpt2.explore.server import ANSWERS, MOST_BYTES, PageServer
from test_page import NASTY, bytes_tokenizer

MODEL, TOKENIZER = numpy_gpt2.load("fairytale")
PROMPT = "The king said to his daughter that she"
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]


@pytest.fixture(scope="module")
def served():
    engine = Engine(MODEL, TOKENIZER, "fairytale")
    data = page_data(MODEL, TOKENIZER, TOKENIZER.encode(PROMPT), "fairytale")
    with PageServer(engine, render({**data, "server": server_data(engine, PROMPT)})) as running:
        threading.Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield running
        running.shutdown()


def sent(port, data, timeout=20):
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        return received(connection)


def received(connection):
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def received_until(connection, expected):
    data = b""
    while expected not in data:
        part = connection.recv(2**16)
        assert part, data
        data += part
    return data


def request_bytes(method, path, headers, body=b""):
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8") + body


def parsed(answer):
    """Status, headers (a list of pairs) and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), [tuple(line.split(": ", 1)) for line in lines], body


def good_headers(served, **more):
    """The headers of the page's own requests."""
    return {"Host": f"127.0.0.1:{served.port}", "Cookie": f"{served.cookie}={served.token}",
            "Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json", **more}


def asked(served, path="/tokens", body=b'{"prompt": "Once"}', method="POST", **headers):
    """An answer to the page, where nothing else is said; a header that is None is left out."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {"Content-Length": len(body), **good_headers(served), **headers}
    headers = {name: value for name, value in headers.items() if value is not None}
    return parsed(sent(served.port, request_bytes(method, path, headers, body)))


def posted(served, path, **asked_for):
    """Status, and the objects of an answer's lines, but for those that say how far it is, which a busy machine adds."""
    status, _, body = asked(served, path, json.dumps(asked_for).encode())
    return status, [line for line in map(json.loads, body.splitlines()) if line.keys() != {"progress"}]


# The page -------------------------------------------------------------------------------------------------------------


def test_the_first_address_gives_a_cookie_and_leaves_no_token_in_the_address(served):
    _, _, path = served.address.partition(f"http://127.0.0.1:{served.port}")
    assert path == f"/?token={served.token}"
    status, headers, _ = asked(served, path, b"", "GET", Cookie=None, Origin=None, Sec_Fetch_Site="none")
    assert (status, dict(headers)["Location"]) == (303, "/")
    cookie, *attributes = dict(headers)["Set-Cookie"].split("; ")
    assert {*attributes} == {"Path=/", "HttpOnly", "SameSite=Strict"}
    status, headers, body = asked(served, "/", b"", "GET", Cookie=f"theme=dark; {cookie}", Origin=None)
    assert (status, dict(headers)["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert served.token.encode() not in body


def test_the_page_is_the_static_one_with_the_server_s_bounds(served):
    data = page_data(MODEL, TOKENIZER, TOKENIZER.encode(PROMPT), "fairytale")
    _, _, body = asked(served, "/", b"", "GET")
    assert body.decode() == render({**data, "server": server_data(served.engine, PROMPT)})
    text, = re.findall(r'<script type="application/json" id="data">(.*?)</script>', body.decode())
    page = json.loads(text)
    assert page.pop("server") == json.loads(json.dumps(server_data(served.engine, PROMPT)))
    assert page == json.loads(json.dumps(data))


def test_every_token_is_long_and_new():
    engine = Engine(MODEL, TOKENIZER, "fairytale")
    tokens = set()
    for _ in range(3):
        with PageServer(engine, "") as other:
            tokens.add(other.token)
    assert len(tokens) == 3 and min(map(len, tokens)) >= 43  # 32 bytes


def test_each_request_of_the_page_is_answered_over_the_socket(served):
    for path, more in [("/run", {"interventions": [{"kind": "mean", "stage": "mlp.out", "layer": 2}]}),
                       ("/compare", {"other": "The queen said to her son that he"}),
                       ("/next", {"n": 3, "temperature": 0}), ("/tokens", {})]:
        status, lines = posted(served, path, prompt=PROMPT, **more)
        assert (status, len(lines)) == (200, 4 if path == "/next" else 1)
        with turns.Job(turns.Turns(), "page", lambda line: None) as job:
            assert lines[-1] == {"done": json.loads(json.dumps(
                ANSWERS[path](served.engine, {"prompt": PROMPT, **more}, job)))}
    assert posted(served, "/tokens", prompt=NASTY)[1][0]["done"]["ids"] == TOKENIZER.encode(NASTY)


def test_tokens_are_sent_as_they_are_drawn(served, monkeypatch):
    may_go_on = threading.Event()
    take_turn = turns.Job.turn

    def take_third_turn_later(job):  # the first is for the interventions, each other for one token
        job.n_turns = getattr(job, "n_turns", 0) + 1
        if job.n_turns == 3:
            assert may_go_on.wait(20)
        return take_turn(job)

    monkeypatch.setattr(turns.Job, "turn", take_third_turn_later)
    body = b'{"prompt": "Once", "n": 2}'
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(request_bytes("POST", "/next", good_headers(served, **{"Content-Length": len(body)}), body))
        assert received_until(connection, b'{"token"').count(b'{"token"') == 1
        may_go_on.set()
        assert received(connection).count(b'{"token"') == 1


def test_a_newer_request_of_the_same_page_replaces_the_waiting_one_over_the_socket(served):
    with turns.Job(served.turns, "another page", print) as job, job.turn():
        answers_of = [[], []]
        for i, found in enumerate(answers_of):
            threading.Thread(target=lambda found=found: found.append(posted(served, "/run", prompt="a", page="tab")),
                             daemon=True).start()
            end = time.monotonic() + 10
            while len(served.turns.queue) < 2 + i and not answers_of[0] and time.monotonic() < end:
                time.sleep(0.005)
        while not answers_of[0] and time.monotonic() < end:
            time.sleep(0.005)
        (status, lines), = answers_of[0]
        assert (status, lines) == (409, [{"error": "a newer request from the same page has replaced this one.",
                                          "replaced": True}])
        assert answers_of[1] == []
    while not answers_of[1] and time.monotonic() < end:
        time.sleep(0.005)
    assert answers_of[1][0][0] == 200


def test_a_page_that_is_closed_stops_its_work(served):
    body = json.dumps({"prompt": "Once", "n": 128, "temperature": 0.8}).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(request_bytes("POST", "/next", good_headers(served, **{"Content-Length": len(body)}), body))
        received_until(connection, b'{"token"')
    end = time.monotonic() + 10
    while served.turns.newest and time.monotonic() < end:
        time.sleep(0.005)
    assert (served.turns.newest, served.turns.queue) == ({}, [])


# Who may ask ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", *ANSWERS, "/favicon.ico", "/page.html", "/../../etc/passwd", "//[", "/?token=",
                                  "/?token=guess", "/?Token={token}", "/?token={token}x", "*"])
@pytest.mark.parametrize("method", METHODS)
def test_without_the_token_every_path_is_401(served, path, method):
    status, headers, body = asked(served, path.format(token=served.token), b"", method, Cookie=None)
    assert status == 401
    assert "Set-Cookie" not in dict(headers)
    assert (body == b"") == (method == "HEAD")


@pytest.mark.parametrize("cookie", [
    "{name}=", "{name}=guess", "{name}={token}x", "{name}={short}", "other={token}", "x{name}={token}", "{token}",
    "{name}=\u00e9", "{name}=\u4e2d", ";;;=;", "{name}", "{name}2={token}"])
def test_a_cookie_that_is_not_the_token_is_none(served, cookie):
    cookie = cookie.format(name=served.cookie, token=served.token, short=served.token[:-1])
    assert asked(served, "/", b"", "GET", Cookie=cookie)[0] == 401
    assert asked(served, Cookie=cookie)[0] == 401


def test_with_the_token_in_the_address_a_script_needs_no_cookie(served):
    assert asked(served, f"/tokens?token={served.token}", Cookie=None, Origin=None, Sec_Fetch_Site=None)[0] == 200


@pytest.mark.parametrize("host", [
    None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}",
    "127.0.0.2:{port}", "0.0.0.0:{port}", "[::1]:{port}", "127.0.0.1:{port}\r\nHost: evil.example",
    "evil.example:{port}\r\nHost: 127.0.0.1:{port}", "user@127.0.0.1:{port}"])
def test_a_name_that_was_made_to_resolve_to_this_machine_is_refused_token_or_not(served, host):
    host = host and host.format(port=served.port)
    for path, method in [("/", "GET"), ("/run", "POST"), (f"/?token={served.token}", "GET")]:
        status, headers, body = asked(served, path, b"", method, Host=host, Origin=None)
        assert status == 403
        assert served.token.encode() not in body and "Set-Cookie" not in dict(headers)


def test_localhost_is_a_name_of_this_machine(served):
    port = served.port
    assert asked(served, "/", b"", "GET", Host=f"localhost:{port}", Origin=None)[0] == 200
    assert asked(served, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200
    assert asked(served, Host=f"localhost:{port}", Origin=f"http://127.0.0.1:{port}")[0] == 403


@pytest.mark.parametrize("origin", [
    "null", "", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
    "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:{port}/", "file://",
    "http://127.0.0.1:{port}\r\nOrigin: http://evil.example"])
def test_another_site_in_the_same_browser_is_refused_though_it_has_the_cookie(served, origin):
    origin = origin.format(port=served.port)
    for method, path in [("POST", "/run"), ("POST", "/tokens"), ("OPTIONS", "/run"), ("GET", "/")]:
        status, headers, body = asked(served, path, method=method, Origin=origin)
        assert status == 403
        assert not any(name.lower().startswith("access-control") for name, _ in headers)
        assert body.strip().endswith(b'only the page that this server sent may send it requests."}') or method == "GET"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_that_the_browser_says_is_another_site_s_is_refused_even_without_an_origin(served, site):
    assert asked(served, Origin=None, Sec_Fetch_Site=site)[0] == 403
    assert asked(served, "/", b"", "GET", Origin=None, Sec_Fetch_Site=site)[0] == 200  # a link may lead to the page


def test_a_form_of_another_site_cannot_speak_json(served):
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]:
        assert asked(served, Content_Type=content_type, Origin=None, Sec_Fetch_Site=None)[0] == 415
    assert asked(served, Content_Type="application/json; charset=utf-8")[0] == 200


def test_nobody_but_this_machine_can_connect(served):
    assert served.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


def test_every_answer_forbids_what_the_page_does_not_need(served):
    requests = [("/", "GET", {}), ("/", "GET", {"Cookie": None}), ("/", "GET", {"Host": "evil.example"}),
                (f"/?token={served.token}", "GET", {}), ("/x", "GET", {}), ("/run", "POST", {}),
                ("/tokens", "POST", {})]
    for path, method, more in requests:
        status, headers, _ = asked(served, path, method=method, **more)
        headers = dict(headers)
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy.pop("script-src").startswith("'sha256-") and policy.pop("style-src").startswith("'sha256-")
        assert policy == {"default-src": "'none'", "img-src": "data:", "connect-src": "'self'", "base-uri": "'none'",
                          "form-action": "'none'", "frame-ancestors": "'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Python" not in headers["Server"]
        assert not any(name.startswith("Access-Control") for name in headers)


@pytest.mark.parametrize("path", [
    "/page.html", "/page.py", "/page.css", "/scripts/data.js", "/../page.html", "/../../../../etc/passwd",
    "/%2e%2e/page.py", "/..%2fpage.py", "//etc/passwd", "/etc/passwd", "/./", "/run/", "/RUN", "/index.html",
    "file:///etc/passwd", "http://127.0.0.1/", "/%00", "/\u00e9", "/?token=x/../page.py"])
def test_nothing_of_the_file_system_is_served(served, path):
    status, _, body = asked(served, path, b"", "GET")
    if path.startswith("/?"):
        assert status == 303
    else:
        assert (status, body) == (404, b"not found: only / and /run, /compare, /next, /tokens exist.\n")


@pytest.mark.parametrize("method, path", [("GET", "/run"), ("HEAD", "/"), ("POST", "/"), ("PUT", "/run"),
                                          ("OPTIONS", "/run"), ("TRACE", "/"), ("BREW", "/next")])
def test_another_method_is_refused_with_the_right_one(served, method, path):
    status, _, body = asked(served, path, b"", method)
    right = "GET" if path == "/" else "POST"
    assert status == 405
    assert method == "HEAD" or f"{path} must be requested with {right}." in body.decode()


# What may be asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe{}", b'{"prompt": "a"} {}', b'{"prompt": NaN}',
    b'{"prompt": -Infinity}', b'{"n": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 40_000, b"\x00",
    '{"prompt": "a"}'.encode("utf-16"), b'{"prompt": {"a": 1}}', b'{"prompt": "a", "b": 1}',
    b'{"prompt": "\\ud800"}', b'{"prompt": "a", "page": 3}', b'{"prompt": "a", "page": "' + b"x" * 65 + b'"}'])
def test_a_body_that_is_not_a_request_is_400_and_one_sentence(served, body):
    for path in ANSWERS:
        status, headers, answer = asked(served, path, body)
        error = json.loads(answer)["error"]
        assert (status, dict(headers)["Content-Type"]) == (400, "application/json; charset=utf-8")
        assert error and "\n" not in error and "Traceback" not in error and len(error) < 1100


@pytest.mark.parametrize("length, status", [
    (None, 411), ("", 400), ("-1", 400), ("1.5", 400), ("1_0", 400), ("0x10", 400), ("+5", 400), ("٣", 400),
    ("1" * 19, 400), (MOST_BYTES + 1, 413), ("9" * 18, 413)])
def test_a_body_without_a_sensible_length_is_refused_without_reading_it(served, length, status):
    found, _, answer = asked(served, Content_Length=length)
    assert found == status
    assert json.loads(answer)["error"]


def test_the_largest_body_is_read_and_a_larger_one_is_refused_though_it_is_being_sent(served):
    body = b'{"prompt": "Once"}'
    assert asked(served, body=body.ljust(MOST_BYTES))[0] == 200
    assert asked(served, body=body.ljust(8 * MOST_BYTES))[0] == 413


def test_a_chunked_body_is_refused(served):
    body = b"5\r\nhello\r\n0\r\n\r\n"
    assert asked(served, body=body, Content_Length=None, Transfer_Encoding="chunked")[0] == 411


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(server, "SECONDS_TO_ASK", 0.3)


def trickled(served, start, rest, pause=0.05):
    """What comes back, and after how long, where the rest of a request comes byte by byte."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(start)
        for i in range(len(rest)):
            if select.select([connection], [], [], pause)[0]:
                break
            connection.sendall(rest[i:i + 1])
        return received(connection), time.monotonic() - begun


def test_a_body_that_comes_too_slowly_is_408(served, impatient):
    head = request_bytes("POST", "/tokens", good_headers(served, **{"Content-Length": 1000}))
    answer, seconds = trickled(served, head, b" " * 1000)
    assert parsed(answer)[0] == 408
    assert json.loads(parsed(answer)[2])["error"].startswith("a request must be complete within 0.3 s. Got ")
    assert seconds < 10


def test_headers_that_come_too_slowly_end_the_connection(served, impatient):
    answer, seconds = trickled(served, b"GET / HTTP/1.1\r\nX-Slow: ", b"x" * 1000)
    assert answer == b"" or parsed(answer)[0] in (401, 403)
    assert seconds < 10


def test_a_body_that_ends_early_is_408(served):
    head = request_bytes("POST", "/tokens", good_headers(served, **{"Content-Length": 100}), b"{}")
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        assert parsed(received(connection))[0] == 408


@pytest.mark.parametrize("data, status", [
    (b"\r\n\r\n", None), (b"GET\r\n\r\n", 400), (b"GET / HTTP/9.9\r\n\r\n", 505), (b"GET / HTTP/1.1 x\r\n\r\n", 400),
    (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414), (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431), (b"\x16\x03\x01\x02\x00", None),
    (b"GET /\r\n\r\n", None), (b"\x00" * 100 + b"\r\n\r\n", 400)])
def test_what_is_not_http_is_refused_without_a_traceback(served, capfd, data, status):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = received(connection)
    assert b"Traceback" not in answer and b"<html" not in answer.lower()
    assert status is None or parsed(answer)[0] == status
    assert capfd.readouterr() == ("", "")
    assert asked(served)[0] == 200


def test_connections_that_say_nothing_keep_nobody_waiting(served):
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    assert asked(served)[0] == 200
    for connection in idle:
        connection.close()


# What goes wrong on the way -------------------------------------------------------------------------------------------


def test_a_pass_without_enough_memory_gets_a_sentence(served, monkeypatch):
    def no_memory(*_):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(answers, "page_data", no_memory)
    assert posted(served, "/run", prompt="no memory") == (
        503, [{"error": "not enough memory: shorten the prompt, or use a smaller model."}])


def test_a_pass_that_takes_too_long_gets_a_sentence(served, monkeypatch):
    monkeypatch.setattr(turns, "MOST_SECONDS", 0)
    status, (line,) = posted(served, "/run", prompt="too long")
    assert (status, line["error"]) == (503, "this took longer than 0 s and was stopped: shorten the prompt, or use a "
                                            "smaller model.")


def test_an_error_after_the_first_line_is_the_last_line(served, monkeypatch):
    draw = answers.token_line

    def fail_at_the_second(engine, logits, ids, *rest):
        if len(ids) > 1:
            raise FloatingPointError("the logits are not finite")
        return draw(engine, logits, ids, *rest)

    monkeypatch.setattr(answers, "token_line", fail_at_the_second)
    status, lines = posted(served, "/next", ids=[1], n=5)
    assert (status, len(lines)) == (200, 2)
    assert lines[-1] == {"error": "the logits are not finite", "status": 422}


def test_numbers_that_are_not_finite_are_422(served, monkeypatch):
    monkeypatch.setattr(turns, "PROGRESS_AFTER", 60)  # on a slow machine progress would come before the refusal
    explosions = [{"kind": "scale", "stage": "mlp.post", "layer": 0, "factor": 1e9}] * 6  # beyond float32
    status, (line,) = posted(served, "/run", prompt=PROMPT, interventions=explosions)
    assert (status, "not finite" in line["error"]) == (422, True)


def test_a_mistake_of_ours_is_one_sentence_and_the_server_goes_on(served, monkeypatch, capfd):
    def broken(*_):
        raise KeyError("key\nand line")

    monkeypatch.setattr(answers, "token_name", broken)
    assert posted(served, "/tokens", prompt="a") == (500, [
        {"error": r"a bug in numpy_gpt2: KeyError: 'key\nand line'"}])
    assert capfd.readouterr() == ("", "")
    monkeypatch.undo()
    assert asked(served)[0] == 200


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tab(browser):
    """A tab of a browser that has access to nothing yet."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.mark.slow
def test_a_browser_keeps_the_fragment_of_the_first_address_and_may_ask(served, tab):
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(f"{served.address}#token=2")
    bookmark = f"http://127.0.0.1:{served.port}/#token=2"
    assert (tab.url, tab.evaluate("document.cookie")) == (bookmark, "")
    asking = """fetch("/tokens", {method: "POST", headers: {"Content-Type": "application/json"},
                                  body: '{"prompt": "Once"}'}).then((answer) => answer.json())"""
    assert tab.evaluate(asking)["done"]["ids"] == TOKENIZER.encode("Once")
    tab.goto("about:blank")
    assert tab.goto(bookmark).status == 200
    assert complaints == []


class AnotherSite(BaseHTTPRequestHandler):
    """An empty page, on another port or under another name."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_another_site_in_the_same_browser_gets_nothing(served, tab, name, monkeypatch):
    refused, refuse = [], server.PageRequest.refuse
    monkeypatch.setattr(server.PageRequest, "refuse", lambda request, refusal: (
        refused.append((request.command, refusal.status)), refuse(request, refusal)))
    monkeypatch.setitem(ANSWERS, "/tokens", lambda *_: pytest.fail("it should not have come so far"))
    tab.goto(served.address)
    attacks = """async (address) => {
        const outcomes = [];
        const json = {"Content-Type": "application/json"};
        for (const [path, options] of [
            ["/tokens", {method: "POST", headers: json, body: '{"prompt": "a"}', credentials: "include"}],
            ["/tokens", {method: "POST", body: '{"prompt": "a"}', credentials: "include"}],
            ["/tokens", {method: "POST", mode: "no-cors", body: '{"prompt": "a"}', credentials: "include"}],
            ["/", {credentials: "include"}], ["/", {mode: "no-cors", credentials: "include"}]]) {
            outcomes.push(await fetch(address + path, options).then((answer) => answer.text(), () => "refused"));
        }
        const frame = document.createElement("iframe");
        frame.src = address;
        await new Promise((loaded) => { frame.onload = loaded; document.documentElement.append(frame); });
        return outcomes;
    }"""
    with ThreadingHTTPServer(("127.0.0.1", 0), AnotherSite) as other:
        threading.Thread(target=other.serve_forever, args=[0.02], daemon=True).start()
        tab.goto(f"http://{name}:{other.server_address[1]}/")
        found = tab.evaluate(attacks, f"http://127.0.0.1:{served.port}")
        other.shutdown()
    assert all(outcome in ("refused", "") for outcome in found)
    assert {("OPTIONS", 403), ("POST", 403)} <= set(refused)
    assert [frame.locator("#tokens").count() for frame in tab.frames[1:]] == [0]


# The command ----------------------------------------------------------------------------------------------------------


COMMAND = [sys.executable, "-m", "numpy_gpt2.explore", "--serve"]


class Running:
    """The command, until the test ends it."""

    def __init__(self, *arguments, **options):
        self.process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, **options)
        self.address = self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    @property
    def port(self):
        return int(self.address.split("/")[2].split(":")[1])

    def interrupt(self):
        """Ctrl-C; standard output and error after it."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)


def test_the_address_is_one_line_and_ctrl_c_ends_it_at_once_with_pages_open_and_passes_at_work():
    with Running("The fox") as running:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}\n", running.address)
        path = running.address.strip().partition(f":{running.port}")[2]
        request = request_bytes("GET", path, {"Host": f"127.0.0.1:{running.port}"})
        status, headers, _ = parsed(sent(running.port, request))
        assert status == 303
        idle = socket.create_connection(("127.0.0.1", running.port))
        body = b'{"prompt": "Once", "n": 128}'
        cookie = dict(headers)["Set-Cookie"].split(";")[0]
        working = socket.create_connection(("127.0.0.1", running.port))
        working.sendall(request_bytes("POST", "/next", {
            "Host": f"127.0.0.1:{running.port}", "Cookie": cookie, "Content-Type": "application/json",
            "Content-Length": len(body)}, body))
        assert working.recv(100).startswith(b"HTTP/1.0 200")
        out, err = running.interrupt()
        assert (running.process.returncode, out) == (130, "")
        assert "Traceback" not in err and err.endswith("Press Ctrl-C to stop.\n\n")
        idle.close()
        working.close()


def test_a_port_in_use_is_said_with_one_that_is_free_and_the_same_one_works_again_afterwards():
    with Running() as running:
        port = running.port
        refused = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=60)
        assert (refused.returncode, refused.stdout) == (2, "")
        free = re.fullmatch(rf"error: port {port} cannot be used \(Address already in use\). Try a free one: "
                            r"--port (\d+)", refused.stderr.splitlines()[-1]).group(1)
        sent(port, request_bytes("GET", "/", {"Host": f"127.0.0.1:{port}"}))  # so that it was connected to
        running.interrupt()
    for again in (port, int(free)):
        with Running("--port", str(again)) as running:
            assert running.port == again


@pytest.mark.parametrize("arguments, message", [
    (["--serve", "-o", "page.html"], "--serve and --output were both given: give one"),
    (["--port", "8000"], "--port must come with --serve"),
    (["--serve", "--port", "0"], "must be a whole number, from 1 to 65,535. Got '0'."),
    (["--serve", "king " * 500], "at most 128 tokens"),
    (["--serve", "--model", "no-such-model"], "no-such-model"),
])
def test_what_cannot_be_served_is_one_line_and_exit_2(arguments, message):
    process = subprocess.run([sys.executable, "-m", "numpy_gpt2.explore", *arguments], capture_output=True, text=True,
                             timeout=60)
    assert (process.returncode, process.stdout) == (2, "")
    assert message in process.stderr.splitlines()[-1]


def test_the_browser_is_given_the_address_though_it_keeps_its_caller_waiting(tmp_path):
    told, browser = tmp_path / "told", tmp_path / "browser"
    browser.write_text("import sys, urllib.request\nopener = urllib.request.build_opener("
                       "urllib.request.HTTPCookieProcessor())\n"
                       f"open({str(told)!r}, 'wb').write(opener.open(sys.argv[1]).read())\n")
    with Running("The fox", "--open", env={**os.environ, "BROWSER": shlex.join([sys.executable, str(browser), "%s"])}):
        end = time.monotonic() + 20
        while not (told.exists() and told.read_bytes().endswith(b"</html>\n")) and time.monotonic() < end:
            time.sleep(0.02)
        assert told.read_bytes().startswith(b"<!doctype html>")


def test_a_page_that_is_written_imports_no_server():
    code = "import sys, numpy_gpt2.explore.__main__; print([name for name in sys.modules if 'explore' in name])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert "numpy_gpt2.explore.page" in found
    assert not any(f"numpy_gpt2.explore.{name}'" in found for name in ("server", "answers", "interventions", "turns"))


# Speed ----------------------------------------------------------------------------------------------------------------


def seconds_of_an_answer(model, tokenizer, ids):
    """Processor time of the fastest of three answers to a prompt that was not asked before."""
    engine = Engine(model, tokenizer, "any")
    seconds = []
    with PageServer(engine, "") as running:
        threading.Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        for _ in range(3):
            engine.kept.clear()
            start = time.process_time()
            status, _ = posted(running, "/run", ids=ids)
            seconds.append(time.process_time() - start)
            assert status == 200
        running.shutdown()
    return min(seconds)


def test_fairytale_answers_within_three_tenths_of_a_second():
    assert seconds_of_an_answer(MODEL, TOKENIZER, list(range(12))) < 0.3


@pytest.mark.slow
def test_small_s_size_answers_within_one_and_a_half_seconds():
    config = SIZES["small"]
    assert seconds_of_an_answer(random_model(config), bytes_tokenizer(config.vocab_size), list(range(12))) < 1.5
