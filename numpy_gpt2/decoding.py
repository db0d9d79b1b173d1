"""The generation loop: from a prompt to tokens, and from tokens to text as it is made.

    for token in generate_tokens(model, ids, max_new_tokens=40, temperature=0.8, seed=0): ...
    for piece in stream_text(model, tokenizer, "Once upon a time", stop_strings=["The end"]): ...
"""

from typing import Any, Collection, Generator, Sequence

import numpy as np

from .cache import KVCache
from .config import GenerationConfig
from .errors import check_int
from .model import check_ids, transform, unembed
from .prompt_lookup import LookupStatistics, lookup_steps
from .sampling import process_logits, sample
from .scoring import Drawn, log_probs_of
from .streams import SharedSteps, Stream, TextStream
from .tap import Tap, no_tap
from .tokenizer import Tokenizer
from .weights import GPT2


def generate_tokens(model: GPT2, ids: Any, max_new_tokens: int | None = None, *,
                    generation_config: GenerationConfig = GenerationConfig(), vocab_size: int | None = None,
                    top_log_probs: int = 0, tap: Tap = no_tap, **settings: Any) -> Stream[Any]:
    """Draw tokens one after another: an iterator over ids, one a step, with their log-probabilities (see `Stream`).

    ids: the prompt, [n_tokens] or with leading batch axes [*batch, n_tokens] (prompts of equal length); each step gives
        an int, or an array [*batch]; with num_return_sequences=n an array [n, *batch]. A row that has ended repeats its
        end until all have. A prompt that fills the context still gets one token.
    max_new_tokens, generation_config, settings: see `GenerationConfig`, whose fields are settings by keyword too.
    vocab_size: draw only from the first so many ids, where the tokenizer knows fewer than the model.
    top_log_probs: how many of the likeliest tokens to remember at each step, in the stream's `top_ids`.
    tap: an activation hook, given the arrays of every pass (tap.py).

    Raises ValueError for arguments that make no sense, TypeError for an unknown setting, before anything is computed;
    FloatingPointError, in the loop, for logits that are not finite.
    """
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    config = generation_config.updated(**settings)
    if config.stop_strings:
        raise ValueError(f"stop_strings need a tokenizer: stream_text takes them. Got {config.stop_strings}.")
    prompt = check_ids(model, ids).copy()  # the caller may change theirs between two steps
    n_steps = model.config.n_positions - prompt.shape[-1] + 1
    if config.max_new_tokens is not None:
        n_steps = min(n_steps, config.max_new_tokens)
    eos_ids = as_ids(model.config.eos_token_id if config.eos_token_id is None else config.eos_token_id)
    if vocab_size is None:
        vocab_size = model.config.vocab_size
    check_int("vocab_size", vocab_size, 1, model.config.vocab_size)
    check_int("top_log_probs", top_log_probs, 0, model.config.vocab_size)
    if config.prompt_lookup_num_tokens and prompt.ndim > 1:
        raise ValueError(f"prompt_lookup_num_tokens must be for one prompt. Got a batch of {prompt.shape[:-1]}.")
    if config.prompt_lookup_num_tokens and n_steps > 0:
        lookup = LookupStatistics()
        return Stream(lookup_steps(model, prompt, n_steps, eos_ids, vocab_size, config, tap, top_log_probs, lookup),
                      lookup)
    return Stream(_steps(model, prompt, n_steps, eos_ids, vocab_size, config, tap, top_log_probs))


def as_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return [] if eos_token_id is None else np.ravel(eos_token_id).tolist()


def _steps(model: GPT2, prompt: np.ndarray, n_steps: int, eos_ids: list[int], vocab_size: int,
           config: GenerationConfig, tap: Tap, n_top: int) -> Generator[Drawn, None, Any]:
    """The loop itself, with arguments that have been checked. Returns the finish reasons."""
    *batch, n_prompt = prompt.shape
    n_samples = config.num_return_sequences
    rows = tuple(batch) if n_samples is None else (n_samples, *batch)
    if n_steps == 0:
        return np.full(rows, "length").tolist()
    ends = np.array(eos_ids)  # [n_ends]
    ended = np.zeros(rows, dtype=bool)
    history = np.broadcast_to(prompt, (*rows, n_prompt))
    generators = [np.random.default_rng(child) for child in np.random.SeedSequence(config.seed).spawn(ended.size)]
    cache = KVCache(model, n_positions=n_prompt + n_steps - 1, batch=tuple(batch))  # the last token is not read
    logits = next_logits(model, prompt, cache, tap)  # [*batch, vocab_size]
    if n_samples is not None:
        cache = cache.repeat(n_samples)
        logits = np.broadcast_to(logits, (*rows, logits.shape[-1]))

    for step in range(n_steps):
        processed = process_logits(logits[..., :vocab_size], history, config)
        if config.temperature == 0:
            token = np.argmax(processed, axis=-1)  # [*rows], the lowest id of equals
        else:
            draws = np.array([generator.random() for generator in generators])
            token = sample(processed, draws.reshape(rows))  # [*rows]
        token = np.where(ended, history[..., -1], token)  # an ended row repeats its end
        drawn = log_probs_of(logits, token, n_top)
        if rows:
            yield drawn._replace(log_probs=np.where(ended, 0, drawn.log_probs))
        else:
            yield drawn._replace(ids=int(token), log_probs=float(drawn.log_probs))
        ended = ended | (token[..., np.newaxis] == ends).any(axis=-1)
        if ended.all() or step == n_steps - 1:
            break
        history = np.concatenate([history, token[..., np.newaxis]], axis=-1)  # [*rows, n_so_far]
        logits = next_logits(model, token[..., np.newaxis], cache, tap)
    return np.where(ended, "eos", "length").tolist()  # a plain string where there are no batch axes


def next_logits(model: GPT2, new_ids: np.ndarray, cache: KVCache, tap: Tap = no_tap) -> np.ndarray:
    """Read new tokens and score the one to follow: [*batch, n_new] -> [*batch, vocab_size].

    Only the last position is unembedded: the product with the whole vocabulary is the most expensive step of the pass.
    """
    hidden = transform(model, new_ids, cache=cache, tap=tap)  # [*batch, n_new, n_embd]
    return unembed(model, hidden[..., -1:, :], tap)[..., 0, :]  # [*batch, vocab_size]


def stream_text(model: GPT2, tokenizer: Tokenizer, prompt: str, max_new_tokens: int | None = None,
                **options: Any) -> TextStream:
    """The continuation of a prompt, in pieces of text as they are made. An empty prompt starts from the end of text.

    What may begin one of the stop_strings is held back until it is decided. allowed_special: names of special tokens,
    or "all", that are no plain text in the prompt, as for `Tokenizer.encode`. Other options and errors as for
    `generate_tokens`; only ids that the tokenizer knows are drawn.
    """
    return stream_samples(model, tokenizer, prompt, 1, max_new_tokens, **options)[0]


def stream_samples(model: GPT2, tokenizer: Tokenizer, prompt: str, num_return_sequences: int,
                   max_new_tokens: int | None = None, *, generation_config: GenerationConfig = GenerationConfig(),
                   allowed_special: Collection[str] = (), top_log_probs: int = 0, tap: Tap = no_tap,
                   **settings: Any) -> list[TextStream]:
    """Several continuations of one prompt, a stream for each: drawn together, and read in any order, or by threads."""
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    check_int("num_return_sequences", num_return_sequences, 1)
    n_samples = num_return_sequences if num_return_sequences > 1 else None
    config = generation_config.updated(num_return_sequences=n_samples, **settings)
    eos_ids = as_ids(config.eos_token_id)
    if config.eos_token_id is None:
        eos_ids = [*tokenizer.eos_ids, *as_ids(model.config.eos_token_id)]
    steps = generate_tokens(model, tokenizer.encode(prompt, allowed_special) or tokenizer.with_bos(),
                            generation_config=config.updated(eos_token_id=eos_ids, stop_strings=()),
                            vocab_size=min(tokenizer.vocab_size, model.config.vocab_size),
                            top_log_probs=top_log_probs, tap=tap)
    shared = SharedSteps(steps)
    return [TextStream(shared, row, tokenizer, eos_ids, config.stop_strings) for row in range(num_return_sequences)]
