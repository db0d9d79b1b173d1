"""The generation loop: from a prompt to tokens, and from tokens to text as it is made.

    for token in generate_tokens(model, ids, max_new_tokens=40, temperature=0.8, seed=0): ...
    for piece in stream_text(model, tokenizer, "Once upon a time", stop_strings=["The end"]): ...
"""

import itertools
import operator
from typing import Any, Generator, Iterable, Iterator, Sequence, TypeVar

import numpy as np

from .cache import KVCache
from .model import check_ids, transform, unembed
from .weights import GPT2
from .prompt_lookup import LookupStatistics, lookup_steps
from .sampling import Sampling, choose, choose_greedily, process_logits
from .tokenizer import Tokenizer

T = TypeVar("T")


class Stream(Iterator[T]):
    """An iterator that, once it has ended, tells why in `finish_reason`.

    "eos": the end of text came; "stop": a stop string came; "length": max_new_tokens or the context was reached.
    Before the end it is None; for a batch it is a list, a reason for each row. `lookup` counts what drafts did, None
    without them.
    """

    def __init__(self, steps: Generator[T, None, Any], lookup: LookupStatistics | None = None) -> None:
        self._steps = steps
        self.lookup = lookup
        self._error: Exception | None = None
        self.finish_reason: Any = None

    def __next__(self) -> T:
        if self._error is not None:
            raise self._error  # a generator that has failed would go on as if it had ended
        try:
            return next(self._steps)
        except StopIteration as end:
            self.finish_reason = self.finish_reason or end.value
            raise
        except Exception as error:
            self._error = error
            raise


class TextStream(Stream[str]):
    """Pieces of text as they are decided; `ids` are the tokens drawn so far, those of text held back included."""

    def __init__(self, steps: Generator[str, None, str], ids: list[int], lookup: LookupStatistics | None) -> None:
        super().__init__(steps, lookup)
        self.ids = ids


# Tokens ---------------------------------------------------------------------------------------------------------------


def generate_tokens(model: GPT2, ids: Any, max_new_tokens: int | None = None, *,
                    num_return_sequences: int | None = None, seed: int | None = None,
                    eos_token_id: int | Sequence[int] | None = None, vocab_size: int | None = None,
                    prompt_lookup_num_tokens: int | None = None, **sampling: float) -> Stream[Any]:
    """Draw tokens one after another: an iterator over ids, one a step.

    ids: the prompt, [n_tokens] or with leading batch axes [*batch, n_tokens] (prompts of one length); each step gives
        an int, or an array [*batch].
    max_new_tokens: None goes on to the end of the context; a prompt that fills the context still gets one token.
    num_return_sequences: n samples of each prompt, which share the reading of it; every step gives [n, *batch].
    seed: the same seed draws the same tokens, and sample 0 the same ones however many samples there are.
    eos_token_id: ends a row (None: the config's; -1: nothing does); an ended row repeats it until all have ended.
    vocab_size: draw only from the first so many ids, where the tokenizer knows fewer than the model.
    prompt_lookup_num_tokens: for greedy generation of one row, draft so many tokens at most from the text itself
        (prompt_lookup.py): the same ids, sooner where the text repeats itself. None or 0 is off.
    sampling: temperature, top_k, top_p, min_p, repetition_penalty (see `Sampling`).

    Raises ValueError for arguments that make no sense, before anything is computed; FloatingPointError, in the loop,
    for logits that are not finite.
    """
    settings = Sampling(**sampling)  # type: ignore[arg-type]
    prompt = check_ids(model, ids).copy()  # the caller may change theirs between two steps
    n_prompt = prompt.shape[-1]
    n_steps = model.config.n_positions - n_prompt + 1
    if max_new_tokens is not None:
        if operator.index(max_new_tokens) < 0:
            raise ValueError(f"max_new_tokens must be 0 or more. Got {max_new_tokens}.")
        n_steps = min(n_steps, max_new_tokens)
    if num_return_sequences is not None and operator.index(num_return_sequences) < 1:
        raise ValueError(f"num_return_sequences must be 1 or more. Got {num_return_sequences}.")
    if seed is not None and operator.index(seed) < 0:
        raise ValueError(f"seed must be 0 or more. Got {seed}.")
    if vocab_size is None:
        vocab_size = model.config.vocab_size
    if not 1 <= operator.index(vocab_size) <= model.config.vocab_size:
        raise ValueError(f"vocab_size must be from 1 to {model.config.vocab_size}, the model's. Got {vocab_size}.")
    eos_ids = as_ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    if prompt_lookup_num_tokens is not None and operator.index(prompt_lookup_num_tokens) < 0:
        raise ValueError(f"prompt_lookup_num_tokens must be 0 or more. Got {prompt_lookup_num_tokens}.")
    if prompt_lookup_num_tokens and settings.temperature != 0:
        raise ValueError("prompt_lookup_num_tokens drafts the likeliest tokens: temperature must be 0 with it. "
                         f"Got {settings.temperature}.")
    if prompt_lookup_num_tokens and (prompt.ndim > 1 or num_return_sequences not in (None, 1)):
        raise ValueError("prompt_lookup_num_tokens must be for one prompt and one sample. Got a batch.")
    if prompt_lookup_num_tokens and n_steps > 0:
        lookup = LookupStatistics()
        steps = lookup_steps(model, prompt, n_steps, eos_ids, vocab_size, settings, prompt_lookup_num_tokens, lookup)
        return Stream(steps if num_return_sequences is None else _as_batch(steps), lookup)
    return Stream(_steps(model, prompt, n_steps, num_return_sequences, seed, eos_ids, vocab_size, settings))


def _as_batch(steps: Generator[int, None, str]) -> Generator[np.ndarray, None, list[str]]:
    """The ids of one row as those of a batch of one, which is what num_return_sequences=1 asks for."""
    while True:
        try:
            token = next(steps)
        except StopIteration as end:
            return [end.value]
        yield np.array([token])


def as_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """One id, several or none, as a list. Raises ValueError for what is no whole number."""
    ids = [] if eos_token_id is None else np.ravel(eos_token_id).tolist()
    if not all(type(token_id) is int for token_id in ids):
        raise ValueError(f"eos_token_id must be a token id or a list of them. Got {eos_token_id!r}.")
    return ids


def _steps(model: GPT2, prompt: np.ndarray, n_steps: int, n_samples: int | None, seed: int | None, eos_ids: list[int],
           vocab_size: int, sampling: Sampling) -> Generator[Any, None, Any]:
    """The loop itself, with arguments that have been checked. Returns the finish reasons."""
    *batch, n_prompt = prompt.shape
    rows = tuple(batch) if n_samples is None else (n_samples, *batch)
    if n_steps == 0:
        return np.full(rows, "length").tolist()
    ended = np.zeros(rows, dtype=bool)
    history = np.broadcast_to(prompt, (*rows, n_prompt))
    generators = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(ended.size)]
    cache = KVCache(model, n_positions=n_prompt + n_steps - 1, batch=tuple(batch))  # the last token is not read
    logits = next_logits(model, prompt, cache)  # [*batch, vocab_size]
    if n_samples is not None:
        cache = cache.repeat(n_samples)
        logits = np.broadcast_to(logits, (*rows, logits.shape[-1]))

    for step in range(n_steps):
        processed = process_logits(logits[..., :vocab_size], history, sampling)
        if sampling.temperature == 0:
            token = choose_greedily(processed)  # [*rows]
        else:
            draws = np.array([generator.random() for generator in generators])
            token = choose(processed, draws.reshape(rows))  # [*rows]
        token = np.where(ended, history[..., -1], token)  # an ended row repeats its end
        ended = ended | np.isin(token, eos_ids)
        yield int(token) if token.ndim == 0 else token.copy()  # whoever gets it may write to it
        if ended.all() or step == n_steps - 1:
            break
        history = np.concatenate([history, token[..., np.newaxis]], axis=-1)  # [*rows, n_so_far]
        logits = next_logits(model, token[..., np.newaxis], cache)
    return np.where(ended, "eos", "length").tolist()  # a plain string where there are no batch axes


def next_logits(model: GPT2, new_ids: np.ndarray, cache: KVCache) -> np.ndarray:
    """Read new tokens and score the one to follow: [*batch, n_new] -> [*batch, vocab_size].

    Only the last position is unembedded: the product with the whole vocabulary is the dearest of the pass.
    """
    hidden = transform(model, new_ids, cache=cache)  # [*batch, n_new, n_embd]
    return unembed(model, hidden[..., -1, :])  # [*batch, vocab_size]


# Text -----------------------------------------------------------------------------------------------------------------


def stream_text(model: GPT2, tokenizer: Tokenizer, prompt: str, max_new_tokens: int | None = None,
                **options: Any) -> TextStream:
    """The continuation of a prompt, in pieces of text as they are made. An empty prompt starts from the end of text.

    stop_strings: a list of texts, the first of which to appear ends the run; it is left out, and what may be the
    beginning of one is held back until it is decided. Other options (seed, eos_token_id, temperature, top_k, top_p,
    min_p, repetition_penalty, prompt_lookup_num_tokens) and errors as for `generate_tokens`; only ids that the
    tokenizer knows are drawn.
    """
    return stream_samples(model, tokenizer, prompt, 1, max_new_tokens, **options)[0]


def stream_samples(model: GPT2, tokenizer: Tokenizer, prompt: str, num_return_sequences: int,
                   max_new_tokens: int | None = None, *, stop_strings: Sequence[str] | None = None,
                   eos_token_id: int | Sequence[int] | None = None, **options: Any) -> list[TextStream]:
    """Several continuations of one prompt, a stream for each. They are drawn together, whichever is read first."""
    stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
    if not all(isinstance(stop, str) and stop for stop in stop_strings):
        raise ValueError(f"stop_strings must be texts, none empty. Got {stop_strings!r}.")
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    if eos_token_id is None:
        eos_token_id = [tokenizer.eot_id, *as_ids(model.config.eos_token_id)]
    eos_ids = as_ids(eos_token_id)
    vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
    steps = generate_tokens(model, ids, max_new_tokens, num_return_sequences=num_return_sequences,
                            eos_token_id=eos_ids, vocab_size=vocab_size, **options)
    streams = []
    for row, branch in enumerate(itertools.tee(steps, num_return_sequences)):  # tee keeps what a slower reader needs
        drawn: list[int] = []
        pieces = _text(tokenizer, branch, row, eos_ids, stop_strings, drawn)
        streams.append(TextStream(pieces, drawn, steps.lookup))
    return streams


def _text(tokenizer: Tokenizer, steps: Iterable[np.ndarray], row: int, eos_ids: list[int], stop_strings: list[str],
          drawn: list[int]) -> Generator[str, None, str]:
    """One row's text up to its end. Returns the finish reason."""
    ended = False

    def ids_until_end() -> Iterator[int]:
        nonlocal ended
        for tokens in steps:
            token = int(tokens[row])
            drawn.append(token)
            if token in eos_ids:
                ended = True
                return
            yield token

    stopped = yield from until_stop(tokenizer.decode_stream(ids_until_end()), stop_strings)
    return "stop" if stopped else "eos" if ended else "length"


def until_stop(pieces: Iterable[str], stop_strings: Sequence[str]) -> Generator[str, None, bool]:
    """The pieces of a text up to the first stop string. Returns whether one came.

    The text that comes out does not depend on where the pieces were cut.
    """
    held_back = ""
    for piece in pieces:
        held_back += piece
        start = find_stop(held_back, stop_strings)
        if start is not None:
            if start > 0:
                yield held_back[:start]
            return True
        decided = len(held_back) - longest_beginning(held_back, stop_strings)
        if decided > 0:
            yield held_back[:decided]
            held_back = held_back[decided:]
    if held_back:
        yield held_back
    return False


def find_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins, or None."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stop_strings if stop in text]
    return min(found)[1] if found else None


def longest_beginning(text: str, stop_strings: Sequence[str]) -> int:
    """The length of the longest end of the text with which a stop string begins."""
    beginnings = [stop[:length] for stop in stop_strings for length in range(1, len(stop))]
    return max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
