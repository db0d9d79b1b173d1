"""The law of each exercise: the engine's function, random cases, and how the function is called."""

from . import operations_law, pass_law
from .law import Law

LAWS: dict[str, Law] = {**operations_law.LAWS, **pass_law.LAWS}
