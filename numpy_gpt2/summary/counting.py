"""What a GPT-2 is made of and what it costs, counted from its config alone.

Every count is a closed form: a few products and sums that a student can do by hand. Only parameters count. The causal
masks that older files hold are not parameters, a prefix of a name changes nothing, and an unembedding that is the token
embedding (`wte`) counts once.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Iterator, Mapping

from ..config import SIZES, GPT2Config
from ..weights import parameter_shapes
from .metadata import Metadata

# Bytes of one number: by the types that a checkpoint's file may have, and by those that memory may have.
FILE_TYPES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MEMORY_TYPES: Mapping[str, int] = {"float32": 4, "float16": 2}


# Parts and parameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A line of the tree: what a model is made of, from ids to logits."""

    depth: int
    name: str
    shape: str
    meaning: str


def parts(config: GPT2Config) -> list[Part]:
    """The whole model as a tree, in the order in which data flows through it."""
    width, inner = config.n_embd, config.n_inner
    head = "wte itself (tied): stored once" if config.tie_word_embeddings else "an array of its own (untied)"
    norm = "layer norm: a gain and a bias for each channel"
    return [
        Part(0, "wte", f"{config.vocab_size} x {width}", "token embedding: a row for each token of the vocabulary"),
        Part(0, "wpe", f"{config.n_positions} x {width}", "position embedding: a row for each place in the context"),
        Part(0, "h", f"{config.n_layer} blocks", "the list of blocks, one after another; each has:"),
        Part(1, "ln_1", f"{width}, {width}", norm),
        Part(1, "attn", f"{config.n_head} heads of {config.d_head}", "attention: tokens read from those before them"),
        Part(2, "c_attn", fused(width), f"queries, keys and values, fused in one product; bias {3 * width}"),
        Part(2, "c_proj", f"{width} x {width}", f"projection: mixes what the heads found; bias {width}"),
        Part(1, "+", f"{width}", "residual: what attention found is added to what came in"),
        Part(1, "ln_2", f"{width}, {width}", norm),
        Part(1, "mlp", f"{inner} neurons", "each token by itself:"),
        Part(2, "c_fc", f"{width} x {inner}", f"into the neurons; bias {inner}"),
        Part(2, "gelu", "", "the activation function: no parameters"),
        Part(2, "c_proj", f"{inner} x {width}", f"and back; bias {width}"),
        Part(1, "+", f"{width}", "residual: what the neurons found is added"),
        Part(0, "ln_f", f"{width}, {width}", norm),
        Part(0, "lm_head", f"{config.vocab_size} x {width}", f"unembedding, a logit for each token: {head}"),
    ]


@dataclass(frozen=True)
class Parameter:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    count: int  # of numbers
    n_bytes: int  # in the file; where none was seen, in float32

    @property
    def shape_text(self) -> str:
        """768 x 2304 = 768 x 3*768 for the fused matrix, whose second axis is three of the first."""
        return fused(self.shape[0]) if self.name.endswith("c_attn.weight") else " x ".join(map(str, self.shape))

    @property
    def kind(self) -> str:
        """The part of the model it belongs to: a key of `Counts.kinds`."""
        if ".ln_" in self.name or self.name.startswith("ln_f"):
            return "ln"
        return next(kind for kind in ("wte", "wpe", "attn", "mlp", "lm_head") if kind in self.name)

    @property
    def role(self) -> str:
        """What it does in its part: a matrix is "weights"; a layer norm's weight is a gain."""
        if self.name.endswith(".bias"):
            return "biases"
        return "gains" if self.kind == "ln" else "weights"


def fused(width: int) -> str:
    return f"{width} x {3 * width} = {width} x 3*{width}"


def parameters(model: Metadata) -> list[Parameter]:
    """Every parameter in the checkpoint's order."""
    listed = []
    for name, shape in parameter_shapes(model.config).items():
        count = math.prod(shape)
        listed.append(Parameter(name, shape, count, count * FILE_TYPES[model.types.get(name, "F32")]))
    return listed


def folded(listed: list[Parameter]) -> list[Parameter]:
    """The list with all blocks in one: `h.*.ln_1.weight` stands for the tensor of this name in every block."""
    sums: dict[str, Parameter] = {}
    for parameter in listed:
        name = re.sub(r"^h\.\d+\.", "h.*.", parameter.name)
        before = sums.get(name, Parameter(name, parameter.shape, 0, 0))
        sums[name] = Parameter(name, parameter.shape, before.count + parameter.count,
                               before.n_bytes + parameter.n_bytes)
    return list(sums.values())


# Counts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters. `kinds` add up to `stored`, and so do `roles`."""

    stored: int  # what the checkpoint has: tied, unless it is untied
    tied: int  # with one array for embedding and unembedding
    untied: int  # with two
    difference: int  # untied - tied: wte
    per_block: int
    kinds: Mapping[str, int]  # by part of the model: wte, wpe, attn, mlp, ln, and lm_head where it is untied
    roles: Mapping[str, int]  # weights (matrices), biases (those of layer norms too), gains (of layer norms)


def count_parameters(config: GPT2Config) -> Counts:
    """All counts of a model, from its config alone.

    A linear layer [n_in, n_out] has n_in*n_out weights and n_out biases, a layer norm n_embd gains and n_embd biases.
    """
    width, inner, n_layer = config.n_embd, config.n_inner, config.n_layer
    wte = config.vocab_size * width
    wpe = config.n_positions * width
    attention = (width * 3 * width + 3 * width) + (width * width + width)  # c_attn, c_proj
    mlp = (width * inner + inner) + (inner * width + width)  # c_fc, c_proj
    norms = 2 * (width + width)  # ln_1, ln_2
    per_block = attention + mlp + norms
    tied = wte + wpe + n_layer * per_block + 2 * width  # the last is ln_f
    stored = tied if config.tie_word_embeddings else tied + wte

    kinds = {"wte": wte, "wpe": wpe, "attn": n_layer * attention, "mlp": n_layer * mlp,
             "ln": n_layer * norms + 2 * width}
    if not config.tie_word_embeddings:
        kinds["lm_head"] = wte
    biases = n_layer * (3 * width + width + inner + width + 2 * width) + width
    gains = n_layer * 2 * width + width
    roles = {"weights": stored - biases - gains, "biases": biases, "gains": gains}
    return Counts(stored, tied, tied + wte, wte, per_block, kinds, roles)


# The figures that people meet -----------------------------------------------------------------------------------------

# Radford et al., "Language Models are Unsupervised Multitask Learners", table 2, in millions.
PAPER_MILLIONS: Mapping[str, int] = {"small": 117, "medium": 345, "large": 762, "xl": 1542}

# GPT-1 (Radford et al., "Improving Language Understanding by Generative Pre-Training"; transformers' OpenAIGPTConfig).
GPT1 = GPT2Config(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12)

Terms = tuple[tuple[str, int], ...]  # the terms of a sum, each with what it counts


@dataclass(frozen=True)
class Figure:
    """A published or usual figure, and the sum that gives it."""

    figure: str  # as people write it
    terms: Terms  # what is added up; none where no sum gives the figure
    remark: str

    @property
    def count(self) -> int | None:
        return sum(number for _, number in self.terms) if self.terms else None

    @property
    def sum_text(self) -> str:
        """wte 38,597,376 + wpe 786,432 + ..."""
        text = "".join(f" {'-' if number < 0 else '+'} {name} {abs(number):,}" for name, number in self.terms)
        return text.removeprefix(" + ")


def all_terms(config: GPT2Config) -> Terms:
    """Every parameter, tied ones once, in four terms: wte, wpe, the blocks, ln_f."""
    counts = count_parameters(config)
    return (("wte", counts.kinds["wte"]), ("wpe", counts.kinds["wpe"]),
            (f"{config.n_layer} blocks", config.n_layer * counts.per_block), ("ln_f", 2 * config.n_embd))


def figures(config: GPT2Config) -> list[Figure]:
    """What a model of this config is said to have, by what is counted; for a released size also what was published."""
    counts = count_parameters(config)
    wte, wpe, blocks, ln_f = every = all_terms(config)
    matrices = counts.roles["weights"] - sum(counts.kinds.get(kind, 0) for kind in ("wte", "wpe", "lm_head"))
    general = [
        Figure(millions(counts.tied), every, "Every parameter, tied ones once."),
        Figure(millions(counts.untied), (*every, ("lm_head", counts.difference)),
               "Untied: the unembedding is counted again."),
        Figure(millions(counts.tied - wte[1] - wpe[1]), (blocks, ln_f),
               f"Without embeddings. The matrices of the blocks alone are {matrices:,}."),
        Figure(millions(counts.tied - wpe[1], 2), (wte, blocks, ln_f), "Without wpe."),
    ]
    size = released_size(config)
    return general if size is None else [*general, *published_figures(size)]


def published_figures(size: str) -> Iterator[Figure]:
    """What was said of a released size in particular."""
    config = SIZES[size]
    counts = count_parameters(config)
    every = all_terms(config)
    masks = (f"{config.n_layer} masks of {config.n_positions}^2", config.n_layer * config.n_positions**2)
    yield Figure(millions(counts.tied + masks[1]), (*every, masks),
                 "The hub's page: it counts the causal masks in OpenAI's file, which are no parameters.")
    if size == "small":
        cut = counts.difference // 10**6
        yield Figure(f"{millions(counts.untied)} - {cut}M = {millions(counts.tied)}",
                     (("untied", counts.untied), ("wte", -counts.difference)),
                     f"The survey's sum; {counts.difference / 1e6:.2f}M is cut to {cut}M there, not rounded.")
    paper = f"{PAPER_MILLIONS[size]}M"
    yield Figure(paper, (), "The paper, table 2. No sum over the released weights gives it. OpenAI's README: \"our "
                 f"original parameter counts were wrong due to an error\"; it now says {millions(counts.tied)}.")
    yield Figure(paper, all_terms(replace(config, vocab_size=GPT1.vocab_size)),
                 f"Our own arithmetic, a guess at that error: with GPT-1's {GPT1.vocab_size:,} tokens in place of "
                 f"{config.vocab_size:,} all four sizes give the paper's figures.")
    if size == "small":
        yield Figure("117M", all_terms(GPT1)[:3],
                     "GPT-1, with which small is often confused: fewer tokens, half the context, no ln_f.")
    if size == "xl":
        yield Figure("1.5 billion", every, f"Cut, not rounded: {counts.tied / 1e9:.2f} billion. (Or rounded, from the "
                     f"paper's {paper}.)")


def released_size(config: GPT2Config) -> str | None:
    """Which released size has these shapes, if one has."""
    keys = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    return next((size for size, settings in SIZES.items()
                 if all(getattr(settings, key) == getattr(config, key) for key in keys)), None)


def millions(n: int, decimals: int = 0) -> str:
    """124439808 -> "124M"; two decimals below ten millions, every digit below one."""
    if n < 10**6:
        return f"{n:,}"
    return f"{n / 1e6:.{decimals if n >= 10**7 else 2}f}M"


# Costs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PassCost:
    """The work of one pass: `n_new` tokens are read, after which the cache holds `n_all`; one position is unembedded.

    Floating-point operations are those of the matrix products, two for each multiply-add: softmax, gelu, layer norms
    and sums, a few hundredths of them at most, are left out. Of attention only the causal half counts, a query and the
    keys up to its own (the readable pass computes the other half of a prefill too, and masks it).
    """

    n_new: int
    n_all: int
    block_flops: int  # the products with c_attn, c_proj, c_fc and c_proj
    attention_flops: int  # queries with keys, and pattern with values
    unembed_flops: int  # the logits of the last position
    weights_read: int  # how many numbers, each once for the whole pass; of wte and wpe also the tokens' rows
    cache_read: int  # how many numbers: the keys and values of n_all tokens

    @property
    def flops(self) -> int:
        return self.block_flops + self.attention_flops + self.unembed_flops


def prefill_cost(config: GPT2Config, n_context: int) -> PassCost:
    """Reading a prompt of `n_context` tokens at once, for the logits of its last."""
    return pass_cost(config, n_context, n_context)


def decode_cost(config: GPT2Config, n_context: int) -> PassCost:
    """Reading the `n_context`-th token, those before it being in the cache."""
    return pass_cost(config, 1, n_context)


def pass_cost(config: GPT2Config, n_new: int, n_all: int) -> PassCost:
    """The cost of reading `n_new` tokens, the last of `n_all`. Raises ValueError where they do not fit the context."""
    if not 1 <= n_new <= n_all <= config.n_positions:
        raise ValueError(f"n_new and n_all must be 1 <= n_new <= n_all <= {config.n_positions}, the model's context. "
                         f"Got {n_new} and {n_all}.")
    width, n_layer = config.n_embd, config.n_layer
    n_weights = width * 3 * width + width * width + 2 * width * config.n_inner  # of the matrices of a block
    n_pairs = n_new * n_all - n_new * (n_new - 1) // 2  # a query sees the keys up to itself; the last sees n_all
    counts = count_parameters(config)
    once = n_layer * counts.per_block + 2 * width + config.vocab_size * width  # blocks, ln_f, unembedding
    return PassCost(
        n_new, n_all,
        block_flops=2 * n_layer * n_weights * n_new,
        attention_flops=2 * n_layer * 2 * width * n_pairs,
        unembed_flops=2 * config.vocab_size * width,
        weights_read=once + 2 * width * n_new,
        cache_read=2 * n_layer * width * n_all,
    )
