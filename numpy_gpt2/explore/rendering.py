"""The page as one HTML file: `page.html` with its style, scripts and data inserted.

The parts are `page.html`, `page.css` and `scripts/` in this folder. There is no build step: each process combines them
when it needs its first page.
"""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Mapping

from ..checkpoint.saving import write_whole
from ..cli.exits import say

FOLDER = Path(__file__).parent
DATA = "{{data}}"  # the placeholder for the data; once in the template

# In the order of concatenation: what a script uses at load time is defined in an earlier one.
SCRIPTS: tuple[str, ...] = (
    "data", "sampling", "elements", "colours", "pointing", "choosing", "tokens", "model", "attention", "layers",
    "attribution", "next", "start")
SERVED_SCRIPTS = ("engine", "prompt", "interventions", "write", "compare", "follow")  # of live pages
SERVED_PART = re.compile("<!-- served -->(.*?)<!-- /served -->", re.DOTALL)  # of page.html: needs the server


def render(data: Mapping[str, Any]) -> str:
    """The page: the template with the data inserted. Data with the key "server" make a live page."""
    return template(served="server" in data).replace(DATA, script_safe_json(data))


@cache
def template(served: bool = False) -> str:
    """The page without its data."""
    page = SERVED_PART.sub(r"\1" if served else "", read("page.html"))
    return assemble(page, style(), script(served), content_security_policy(served))


def assemble(page: str, style: str, script: str, policy: str) -> str:
    """A page with its style, script and Content-Security-Policy inserted."""
    for place, text in {"{{policy}}": policy, "{{style}}": style, "{{script}}": script}.items():
        page = page.replace(place, text)
    return page


def write_page(path: Path, page: str) -> None:
    """Write a page to a file, whole or not at all, and print its size."""
    data = page.encode("utf-8")
    write_whole(path.resolve(), data)  # resolved, so that a symbolic link is kept
    say(f"page: {path}, {len(data) / 1000:,.0f} KB")


def content_security_policy(served: bool = False) -> str:
    """The page's Content-Security-Policy: a browser may load and run only its own style and script, by their hashes.

    A live page may also connect to its server.
    """
    policy = policy_for(style(), script(served))
    return policy + "; connect-src 'self'" if served else policy


def policy_for(style: str, script: str) -> str:
    """The Content-Security-Policy of a page that runs this script alone, in this style, and requests nothing."""
    return (f"default-src 'none'; style-src '{sha256(style)}'; script-src '{sha256(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'")


def style() -> str:
    return "\n" + read("page.css")


def script(served: bool) -> str:
    names = SCRIPTS + SERVED_SCRIPTS if served else SCRIPTS
    return '\n"use strict";\n\n' + "\n".join(read(f"scripts/{name}.js") for name in names)


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def sha256(text: str) -> str:
    """The hash of an element's text in the form that a Content-Security-Policy uses."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def script_safe_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a <script> element: no text in it can close the element or open another.

    It is ASCII: json escapes everything else, including U+2028 and U+2029.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
