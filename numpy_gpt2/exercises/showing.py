"""A failing case as text: input, expected, got, and the first difference."""

from typing import Any

import numpy as np

from .comparing import Difference, is_plain
from .messages import say_in

MOST_CHARACTERS = 500  # of a value that is not an array


def show_case(args: dict[str, Any], expected: BaseException | None, got: BaseException | None,
              found: Difference | None, language: str) -> str:
    """The case as lines of text. `expected` and `got` are the errors that were raised, if any."""
    lines = [say_in(language, "case"), *(labelled(name, show(value)) for name, value in args.items())]
    path = "" if found is None else " " + found.path if found.path[:1].isalpha() else found.path
    for key, error in (("expected", expected), ("got", got)):
        label = say_in(language, key)
        if error is not None:
            lines.append(labelled(label, say_in(language, "raises", error=type(error).__name__)))
        elif found is not None:
            lines.append(labelled(label + path, show(getattr(found, key))))
    if found is not None and found.place:
        numbers = " ".join(f"{say_in(language, key)} {show(at(getattr(found, key), found.place))}"
                           for key in ("expected", "got"))
        lines.append(labelled(say_in(language, "first difference"), f"{found.place}: {numbers}"))
    return "\n".join(lines)


def at(value: Any, place: list[int]) -> Any:
    return value[tuple(place)] if isinstance(value, np.ndarray) else value[place[0]]


def labelled(label: str, text: str) -> str:
    return f"  {label} = " + text.replace("\n", "\n" + " " * (len(label) + 5))


def show(value: Any) -> str:
    """A value on a few lines: small arrays whole, large ones at their corners."""
    if isinstance(value, np.ndarray):
        numbers = np.array2string(value, precision=4, threshold=40, edgeitems=2, suppress_small=True, separator=", ")
        lines = [line.rstrip() for line in numbers.split("\n")]
        return type_name(value) + ("\n" if value.ndim > 1 else " ") + "\n".join(line for line in lines if line)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if isinstance(value, (list, tuple)) and not is_plain(value):
        return f"[{', '.join(map(type_name, value))}]"
    if isinstance(value, dict) and not all(map(is_plain, value.values())):
        value = {key: type_name(item) for key, item in value.items()}
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS - 3] + "..."


def type_name(value: Any) -> str:
    """float32 [2, 3] for an array."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return (value if isinstance(value, type) else type(value)).__name__
