"""Text to token ids and back: GPT-2's byte pair encoding, with the vocabulary that a checkpoint brings along.

    "Hello world!"  ->  "Hello", " world", "!"           split (SPLIT_PATTERN), so that no token spans two words
                    ->  b"H" b"e" b"l" b"l" b"o", ...    take each piece as UTF-8 bytes
                    ->  b"Hello", b" world", b"!"        merge: again and again the pair that comes first in the list
                    ->  15496, 995, 0                    look up

tiktoken does all four steps, fast. checkpoint/vocabulary.py reads the files, and makes sure that tiktoken will merge as
they say.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and `src/encoder.py` in
OpenAI's gpt-2 repository; byte pair encoding: Sennrich et al. 2016, section 3.2.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator

import tiktoken

END_OF_TEXT = "<|endoftext|>"  # stands between the documents that GPT-2 was trained on

# At each place the first alternative that fits is taken.
SPLIT_PATTERN = "|".join([
    r"'(?:s|t|re|ve|m|ll|d)",  # English contractions: it's, don't, we're, I've, I'm, she'll, he'd
    r" ?\p{L}+",  # letters, with the space before them if there is one
    r" ?\p{N}+",  # digits, likewise
    r" ?[^\s\p{L}\p{N}]+",  # punctuation and all other signs, likewise
    r"\s++$",  # white space at the end. OpenAI's pattern leaves it to the next line, which matches the same
    r"\s+(?!\S)",  # white space without its last character, which goes with the word that follows
    r"\s+",  # that last character, where it is no space
])

# To try `(?!\S)` ever further back, tiktoken remembers every character of the white space, and panics at about a
# million. Hence the line above for the end of a text, and a cut before the last character of a long run inside it,
# where that alternative ends in any case. (U+001C to U+001F are white space to Python's \s but not to tiktoken's.)
LONG_RUN_CUT = re.compile(r"(?=[^\S\x1c-\x1f][\S\x1c-\x1f])(?<=\s{10000})")


class Tokenizer:
    """GPT-2's tokenizer with one checkpoint's vocabulary: what `tokenizer_from_files` returns.

    `vocab_size`: the number of tokens; ids run from 0 to vocab_size - 1.
    `eot_id`: the id of `<|endoftext|>`.
    """

    def __init__(self, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> None:
        """`ranks` holds the ids of the ordinary tokens; of two possible merges, tiktoken prefers the lower id."""
        # tiktoken would make one regular expression of all special tokens, which costs gigabytes where they are long.
        self._encoding = tiktoken.Encoding("numpy_gpt2", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks,
                                           special_tokens={})
        self._special_tokens = special_tokens
        self._special_bytes = {token_id: name.encode() for name, token_id in special_tokens.items()}
        self.vocab_size = len(ranks) + len(special_tokens)
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
        return [token_id for part in LONG_RUN_CUT.split(text) for token_id in self._encoding.encode_ordinary(part)]

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


def split_at(text: str, names: Collection[str]) -> list[str]:
    """`text` cut before and after each of `names` in it. Where two of them begin, the longer one counts."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)


def quoted(tokenizer: Tokenizer, token_id: int) -> str:
    r"""A token on one line: " the", "\n", and "\xe2\x80" for bytes that are not whole characters."""
    if token_id >= tokenizer.vocab_size:
        return "(none)"  # a model may have more ids than its tokenizer has tokens
    text = tokenizer.token_bytes(token_id).decode("utf-8", errors="surrogateescape")
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how surrogateescape stands in for a byte that is no character
        return f"\\x{ord(character) - 0xdc00:02x}"
    return character.encode("unicode_escape").decode("ascii")
