"""The page that `score --html` writes: a text with each token coloured by its surprisal.

Its parts are `scored_text.html`, `.css` and `.js` in this folder, with the style and building blocks of the `explore`
page. One file, which needs no network.
"""

from functools import cache
from typing import Sequence

import numpy as np

from ..scoring import Scores
from ..tokenizer import Tokenizer
from .page import rounded, token_name
from .rendering import DATA, assemble, policy_for, read, script_safe_json

MOST_SHOWN = 20_000  # tokens: a page of about 2 MB, which a browser still scrolls smoothly


def check_fits_page(n_tokens: int) -> None:
    """Raise ValueError for more than MOST_SHOWN tokens."""
    if n_tokens > MOST_SHOWN:
        raise ValueError(f"a page can show at most {MOST_SHOWN:,} tokens. Got {n_tokens:,}: shorten the text.")


def scored_page(tokenizer: Tokenizer, ids: Sequence[int], scores: Scores, vocab_size: int, lead: str) -> str:
    """The page for ids [n_tokens], of which the last n_scored have scores. lead: a sentence about the whole text."""
    n_unscored = len(ids) - len(scores.log_probs)
    surprise = rounded(-scores.log_probs, 4)  # [n_scored]
    probabilities = rounded(np.exp(scores.top_log_probs), 5)  # [n_scored, n_top]
    top = [list(zip(*row)) for row in zip(scores.top_ids.tolist(), probabilities)]
    shown = {*ids, *np.ravel(scores.top_ids).tolist()}
    data = {
        "lead": lead,
        "vocab_size": vocab_size,
        "ids": list(ids),
        "names": {token_id: token_name(tokenizer, token_id) if token_id < tokenizer.vocab_size else "no token"
                  for token_id in sorted(shown)},
        "surprise": [None] * n_unscored + surprise,
        "ranks": [0] * n_unscored + scores.ranks.tolist(),
        "top": [[]] * n_unscored + top,
    }
    return template().replace(DATA, script_safe_json(data))


@cache
def template() -> str:
    """The page without its data; the policy allows nothing but its own script and style, by their hashes."""
    style = "\n" + read("page.css") + read("scored_text.css")
    script = '\n"use strict";\n\n' + "\n".join(map(read, ("scripts/elements.js", "scripts/pointing.js",
                                                          "scored_text.js")))
    return assemble(read("scored_text.html"), style, script, policy_for(style, script))
