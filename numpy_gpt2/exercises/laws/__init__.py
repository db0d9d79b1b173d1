"""The law of each exercise: the engine's function, random cases, and how the function is called."""

from . import backward_law, cache_law, inside_law, operations_law, pass_law, sampling_law, survey_law, tokens_law
from .law import Law

LAWS: dict[str, Law] = {**tokens_law.LAWS, **operations_law.LAWS, **pass_law.LAWS, **cache_law.LAWS,
                        **sampling_law.LAWS, **survey_law.LAWS, **inside_law.LAWS, **backward_law.LAWS}
