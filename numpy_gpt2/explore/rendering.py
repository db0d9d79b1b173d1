"""The page as one HTML file: its template, `page.html` in this folder, with the data in it."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Mapping

TEMPLATE = Path(__file__).with_name("page.html")
PLACEHOLDER = "{{data}}"  # appears once in the template
POLICY_PLACEHOLDER = "{{policy}}"  # and so does this

# The page asks the network for nothing, and may not.
STATIC_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(data: Mapping[str, Any], policy: str = STATIC_POLICY) -> str:
    """The page: the template with its Content-Security-Policy and the data in it."""
    return template().replace(POLICY_PLACEHOLDER, policy).replace(PLACEHOLDER, script_safe_json(data))


@cache
def template() -> str:
    return TEMPLATE.read_text(encoding="utf-8")


def script_safe_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a <script> element: no text in it can end the element or begin another.

    It is ASCII: json escapes everything else, including U+2028 and U+2029.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
