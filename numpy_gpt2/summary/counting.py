"""Parameter counts and costs of a GPT-2, from its config alone.

Every count is a closed form: a few products and sums that you can check by hand. The causal masks in older files are
not parameters, and a token embedding (`wte`) that is also the unembedding counts once.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Iterator, Mapping

from ..config import SIZES, GPT2Config
from ..weights import parameter_shapes
from .metadata import Metadata

# Bytes per number, by the dtypes of checkpoint files and of arrays in memory.
FILE_TYPES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MEMORY_TYPES: Mapping[str, int] = {"float32": 4, "float16": 2}


# Parts and parameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A line of the tree of a model's parts."""

    depth: int
    name: str
    shape: str
    meaning: str


def parts(config: GPT2Config) -> list[Part]:
    """The whole model as a tree, in data-flow order, from ids to logits."""
    width, inner = config.n_embd, config.n_inner
    head = "wte itself (tied), stored once" if config.tie_word_embeddings else "a separate array (untied)"
    norm = "layer norm: a gain and a bias for each channel"
    return [
        Part(0, "wte", f"{config.vocab_size} x {width}", "token embedding: a row for each token of the vocabulary"),
        Part(0, "wpe", f"{config.n_positions} x {width}", "position embedding: a row for each position in the context"),
        Part(0, "h", f"{config.n_layer} blocks", "the blocks, run one after another; each has:"),
        Part(1, "ln_1", f"{width}, {width}", norm),
        Part(1, "attn", f"{config.n_head} heads of {config.d_head}", "attention: each token reads from earlier ones"),
        Part(2, "c_attn", fused(width), f"queries, keys and values in one product; bias {3 * width}"),
        Part(2, "c_proj", f"{width} x {width}", f"output projection: mixes the heads' outputs; bias {width}"),
        Part(1, "+", f"{width}", "residual connection: adds attention's output to its input"),
        Part(1, "ln_2", f"{width}, {width}", norm),
        Part(1, "mlp", f"{inner} neurons", "MLP: processes each token separately"),
        Part(2, "c_fc", f"{width} x {inner}", f"input projection, to the neurons; bias {inner}"),
        Part(2, "gelu", "", "the activation function; no parameters"),
        Part(2, "c_proj", f"{inner} x {width}", f"output projection; bias {width}"),
        Part(1, "+", f"{width}", "residual connection: adds the MLP's output"),
        Part(0, "ln_f", f"{width}, {width}", norm),
        Part(0, "lm_head", f"{config.vocab_size} x {width}", f"unembedding, a logit for each token: {head}"),
    ]


@dataclass(frozen=True)
class Parameter:
    """One tensor of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    count: int  # of numbers
    n_bytes: int  # in the file, or as float32 if no file was read

    @property
    def shape_text(self) -> str:
        """768 x 768; for the fused matrix, which has three in one, 768 x 2304 = 768 x 3*768."""
        return fused(self.shape[0]) if self.name.endswith("c_attn.weight") else " x ".join(map(str, self.shape))


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
    """The list with the blocks summed: `h.*.ln_1.weight` is that tensor in all blocks together."""
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
    """Parameter counts. `kinds` sum to `stored`, and so do `roles`; `weight_kinds` sum to `stored` without biases."""

    stored: int  # in the checkpoint: equal to tied or untied
    tied: int  # with one array for embedding and unembedding
    untied: int  # with two
    difference: int  # untied - tied: wte
    per_block: int
    kinds: Mapping[str, int]  # by part of the model: wte, wpe, attn, mlp, ln, and lm_head if untied
    weight_kinds: Mapping[str, int]  # the same of the tensors named .weight: no biases
    roles: Mapping[str, int]  # weights (matrices), biases (including layer norms'), gains (of layer norms)


def count_parameters(config: GPT2Config) -> Counts:
    """All counts of a model.

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
    kind_biases = {"attn": n_layer * (3 * width + width), "mlp": n_layer * (inner + width),
                   "ln": n_layer * 2 * width + width}
    weight_kinds = {kind: count - kind_biases.get(kind, 0) for kind, count in kinds.items()}
    biases = sum(kind_biases.values())
    gains = weight_kinds["ln"]
    roles = {"weights": stored - biases - gains, "biases": biases, "gains": gains}
    return Counts(stored, tied, tied + wte, wte, per_block, kinds, weight_kinds, roles)


# Published figures ----------------------------------------------------------------------------------------------------

# Radford et al., "Language Models are Unsupervised Multitask Learners", table 2, in millions.
PAPER_MILLIONS: Mapping[str, int] = {"small": 117, "medium": 345, "large": 762, "xl": 1542}

# GPT-1 (Radford et al., "Improving Language Understanding by Generative Pre-Training"; transformers' OpenAIGPTConfig).
GPT1 = GPT2Config(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12)

Terms = tuple[tuple[str, int], ...]  # of a sum: names and numbers


@dataclass(frozen=True)
class Figure:
    """A published or common figure, and the sum that explains it."""

    figure: str  # as it is usually written
    terms: Terms  # of the sum; empty if no sum gives the figure
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
    """All parameters, tied ones once, as a sum of four terms."""
    counts = count_parameters(config)
    return (("wte", counts.kinds["wte"]), ("wpe", counts.kinds["wpe"]),
            (f"{config.n_layer} blocks", config.n_layer * counts.per_block), ("ln_f", 2 * config.n_embd))


def figures(config: GPT2Config) -> list[Figure]:
    """Parameter counts by what is included, and for a released size those that have been published."""
    counts = count_parameters(config)
    wte, wpe, blocks, ln_f = every = all_terms(config)
    matrices = counts.weight_kinds["attn"] + counts.weight_kinds["mlp"]
    general = [
        Figure(millions(counts.tied), every, "All parameters, tied ones once."),
        Figure(millions(counts.untied), (*every, ("lm_head", counts.difference)),
               "Untied: the unembedding is counted again."),
        Figure(millions(counts.tied - wte[1] - wpe[1]), (blocks, ln_f),
               f"Without embeddings. The blocks' matrices alone: {matrices:,}."),
        Figure(millions(counts.tied - wpe[1], 2), (wte, blocks, ln_f), "Without wpe."),
    ]
    size = released_size(config)
    return general if size is None else [*general, *published_figures(size)]


def published_figures(size: str) -> Iterator[Figure]:
    """The figures published for one released size."""
    config = SIZES[size]
    counts = count_parameters(config)
    every = all_terms(config)
    masks = (f"{config.n_layer} masks of {config.n_positions}^2", config.n_layer * config.n_positions**2)
    yield Figure(millions(counts.tied + masks[1]), (*every, masks),
                 "The hub's page, which counts the causal masks in OpenAI's file; they are not parameters.")
    if size == "small":
        cut = counts.difference // 10**6
        yield Figure(f"{millions(counts.untied)} - {cut}M = {millions(counts.tied)}",
                     (("untied", counts.untied), ("wte", -counts.difference)),
                     f"The survey's sum, with {counts.difference / 1e6:.2f}M truncated to {cut}M.")
    paper = f"{PAPER_MILLIONS[size]}M"
    yield Figure(paper, (), "The paper, table 2. No sum over the released weights gives it. OpenAI's README: \"our "
                 f"original parameter counts were wrong due to an error\"; it now says {millions(counts.tied)}.")
    yield Figure(paper, all_terms(replace(config, vocab_size=GPT1.vocab_size)),
                 f"Our guess at that error: with GPT-1's vocabulary of {GPT1.vocab_size:,} instead of "
                 f"{config.vocab_size:,}, all four sizes give the paper's figures.")
    if size == "small":
        yield Figure("117M", all_terms(GPT1)[:3],
                     "GPT-1, often confused with small: smaller vocabulary, half the context, no ln_f.")
    if size == "xl":
        yield Figure("1.5 billion", every, f"Truncated from {counts.tied / 1e9:.2f} billion (or rounded from the "
                     f"paper's {paper}).")


def released_size(config: GPT2Config) -> str | None:
    """The released size with these shapes, or None."""
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
    """The cost of a pass over `n_new` tokens, after which the cache holds `n_all`, with one position unembedded.

    Floating-point operations (FLOPs) are those of the matrix products, two for each multiply-add; softmax, gelu, layer
    norms and sums, a few percent at most, are left out. Attention counts only the keys up to each query's position.
    """

    n_new: int
    n_all: int
    block_flops: int  # the products with c_attn, c_proj, c_fc and c_proj
    attention_flops: int  # queries with keys, and pattern with values
    unembed_flops: int  # the logits of the last position
    weights_read: int  # numbers, each once per pass, plus the rows of wte and wpe that are looked up
    cache_read: int  # numbers: the keys and values of n_all tokens

    @property
    def flops(self) -> int:
        return self.block_flops + self.attention_flops + self.unembed_flops


def pass_cost(config: GPT2Config, n_new: int, n_all: int) -> PassCost:
    """The cost of processing the last `n_new` of `n_all` tokens: all for prefill, one for decode."""
    width, n_layer = config.n_embd, config.n_layer
    n_weights = width * 3 * width + width * width + 2 * width * config.n_inner  # in a block's matrices
    n_pairs = n_new * n_all - n_new * (n_new - 1) // 2  # query-key pairs: the last query attends to n_all keys
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
