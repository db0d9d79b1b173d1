"""Chapter 7: looking inside a trained model's forward pass.

A tap gets every named array of the pass; the array that it returns is used from there on, and None changes nothing:

    acts = numpy_gpt2.Recorder()                    # a tap that stores them all
    numpy_gpt2.forward(model, ids, tap=acts)
    acts["h.3.attn.pattern"]                        # [n_head, n_tokens, n_tokens]; row: query, column: key

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

from collections.abc import Mapping, Sequence

import numpy as np

from numpy_gpt2.model import unembed
from numpy_gpt2.ops import layer_norm
from numpy_gpt2.tap import Recorder, Tap
from numpy_gpt2.weights import GPT2, replace_weights


def logit_lens(model: GPT2, acts: Recorder | Mapping[str, np.ndarray], layer: int) -> np.ndarray:
    """The logits if the model stopped before block `layer`: [n_tokens, vocab_size].

    The residual stream before block `layer` is acts[f"h.{layer}.resid_pre"]; where layer is n_layer, it is
    acts["h.{n_layer - 1}.resid_post"], after the last block. It goes through ln_f (with
    model.config.layer_norm_epsilon), then unembed(model, hidden).
    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.

    >>> import numpy_gpt2.checkpoint.loading, numpy_gpt2.model
    >>> model, tokenizer = numpy_gpt2.checkpoint.loading.load("fairytale")
    >>> acts = Recorder()
    >>> logits = numpy_gpt2.model.forward(model, tokenizer.encode("Once upon a"), tap=acts)
    >>> np.allclose(logit_lens(model, acts, model.config.n_layer), logits)  # after the last block: the model's own
    True
    """
    last = model.config.n_layer - 1
    residual = acts[f"h.{layer}.resid_pre" if layer <= last else f"h.{last}.resid_post"]  # [n_tokens, n_embd]
    hidden = layer_norm(residual, model.ln_f.weight, model.ln_f.bias, model.config.layer_norm_epsilon)
    return unembed(model, hidden)


def ablate(name: str, heads: int | Sequence[int] | None = None, positions: int | Sequence[int] | None = None) -> Tap:
    """Ablate heads: a tap that returns the array of the stage `name` with these heads set to 0.

    name: a stage with heads, [..., n_head, n_new, _], such as "h.3.attn.z". heads: one number, several, or None for
    all. positions: the engine can ablate single tokens too; in the checks it is None. Define a function inside this one
    and return it: tap(at, array) returns None for other names, and a changed copy for this one.
    Source: Michel et al., "Are Sixteen Heads Really Better than One?", section 3.

    >>> tap = ablate("h.0.attn.z", heads=1)
    >>> tap("h.0.attn.z", np.float32([[[1, 2]], [[3, 4]]]))  # two heads, one token
    array([[[1., 2.]],
    <BLANKLINE>
           [[0., 0.]]], dtype=float32)
    >>> tap("h.1.attn.z", np.float32([[[1, 2]], [[3, 4]]]))
    """
    def ablate_tap(at: str, array: np.ndarray) -> np.ndarray | None:
        if at != name:
            return None
        silent = array.copy()
        silent[..., slice(None) if heads is None else heads, :, :] = 0
        return silent

    return ablate_tap


def previous_token_head(patterns: np.ndarray) -> tuple[int, int]:
    """The previous-token head: (layer, head) of the one that attends most to the previous token on average.

    patterns [n_layer, n_head, n_tokens, n_tokens]: patterns[l, h, i, j] is how much query i attends to key j. The mean
    runs over the queries 1 to n_tokens - 1, each at key i - 1: the diagonal below the main one, np.diagonal.
    Source: Olsson et al., "In-context Learning and Induction Heads", 2022.

    >>> looks_back, looks_at_itself = np.eye(3, k=-1), np.eye(3)
    >>> previous_token_head(np.array([[looks_at_itself, looks_back], [looks_at_itself, looks_at_itself]]))
    (0, 1)
    """
    before = np.diagonal(patterns, offset=-1, axis1=-2, axis2=-1)  # [n_layer, n_head, n_tokens - 1]
    mean = before.mean(axis=-1)  # [n_layer, n_head]
    layer, head = np.unravel_index(np.argmax(mean), mean.shape)
    return int(layer), int(head)


def induction_score(pattern: np.ndarray, period: int) -> np.ndarray:
    """Each head's induction score: [..., n_head, n_tokens, n_tokens] -> [..., n_head].

    The text is a sequence of `period` tokens, repeated twice or more. An induction head at query i finds the same token
    one period earlier, and attends to the one after it: key i - period + 1. The score is the mean of these attention
    weights, over the queries for which there is such a key (i >= period - 1).
    Source: Olsson et al., "In-context Learning and Induction Heads", 2022.

    >>> induction_score(np.eye(4, k=-1)[np.newaxis], period=2)  # with A B A B, the token after the last A is one back
    array([1.])
    """
    continued = np.diagonal(pattern, offset=1 - period, axis1=-2, axis2=-1)  # [..., n_head, n_tokens - period + 1]
    return continued.mean(axis=-1)


def noisy_queries(model: GPT2, layer: int, seed: int) -> GPT2:
    """A new model whose W_Q in this layer is noise; the old model is unchanged.

    W_Q is the first n_embd columns of model.h[layer].attn.c_attn.weight [n_embd, 3 * n_embd]. The noise has their
    shape and their standard deviation: np.random.default_rng(seed).standard_normal((n_embd, n_embd)) * W_Q.std().
    replace_weights(model, {f"h.{layer}.attn.c_attn.weight": array}) makes the model.

    >>> from numpy_gpt2.config import GPT2Config
    >>> from numpy_gpt2.weights import random_model
    >>> model = random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1))
    >>> noisy = noisy_queries(model, 0, seed=0)
    >>> (noisy.h[0].attn.c_attn.weight == model.h[0].attn.c_attn.weight).all(axis=0)
    array([False, False,  True,  True,  True,  True])
    """
    weight = model.h[layer].attn.c_attn.weight.copy()  # [n_embd, 3*n_embd]
    n_embd = len(weight)
    noise = np.random.default_rng(seed).standard_normal((n_embd, n_embd))
    weight[:, :n_embd] = noise * weight[:, :n_embd].std()
    return replace_weights(model, {f"h.{layer}.attn.c_attn.weight": weight})
