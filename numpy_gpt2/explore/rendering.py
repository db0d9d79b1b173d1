"""The page as one HTML file: `page.html` with its style, its scripts and the data in their places.

`page.html`, `page.css` and `scripts/`, in this folder, are the page's parts. There is no build step: they are put
together when a page is written, so that an edit shows in the next page.
"""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Mapping

FOLDER = Path(__file__).parent
DATA = "{{data}}"  # where the data go; once in the template

# In the order in which they are joined: what a script uses at once is defined by one before it.
SCRIPTS: tuple[str, ...] = (
    "data", "sampling", "elements", "colours", "pointing", "choosing", "tokens", "model", "attention", "layers",
    "attribution", "next", "start")
SERVED_SCRIPTS = ("engine", "prompt", "interventions", "write", "compare", "follow")  # of pages that a server sends
SERVED_PART = re.compile("<!-- served -->(.*?)<!-- /served -->", re.DOTALL)  # of page.html: needs an engine


def render(data: Mapping[str, Any]) -> str:
    """The page: the template with the data in it. Data with "server" make the page that has an engine behind it."""
    return template(served="server" in data).replace(DATA, script_safe_json(data))


@cache
def template(served: bool = False) -> str:
    """The page without its data."""
    places = {"{{style}}": style(), "{{script}}": script(served), "{{policy}}": content_security_policy(served)}
    page = SERVED_PART.sub(r"\1" if served else "", read("page.html"))
    for place, text in places.items():
        page = page.replace(place, text)
    return page


def content_security_policy(served: bool = False) -> str:
    """What a browser may load and run on the page: its own style and script, by their hashes, and nothing else.

    A served page may ask its server, too.
    """
    policy = policy_for(style(), script(served))
    return policy + "; connect-src 'self'" if served else policy


def policy_for(style: str, script: str) -> str:
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
    """The hash of an element's text, as a Content-Security-Policy names it."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def script_safe_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a <script> element: no text in it can end the element or begin another.

    It is ASCII: json escapes everything else, including U+2028 and U+2029.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
