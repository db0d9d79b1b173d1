"""How well a model predicts a text: the log-probability of each token, and the measures computed from them.

    scores = score_tokens(model, ids)
    scores.log_probs         [n_tokens - 1]: of each token but the first, given those before it (natural logarithm)
    scores.mean_loss         -mean(log_probs): the cross-entropy in nats per token, which training minimises
    scores.perplexity        exp(mean_loss): as uncertain as a uniform choice among that many tokens
    scores.bits_per_byte(n)  -sum(log_probs) / ln(2) / n: the size, per byte, of the text compressed with this model

Losses per token are comparable only between models with the same tokenizer, since longer tokens are fewer and harder to
predict. Bits per byte are comparable between any two models.

A text longer than the context is scored in overlapping windows, each `stride` tokens after the one before. A window
scores only the tokens that no earlier window has scored:

    context 8, stride 4      0 1 2 3 4 5 6 7 8 9 10 11 12 13
    first window            (0)1 2 3 4 5 6 7                      scores 1 to 7; nothing predicts 0
    second window                   (4 5 6 7)8 9 10 11            reads 4 to 7 again, scores 8 to 11
    third window                            (8 9 10 11)12 13      reads 8 to 11 again, scores 12 and 13

So each token is scored once, and after the first window always with at least n_positions - stride tokens before it. A
small stride gives every token nearly the full context, at n_positions / stride times the cost.

Source: "Perplexity of fixed-length models" in transformers' documentation. (Its example weights the losses of later
windows by one token too few; here every token has the same weight.) summary/README.md has the GPT-2 paper's figures.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from .errors import as_array, check_int, shown
from .model import check_ids, transform, unembed
from .sampling import check_finite
from .tap import Tap, no_tap, tap_of_pass, watches
from .weights import GPT2

# Positions to unembed at a time. The logits of a full window, 1024 rows of 50257, take 206 MB; these take 26 MB, and
# the matrix product still runs at full speed.
ROWS_AT_ONCE = 128
ROWS_IN_CACHE = 16  # few enough that their probabilities over the vocabulary stay in the processor's cache
LEFT_OUT = -100  # the target of an ignored position, as in transformers


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of each token of a text but the first, in order; for several texts, rows of them."""

    log_probs: np.ndarray  # [n_scored], float64: the natural logarithm of each token's probability; 0 where masked
    ranks: np.ndarray  # [n_scored]: 1 + the number of more likely tokens
    top_ids: np.ndarray  # [n_scored, n_top]: the most likely tokens at each position, in descending order
    top_log_probs: np.ndarray  # [n_scored, n_top], float64
    mask: np.ndarray | None = None  # [n_scored]: true for tokens that count; None: all do

    @property
    def n_counted(self) -> int:
        """The number of scored tokens that are not masked."""
        return self.log_probs.size if self.mask is None else int(np.count_nonzero(self.mask))

    @property
    def mean_loss(self) -> float:
        """The mean cross-entropy of the counted tokens, in nats: transformers' loss."""
        return -float(np.sum(self.log_probs)) / self.n_counted

    @property
    def perplexity(self) -> float:
        """exp(mean_loss), or infinity where that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.mean_loss))

    def bits_per_byte(self, n_bytes: int) -> float:
        """Total loss in bits, divided by `n_bytes`, the scored text's length in UTF-8. Raises ValueError below 1."""
        return -float(np.sum(self.log_probs)) / math.log(2) / check_int("n_bytes", n_bytes, 1)

    def __repr__(self) -> str:
        if self.n_counted == 0:
            return "Scores(0 tokens)"
        return f"Scores({self.n_counted:,} tokens, mean_loss {self.mean_loss:.4f}, perplexity {self.perplexity:.2f})"

    def _repr_html_(self) -> str:
        from .html import scores_html
        return scores_html(self)


def score_tokens(model: GPT2, ids: Any, stride: int | None = None, n_top: int = 0, *, mask: Any = None,
                 tap: Tap = no_tap) -> Scores:
    """Score each token but the first, given those before it: ids [n_tokens] -> log_probs [n_tokens - 1].

    ids: one text of two or more tokens, of any length. Prepend `<|endoftext|>` to score the whole text.
        Or several texts, [*batch, n_tokens]: `ids, mask = pad_ids(texts)` pads them to equal length.
    stride: tokens from one window to the next, from 1 to n_positions - 1. The default is half the context, as in
        transformers' example: after the first window every token sees at least half the context, and no token is read
        more than twice. A text that fits the context is one window, whatever the stride.
    n_top: how many of the most likely tokens to report at each position.
    mask: booleans of the shape of ids. Tokens where it is false have a log_prob of 0, and do not count in the mean.
    tap: an activation hook, which gets the arrays of every window. Each window begins at position 0 of the context.

    Raises ValueError for invalid arguments, before any computation, and FloatingPointError for logits that are not
    finite. Memory: the activations of one window, and the logits of ROWS_AT_ONCE positions, or of all scored positions
    of a window with a tap that uses them.
    """
    pieces = score_in_pieces(model, ids, stride, n_top, tap)
    if mask is None:
        return join_scores(pieces)
    counted = np.asarray(mask)
    if counted.shape != np.shape(ids) or counted.dtype != bool or not counted[..., 1:].any():
        raise ValueError(f"mask must be booleans of the shape of ids, {np.shape(ids)}, true for a token other than "
                         f"the first. Got {counted.dtype}, {counted.shape}, {np.count_nonzero(counted)} of them true.")
    counted = counted[..., 1:]  # [n_tokens - 1]
    scores = join_scores(pieces)
    return replace(scores, log_probs=np.where(counted, scores.log_probs, 0), mask=counted)


def pad_ids(prompts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts to one length: ids [n_prompts, longest], and a boolean mask of the same shape, false for padding.

    Shorter rows are padded with id 0 at the end. No token sees a later one, so `forward` and `score_tokens` give each
    row the same results as its prompt alone. The logits after prompt i are `logits[i, mask[i].sum() - 1]`. Raises
    ValueError for no prompts, and for anything but lists of token ids.
    """
    rows = [as_array(prompt, "prompts must be lists of token ids. Got one that holds lists of different lengths.")
            for prompt in prompts]
    for row in rows:
        if row.ndim != 1 or row.size == 0 or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"prompts must be lists of token ids, none empty. Got {row.dtype}, shape {row.shape}.")
    if not rows:
        raise ValueError("prompts must be one or more lists of token ids. Got none.")
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]  # [n_prompts, longest]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def score_in_pieces(model: GPT2, ids: Any, stride: int | None = None, n_top: int = 0,
                    tap: Tap = no_tap) -> Iterator[Scores]:
    """Yield the scores of `score_tokens` in pieces, as they are computed. Arguments are checked at the call."""
    text = as_array(ids)
    if text.shape[-1] < 2 or text.size == 0:
        raise ValueError("ids must be two tokens or more: nothing predicts the first, so only the others are scored. "
                         f"Got shape {text.shape}.")
    check_int("n_top", n_top, 0, model.config.vocab_size)
    stride = checked_stride(stride, model.config.n_positions)
    for begin in range(0, text.shape[-1], stride):
        check_ids(model, text[..., begin:begin + stride])
    return score_stream(model, [text], stride, n_top, tap)


def score_stream(model: GPT2, parts: Iterable[Any], stride: int, n_top: int = 0, tap: Tap = no_tap) -> Iterator[Scores]:
    """`score_in_pieces` for a text whose ids come in parts; keeps at most the context and one part in memory."""
    n_positions = model.config.n_positions
    held, first_scored = np.zeros(0, np.int64), 1  # [n_held]: from where the next window begins
    for part in parts:
        held = np.concatenate([held, part], axis=-1) if held.size else np.asarray(part)
        while held.shape[-1] > n_positions:  # a window is full, and not the last
            yield from score_window(model, held[..., :n_positions], first_scored, n_top, tap)
            held, first_scored = held[..., stride:], n_positions - stride
    if first_scored < held.shape[-1]:
        yield from score_window(model, held, first_scored, n_top, tap)


def join_scores(pieces: Iterable[Scores]) -> Scores:
    """Concatenate the scores of one or more consecutive pieces of a text."""
    pieces = list(pieces)
    return Scores(np.concatenate([piece.log_probs for piece in pieces], axis=-1),
                  np.concatenate([piece.ranks for piece in pieces], axis=-1),
                  np.concatenate([piece.top_ids for piece in pieces], axis=-2),
                  np.concatenate([piece.top_log_probs for piece in pieces], axis=-2))


def checked_stride(stride: int | None, n_positions: int) -> int:
    """The stride; None means half the context. Raises ValueError."""
    if stride is None:
        stride = n_positions // 2
    if callable(stride):  # a tap
        raise TypeError(f"stride must be a whole number; a tap is given by keyword, tap=. Got {shown(stride)}.")
    # With a stride of the whole context, nothing would predict the first token of each window.
    return check_int("stride (less than the model's context)", stride, 1, n_positions - 1)


def score_window(model: GPT2, ids: np.ndarray, first_scored: int, n_top: int, tap: Tap) -> Iterator[Scores]:
    """Yield the scores of the tokens from first_scored on, few at a time; all at once for a tap that uses logits."""
    ids = check_ids(model, ids)  # [n_read + 1]
    array_tap = tap_of_pass(tap, model.config, first_position=0)
    hidden = transform(model, ids[..., :-1], tap=array_tap)  # [n_read, n_embd]; the last token predicts nothing
    targets = ids[..., 1:]  # [n_read]
    n_read = targets.shape[-1]
    n_rows = n_read if watches(array_tap, "logits") else max(1, ROWS_AT_ONCE // targets[..., 0].size)  # of each text
    for i in range(first_scored - 1, n_read, n_rows):
        array_tap = tap_of_pass(tap, model.config, first_position=i)
        yield score_rows(model, hidden[..., i:i + n_rows, :], targets[..., i:i + n_rows], n_top, array_tap)


def score_rows(model: GPT2, hidden: np.ndarray, targets: np.ndarray, n_top: int, tap: Tap = no_tap) -> Scores:
    """Score the next tokens: hidden [n, n_embd], targets [n] -> Scores of n tokens."""
    logits = unembed(model, hidden, tap)  # [n, vocab_size]
    check_finite(logits)
    chosen = np.take_along_axis(logits, targets[..., np.newaxis], axis=-1)  # [n, 1]
    ranks = 1 + np.sum(logits > chosen, axis=-1)  # [n]
    _, log_probs, top_ids, top_log_probs = log_probs_of(logits, targets, n_top)
    return Scores(log_probs, ranks, top_ids, top_log_probs)


class Drawn(NamedTuple):
    """Tokens with their log-probabilities, and the most likely tokens: for one token numbers, otherwise arrays."""

    ids: Any  # [...]
    log_probs: Any  # [...], float64
    top_ids: np.ndarray  # [..., n_top], in descending order
    top_log_probs: np.ndarray  # [..., n_top], float64

    def of_row(self, row: int) -> "Drawn":
        """The row's part, as numbers; a single token returns itself."""
        if np.ndim(self.ids) == 0:
            return self
        return Drawn(int(self.ids[row]), float(self.log_probs[row]), self.top_ids[row], self.top_log_probs[row])


def log_probs_of(logits: np.ndarray, ids: np.ndarray, n_top: int) -> Drawn:
    """The log-probability of each id, and the n_top most likely ids: logits [..., vocab_size], ids [...] -> Drawn."""
    total = log_sum_exp(logits)  # [..., 1]
    chosen = np.take_along_axis(logits, ids[..., np.newaxis], axis=-1)  # [..., 1]
    top_ids = top_ids_of(logits, n_top)  # [..., n_top]
    top_log_probs = np.take_along_axis(logits, top_ids, axis=-1) - total  # [..., n_top]
    return Drawn(ids, (chosen - total)[..., 0], top_ids, top_log_probs)


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))), to normalize log-probabilities: [..., vocab_size] -> [..., 1], float64.

    Summed in float64, so that a large vocabulary adds no rounding error to that of the logits.
    """
    largest = np.max(logits, axis=-1, keepdims=True)  # [..., 1]
    with np.errstate(under="ignore"):  # tiny probabilities become 0
        total = np.sum(np.exp(logits - largest), axis=-1, keepdims=True, dtype=np.float64)  # [..., 1], at least 1
    return largest + np.log(total)


def top_ids_of(logits: np.ndarray, n_top: int) -> np.ndarray:
    """The ids of the n_top largest logits in descending order, ties by id: [..., vocab_size] -> [..., n_top].

    Only these are sorted; sorting the whole vocabulary would be slow.
    """
    top_ids = np.zeros((*logits.shape[:-1], n_top), dtype=np.intp)
    if n_top == 0:
        return top_ids
    nth_largest = np.partition(logits, -n_top, axis=-1)[..., -n_top]  # [...]
    for index, least in np.ndenumerate(nth_largest):
        row = logits[index]  # [vocab_size]
        kept = np.flatnonzero(row >= least)  # in order of id; more than n_top if the last one ties
        top_ids[index] = kept[np.argsort(-row[kept], kind="stable")][:n_top]
    return top_ids


# The training loss ----------------------------------------------------------------------------------------------------


@np.errstate(under="ignore")  # tiny probabilities become 0
def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """-log(softmax(logits)[target]), the mean over the targets that are not LEFT_OUT, and its gradient d_logits.

    logits [n_tokens, vocab_size], targets [n_tokens] -> a float, and (softmax(logits) - one_hot(target)) / n_targets.
    Source: Goodfellow, Bengio and Courville, "Deep Learning", section 6.2.2.3.
    """
    logit_rows = logits.reshape(-1, logits.shape[-1])  # [n_rows, vocab_size]
    d_rows = np.zeros_like(logit_rows)  # stays 0 at ignored positions
    targets = targets.reshape(-1)  # [n_rows]
    counted = np.flatnonzero(targets != LEFT_OUT)  # [n_targets]
    total = 0.0
    for start in range(0, len(counted), ROWS_IN_CACHE):
        rows = counted[start:start + ROWS_IN_CACHE]  # [ROWS_IN_CACHE]
        at_targets = np.arange(len(rows)), targets[rows]
        shifted = logit_rows[rows]  # [ROWS_IN_CACHE, vocab_size]
        shifted -= shifted.max(axis=-1, keepdims=True)  # at most 0, as in softmax
        of_targets = shifted[at_targets]  # [ROWS_IN_CACHE]
        exponentials = np.exp(shifted, out=shifted)
        sums = exponentials.sum(axis=-1)  # [ROWS_IN_CACHE]
        total += float(np.sum(np.log(sums) - of_targets, dtype=np.float64))  # never log(0), as log(softmax) can be
        exponentials /= sums[:, np.newaxis]
        exponentials[at_targets] -= 1
        d_rows[rows] = exponentials / len(counted)
    return total / len(counted), d_rows.reshape(logits.shape)


def check_targets(model: GPT2, ids: np.ndarray, targets: Any) -> np.ndarray:
    """The targets as an integer array of the shape of ids; None means the next ids. Raises ValueError."""
    if targets is None:
        targets = np.full_like(ids, LEFT_OUT)
        targets[..., :-1] = ids[..., 1:]
    targets = np.asarray(targets)
    if targets.shape != ids.shape or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets must be integers of the shape of ids, {ids.shape}. "
                         f"Got {targets.dtype}, {targets.shape}.")
    counted = targets[targets != LEFT_OUT]
    if counted.size == 0:
        raise ValueError(f"targets must have an id to predict; ids of one token have no next one. Got only {LEFT_OUT}.")
    for wrong in counted[(counted < 0) | (counted >= model.config.vocab_size)][:1]:
        raise ValueError(f"targets must be from 0 to {model.config.vocab_size - 1}, or {LEFT_OUT}. Got {wrong}.")
    return targets
