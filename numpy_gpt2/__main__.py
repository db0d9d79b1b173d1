"""`python -m numpy_gpt2`: the commands, a line each."""

import sys

from .cli.exits import BadInput, run

COMMANDS = {
    "generate": "continue a prompt",
    "step": "walk through one forward pass, array by array",
    "explore": "show one forward pass as a web page",
    "tokens": "show the tokens of a text, and how byte pair encoding makes them",
    "score": "measure how well a model predicts a text",
    "summary": "count and measure a model's parts",
    "train": "fine-tune a checkpoint on a text, or train from scratch",
    "exercises": "write it yourself: stubs, checks that name the mistake, hints",
}


def main() -> None:
    word = next((word for word in sys.argv[1:] if word not in ("-h", "--help")), None)
    if word is not None:
        name = word if word in COMMANDS else "NAME"
        raise BadInput(f"a command comes after a dot, python -m numpy_gpt2.{name}: alone, this lists them. "
                       f"Got {word!r}")
    print("GPT-2 in pure NumPy. Commands, each with --help:\n")
    for name, meaning in COMMANDS.items():
        print(f"  python -m numpy_gpt2.{name:10}{meaning}")
    print('\nFor a first look: python -m numpy_gpt2.generate "Once upon a time"')


if __name__ == "__main__":
    run(main)
