"""Self-checking exercises: stubs, checks, hints. In a notebook: `check("softmax", softmax)`."""

import html
from dataclasses import dataclass
from typing import Any, Callable

from .checking import check_function
from .course import LANGUAGES, find_exercise

__all__ = ["check", "CheckResult"]


@dataclass(frozen=True, repr=False)
class CheckResult:
    """Whether a function is right and, if not, why; a notebook displays it."""

    exercise: str
    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{self.exercise}: {self.message}"

    def _repr_html_(self) -> str:
        colour = "#1a7f37" if self.passed else "#b35900"
        summary, _, rest = self.message.partition("\n")
        details = f"<pre>{html.escape(rest)}</pre>" if rest else ""
        style = f"border-left: 4px solid {colour}; padding-left: 8px"
        return f'<div style="{style}"><b>{html.escape(self.exercise)}</b>: {html.escape(summary)}{details}</div>'


def check(name: str, function: Callable[..., Any], language: str = "en") -> CheckResult:
    """Check one function of a notebook: `check("softmax", softmax)`. For a method, give the function or its class.

    Raises ValueError for an unknown name.
    """
    exercise = find_exercise(name)
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}. Got {language!r}.")
    if isinstance(function, type):
        function = getattr(function, name)
    verdict = check_function(exercise, function, language)
    return CheckResult(name, verdict.state == "passed", verdict.message)
