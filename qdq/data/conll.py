"""Read words with tags in columns: one token on each line, its tag last, a blank line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.data.looks import once_a_version
from qdq.data.records import Problems, Record
from qdq.data.text_files import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["looks_like_conll", "read_conll"]

_DOCUMENT = "-DOCSTART-"

#: Tags that are remembered to tell comments from tokens; a corpus has far fewer.
_MOST_TAGS = 10_000

#: A tag of entities in any of the usual schemes.
_ENTITY_TAG = re.compile(r"O|[BIESLUM]-\S+")

#: A part of speech as Penn's and the universal sets write it.
_POS_TAG = re.compile(r"[A-Z][A-Z0-9$_-]*|[^\w\s]+", re.ASCII)

#: So few lines say nothing.
_TOO_FEW_LINES = 6


@dataclass(frozen=True)
class _Shape:
    """What the lines of a file have in common.

    Args:
        width: The number of columns that most lines have.
        is_of_first: Whether that is the width of the first line, too.
        tags: What stands in the last column of lines that cannot be comments.
    """

    width: int
    is_of_first: bool
    tags: frozenset[str]


def read_conll(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    """Yield a record for each sentence: ``tokens``, ``ner_tags`` (the last column), and all columns by their numbers.

    The first column has the number ``"0"``. Columns are separated by tabs or, in a line without a tab, by blanks; a
    no-break space is part of a token. Two kinds of lines are passed over:

    1. Lines that begin with ``-DOCSTART-``.
    2. Comments: lines before a sentence that begin with ``#`` and either read ``# name = value``, or have another
       number of columns than most lines, or end with something that is no tag in the file.

    Args:
        path: The file. Before the first reading it is looked at for the columns and tags that its lines have.
        problems: Receives the problems of lines.
    """
    shape = _look_at(path, ".conll")
    rows: list[list[str]] = []
    begin = comments = 0
    for number, line in enumerate(read_lines(path, problems), start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            if rows:
                yield _sentence(rows, begin)
            rows = []
            continue
        if text.startswith(_DOCUMENT):
            continue
        fields = _fields(text)
        if not rows and text.startswith("#") and _is_comment(text, fields, shape):
            comments += 1
            continue
        if len(fields) != shape.width:
            usual = "the first line has" if shape.is_of_first else "most lines have"
            problems.add(
                f"line {number}", f"{len(fields)} column{'s' * (len(fields) != 1)}, where {usual} {shape.width}"
            )
            continue
        if not fields[0]:
            problems.add(f"line {number}", "a tag without a token")
            continue
        begin = begin if rows else number
        rows.append(fields)
    if rows:
        yield _sentence(rows, begin)
    if comments:
        problems.note(f"{comments} lines that begin with # before a sentence were passed over as comments")


def looks_like_conll(lines: Sequence[str], *, words: bool = False) -> bool:
    """Return whether lines of a text look like tokens with tags.

    1. All lines have the same number of columns, two or more.
    2. The last column holds tags of entities (``O``, ``B-PER``, ...), or a few tags in capitals, as parts of speech.

    Args:
        lines: The first lines of the file.
        words: Whether words with tags are wanted; then tags of entities, or a blank line between sentences, say enough.
    """
    tags: Counter[str] = Counter()
    width = 0
    for line in lines:
        if not line.strip() or line.startswith(("#", _DOCUMENT)):
            continue
        fields = _fields(line)
        width = width or len(fields)
        if width < 2 or len(fields) != width:
            return False
        tags[fields[-1]] += 1
    are_entities = all(map(_ENTITY_TAG.fullmatch, tags))
    if words and tags and (are_entities or any(not line.strip() for line in lines)):
        return True
    if tags.total() < _TOO_FEW_LINES:
        return False
    are_few = len(tags) <= max(2, tags.total() // 8)
    are_parts = are_few and all(map(_POS_TAG.fullmatch, tags)) and any(tag.isalpha() for tag in tags)
    return are_entities or are_parts


@once_a_version
def _look_at(path: Path, _: str) -> _Shape:
    widths: Counter[int] = Counter()
    headed: Counter[int] = Counter()  # of lines that begin with # before a sentence
    tags: set[str] = set()
    first = 0
    is_inside = False
    for line in read_lines(path, Problems(str(path))):
        text = line.rstrip("\r\n")
        if not text.strip():
            is_inside = False
            continue
        if text.startswith(_DOCUMENT):
            continue
        fields = _fields(text)
        if text.startswith("#") and not is_inside:
            headed[len(fields)] += 1
            continue
        is_inside = True
        first = first or len(fields)
        widths[len(fields)] += 1
        if len(tags) < _MOST_TAGS:
            tags.add(fields[-1])
    # Only lines with # (a list of hashtags): they are tokens, not comments.
    widths = widths or headed
    width = max(widths, key=widths.__getitem__, default=0)
    return _Shape(width, is_of_first=width == first, tags=frozenset(tags))


def _is_comment(text: str, fields: list[str], shape: _Shape) -> bool:
    if text.startswith("# ") and " = " in text and "\t" not in text:
        return True
    if not shape.tags:
        return False
    if len(fields) != shape.width:
        return True
    return shape.width > 1 and fields[-1] not in shape.tags and not _ENTITY_TAG.fullmatch(fields[-1])


def _fields(text: str) -> list[str]:
    """Return the columns of a line. Only tabs and blanks part them: str.split() would cut at a no-break space, too."""
    return text.split("\t") if "\t" in text else [field for field in text.split(" ") if field]


def _sentence(rows: list[list[str]], begin: int) -> Record:
    columns = [list(column) for column in zip(*rows, strict=True)]
    values: dict[str, Any] = {"tokens": columns[0]}
    if len(columns) > 1:
        values["ner_tags"] = columns[-1]
    return Record(f"line {begin}", values | {str(n): column for n, column in enumerate(columns)})
