"""Several tokens for one reading of the weights: drafts from the text itself, for greedy generation.

A pass for one token reads every weight; a pass for ten reads them once as well, and takes about three times as long.
So guess how the text goes on, read the guess in one pass, and keep what the model would have said itself. The guess
costs nothing: where the last few tokens stood before, the text may go on as it did then. What comes out is what plain
greedy generation writes, for each token is the likeliest after the ones before it, whoever guessed it. (Several rows
are rounded otherwise than one: where two tokens are likely to within rounding, either may come.)

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", section 2; drafts from the prompt
as in transformers' `prompt_lookup_num_tokens`.
"""

from dataclasses import dataclass
from typing import Generator

import numpy as np

from .cache import KVCache
from .config import GenerationConfig
from .model import transform, unembed
from .sampling import process_logits
from .tap import Tap
from .weights import GPT2

MATCHED = (3, 2)  # how many last tokens must have stood before: better three, or else two

# A pass with n drafted tokens takes about as long as 2 + n / 8 passes for one token (scripts/bench, two cores), so a
# wrong draft is expensive. But a guess that nobody reads costs nothing, and the next token tells whether it was right:
# so guess at every step, and draft when that many guesses in a row have been right, then up to twice as many as were.
TRUSTED = 4


@dataclass
class LookupStatistics:
    """How well the drafts did: tokens per pass is what they gained."""

    n_passes: int = 0
    n_tokens: int = 0
    n_drafted: int = 0
    n_accepted: int = 0


def draft_length(n_right: int, longest: int) -> int:
    """How many tokens to draft after so many right guesses in a row; 0 for none."""
    return min(longest, 2 * n_right) if n_right >= TRUSTED else 0


def draft(ids: np.ndarray, length: int) -> np.ndarray:
    """How the text went on after the latest earlier occurrence of its last tokens: ids [n] -> [at most length].

    Where that runs into the end of the text, it goes on from there as it would then: a text that repeats two tokens
    drafts them over and over. Empty where the last tokens never stood before.
    """
    for n in MATCHED:
        if len(ids) <= n:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids, n)[:-1]  # all n tokens side by side but the last ones
        earlier = np.flatnonzero((windows == ids[-n:]).all(axis=-1))
        if len(earlier) > 0:
            went_on = ids[earlier[-1] + n:]
            return np.resize(went_on, length)  # repeats it as often as that needs
    return ids[:0]


def lookup_steps(model: GPT2, prompt: np.ndarray, n_steps: int, eos_ids: list[int], vocab_size: int,
                 config: GenerationConfig, tap: Tap, statistics: LookupStatistics) -> Generator[int, None, str]:
    """The greedy loop with drafts: prompt [n_prompt] -> n_steps ids at most, one by one. Returns the finish reason.

    After each pass the cache forgets the drafted tokens that the model did not agree with.
    """
    end = len(prompt) + n_steps
    cache = KVCache(model, n_positions=end - 1)  # the last token is not read
    longest = config.prompt_lookup_num_tokens or 0
    history = prompt
    unread = prompt  # what the cache has not seen: the prompt, later the last token
    guessed = drafted = prompt[:0]  # of what is guessed, what is read too
    n_right = 0  # guesses in a row
    while True:
        new_ids = np.concatenate([unread, drafted])  # [n_unread + n_drafted]
        hidden = transform(model, new_ids, cache=cache, tap=tap)  # [n_unread + n_drafted, n_embd]
        logits = unembed(model, hidden[len(unread) - 1:], tap)  # [1 + n_drafted, vocab_size]
        statistics.n_passes += 1
        statistics.n_drafted += len(drafted)
        for i, row in enumerate(logits):
            token = int(np.argmax(process_logits(row[:vocab_size], history, config)))
            right = i < len(guessed) and token == int(guessed[i])
            n_right = n_right + 1 if right else 0
            history = np.append(history, token)
            statistics.n_tokens += 1
            statistics.n_accepted += right and i < len(drafted)
            yield token
            if token in eos_ids:
                return "eos"
            if len(history) == end:
                return "length"
            if not right:
                break  # the rest was read after another token than this
        cache.crop(len(history) - 1)
        unread = history[-1:]
        length = min(draft_length(n_right, longest), end - len(history) - 1)
        guessed = draft(history, length + 1)  # the pass gives one token more than it is given
        drafted = guessed[:length]
