"""Text to token ids and back: GPT-2's byte pair encoding, with the vocabulary that a checkpoint brings along.

    "Hello world!"  ->  "Hello", " world", "!"           split (SPLIT_PATTERN), so that no token spans two words
                    ->  b"H" b"e" b"l" b"l" b"o", ...    take each piece as UTF-8 bytes
                    ->  b"Hello", b" world", b"!"        merge: again and again the pair that comes first in the list
                    ->  15496, 995, 0                    look up

bpe.py has the algorithm to read. tiktoken does all four steps, fast, but takes ids for ranks: checkpoint/vocabulary.py,
which reads the files, finds out whether that merges as they say. Where it does not, bpe.py encodes.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository; byte pair encoding: Sennrich et al. 2016, section 3.2.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, pairwise

import tiktoken

from .bpe import SPLIT_PATTERN, Ranks, merge, split

END_OF_TEXT = "<|endoftext|>"  # stands between the documents that GPT-2 was trained on

# To try `(?!\S)` ever further back, tiktoken remembers every character of the white space, and panics at about a
# million. Hence the line above for the end of a text, and a cut before the last character of a long run inside it,
# where that alternative ends in any case. (U+001C to U+001F are white space to Python's \s but not to tiktoken's.)
LONG_RUN_CUT = re.compile(r"(?=[^\S\x1c-\x1f][\S\x1c-\x1f])(?<=\s{10000})")


class Tokenizer:
    """GPT-2's tokenizer with one checkpoint's vocabulary: what `tokenizer_from_files` returns.

    `vocab_size`: the number of tokens; ids run from 0 to vocab_size - 1.
    `eot_id`: the id of `<|endoftext|>`.
    `merge_ranks`: a pair of tokens -> its place in the list of merges, from 0.
    """

    def __init__(self, ids: dict[bytes, int], merge_ranks: Ranks, special_tokens: dict[str, int],
                 ids_are_ranks: bool) -> None:
        """`ids` are those of the ordinary tokens. `ids_are_ranks`: whether tiktoken merges as `merge_ranks` say."""
        # tiktoken would make one regular expression of all special tokens, which costs gigabytes where they are long.
        self._encoding = tiktoken.Encoding("numpy_gpt2", pat_str=SPLIT_PATTERN, mergeable_ranks=ids, special_tokens={})
        self._ids_are_ranks = ids_are_ranks
        self.merge_ranks = merge_ranks
        self._special_tokens = special_tokens
        self._special_bytes = {token_id: name.encode() for name, token_id in special_tokens.items()}
        self.vocab_size = len(ids) + len(special_tokens)
        self.eot_id = special_tokens[END_OF_TEXT]

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        The name of a special token inside the text, `<|endoftext|>` say, is plain text, unless `allowed_special` holds
        that name or is "all" (tiktoken's word for it).
        Raises ValueError for a name that is no special token, and for a text with a lone surrogate (half a character:
        a Python str can hold it, UTF-8 cannot).
        """
        refuse_lone_surrogates(text)
        names = self._special_tokens.keys() if allowed_special == "all" else set(allowed_special)
        unknown = names - self._special_tokens.keys()
        if unknown:
            raise ValueError(f"allowed_special must be \"all\" or some of {list(self._special_tokens)}. "
                             f"Got {min(unknown)!r}.")
        ids = []
        for part in split_at(text, names):
            if part in names:
                ids.append(self._special_tokens[part])
            else:
                ids.extend(self._encode_ordinary(part))
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        if not self._ids_are_ranks:
            return self._encode_by_merges(text)
        return [token_id for part in LONG_RUN_CUT.split(text) for token_id in self._encoding.encode_ordinary(part)]

    def _encode_by_merges(self, text: str) -> list[int]:
        """What bpe.py makes of a text: slower than tiktoken, but right for every list of merges."""
        pieces = self.pieces(text)
        tokens = {piece: merge(piece.encode(), self.merge_ranks) for piece in set(pieces)}  # most occur again and again
        return [self._encoding.encode_single_token(token) for piece in pieces for token in tokens[piece]]

    def pieces(self, text: str) -> list[str]:
        """The pieces that are encoded one by one: no token spans two of them. They join to the text."""
        return split_as_tiktoken(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD. Raises ValueError for an id without a token."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` in pieces, none empty: what an id decides is yielded before the next id is asked for.

        The pieces join to `decode(ids)`. A token can end inside a character; its bytes are then held back until the
        rest has come, so that no U+FFFD appears which the whole text does not have.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            piece = decoder.decode(self.token_bytes(token_id))
            if piece:
                yield piece
        unfinished_character = decoder.decode(b"", final=True)
        if unfinished_character:
            yield unfinished_character

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters. Raises ValueError for an id without a token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"a token id must be at least 0 and less than the vocabulary's size, {self.vocab_size}. "
                             f"Got {token_id}.")
        if token_id in self._special_bytes:
            return self._special_bytes[token_id]
        return self._encoding.decode_single_token_bytes(token_id)


def refuse_lone_surrogates(text: str) -> None:
    """Raise ValueError, with the position, for half a character: a Python str can hold it, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate, {text[error.start]!a}, at position {error.start}: "
                         "UTF-8 has no bytes for it.") from error


def split_as_tiktoken(text: str) -> list[str]:
    """The pieces of a text, cut where tiktoken cuts it.

    So does `bpe.split`, but for characters so new that only one of the two libraries' Unicode tables has them, and they
    are a letter to one and a sign to the other. Here each is replaced for a moment by one of the kind that tiktoken
    takes it for.
    """
    stand_ins = {ord(character): stand_in(character) for character in set(text) if not character.isascii()}
    cuts = accumulate(map(len, split(text.translate(stand_ins))), initial=0)
    return [text[start:end] for start, end in pairwise(cuts)]


@lru_cache(maxsize=10_000)
def stand_in(character: str) -> str:
    """An ASCII character of the kind that tiktoken takes this one for: a letter, a number, white space or a sign."""
    for pattern, ascii_character in ((r"\p{L}", "a"), (r"\p{N}", "1"), (r"\s", "\n")):
        if matcher(pattern).encode_ordinary(character):  # what the pattern does not match has no tokens
            return ascii_character
    return "!"


@lru_cache
def matcher(pattern: str) -> tiktoken.Encoding:
    """An encoding that encodes nothing but what matches the pattern."""
    return tiktoken.Encoding(pattern, pat_str=pattern, mergeable_ranks={bytes([byte]): byte for byte in range(256)},
                             special_tokens={})


def split_at(text: str, names: Collection[str]) -> list[str]:
    """`text` cut before and after each of `names` in it. Where two of them begin, the longer one counts."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)


def quoted(tokenizer: Tokenizer, token_id: int) -> str:
    """A token on one line."""
    if token_id >= tokenizer.vocab_size:
        return "(none)"  # a model may have more ids than its tokenizer has tokens
    return quoted_bytes(tokenizer.token_bytes(token_id))


def quoted_bytes(token: bytes) -> str:
    r"""A token's bytes on one line: " the", "\n", and "\xe2\x80" for bytes that are not whole characters."""
    text = token.decode("utf-8", errors="surrogateescape")
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how surrogateescape stands in for a byte that is no character
        return f"\\x{ord(character) - 0xdc00:02x}"
    return character.encode("unicode_escape").decode("ascii")
