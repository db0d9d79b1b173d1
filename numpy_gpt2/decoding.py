"""The generation loop: from a prompt to tokens, and from tokens to streamed text.

    for token in generate_tokens(model, ids, max_new_tokens=40, temperature=0.8, seed=0): ...
    for piece in stream_text(model, tokenizer, "Once upon a time", stop_strings=["The end"]): ...
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Collection, Generator, Sequence, overload

import numpy as np

from .cache import KVCache
from .config import GenerationConfig, GenerationSettings
from .errors import check_int
from .model import check_ids, transform, unembed
from .prompt_lookup import LookupStatistics, Process, lookup_steps
from .sampling import GenerationOptions, LogitsProcessor, process_logits, sample
from .scoring import Drawn, log_probs_of, pad_ids
from .streams import SharedSteps, Stream, TextStream, side_by_side
from .tap import CheckedTap, Tap, no_tap, tap_of_pass
from .tokenizer import Tokenizer
from .weights import GPT2

if TYPE_CHECKING:
    from typing_extensions import Unpack  # which type checkers bring along; typing has it from Python 3.11 on


@overload
def generate_tokens(model: GPT2, ids: Sequence[int], max_new_tokens: int | None = None, *,
                    vocab_size: int | None = None, **options: Unpack[GenerationOptions]) -> Stream[int]: ...


@overload
def generate_tokens(model: GPT2, ids: Any, max_new_tokens: int | None = None, *, vocab_size: int | None = None,
                    num_return_sequences: int | None = None, generation_config: GenerationConfig = ...,
                    **options: Unpack[GenerationOptions]) -> Stream[Any]: ...


def generate_tokens(model: GPT2, ids: Any, max_new_tokens: int | None = None, *,
                    generation_config: GenerationConfig = GenerationConfig(), vocab_size: int | None = None,
                    top_log_probs: int = 0, logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = (),
                    tap: Tap = no_tap, **settings: Any) -> Stream[Any]:
    """Sample tokens one by one: an iterator over ids, one per step, with their log-probabilities (see `Stream`).

    ids: the prompt, [n_tokens] or with leading batch axes [*batch, n_tokens]; each step yields an int, or an array
        [*batch]; with num_return_sequences=n an array [n, *batch]. A row that has ended repeats its end until all have.
        Or a list of prompts of different lengths: those of equal length are batched, with the same results as alone.
    max_new_tokens, generation_config, settings: see `GenerationConfig`, whose fields can also be given by keyword. At
        most as many new tokens as fit into the context after the (longest) prompt, plus one.
    vocab_size: sample only from the first vocab_size ids, if the tokenizer has fewer than the model.
    top_log_probs: how many of the most likely tokens to record at each step, in the stream's `top_ids`.
    logits_processor: a function or several, called in turn at each step, after the repetition penalty and before the
        temperature: ids so far, the prompt included, [*rows, n_so_far], and logits [*rows, vocab_size] -> new logits,
        -inf for a token that must not be drawn. (With prompts of different lengths, once per length.)
    tap: an activation hook, given the arrays of every pass (tap.py).

    Raises ValueError for invalid arguments, TypeError for an unknown setting, before anything is computed; in the loop,
    FloatingPointError for logits that are not finite, ValueError for an invalid result of a logits processor.
    """
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    config = GenerationConfig.updated(generation_config, **settings)
    if config.stop_strings:
        raise ValueError(f"stop_strings need a tokenizer: stream_text takes them. Got {config.stop_strings}.")
    prompts = [check_ids(model, prompt).copy() for prompt in as_prompts(ids)]  # the caller may change theirs later
    batch = prompts[0].shape[:-1] if len(prompts) == 1 else (len(prompts),)
    n_steps = model.config.n_positions + 1 - max(prompt.shape[-1] for prompt in prompts)
    if config.max_new_tokens is not None:
        n_steps = min(n_steps, config.max_new_tokens)
    eos_ids = as_ids(model.config.eos_token_id if config.eos_token_id is None else config.eos_token_id)
    vocab_size = model.config.vocab_size if vocab_size is None else vocab_size
    check_int("vocab_size", vocab_size, 1, model.config.vocab_size)
    check_int("top_log_probs", top_log_probs, 0, model.config.vocab_size)
    CheckedTap(tap)  # which raises TypeError for what is no tap, before anything is computed
    processors: Sequence[Any] = logits_processor if isinstance(logits_processor, (list, tuple)) else [logits_processor]
    if not all(map(callable, processors)):
        raise ValueError(f"logits_processor must be a function, or a list of functions. Got {logits_processor!r}.")

    def process(logits: np.ndarray, previous_ids: np.ndarray) -> np.ndarray:
        return process_logits(logits[..., :vocab_size], previous_ids, config, processors)

    if config.prompt_lookup_num_tokens and batch:
        raise ValueError(f"prompt_lookup_num_tokens must be for one prompt. Got a batch of {batch}.")
    if config.prompt_lookup_num_tokens and n_steps > 0:
        lookup = LookupStatistics()
        return Stream(lookup_steps(model, prompts[0], n_steps, eos_ids, process, config.prompt_lookup_num_tokens, tap,
                                   top_log_probs, lookup), lookup)
    rows = batch if config.num_return_sequences is None else (config.num_return_sequences, *batch)
    children = np.random.SeedSequence(config.seed).spawn(math.prod(rows))
    generators = np.array([np.random.default_rng(child) for child in children]).reshape(rows)
    steps = partial(_steps, model, n_steps=n_steps, eos_ids=eos_ids, process=process, tap=tap, n_top=top_log_probs,
                    is_greedy=config.temperature == 0)
    if len(prompts) == 1:
        return Stream(steps(prompts[0], generators))
    lengths = np.array([len(prompt) for prompt in prompts])
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]  # rows that are drawn together
    return Stream(side_by_side([Stream(steps(np.stack([prompts[row] for row in group]), generators[..., group]))
                                for group in groups], groups))


def as_prompts(ids: Any) -> list[Any]:
    """A list of one prompt or batch; prompts of different lengths become separate elements."""
    try:
        np.asarray(ids)
    except ValueError:  # rows of different lengths
        padded, mask = pad_ids(ids)
        return [row[counts] for row, counts in zip(padded, mask)]
    return [ids]


def as_ids(eos_token_id: int | Sequence[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return [] if eos_token_id is None else np.ravel(eos_token_id).tolist()


def _steps(model: GPT2, prompt: np.ndarray, generators: np.ndarray, n_steps: int, eos_ids: list[int], process: Process,
           tap: Tap, n_top: int, is_greedy: bool) -> Generator[Drawn, None, Any]:
    """The loop itself, with checked arguments. Returns the finish reasons.

    prompt [*batch, n_prompt]; generators [*rows], where rows are the batch, or several samples of it, (n, *batch).
    """
    *batch, n_prompt = prompt.shape
    rows = generators.shape
    if n_steps == 0:
        return np.full(rows, "length").tolist()
    ends = np.array(eos_ids)  # [n_ends]
    ended = np.zeros(rows, dtype=bool)
    history = np.broadcast_to(prompt, (*rows, n_prompt))
    cache = KVCache(model, n_positions=n_prompt + n_steps - 1, batch=tuple(batch))  # the last token is not read
    logits = next_logits(model, prompt, cache, tap)  # [*batch, vocab_size]
    if len(rows) > len(batch):
        cache = cache.repeat(rows[0])
        logits = np.broadcast_to(logits, (*rows, logits.shape[-1]))

    for step in range(n_steps):
        processed = process(logits, history)
        if is_greedy:
            token = np.argmax(processed, axis=-1)  # [*rows], the lowest id on ties
        else:
            draws = np.array([generator.random() for generator in generators.flat])
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
    return np.where(ended, "eos", "length").tolist()  # a plain string without batch axes


def next_logits(model: GPT2, new_ids: np.ndarray, cache: KVCache, tap: Tap = no_tap) -> np.ndarray:
    """Process new tokens and return the logits of the next one: [*batch, n_new] -> [*batch, vocab_size].

    Only the last position is unembedded: the product with the whole vocabulary is the most expensive step of the pass.
    """
    hidden = transform(model, new_ids, cache=cache, tap=tap)  # [*batch, n_new, n_embd]
    return unembed(model, hidden[..., -1:, :], tap_of_pass(tap, model.config, cache.length - 1))[..., 0, :]


def stream_text(model: GPT2, tokenizer: Tokenizer, prompt: str, max_new_tokens: int | None = None, *,
                generation_config: GenerationConfig = GenerationConfig(), allowed_special: Collection[str] = (),
                **options: Unpack[GenerationOptions]) -> TextStream:
    """Stream the continuation of a prompt in pieces of text. An empty prompt starts from the end of text.

    Text that may be the beginning of a stop string is held back until that is decided. allowed_special: names of
    special tokens to recognize in the prompt, or "all", as for `Tokenizer.encode`. Other options and errors as for
    `generate_tokens`; only ids that the tokenizer has are sampled.
    """
    if "num_return_sequences" in options or getattr(generation_config, "num_return_sequences", None) not in (None, 1):
        raise ValueError("stream_text makes one text: stream_samples(..., num_return_sequences=n) makes several.")
    return stream_samples(model, tokenizer, prompt, 1, max_new_tokens, generation_config=generation_config,
                          allowed_special=allowed_special, **options)[0]


def stream_samples(model: GPT2, tokenizer: Tokenizer, prompt: str, num_return_sequences: int,
                   max_new_tokens: int | None = None, *, generation_config: GenerationConfig = GenerationConfig(),
                   allowed_special: Collection[str] = (), top_log_probs: int = 0,
                   logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = (), tap: Tap = no_tap,
                   **settings: Unpack[GenerationSettings]) -> list[TextStream]:
    """Several continuations of one prompt, generated as a batch; a stream for each, to read in any order or thread."""
    check_int("num_return_sequences", num_return_sequences, 1)
    n_samples = num_return_sequences if num_return_sequences > 1 else None
    config = GenerationConfig.updated(generation_config, num_return_sequences=n_samples, **settings)
    eos_ids = as_ids(config.eos_token_id)
    if config.eos_token_id is None:
        eos_ids = [*tokenizer.eos_ids, *as_ids(model.config.eos_token_id)]
    tokens = generate_tokens(model, tokenizer.encode(prompt, allowed_special) or tokenizer.with_bos(), max_new_tokens,
                             generation_config=config.updated(stop_strings=()),
                             vocab_size=min(tokenizer.vocab_size, model.config.vocab_size),
                             top_log_probs=top_log_probs, logits_processor=logits_processor, tap=tap)
    steps = SharedSteps(tokens)
    return [TextStream(steps, row, tokenizer, eos_ids, config.stop_strings) for row in range(num_return_sequences)]
