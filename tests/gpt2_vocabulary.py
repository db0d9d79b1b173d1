"""A vocabulary of GPT-2's form and size, made up but for the merges that a few texts need, which are OpenAI's."""

import json
import random
from pathlib import Path

from numpy_gpt2.bpe import merge
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet
from numpy_gpt2.tokenizer import END_OF_TEXT

N_MERGES = 50_000
LONGEST = 12  # bytes of a made-up token

# Of OpenAI's merges.txt (MIT licence), place -> merge: all those in the texts below.
OPENAIS = {
    0: "Ġ t", 2: "h e", 5: "o n", 6: "Ġt he", 10: "Ġ w", 12: "e n", 15: "i s", 17: "o r", 32: "Ġ d", 41: "l l",
    62: "Ġ is", 79: "l d", 181: "en d", 208: "T he", 210: "Ġd o", 220: "Ġw or", 367: "on d", 372: "Ċ Ċ", 404: "t e",
    439: "e ll", 486: "x t", 739: "Ġwor ld", 1403: "o f", 3034: "Ġdo g", 3135: "ond on", 4983: "te xt",
    10853: "ell o", 15240: "H ello", 23165: "L ondon"}
KNOWN_IDS = {
    "Hello world!": [15496, 995, 0],
    "The dog": [464, 3290],
    "London is": [23421, 318],
    " \n\n  the": [220, 628, 220, 262],
    END_OF_TEXT: [27, 91, 437, 1659, 5239, 91, 29]}


def write_gpt2_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt as OpenAI's are: 256 bytes, 50,000 merges, <|endoftext|>; the same every time."""
    alphabet = byte_alphabet()
    letters = {byte: letter for letter, byte in alphabet.items()}
    merges = made_up_merges({place: bytes_of(pair, alphabet) for place, pair in OPENAIS.items()})
    pairs = [tuple("".join(letters[byte] for byte in half) for half in pair) for pair in merges]
    tokens = [*alphabet, *(left + right for left, right in pairs), END_OF_TEXT]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def bytes_of(pair: str, alphabet: dict[str, int]) -> tuple[bytes, bytes]:
    left, right = (bytes(alphabet[letter] for letter in half) for half in pair.split(" "))
    return left, right


def made_up_merges(given: dict[int, tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Pairs of bytes and of earlier tokens, the given ones in their places.

    As in merges that were learned, a token's own bytes become it; and no other merge gets in the way of the texts.
    """
    texts = b"\0".join(text.encode() for text in KNOWN_IDS)
    rng = random.Random(0)
    likely = [bytes([byte]) for byte in "the catsonm'dl,:über 2019cafés日本語…".encode()]
    tokens = [bytes([byte]) for byte in range(256)] + 20 * likely
    ranks: dict[tuple[bytes, bytes], int] = {}
    made = {left + right for left, right in given.values()}
    for rank in range(N_MERGES):
        pair = given.get(rank)
        while pair is None:
            left, right = rng.choice(tokens), rng.choice(tokens)
            whole = left + right
            if whole not in made and len(whole) <= LONGEST and whole not in texts and \
                    merge(whole, ranks) == [left, right]:
                pair = left, right
        ranks[pair] = rank
        made.add(pair[0] + pair[1])
        tokens.append(pair[0] + pair[1])
    return list(ranks)
