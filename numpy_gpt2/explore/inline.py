"""The `explore` page in a notebook: `numpy_gpt2.show(model, tokenizer, "Once upon a time")`."""

from ..html import Markup, element
from ..tokenizer import Tokenizer
from ..weights import GPT2
from .page import page_data, prompt_ids
from .rendering import render


def show(model: GPT2, tokenizer: Tokenizer, prompt: str, height: int = 800) -> Markup:
    """The page of one forward pass over a prompt, in a notebook frame of this height in pixels.

    The page is embedded, so an exported notebook keeps it. Raises ValueError for a prompt that is too long for the
    model or the page.
    """
    ids = prompt_ids(model, tokenizer, prompt)
    config = model.config
    name = f"a GPT-2 of {config.n_layer} layers and {config.n_head} heads"
    page = render(page_data(model, tokenizer, ids, name))
    # The sandbox lets the page run its script, but not touch the notebook around it.
    return element("iframe", srcdoc=page, sandbox="allow-scripts", title=f"One forward pass of {name}", loading="lazy",
                   style=f"width:100%;height:{height}px;border:0")
