"""Chapter 6: the survey. The parameters of GPT-2, counted by formula.

A config has n_layer, n_embd, n_inner (the neurons of an MLP, 4 * n_embd in the released sizes), vocab_size and
n_positions. A linear layer [n_in, n_out] has n_in * n_out weights and n_out biases; a layer norm has n_embd gains
(its ".weight") and n_embd biases. To see them all: python -m numpy_gpt2.summary

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

from numpy_gpt2.config import GPT2Config
from numpy_gpt2.weights import GPT2, named_parameters


def block_parameters(config: GPT2Config) -> int:
    """The number of parameters of one block.

    ln_1, c_attn [n_embd, 3 * n_embd], attention's c_proj [n_embd, n_embd], ln_2, c_fc [n_embd, n_inner], the MLP's
    c_proj [n_inner, n_embd]. Multiply out: with n_inner = 4 n_embd it is 12 n_embd^2 + 13 n_embd.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", table 2.

    >>> from numpy_gpt2.config import SIZES
    >>> block_parameters(SIZES["small"])
    7087872
    """
    width, inner = config.n_embd, config.n_inner
    attention = (width * 3 * width + 3 * width) + (width * width + width)
    mlp = (width * inner + inner) + (inner * width + width)
    norms = 2 * (width + width)
    return attention + mlp + norms


def total_parameters(config: GPT2Config, tied: bool) -> int:
    """The number of parameters of the whole model, by formula, for all four sizes.

    wte [vocab_size, n_embd], wpe [n_positions, n_embd], n_layer blocks, ln_f, and lm_head [vocab_size, n_embd]. tied:
    lm_head is wte itself, and counts once. That is the difference between 163M and 124M.

    >>> from numpy_gpt2.config import SIZES
    >>> total_parameters(SIZES["small"], tied=False), total_parameters(SIZES["small"], tied=True)
    (163037184, 124439808)
    """
    wte = config.vocab_size * config.n_embd
    wpe = config.n_positions * config.n_embd
    ln_f = 2 * config.n_embd
    total = wte + wpe + config.n_layer * block_parameters(config) + ln_f
    return total if tied else total + wte


def weights_and_biases(config: GPT2Config) -> tuple[int, int, int]:
    """How many of a tied model's parameters are weights (of matrices), biases, and gains: three numbers.

    Weights: wte, wpe and the matrices of the linear layers. Biases: those of linear layers and of layer norms. Gains:
    the ".weight" of layer norms, which only scales. The three sum to total_parameters(config, tied=True).

    >>> from numpy_gpt2.config import SIZES
    >>> weights_and_biases(SIZES["small"])
    (124318464, 102144, 19200)
    """
    width, inner = config.n_embd, config.n_inner
    matrices = width * 3 * width + width * width + width * inner + inner * width
    weights = (config.vocab_size + config.n_positions) * width + config.n_layer * matrices
    biases = config.n_layer * (3 * width + width + inner + width + 2 * width) + width  # the last is that of ln_f
    gains = config.n_layer * 2 * width + width
    return weights, biases, gains


def is_tied(model: GPT2) -> bool:
    """Whether the unembedding model.lm_head is the token embedding model.wte: the same array, stored once.

    Two arrays of equal numbers are not tied: training would make them differ.
    Source: Press and Wolf, "Using the Output Embedding to Improve Language Models".

    >>> from numpy_gpt2.weights import random_model
    >>> is_tied(random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1)))
    True
    """
    return model.lm_head is model.wte


def dot_weight_parameters(model: GPT2) -> int:
    """The number of parameters in a model's arrays whose names end in ".weight".

    named_parameters(model) yields each name and array once: ("wte.weight", array), ("h.0.ln_1.bias", array) and so on.

    >>> from numpy_gpt2.weights import random_model
    >>> dot_weight_parameters(random_model(GPT2Config(vocab_size=3, n_positions=4, n_embd=2, n_layer=1, n_head=1)))
    68
    """
    return sum(array.size for name, array in named_parameters(model) if name.endswith(".weight"))
