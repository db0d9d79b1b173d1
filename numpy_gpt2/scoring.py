"""How well a model predicts a text: the log-probability of each token, and what is made of them.

    scores = score_tokens(model, ids)
    scores.log_probs         [n_tokens - 1], of each token but the first, given those before it (natural logarithm)
    scores.mean_loss         -mean(log_probs): the cross-entropy, in nats per token. What training makes small
    scores.perplexity        exp(mean_loss): as unsure as a fair choice among so many tokens
    scores.bits_per_byte(n)  -sum(log_probs) / ln(2) / n: a compressor that asks the model needs so many bits a byte

Losses per token compare models of one tokenizer only, since longer tokens are fewer and harder. Bits per byte compare
any two models.

A text longer than the context is read in windows that overlap, each `stride` tokens further on; a window scores only
the tokens that the one before it did not reach:

    context 8, stride 4      0 1 2 3 4 5 6 7 8 9 10 11 12 13
    first window            (0)1 2 3 4 5 6 7                      scores 1 to 7; nothing stands before 0
    second window                   (4 5 6 7)8 9 10 11            reads 4 to 7 again, scores 8 to 11
    third window                            (8 9 10 11)12 13      reads 8 to 11 again, scores 12 and 13

So each token is scored once, and after the first window always with at least n_positions - stride tokens before it. A
small stride gives every token nearly the whole context, and takes n_positions / stride times the work.

Source: "Perplexity of fixed-length models" in transformers' documentation, whose windows these are. (Its example
weights the later windows' losses by one token too few each; here every token weighs the same.)

The GPT-2 paper's figures
-------------------------

Radford et al., "Language Models are Unsupervised Multitask Learners", table 3, for small, medium, large and xl:

    WikiText-2, perplexity    29.41   22.76   19.93   18.34
    LAMBADA, perplexity       35.13   15.60   10.87    8.63

The data is not part of this project. Whoever has it can measure the two like this, and should take the paper's numbers
for a context rather than for a gate, since protocols differ.

WikiText-2: score the test split as one text. Two things decide what comes out: the form of the text, and the number by
which the loss is divided.

* transformers' page takes the raw text (`wikitext-2-raw-v1`, its rows joined by two newlines), puts nothing before it,
  and divides by GPT-2's tokens. For large it reports 16.44, and 19.44 with windows that do not overlap (a stride of
  1024; 1023, the largest that there is here, lets them share one token):

      python -m numpy_gpt2.score wiki.test.raw.txt --model gpt2-large --no-bos --stride 512

* The paper takes the tokenised text ("M @-@ 82 begins at a junction with ...") and first undoes the tokenisation, by
  rules that can be inverted and were not published: worth 2.5 to 5 points of perplexity (section 3.1). And it divides
  by the words of the original, because it asks how likely the dataset is, whatever the tokens (the authors in
  github.com/openai/gpt-2, issue 78):

      perplexity = math.exp(-scores.log_probs.sum() / n_words)

  WikiText-103, which has the same test split, stands in the same table with 37.50 for small, not with 29.41. Others got
  29.94 by the first protocol and 37.37 by words (github.com/huggingface/transformers, issue 13761).

LAMBADA: 5,153 passages; how well is the end of each predicted?

    scores = score_tokens(model, tokenizer.with_bos(tokenizer.encode(passage)))
    log_prob, is_right = scores.log_probs[-1], scores.ranks[-1] == 1

The perplexity is exp(-mean(log_prob)) over the passages, the accuracy mean(is_right). OpenAI is reported to have
counted the last token, as here, in passages with their own punctuation (github.com/openai/gpt-2, issue 131). Others
count the whole last word: with n = len(tokenizer.encode(" " + last_word)), the sum of log_probs[-n:], and whether all
of ranks[-n:] are 1. That is harder: small then gets 40.06 (github.com/EleutherAI/lm-evaluation-harness, issue 2159).
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, NamedTuple

import numpy as np

from .model import check_ids, transform, unembed
from .weights import GPT2
from .sampling import check_finite

# So many positions are unembedded at a time. A window of xl has 1024 rows of 50257 logits, 206 MB; these have 26 MB,
# and are still enough for the product to run at full speed.
ROWS_AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model thought of each token of a text but the first, in order."""

    log_probs: np.ndarray  # [n_scored], float64: the natural logarithm of each token's probability
    ranks: np.ndarray  # [n_scored]: 1 + the number of tokens that would have been likelier
    top_ids: np.ndarray  # [n_scored, n_top]: the likeliest tokens in each place, the likeliest first
    top_log_probs: np.ndarray  # [n_scored, n_top], float64

    @property
    def mean_loss(self) -> float:
        """Nats per token: the cross-entropy, which transformers calls the loss."""
        return -float(np.mean(self.log_probs))

    @property
    def perplexity(self) -> float:
        """exp(mean_loss); infinite where that is beyond a float."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.mean_loss))

    def bits_per_byte(self, n_bytes: int) -> float:
        """Bits that the scored tokens cost, for each of the `n_bytes` bytes that they stand for. Raises ValueError."""
        if operator.index(n_bytes) < 1:
            raise ValueError(f"n_bytes must be 1 or more. Got {n_bytes}.")
        return -float(np.sum(self.log_probs)) / math.log(2) / n_bytes


class Window(NamedTuple):
    """Tokens begin to end - 1 are read together; of them first_scored to end - 1 are scored."""

    begin: int
    first_scored: int
    end: int


def score_tokens(model: GPT2, ids: Any, stride: int | None = None, n_top: int = 0) -> Scores:
    """Score each token but the first, given those before it: ids [n_tokens] -> log_probs [n_tokens - 1].

    ids: one text, two tokens or more, of any length. Put `<|endoftext|>` first to have the whole text scored.
    stride: how far one window is from the next, from 1 to n_positions - 1. The default is half the context, as in
        transformers' example: no token has less than half the context, and the text is read no more than twice.
        A text within the context is one window, whatever the stride.
    n_top: so many of the likeliest tokens are reported at each place.

    Raises ValueError for arguments that make no sense, before anything is computed; FloatingPointError for logits
    that are not finite. Memory: the activations of one window, and the logits of ROWS_AT_ONCE positions.
    """
    return join_scores(score_in_pieces(model, ids, stride, n_top))


def score_in_pieces(model: GPT2, ids: Any, stride: int | None = None, n_top: int = 0) -> Iterator[Scores]:
    """What `score_tokens` gives, as it is computed: pieces of a few tokens that join to the whole.

    Arguments are checked at once, even if no piece is asked for.
    """
    text = np.asarray(ids)
    if text.ndim != 1 or text.size < 2:
        raise ValueError("ids must be one list of two tokens or more: nothing stands before the first, so only the "
                         f"others are scored. Got shape {text.shape}.")
    if not 0 <= operator.index(n_top) <= model.config.vocab_size:
        raise ValueError(f"n_top must be from 0 to the vocabulary's size, {model.config.vocab_size}. Got {n_top}.")
    windows = list(sliding_windows(text.size, model.config.n_positions, stride))
    for window in windows:
        check_ids(model, text[window.begin:window.end])
    return (piece for window in windows for piece in score_window(model, text, window, n_top))


def score_stream(model: GPT2, parts: Iterable[Any], stride: int) -> Iterator[Scores]:
    """`score_in_pieces` of a text whose ids come part by part: no more is held than the context and one part."""
    n_positions = model.config.n_positions
    held, first_scored = np.zeros(0, np.intp), 1  # [n_held]: from where the next window begins
    for part in parts:
        held = np.concatenate([held, part])
        while len(held) > n_positions:  # a window is full, and not the last
            window = check_ids(model, held[:n_positions])
            yield from score_window(model, window, Window(0, first_scored, n_positions), n_top=0)
            held, first_scored = held[stride:], n_positions - stride
    if first_scored < len(held):
        yield from score_window(model, check_ids(model, held), Window(0, first_scored, len(held)), n_top=0)


def join_scores(pieces: Iterable[Scores]) -> Scores:
    """The scores of consecutive pieces of a text, one or more, as one."""
    pieces = list(pieces)
    return Scores(np.concatenate([piece.log_probs for piece in pieces]),
                  np.concatenate([piece.ranks for piece in pieces]),
                  np.concatenate([piece.top_ids for piece in pieces]),
                  np.concatenate([piece.top_log_probs for piece in pieces]))


# Windows --------------------------------------------------------------------------------------------------------------


def sliding_windows(n_tokens: int, n_positions: int, stride: int | None = None) -> Iterator[Window]:
    """The windows of a text, which together score its tokens 1 to n_tokens - 1, each once. Raises ValueError."""
    stride = checked_stride(stride, n_positions)
    begin, first_scored = 0, 1
    while first_scored < n_tokens:
        end = min(begin + n_positions, n_tokens)
        yield Window(begin, first_scored, end)
        begin, first_scored = begin + stride, end


def checked_stride(stride: int | None, n_positions: int) -> int:
    """The stride, half the context for None. Raises ValueError.

    A stride of the whole context would leave the first token of each window with nothing before it, unscored.
    """
    if stride is None:
        stride = n_positions // 2
    if not 1 <= operator.index(stride) < n_positions:
        raise ValueError(f"stride must be at least 1 and less than the model's context, {n_positions}. Got {stride}.")
    return stride


def score_window(model: GPT2, text: np.ndarray, window: Window, n_top: int) -> Iterator[Scores]:
    """The scores of one window, in pieces of ROWS_AT_ONCE tokens."""
    # Each position predicts the token after it: the last token need not be read, nor the first be predicted.
    hidden = transform(model, text[window.begin:window.end - 1])  # [n_read, n_embd]
    hidden = hidden[window.first_scored - 1 - window.begin:]  # [n_scored, n_embd]
    targets = text[window.first_scored:window.end]  # [n_scored]
    for i in range(0, len(targets), ROWS_AT_ONCE):
        yield score_rows(model, hidden[i:i + ROWS_AT_ONCE], targets[i:i + ROWS_AT_ONCE], n_top)


def score_rows(model: GPT2, hidden: np.ndarray, targets: np.ndarray, n_top: int) -> Scores:
    """What the model thought of the tokens that came: hidden [n, n_embd], targets [n] -> Scores of n tokens."""
    logits = unembed(model, hidden)  # [n, vocab_size]
    check_finite(logits)
    chosen = np.take_along_axis(logits, targets[:, np.newaxis], axis=-1)  # [n, 1]
    ranks = 1 + np.sum(logits > chosen, axis=-1)  # [n]
    top_ids = top_ids_of(logits, n_top)  # [n, n_top]
    top = np.take_along_axis(logits, top_ids, axis=-1)  # [n, n_top]
    total = log_sum_exp(logits)  # [n, 1]
    return Scores((chosen - total)[:, 0], ranks, top_ids, top - total)


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log(sum(exp(logits))), which turns logits into log-probabilities: [n, vocab_size] -> [n, 1], float64.

    In float64, so that summing a whole vocabulary adds no error of its own to that of the logits.
    """
    logits = logits.astype(np.float64)
    largest = np.max(logits, axis=-1, keepdims=True)  # [n, 1]
    total = np.sum(np.exp(logits - largest), axis=-1, keepdims=True)  # [n, 1], at least 1: nothing overflows
    return largest + np.log(total)


def top_ids_of(logits: np.ndarray, n_top: int) -> np.ndarray:
    """The ids of the n_top largest logits, the largest first; equals in the order of their ids.

    [n, vocab_size] -> [n, n_top]. Only what is kept is sorted: of a whole vocabulary that would take long.
    """
    if n_top == 0:
        return np.zeros((len(logits), 0), dtype=np.intp)
    nth_largest = np.partition(logits, -n_top, axis=-1)[:, -n_top]  # [n]
    best = []
    for row, least in zip(logits, nth_largest):
        kept = np.flatnonzero(row >= least)  # n_top of them, and what equals the last: in the order of their ids
        order = np.argsort(-row[kept], kind="stable")[:n_top]
        best.append(kept[order])  # [n_top]
    return np.array(best)  # [n, n_top]
