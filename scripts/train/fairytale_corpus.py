"""Extract stories from Project Gutenberg's plain-text books, to train the bundled checkpoint.

A book becomes a list of stories (a tale of a collection, a chapter of a novel): licence, title pages, headings, notes
and line wrapping are removed; quotation marks and dashes become ASCII. Paragraphs are joined by an empty line, verse
keeps its lines.

    python scripts/train/fairytale_corpus.py ../shared/corpus            # a table: book, stories, characters kept
    python scripts/train/fairytale_corpus.py ../shared/corpus --show 11  # the stories of one book
"""

import argparse
import re
from pathlib import Path

HELD_OUT_BOOKS = ("1937", "3454")  # whole books: a held-out chapter shares its names with the rest of the novel

# Where the book begins and ends in the file: two generations of Project Gutenberg's markers.
BOOK_STARTS = re.compile(r"\*\*\* ?START OF TH.*?\*\*\*|\*END\*? ?THE SMALL PRINT!.*?\*END\*", re.DOTALL)
BOOK_ENDS = re.compile(r"\n\W*(End of (The |this )?Project Gutenberg|\*\*\* ?END OF TH|Project Gutenberg Etext of)",
                       re.IGNORECASE)

# Headings of sections that are not stories, up to the next heading; and headings after which no story comes.
NOT_A_STORY = re.compile(r"\W*(contents|preface|introduction|to the reader|to my|dedicat|list of|illustrations|note|"
                         r"gloss|transcriber|author's note|how to get into|oyez|household tales by)", re.IGNORECASE)
END_OF_STORIES = re.compile(r"\W*(notes and references|notes|footnotes|appendix|index|oyez-oyez-oyez)\W*$",
                            re.IGNORECASE)

# Remains of title pages and advertisements; and last paragraphs that name the source of a tale.
NOT_PROSE = re.compile(r"\b8vo\b|\bIllustrations\b|To face p\.|Copyright|\.{5}")
SOURCE = re.compile(r"\W*(\(\d+\)|\d+\.|from|adapted|translated|taken|told|the end\b)",
                    re.IGNORECASE)
SENTENCE_ENDS = tuple(".!?:;,'\")-*")

KEYBOARD = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "\u00a0": " ", "\u2026": "...",
                          "œ": "oe", "æ": "ae", "Æ": "Ae", "\ufeff": None, "_": None, "\t": " "})


def book_body(text):
    """The text between Project Gutenberg's header and footer."""
    start = BOOK_STARTS.search(text)
    if start is None:
        raise ValueError("no Project Gutenberg header was found")
    body = text[start.end():]
    end = BOOK_ENDS.search(body)
    return body[:end.start()] if end else body


def is_heading(lines):
    """Whether a paragraph set off by empty lines is the title of a story or a chapter."""
    title = " ".join(lines).strip()
    if len(lines) > 3 or len(title) > 120 or not any(c.isalpha() for c in title):
        return False
    if title.upper() == title or re.match(r"(chapter|book|part|story|legend)\b|[IVXLC]+\.|\d+ ", title, re.IGNORECASE):
        return True
    return title[-1] not in ".,;:!?'\"-" and len(lines) <= 2


def is_verse(lines):
    """Indented lines, or several lines too short to have been wrapped, keep their line ends."""
    indented = sum(line.startswith("  ") for line in lines)
    return 2 * indented > len(lines) or (len(lines) > 2 and max(map(len, lines)) < 52)


def join_paragraph(lines):
    if is_verse(lines):
        return "\n".join(re.sub(r"\s+", " ", line).strip() for line in lines)
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


def clean_book(text, shortest=400):
    """The stories of one book, in order, without titles; those under `shortest` characters are title pages and such."""
    body = book_body(text.replace("\r\n", "\n")).translate(KEYBOARD)
    body = re.sub(r"\[[^\]]{0,2000}\]|Line-Art Drawing|\(\d+\)", "", body)  # [Illustration], [Footnote ...], (12)
    body = re.sub(r"^[ \t]*(\*[ \t]*)+$|[ \t]+$", "", body, flags=re.MULTILINE)  # rows of stars, trailing spaces
    stories, told = [[]], False  # told: whether the current heading opens a story
    for gap, paragraph in re.findall(r"(\n*)((?:[^\n]+\n?)+)", body):
        lines = paragraph.rstrip("\n").split("\n")
        cut_off = stories[-1] and not stories[-1][-1].endswith(SENTENCE_ENDS)  # by a picture, in mid-sentence
        if len(gap) >= 2 and is_heading(lines):
            title = " ".join(lines)
            if END_OF_STORIES.match(title) and len(stories) > 8:
                break
            if not cut_off or NOT_A_STORY.match(title):
                stories.append([])
                told = not NOT_A_STORY.match(title)
        elif told and cut_off and lines[0][0].islower():
            stories[-1][-1] += " " + join_paragraph(lines)
        elif told:
            stories[-1].append(join_paragraph(lines))
    stories = [finish_story(story) for story in stories if is_prose(story)]
    return [story for story in stories if len(story) >= shortest]


def is_prose(paragraphs):
    """Whether most paragraphs end as sentences do: a list of contents or a title page does not."""
    ended = sum(paragraph.endswith(SENTENCE_ENDS) for paragraph in paragraphs)
    return 2 * ended > len(paragraphs) and not any(map(NOT_PROSE.search, paragraphs))


def finish_story(paragraphs):
    """The paragraphs joined, without the line after the end that names where a tale was taken from."""
    while paragraphs and len(paragraphs[-1]) < 160 and SOURCE.match(paragraphs[-1]):
        paragraphs = paragraphs[:-1]
    return "\n\n".join(paragraphs)


def read_books(folder):
    """{ebook number: stories} of every numbered file in a folder, in the order of the numbers.

    Raises ValueError where the folder holds none, or a file is not one of Project Gutenberg's."""
    paths = [path for path in Path(folder).glob("*.txt") if path.stem.isdigit()]
    if not paths:
        raise ValueError(f"no Project Gutenberg books (files such as 11.txt) in {folder}")
    books = {}
    for path in sorted(paths, key=lambda path: int(path.stem)):
        try:
            books[path.stem] = clean_book(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return books


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--show", metavar="EBOOK", help="print the stories of this book")
    args = parser.parse_args()
    books = read_books(args.folder)
    if args.show:
        print("\n\n<|endoftext|>\n\n".join(books[args.show]))
        return
    for number, stories in books.items():
        size = (Path(args.folder) / f"{number}.txt").stat().st_size
        kept = sum(map(len, stories))
        print(f"{number:>6} {len(stories):4d} stories {kept:9,d} characters {kept / size:5.0%} of the file")
    print(f"total {sum(sum(map(len, stories)) for stories in books.values()):,d} characters")


if __name__ == "__main__":
    main()
