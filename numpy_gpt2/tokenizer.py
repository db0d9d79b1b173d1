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
from .errors import shown

END_OF_TEXT = "<|endoftext|>"  # stands between the documents that GPT-2 was trained on

# To try `(?!\S)` ever further back, tiktoken remembers every character of the white space, and panics at about a
# million. Hence the line above for the end of a text, and a cut before the last character of a long run inside it,
# where that alternative ends in any case. (U+001C to U+001F are white space to Python's \s but not to tiktoken's.)
LONG_RUN_CUT = re.compile(r"(?=[^\S\x1c-\x1f][\S\x1c-\x1f])(?<=\s{10000})")


# What `tokenizers` takes for white space and for a part of a word.
UNICODE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))).translate(dict.fromkeys(range(0x1c, 0x20)))
WHITE_SPACE = regex.compile(r"\p{White_Space}*")
WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


@dataclass(frozen=True)
class AddedToken:
    """A token that no merge makes: found whole in a text, whatever is around it, or else met in decoding only."""

    id: int
    is_special: bool = True  # found only where the caller allows it. Else in every text
    lstrip: bool = False  # it takes white space before it along ...
    rstrip: bool = False  # ... and after it
    single_word: bool = False  # found only where neither neighbour is part of a word
    normalized: bool = False  # looked for after all that are not, in the text as the normalizer leaves it
    is_found: bool = True
    content: bytes | None = None  # what it decodes to; None: its name


@dataclass(frozen=True)
class Preparation:
    """What is done to a text before its pieces are encoded. GPT-2 does none of it."""

    add_prefix_space: bool = False  # to each stretch between added tokens that does not begin with one
    use_regex: bool = True  # whether the text is split into pieces at all
    normalize: Callable[[str], str] | None = None


class Tokenizer:
    """GPT-2's tokenizer with one checkpoint's vocabulary: what `tokenizer_from_files` returns.

    `vocab_size`: the number of tokens; ids run from 0 to vocab_size - 1.
    `bos_id`: of the token that begins a text, or None where the checkpoint names none.
    `eos_ids`: of those that end one; there may be none. `eot_id`: of `<|endoftext|>`, -1 where there is none.
    `merge_ranks`: a pair of tokens -> its place in the list of merges, from 0.
    `files`: those that it was read from, by their names in the checkpoint.
    """

    def __init__(self, ids: dict[bytes, int], merge_ranks: Ranks, added_tokens: Mapping[str, int | AddedToken],
                 ids_are_ranks: bool = True, *, bos_id: int | None = None, eos_ids: Sequence[int] | None = None,
                 preparation: Preparation = Preparation(), files: Mapping[str, Path] = MappingProxyType({})) -> None:
        """`ids` are those of the ordinary tokens. `ids_are_ranks`: whether tiktoken merges as `merge_ranks` say.

        added_tokens: by name; a bare id is that of a special token. bos_id, eos_ids: None means `<|endoftext|>`.
        """
        pattern = SPLIT_PATTERN if preparation.use_regex else r"(?s:.+)"
        # tiktoken would make one regular expression of all special tokens, which costs gigabytes where they are long.
        self._encoding = tiktoken.Encoding("numpy_gpt2", pat_str=pattern, mergeable_ranks=ids, special_tokens={})
        self._ids_are_ranks = ids_are_ranks
        self._preparation = preparation
        self.merge_ranks = merge_ranks
        self._added_tokens = {name: token if isinstance(token, AddedToken) else AddedToken(token)
                              for name, token in added_tokens.items()}
        self._added_bytes = {token.id: name.encode() if token.content is None else token.content
                             for name, token in self._added_tokens.items()}
        self._always = [name for name, token in self._added_tokens.items() if token.is_found and not token.is_special]
        self.vocab_size = len(self._added_bytes.keys() | set(ids.values()))
        end_of_text = self._added_tokens.get(END_OF_TEXT)
        self.eot_id = -1 if end_of_text is None else end_of_text.id
        self.bos_id = bos_id if bos_id is not None or end_of_text is None else self.eot_id
        self.eos_ids = tuple(eos_ids) if eos_ids is not None else () if end_of_text is None else (self.eot_id,)
        self.files = files

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        The name of a special token inside the text, `<|endoftext|>` say, is plain text, unless `allowed_special` holds
        that name or is "all" (tiktoken's word for it). A token that was added as an ordinary one is always found.
        Raises ValueError for a name that is no special token, and for a text with a lone surrogate (half a character:
        a Python str can hold it, UTF-8 cannot).
        """
        ids = []
        for stretch in self._stretches(text, allowed_special):
            if isinstance(stretch, int):
                ids.append(stretch)
            else:
                ids.extend(self._encode_ordinary(stretch))
        return ids

    def pieces(self, text: str, allowed_special: Collection[str] = ()) -> list[str]:
        """What `encode` merges one by one, added tokens left out: no token spans two of these pieces."""
        return [piece for stretch in self._stretches(text, allowed_special) if isinstance(stretch, str)
                for piece in self._split(stretch)]

    def _stretches(self, text: str, allowed_special: Collection[str]) -> Iterator[int | str]:
        """The text in order: the id of each added token in it, and what is between them, ready to be encoded."""
        refuse_lone_surrogates(text)
        special = [name for name, token in self._added_tokens.items() if token.is_special and token.is_found]
        allowed = set(special) if allowed_special == "all" else set(allowed_special)
        unknown = allowed - {*special, *self._always}
        if unknown:
            raise ValueError(f'allowed_special must be "all" or some of {shown(special)}. Got {shown(min(unknown))}.')
        names = allowed.union(self._always)
        normalize = self._preparation.normalize or str
        for part in self._cut(text, [name for name in names if not self._added_tokens[name].normalized]):
            if isinstance(part, int):
                yield part
                continue
            for stretch in self._cut(normalize(part), [name for name in names if self._added_tokens[name].normalized]):
                if isinstance(stretch, str) and self._preparation.add_prefix_space and not stretch.startswith(" "):
                    stretch = " " + stretch
                yield stretch

    def with_bos(self, ids: Iterable[int] = ()) -> list[int]:
        """The ids after the one that begins a text. Raises ValueError where the checkpoint names no such token."""
        if self.bos_id is None:
            raise ValueError("the checkpoint names no token that begins a text (a bos_token): give a prompt that is "
                             "not empty, or score without one (--no-bos)")
        return [self.bos_id, *ids]

    def _cut(self, text: str, names: list[str]) -> Iterator[int | str]:
        """The text in order: the id of each of the named tokens in it, and what is between them."""
        normalize = self._preparation.normalize
        tokens = {normalize(name) if normalize and self._added_tokens[name].normalized else name:
                  self._added_tokens[name] for name in names}
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

    def _encode_ordinary(self, text: str) -> list[int]:
        """The ids of a stretch between added tokens."""
        if not self._ids_are_ranks:
            return self._encode_by_merges(text)
        if not self._preparation.use_regex:
            return self._encoding.encode_ordinary(text)
        return [token_id for part in LONG_RUN_CUT.split(text) for token_id in self._encoding.encode_ordinary(part)]

    def _encode_by_merges(self, text: str) -> list[int]:
        """What bpe.py makes of a text: slower than tiktoken, but right for every list of merges."""
        pieces = self._split(text)
        tokens = {piece: merge(piece.encode(), self.merge_ranks) for piece in set(pieces)}  # most occur again and again
        return [self._encoding.encode_single_token(token) for piece in pieces for token in tokens[piece]]

    def _split(self, text: str) -> list[str]:
        """The pieces that are merged one by one."""
        return split_as_tiktoken(text) if self._preparation.use_regex else [text]

    def decode(self, ids: int | Iterable[int]) -> str:
        """The text of `ids`, or of one id. Bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id without a token.
        """
        several = [int(ids)] if isinstance(ids, (int, Integral)) else ids  # a NumPy integer is no int
        return b"".join(map(self.token_bytes, several)).decode("utf-8", errors="replace")

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

    def token_text(self, token_id: int) -> str:
        r"""One token for people to read: its text, with "\xe2\x80" for bytes that are not whole characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be whole characters. Raises ValueError for an id without a token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"a token id must be at least 0 and less than the vocabulary's size, {self.vocab_size}. "
                             f"Got {token_id}.")
        if token_id in self._added_bytes:
            return self._added_bytes[token_id]
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


def find_tokens(text: str, tokens: Mapping[str, AddedToken]) -> Iterator[tuple[int, int, AddedToken]]:
    """Where one of the tokens is in the text, from left to right: start, end, token. Of two at one place the longer.

    There may be a million of them. At each place only those can be whose first character is there, and a look-up for
    each of their lengths tells which one is.
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
    """A token on one line."""
    if token_id >= tokenizer.vocab_size:
        return "(none)"  # a model may have more ids than its tokenizer has tokens
    return quoted_bytes(tokenizer.token_bytes(token_id))


def quoted_bytes(token: bytes) -> str:
    r"""A token's bytes on one line: " the", "\n", and "\xe2\x80" for bytes that are not whole characters."""
    text = token.decode("utf-8", errors="surrogateescape")
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    """A character between quotation marks on one line; what is not printed as an escape."""
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how surrogateescape stands in for a byte that is no character
        return f"\\x{ord(character) - 0xdc00:02x}"
    return character.encode("unicode_escape").decode("ascii")
