r"""Chapter 1: tokens. GPT-2 reads neither letters nor words, but byte sequences that are frequent in its training data.

    "a lower tower"  ->  "a", " lower", " tower"      split: no token spans two words
    " lower"         ->  " " "l" "o" "w" "e" "r"      the tokens of a piece are its bytes at first,
                     ->  " " "l" "ow" "er"            and pairs from a list of merges are joined, the earliest first

A letter beyond ASCII is several bytes in UTF-8 (b"\xc3\xa0" is one "à"), and a token may end between them.

Replace each `raise NotImplementedError`, then: python -m numpy_gpt2.exercises check
"""

import codecs
from collections.abc import Iterable, Iterator

import numpy_gpt2.tokenizer
from numpy_gpt2.bpe import Ranks, split


class Tokenizer(numpy_gpt2.tokenizer.Tokenizer):
    """The engine's tokenizer, with two methods for you to write; self.token_bytes(token_id) has a token's bytes."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: the bytes of all tokens together, read as UTF-8.

        Bytes that are not UTF-8 become U+FFFD: errors="replace".

        >>> from numpy_gpt2.checkpoint.loading import load_tokenizer
        >>> Tokenizer.decode(load_tokenizer("fairytale"), load_tokenizer("fairytale").encode("Xin chào"))
        'Xin chào'
        """
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text, streamed: a generator that yields the text that an id completes before it takes the next id.

        A token can end inside a character: hold its bytes back until the character is complete. No piece is empty. An
        unfinished character at the end is yielded as U+FFFD. Python's codecs module has a decoder for this.

        >>> from numpy_gpt2.checkpoint.loading import load_tokenizer
        >>> tokenizer = load_tokenizer("fairytale")
        >>> list(Tokenizer.decode_stream(tokenizer, tokenizer.encode("à, then")))  # the first has two tokens
        ['à', ',', ' then']
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            piece = decoder.decode(self.token_bytes(token_id))
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest


def merge(piece: bytes, ranks: Ranks) -> list[bytes]:
    """The tokens of a piece: start with its bytes; repeatedly join the adjacent pair with the lowest rank, the leftmost
    on ties, until no adjacent pair has a rank.

    ranks: {(left, right): rank}. Some pairs have none.
    Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", section 3.2.

    >>> ranks = {(b"e", b"r"): 0, (b"o", b"w"): 1, (b"l", b"ow"): 2}
    >>> merge(b"lower", ranks)
    [b'low', b'er']
    """
    tokens = [piece[i:i + 1] for i in range(len(piece))]
    while True:
        pairs = list(zip(tokens, tokens[1:]))
        known = [i for i in range(len(pairs)) if pairs[i] in ranks]
        if not known:
            return tokens
        i = min(known, key=lambda i: (ranks[pairs[i]], i))
        tokens[i:i + 2] = [tokens[i] + tokens[i + 1]]


def encode(text: str, ranks: Ranks) -> list[bytes]:
    """The tokens of a text: split it, and merge the UTF-8 bytes of each piece separately.

    split(text) gives the pieces, for example a word with the space before it. Joined, they give the text.

    >>> encode("a low tower", {(b"o", b"w"): 0, (b" ", b"t"): 1, (b"l", b"ow"): 2})
    [b'a', b' ', b'low', b' t', b'ow', b'e', b'r']
    """
    return [token for piece in split(text) for token in merge(piece.encode("utf-8"), ranks)]
