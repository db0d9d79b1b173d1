"""Text to token ids and back: GPT-2's byte pair encoding, with a checkpoint's vocabulary.

    "Hello world!"  ->  "Hello", " world", "!"           split (SPLIT_PATTERN), so that no token spans two words
                    ->  b"H" b"e" b"l" b"l" b"o", ...    take each piece as UTF-8 bytes
                    ->  b"Hello", b" world", b"!"        merge: repeatedly the pair that comes first in the list
                    ->  15496, 995, 0                    look up

bpe.py has the algorithm in readable form. tiktoken does all four steps, fast, but uses ids as ranks: whether this gives
the same merges is checked in checkpoint/vocabulary.py, which reads the files. If not, bpe.py encodes.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository; byte pair encoding: Sennrich et al. 2016, section 3.2.
"""

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from numbers import Integral
from pathlib import Path
from types import MappingProxyType

import regex
import tiktoken

from .bpe import SPLIT_PATTERN, Ranks, merge, split
from .errors import check_int, shown

END_OF_TEXT = "<|endoftext|>"  # separates the documents that GPT-2 was trained on

# To backtrack in `\s+(?!\S)`, tiktoken stores every character of the white space, and panics at about a million. So
# bpe.py's pattern has `\s++$` for the end of a text, and long runs inside it are cut before their last character, where
# that alternative ends anyway. (U+001C to U+001F are white space to Python's \s but not to tiktoken's.)
LONG_RUN_CUT = re.compile(r"(?=[^\S\x1c-\x1f][\S\x1c-\x1f])(?<=\s{10000})")

# What `tokenizers` treats as white space, and as part of a word.
UNICODE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))).translate(dict.fromkeys(range(0x1c, 0x20)))
WHITE_SPACE = regex.compile(r"\p{White_Space}*")
WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


@dataclass(frozen=True)
class AddedToken:
    """A token that no merge makes: it is found in a text as a whole, or (is_found False) occurs only in decoding."""

    id: int
    is_special: bool = True  # found only if the caller allows it; otherwise in every text
    lstrip: bool = False  # includes white space before it
    rstrip: bool = False  # includes white space after it
    single_word: bool = False  # found only if neither neighbour is part of a word
    normalized: bool = False  # searched for in the normalized text, after all that are not
    is_found: bool = True
    content: bytes | None = None  # the bytes it decodes to; None: its name


@dataclass(frozen=True)
class Preparation:
    """How a text is prepared before its pieces are encoded. The defaults are GPT-2's."""

    add_prefix_space: bool = False  # prepend a space to each stretch between added tokens that has none
    use_regex: bool = True  # whether the text is split into pieces at all
    normalize: Callable[[str], str] | None = None


class Tokenizer:
    """GPT-2's tokenizer with one checkpoint's vocabulary, as `tokenizer_from_files` returns it.

    `vocab_size`: the number of tokens; ids run from 0 to vocab_size - 1.
    `bos_id`: the id of the token that begins a text, or None if the checkpoint has none.
    `eos_ids`: the ids of the tokens that end one; may be empty. `eot_id`: the id of `<|endoftext|>`, or -1.
    `merge_ranks`: a pair of tokens -> its index in the list of merges.
    `files`: the files it was read from, by their names in the checkpoint.
    """

    def __init__(self, ids: dict[bytes, int], merge_ranks: Ranks, added_tokens: Mapping[str, int | AddedToken],
                 ids_are_ranks: bool = True, *, bos_id: int | None = None, eos_ids: Sequence[int] | None = None,
                 preparation: Preparation = Preparation(), files: Mapping[str, Path] = MappingProxyType({})) -> None:
        """`ids`: of the ordinary tokens. `ids_are_ranks`: whether tiktoken's merges are those of `merge_ranks`.

        added_tokens: by name; a bare id means a special token. bos_id, eos_ids: None means `<|endoftext|>`.
        """
        pattern = SPLIT_PATTERN if preparation.use_regex else r"(?s:.+)"
        # tiktoken would make one regular expression of all special tokens, which takes gigabytes if they are long.
        self._encoding = tiktoken.Encoding("numpy_gpt2", pat_str=pattern, mergeable_ranks=ids, special_tokens={})
        self._ids_are_ranks = ids_are_ranks
        self._preparation = preparation
        self.merge_ranks = merge_ranks
        self._added_tokens = {name: token if isinstance(token, AddedToken) else AddedToken(token)
                              for name, token in added_tokens.items()}
        self._added_bytes = {token.id: name.encode() if token.content is None else token.content
                             for name, token in self._added_tokens.items()}
        self.vocab_size = len(self._added_bytes.keys() | set(ids.values()))
        end_of_text = self._added_tokens.get(END_OF_TEXT)
        self.eot_id = -1 if end_of_text is None else end_of_text.id
        self.bos_id = bos_id if bos_id is not None or end_of_text is None else self.eot_id
        self.eos_ids = tuple(eos_ids) if eos_ids is not None else () if end_of_text is None else (self.eot_id,)
        self.files = files

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        The name of a special token inside the text, such as `<|endoftext|>`, is plain text, unless `allowed_special`
        contains it or is "all" (as in tiktoken). Added tokens that are not special are always recognized.
        Raises ValueError for a name that is not a special token, and for a text with a lone surrogate (half a
        character, which a Python str can hold but UTF-8 cannot).
        """
        ids = []
        for stretch in self._stretches(text, allowed_special):
            ids += [stretch] if isinstance(stretch, int) else self._encode_ordinary(stretch)
        return ids

    def pieces(self, text: str, allowed_special: Collection[str] = ()) -> list[str]:
        """The pieces that `encode` merges independently, without added tokens: no token spans two of them."""
        return [piece for stretch in self._stretches(text, allowed_special) if isinstance(stretch, str)
                for piece in self._split(stretch)]

    def _stretches(self, text: str, allowed_special: Collection[str]) -> Iterator[int | str]:
        """Yield the text in order: the id of each added token, and the prepared stretches between them."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str. Got {type(text).__name__}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds a lone surrogate, {text[error.start]!a}, at position {error.start}: "
                             "UTF-8 has no bytes for it.") from error
        found = {name: token for name, token in self._added_tokens.items() if token.is_found}
        special = [name for name, token in found.items() if token.is_special]
        allowed = set(special if allowed_special == "all" else allowed_special)
        unknown = allowed - found.keys()
        if unknown:
            got = allowed_special if isinstance(allowed_special, str) else min(unknown)
            raise ValueError(f'allowed_special must be "all" or some of {shown(special)}, in a list. Got {shown(got)}.')
        wanted = {name: token for name, token in found.items() if name in allowed or not token.is_special}
        normalize = self._preparation.normalize or str
        as_written = {name: token for name, token in wanted.items() if not token.normalized}
        normalized = {normalize(name): token for name, token in wanted.items() if token.normalized}
        for part in cut(text, as_written):
            stretches: Iterable[int | str] = [part] if isinstance(part, int) else cut(normalize(part), normalized)
            for stretch in stretches:
                if isinstance(stretch, str) and self._preparation.add_prefix_space and not stretch.startswith(" "):
                    stretch = " " + stretch
                yield stretch

    def with_bos(self, ids: Iterable[int] = ()) -> list[int]:
        """The ids with bos_id prepended. Raises ValueError if the checkpoint has no such token."""
        if isinstance(ids, str):
            raise TypeError(f"ids must be token ids: tokenizer.encode(text) gives them. Got {shown(ids)}.")
        if self.bos_id is None:
            raise ValueError("the checkpoint has no token that begins a text (bos_token): give a prompt that is not "
                             "empty, or score without one (--no-bos)")
        return [self.bos_id, *ids]

    def _encode_ordinary(self, text: str) -> list[int]:
        """The ids of a stretch between added tokens."""
        if not self._ids_are_ranks:
            return self._encode_by_merges(text)
        parts = LONG_RUN_CUT.split(text) if self._preparation.use_regex else [text]
        return [token_id for part in parts for token_id in self._encoding.encode_ordinary(part)]

    def _encode_by_merges(self, text: str) -> list[int]:
        """Encode with bpe.py: slower than tiktoken, but correct for every list of merges."""
        pieces = self._split(text)
        tokens = {piece: merge(piece.encode(), self.merge_ranks) for piece in set(pieces)}  # many occur repeatedly
        return [self._encoding.encode_single_token(token) for piece in pieces for token in tokens[piece]]

    def _split(self, text: str) -> list[str]:
        """The pieces that are merged independently."""
        return split_as_tiktoken(text) if self._preparation.use_regex else [text]

    def decode(self, ids: int | Iterable[int]) -> str:
        """The text of `ids`, or of one id. Bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id without a token.
        """
        several = [int(ids)] if isinstance(ids, (int, Integral)) else ids  # a NumPy integer is not an int
        return b"".join(map(self.token_bytes, several)).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `ids` in non-empty pieces, each before the next id is requested.

        Joined, the pieces give `decode(ids)`. A token can end inside a character; its bytes are then held back until
        the character is complete, so that no U+FFFD appears that the whole text does not have.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            piece = decoder.decode(self.token_bytes(token_id))
            if piece:
                yield piece
        unfinished_character = decoder.decode(b"", final=True)
        if unfinished_character:
            yield unfinished_character

    def token_text(self, token_id: int) -> str:
        r"""One token in readable form: its text, with "\xe2\x80" for bytes that are not whole characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters. Raises ValueError for an id without a token."""
        token_id = check_int("a token id", token_id, 0, self.vocab_size - 1)
        if token_id in self._added_bytes:
            return self._added_bytes[token_id]
        return self._encoding.decode_single_token_bytes(token_id)


def split_as_tiktoken(text: str) -> list[str]:
    """Split a text into pieces exactly as tiktoken does.

    `bpe.split` differs for characters so new that only one of the two libraries' Unicode tables has them, so that they
    are letters in only one. So each character is temporarily replaced by one of the class that tiktoken assigns to it.
    """
    stand_ins = {ord(character): stand_in(character) for character in set(text) if not character.isascii()}
    cuts = accumulate(map(len, split(text.translate(stand_ins))), initial=0)
    return [text[start:end] for start, end in pairwise(cuts)]


@lru_cache(maxsize=10_000)
def stand_in(character: str) -> str:
    """An ASCII character of the class that tiktoken assigns to this one: letter, number, white space or other."""
    for pattern, ascii_character in ((r"\p{L}", "a"), (r"\p{N}", "1"), (r"\s", "\n")):
        if matcher(pattern).encode_ordinary(character):  # text that does not match gives no tokens
            return ascii_character
    return "!"


@lru_cache
def matcher(pattern: str) -> tiktoken.Encoding:
    """An encoding that encodes only matches of the pattern."""
    return tiktoken.Encoding(pattern, pat_str=pattern, mergeable_ranks={bytes([byte]): byte for byte in range(256)},
                             special_tokens={})


def cut(text: str, tokens: Mapping[str, AddedToken]) -> Iterator[int | str]:
    """Yield the text in order: the id of each of these tokens, and the stretches between them."""
    position = 0
    for start, end, token in find_tokens(text, tokens):
        if token.single_word and (WORD.match(text[start - 1:start]) or WORD.match(text[end:end + 1])):
            continue
        if token.lstrip:
            start = max(position, len(text[:start].rstrip(UNICODE_SPACE)))
        if token.rstrip:
            end = WHITE_SPACE.match(text, end).end()
        if position < start:
            yield text[position:start]
        yield token.id
        position = end
    if position < len(text):
        yield text[position:]


def find_tokens(text: str, tokens: Mapping[str, AddedToken]) -> Iterator[tuple[int, int, AddedToken]]:
    """Yield the tokens found in the text from left to right: start, end, token. The longest wins at each position.

    There may be a million tokens. At each position only those that begin with its character are candidates, and one
    look-up per possible length finds the match.
    """
    lengths: dict[str, set[int]] = {}
    for name in tokens:
        lengths.setdefault(name[0], set()).add(len(name))
    longest_first = {first: sorted(of_names, reverse=True) for first, of_names in lengths.items()}
    if not longest_first:
        return
    firsts = re.compile("[" + "".join(map(re.escape, longest_first)) + "]")
    place = firsts.search(text)
    while place:
        start = end = place.start()
        for length in longest_first[text[start]]:
            name = text[start:start + length]
            if name in tokens:
                end = start + length
                yield start, end, tokens[name]
                break
        place = firsts.search(text, max(end, start + 1))


def quoted(tokenizer: Tokenizer, token_id: int) -> str:
    """A token in quotation marks on one line, or "(none)" for an id without a token."""
    if token_id >= tokenizer.vocab_size:
        return "(none)"  # a model may have more ids than its tokenizer has tokens
    return quoted_bytes(tokenizer.token_bytes(token_id))


def quoted_bytes(token: bytes) -> str:
    r"""A token's bytes on one line: " the", "\n", and "\xe2\x80" for bytes that are not whole characters."""
    text = token.decode("utf-8", errors="surrogateescape")
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    """A character for a quoted string on one line; unprintable ones are escaped."""
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # surrogateescape's form of a byte that is not part of a character
        return f"\\x{ord(character) - 0xdc00:02x}"
    return character.encode("unicode_escape").decode("ascii")
