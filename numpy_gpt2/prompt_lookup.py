"""Prompt lookup: speculative decoding for greedy generation, with drafts copied from the text itself.

A pass over one token reads every weight; one over ten also reads them once, and takes only about three times as long.
So draft the next tokens, verify the draft in one pass, and keep the tokens that the model predicts too. Drafting is
free: if the last few tokens occurred before, the text may continue as it did then. The output is that of greedy
generation, since each token is the most likely one after the earlier ones. (A pass over several rows rounds differently
from a pass over one: if two tokens are equally likely up to rounding, either may be chosen.)

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", section 2; drafts from the prompt
as in transformers' `prompt_lookup_num_tokens`.
"""

from dataclasses import dataclass
from typing import Callable, Generator

import numpy as np

from .cache import KVCache
from .model import transform, unembed
from .scoring import Drawn, log_probs_of
from .tap import Tap, tap_of_pass
from .weights import GPT2

MATCHED = (3, 2)  # how many of the last tokens must have occurred before: three, otherwise two

# A pass with n drafted tokens takes about as long as 2 + n / 8 single-token passes (scripts/bench, two cores), so a
# wrong draft is expensive. But an unread guess is free, and the next token shows whether it was right. So guess at each
# step, and draft after this many right guesses in a row: up to twice as many tokens as guesses were right.
TRUSTED = 4

Process = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits and the ids so far -> logits to draw from


@dataclass
class LookupStatistics:
    """How well drafting worked; n_tokens / n_passes is the gain."""

    n_passes: int = 0
    n_tokens: int = 0
    n_drafted: int = 0
    n_accepted: int = 0


def draft_length(n_right: int, longest: int) -> int:
    """How many tokens to draft after n_right right guesses in a row."""
    return min(longest, 2 * n_right) if n_right >= TRUSTED else 0


def draft(ids: np.ndarray, length: int) -> np.ndarray:
    """What followed the latest earlier occurrence of the last tokens: ids [n] -> [length], or [0] if there is none.

    A continuation that reaches the end of the text is repeated, so that repetitions of two tokens are drafted further.
    """
    for n in MATCHED:
        if len(ids) <= n:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids, n)[:-1]  # [len(ids) - n, n], all but the last
        earlier = np.flatnonzero((windows == ids[-n:]).all(axis=-1))
        if len(earlier) > 0:
            went_on = ids[earlier[-1] + n:]
            return np.resize(went_on, length)  # repeats it as often as needed
    return ids[:0]


def lookup_steps(model: GPT2, prompt: np.ndarray, n_steps: int, eos_ids: list[int], process: Process, longest: int,
                 tap: Tap, n_top: int, statistics: LookupStatistics) -> Generator[Drawn, None, str]:
    """The greedy loop with drafts: prompt [n_prompt] -> at most n_steps tokens, one by one. Returns the finish reason.

    After each pass, drafted tokens that the model did not predict are removed from the cache.
    """
    end = len(prompt) + n_steps
    cache = KVCache(model, n_positions=end - 1)  # the last token is not read
    history = prompt
    unread = prompt  # not in the cache yet: the prompt, later the last token
    guessed = drafted = prompt[:0]  # drafted: the guessed tokens that are in the pass
    n_right = 0  # right guesses in a row
    while True:
        new_ids = np.concatenate([unread, drafted])  # [n_unread + n_drafted]
        hidden = transform(model, new_ids, cache=cache, tap=tap)  # [n_unread + n_drafted, n_embd]
        array_tap = tap_of_pass(tap, model.config, len(history) - 1)
        logits = unembed(model, hidden[len(unread) - 1:], array_tap)  # [1 + n_drafted, vocab_size]
        statistics.n_passes += 1
        statistics.n_drafted += len(drafted)
        for i, row in enumerate(logits):
            token = int(np.argmax(process(row, history)))
            right = i < len(guessed) and token == int(guessed[i])
            n_right = n_right + 1 if right else 0
            history = np.append(history, token)
            statistics.n_tokens += 1
            statistics.n_accepted += right and i < len(drafted)
            drawn = log_probs_of(row, np.array(token), n_top)
            yield drawn._replace(ids=token, log_probs=float(drawn.log_probs))
            if token in eos_ids:
                return "eos"
            if len(history) == end:
                return "length"
            if not right:
                break  # the rest was read after a different token
        cache.crop(len(history) - 1)
        unread = history[-1:]
        length = min(draft_length(n_right, longest), end - len(history) - 1)
        guessed = draft(history, length + 1)  # the pass predicts one token more than it reads
        drafted = guessed[:length]
