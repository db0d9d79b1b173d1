"""Several tokens for one reading of the weights: drafts from the text itself, for greedy generation.

A pass for one token reads every weight; a pass for ten reads them once as well, and takes two to three times as long.
So guess how the text goes on, read the guess in one pass, and keep what the model would have said itself. The guess
costs nothing: where the last few tokens stood before, the text may go on as it did then. What comes out is what plain
greedy generation writes, for each token is the likeliest after the ones before it, whoever guessed it.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", section 2; drafts from the prompt
as in transformers' `prompt_lookup_num_tokens`.
"""

from dataclasses import dataclass
from typing import Generator, Sequence

import numpy as np

from .cache import KVCache
from .model import GPT2, transform, unembed
from .sampling import Sampling, choose_greedily, process_logits

MATCHED = (3, 2)  # how many last tokens must have stood before: better three, or else two

# What a draft may cost, counted in passes for one token. A pass with n drafted tokens takes about 2 + n / 8 of them on
# two cores (scripts/bench.py), so it wastes 1 + n / 8 if all are wrong. Every plain pass earns a little towards such a
# waste, and every token guessed right earns what it saved: text that does not repeat loses a few percent at most.
FIRST_CREDIT = 2.0
CREDIT_PER_PASS = 0.02
LARGEST_CREDIT = 6.0


@dataclass
class LookupStatistics:
    """How well the drafts did: tokens per pass is what they gained."""

    n_passes: int = 0
    n_tokens: int = 0
    n_drafted: int = 0
    n_accepted: int = 0


class DraftBudget:
    """How long the next draft may be: as long as what it wastes, should it be wrong, has been earned before."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.credit = FIRST_CREDIT

    def length(self) -> int:
        """Tokens to draft, 0 for none."""
        return max(0, min(self.longest, int(8 * (self.credit - 1))))

    def settle(self, n_drafted: int, n_accepted: int) -> None:
        """Account for one pass."""
        cost = 1 + n_drafted / 8 if n_drafted else 0.0
        self.credit = min(LARGEST_CREDIT, self.credit + CREDIT_PER_PASS + n_accepted - cost)


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


def lookup_steps(model: GPT2, prompt: np.ndarray, n_steps: int, eos_ids: Sequence[int], vocab_size: int,
                 sampling: Sampling, longest: int, statistics: LookupStatistics) -> Generator[int, None, str]:
    """The greedy loop with drafts: prompt [n_prompt] -> ids, one by one. Returns the finish reason.

    After each pass the cache forgets the drafted tokens that the model did not agree with.
    """
    cache = KVCache(model, n_positions=len(prompt) + n_steps - 1)
    budget = DraftBudget(longest)
    history = prompt
    unread = prompt  # what the cache has not seen: the prompt, later the last token
    drafted = prompt[:0]
    for _ in range(n_steps):  # a pass gives one token or more, so these are enough
        hidden = transform(model, np.concatenate([unread, drafted]), cache)  # [n_unread + n_drafted, n_embd]
        logits = unembed(model, hidden[len(unread) - 1:])  # [1 + n_drafted, vocab_size]
        statistics.n_passes += 1
        statistics.n_drafted += len(drafted)
        n_accepted = 0
        for i in range(1 + len(drafted)):
            token = int(choose_greedily(process_logits(logits[i, :vocab_size], history, sampling)))
            history = np.append(history, token)
            statistics.n_tokens += 1
            accepted = i < len(drafted) and token == int(drafted[i])
            n_accepted += accepted
            statistics.n_accepted += accepted
            yield token
            if token in eos_ids:
                return "eos"
            if len(history) == len(prompt) + n_steps:
                return "length"
            if not accepted:
                break
        cache.crop(len(history) - 1)
        budget.settle(len(drafted), n_accepted)
        unread = history[-1:]
        n_left = len(prompt) + n_steps - len(history)
        drafted = draft(history, min(budget.length(), n_left - 1))
    return "length"
