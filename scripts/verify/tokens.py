"""Compare tokens with Hugging Face's tokenizers: random Unicode strings, token for token, and every code point.

    pip install -e '.[parity]' && python scripts/verify/tokens.py --vocabulary path/to/folder

Tests the bundled vocabulary and, with --vocabulary, one more: a folder with vocab.json and merges.txt.

Both libraries split a text by letters, numbers and white space, each with its own tables of some version of Unicode.
First every code point is classified, with a vocabulary whose tokens show where a text was split; differences between
the two libraries are listed. Then come the strings: code points of all planes, letters, digits and marks of every
script, emoji sequences, directional marks, controls, unassigned code points, white space of every kind, long runs, and
plain English between them. Strings with a listed code point may differ, and are counted separately; any other must have
the same tokens in both, and decode to itself. Those that do not are printed, and the exit status is 1.
"""

import argparse
import sys
import unicodedata
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import ByteLevelBPETokenizer

import numpy_gpt2
from numpy_gpt2.checkpoint.vocabulary import ALPHABET, Vocabulary, build_tokenizer, tokenizer_from_files
from numpy_gpt2.cli.arguments import whole_number
from numpy_gpt2.cli.exits import BadInput, bad_input, run, say
from numpy_gpt2.tokenizer import END_OF_TEXT, AddedToken

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

from experiment import Parser, print_table  # noqa: E402

BUNDLED = Path(numpy_gpt2.__file__).parent / "fairytale"
FILES = ("vocab.json", "merges.txt")

CODE_POINTS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]


def make_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=whole_number(1), default=200_000, metavar="N",
                        help="for each vocabulary (default: 200,000)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="default: %(default)s")
    parser.add_argument("--vocabulary", type=Path, metavar="FOLDER", help="also with its vocab.json and merges.txt")
    return parser


def main():
    args = make_parser().parse_args()
    folders = {"fairytale": BUNDLED}
    if args.vocabulary:
        folders[args.vocabulary.name or str(args.vocabulary)] = args.vocabulary
    pairs = {name: both_of_folder(folder) for name, folder in folders.items()}

    print(f"numpy_gpt2 against tokenizers {tokenizers.__version__}, strings drawn by Unicode "
          f"{unicodedata.unidata_version}\n")
    unlike = unlike_code_points()
    print_unlike(unlike)
    alphabets = make_alphabets()
    failures, rows = [], []
    for name, (ours, theirs) in pairs.items():
        counts, wrong = compare(ours, theirs, args.strings, args.seed, alphabets, set(unlike))
        rows.append([name, *counts])
        failures += [f"{name}: {text!a}" for text in wrong]
        say(f"compared: {name}")
    print_table(["vocabulary", "strings", "tokens", "differ", "with such code points", "differ"], rows)
    n_strings = sum(row[1] for row in rows)
    print(f"\n{n_strings:,} strings, {sum(row[2] for row in rows):,} tokens: {len(failures):,} strings differ. "
          f"Of {len(CODE_POINTS):,} code points {len(unlike):,} are something else to tokenizers.")
    if failures:
        sys.exit(f"error: expected the tokens of tokenizers, got others for {failures[0][:500]}")


# The two libraries ----------------------------------------------------------------------------------------------------


def both_of_folder(folder):
    """Our tokenizer and theirs, from the same files."""
    files = {name: folder / name for name in FILES}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise BadInput(f"--vocabulary must be a folder with vocab.json and merges.txt. Missing: {missing[0]}")
    with bad_input():
        return tokenizer_from_files(files), ByteLevelBPETokenizer(*map(str, files.values()))


def both_of_pairs(pairs):
    """Our tokenizer and theirs, of the 256 bytes and these merges."""
    tokens = [*ALPHABET, *(left + right for left, right in pairs), END_OF_TEXT]
    ids = {token: i for i, token in enumerate(tokens)}
    end_of_text = {END_OF_TEXT: AddedToken(ids[END_OF_TEXT])}
    vocabulary = Vocabulary(ids, [f"{left} {right}" for left, right in pairs], end_of_text)
    return build_tokenizer(vocabulary), ByteLevelBPETokenizer(ids, pairs)


# Every code point -----------------------------------------------------------------------------------------------------

SIGNS = {"a": "a letter", "1": "a number", "!": "another sign"}  # each joins its own kind
AT_ONCE = 256  # code points per text, which is bisected only if the libraries differ


def unlike_code_points():
    """{code point: (its class in numpy_gpt2, its class in tokenizers)} for those that differ.

    The vocabulary merges each sign with any byte. So "a" and a character merge where both are letters, and only there.
    """
    ours, theirs = both_of_pairs([(sign, byte) for sign in SIGNS for byte in ALPHABET])

    def ids_of(characters):
        text = " ".join(sign + character for character in characters for sign in SIGNS)
        return ours.encode(text), theirs.encode(text).ids

    unlike = {}
    for start in range(0, len(CODE_POINTS), AT_ONCE):
        some = CODE_POINTS[start:start + AT_ONCE]
        our_ids, their_ids = ids_of(some)
        if our_ids != their_ids:
            kinds = {character: tuple(kind(ours, ids) for ids in ids_of([character])) for character in some}
            unlike |= {character: pair for character, pair in kinds.items() if pair[0] != pair[1]}
    return unlike


def kind(tokenizer, ids):
    """A character's class in the library that gave these ids."""
    merged = [token[:1] for token in map(tokenizer.token_bytes, ids) if len(token) > 1]
    return SIGNS[merged[0].decode()] if merged else "white space"


def print_unlike(unlike):
    """A line for each run of consecutive code points with the same two classes."""
    runs = []
    for character, kinds in unlike.items():
        if runs and ord(character) == ord(runs[-1][-1]) + 1 and kinds == unlike[runs[-1][-1]]:
            runs[-1].append(character)
        else:
            runs.append([character])
    rows = [[f"U+{ord(run[0]):04X}..U+{ord(run[-1]):04X}", *unlike[run[0]], unicodedata.name(run[0], "?"), len(run)]
            for run in runs]
    if rows:
        print_table(["code points", "numpy_gpt2", "tokenizers", "the first one's name", "how many"], rows, n_left=4)
        print()


# Random strings -------------------------------------------------------------------------------------------------------


def make_alphabets():
    """Characters to draw from, by kind."""
    by_category = {}
    for character in CODE_POINTS:
        by_category.setdefault(unicodedata.category(character), []).append(character)

    def of(*categories):
        return [character for category in categories for character in by_category[category]]

    pictures = [chr(code) for code in (*range(0x2600, 0x27C0), *range(0x1F300, 0x1FB00))]
    joiners = ["\u200d", "\ufe0f", "\ufe0e", "\u20e3", *map(chr, range(0x1F3FB, 0x1F400)),
               *map(chr, range(0xE0020, 0xE0080))]
    directions = list("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    return {
        "any": CODE_POINTS,
        "first plane": [character for character in CODE_POINTS if ord(character) < 0x10000],
        "Latin": [chr(code) for code in range(0x250)],
        "ASCII": [chr(code) for code in range(0x80)],
        "letters": of("Lu", "Ll", "Lt", "Lm", "Lo"),
        "cased letters": of("Lu", "Ll", "Lt", "Lm"),
        "numbers": of("Nd", "Nl", "No"),
        "marks": of("Mn", "Mc", "Me"),
        "accented": [*"aeiounAEIOUN", *by_category["Mn"][:112]],
        "signs": of("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"),
        "emoji": pictures + joiners * 8,
        "flags": [chr(code) for code in range(0x1F1E6, 0x1F200)],
        "right to left": [chr(code) for code in range(0x590, 0x780)] + directions * 8,
        "controls": of("Cc", "Cf"),
        "private": by_category["Co"],
        "unassigned": by_category["Cn"],
        "white space": [character for character in CODE_POINTS if character.isspace()] + list(" \t\n\r") * 4,
        "neighbours of white space": list("\u180e\u200b\u2060\ufeff\u0085\u00a0\u3000\x1c\x1d\x1e\x1f\u2028\u2029 "),
        "contractions": ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", " '"],
        "words": [" the", "The", " of", "king", " 2026", "3.14", ", ", "...", "!\n", "\n\n", "   ", "-", "é", "<|"],
    }


def random_text(rng, alphabets):
    """A few runs, each of one kind of characters; sometimes of one character repeated."""
    kinds = list(alphabets.values())
    parts = []
    for _ in range(int(rng.integers(1, 7))):
        alphabet = kinds[int(rng.integers(len(kinds)))]
        drawn = rng.integers(0, len(alphabet), int(rng.integers(1, 9)))
        part = "".join(alphabet[i] for i in drawn)
        if rng.random() < 0.01:
            part = part[0] * int(rng.integers(50, 1000))
        parts.append(part)
    return "".join(parts)


def compare(ours, theirs, n_strings, seed, alphabets, unlike):
    """[strings, tokens, how many differ, strings with code points of the list, how many of them differ], and the texts
    that differ for no reason."""
    rng = np.random.default_rng(seed)
    n_tokens = n_apart = n_differ_apart = 0
    wrong = []
    for _ in range(n_strings):
        text = random_text(rng, alphabets)
        ids = ours.encode(text)
        n_tokens += len(ids)
        is_same = ids == theirs.encode(text).ids
        if not unlike.isdisjoint(text):
            n_apart += 1
            n_differ_apart += not is_same
            is_same = True
        if not (is_same and ours.decode(ids) == text):
            wrong.append(text)
    return [n_strings, n_tokens, len(wrong), n_apart, n_differ_apart], wrong


if __name__ == "__main__":
    run(main)
