"""Read ``.json`` and ``.jsonl`` files, one item at a time wherever their form allows it.

1. An array of objects: each object is a row.
2. An object whose first key is ``data`` or ``version``: its array ``data`` holds the rows, or the articles of SQuAD.
3. Objects one after another, on a line each or over several lines.
4. An object of splits, ``{"train": [{...}, ...], "test": [...]}``.
5. An object of columns, ``{"text": [...], "label": [...]}``, or as pandas writes it, ``{"text": {"0": ...}}``. It is
   read into memory, because its rows are complete only at its end.

The name of the file does not decide: an array in a ``.jsonl`` file is read as an array.

An article of SQuAD (1.1 or 2.0) gives one row for each question, with the columns of the public sets on the Hub:
``id``, ``title``, ``question``, ``context``, ``answers`` (``{"text": [...], "answer_start": [...]}``) and
``is_impossible``.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from qdq.data.opening import open_text
from qdq.data.records import BARE, Problems, Record, json_type, quoted
from qdq.data.text_files import CHUNK, MAX_LINE, is_unicode, read_chunks, read_json_lines
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.records import Hints

__all__ = ["read_json"]

_SPACE = re.compile(r"[ \t\r\n]*")

#: Usual names of the array of rows in an object that describes them.
_ROWS = ("data", "rows", "examples", "instances", "items", "records", "samples", "train", "validation", "dev", "test")

#: Usual names of columns that hold a list in every row.
_LISTS = ("tokens", "words", "input_ids")


def read_json(path: Path, problems: Problems, hints: Hints, *, is_lines: bool = False) -> Iterator[Record]:
    """Yield the rows of a ``.json`` or ``.jsonl`` file; see the cases above.

    Args:
        path: The file.
        problems: Receives the problems of rows.
        hints: The split of case 4.
        is_lines: Whether the name of the file promises a value on every line.

    Raises:
        DataError: The file is not JSON, or the JSON has another shape.
    """
    text = _Text(path)
    first = text.peek()
    if first == "":
        return
    if first == "{" and not is_lines and text.first_key() in {"data", "version"}:  # case 2
        yield from _items(text.member("data"), problems)
    elif _is_a_value_a_line(path, first, is_lines=is_lines):  # case 3
        yield from read_json_lines(path, problems, hints)
    elif first == "[":  # case 1
        if is_lines:
            problems.note("is one JSON array, not a value on every line; its items are read as rows")
        yield from _items(text.array(), problems)
        text.expect_end()
    elif first == "{":
        yield from _document(path, problems, hints)
    else:
        raise DataError(
            f"{path}: holds {json_type(text.value())}, where an array of objects or SQuAD's object is expected"
        )


def _is_a_value_a_line(path: Path, first: str, *, is_lines: bool) -> bool:
    """Return whether a file has a JSON value on every line, by the first two lines that are not blank."""
    if first not in "[{":
        return is_lines or first == '"'
    if first == "[" and not is_lines:
        return False
    with open_text(path) as file:
        lines = (line.strip() for line in iter(lambda: file.readline(MAX_LINE), ""))
        one, two = (*islice(filter(None, lines), 2), "", "")[:2]
    try:
        json.loads(one)
    except RecursionError:
        return is_lines
    except ValueError:
        # A damaged line is followed by one that begins like it; an object over several lines is not.
        return two.startswith(first) and one not in ("{", "[") if two else is_lines
    return two.startswith(first) if first == "[" else bool(two) or is_lines


def _items(items: Iterator[Any], problems: Problems) -> Iterator[Record]:
    for number, item in enumerate(items, start=1):
        yield from _rows(item, number, problems)


# --- objects over several lines, of splits, and of columns ---


def _document(path: Path, problems: Problems, hints: Hints) -> Iterator[Record]:
    """Yield the rows of cases 3 to 5, of an object that is no line."""
    kinds, is_alone = _kinds_of_members(path)
    if not is_alone:
        yield from _items(_Text(path).values(), problems)
        return
    if names := _names_of_splits(kinds):
        yield from _split(path, kinds, names, problems, hints)
        return
    value = _Text(path).value()
    rows = _rows_of_columns(path, value)
    if rows is None:
        yield from _rows(value, 1, problems)
        return
    problems.note("is an object of columns, not a list of rows; it is read into memory")
    yield from _items(rows, problems)


def _kinds_of_members(path: Path) -> tuple[dict[str, tuple[str, int]], bool]:
    """Return what the members of the first object hold, and whether it is the only value of the file.

    The kinds are ``rows`` (an array of objects), ``list``, ``dict`` and ``value``, with the number of their items.
    """
    text = _Text(path)
    kinds: dict[str, tuple[str, int]] = {}
    for key in text.members():
        if text.peek() == "[":
            of_objects, count = True, 0
            for item in text.array():
                count += 1
                of_objects = of_objects and isinstance(item, dict)
            kinds[key] = ("rows" if of_objects else "list", count)
        else:
            value = text.value()
            kinds[key] = ("dict", len(value)) if isinstance(value, dict) else ("value", 1)
    return kinds, text.peek() == ""


def _names_of_splits(kinds: dict[str, tuple[str, int]]) -> list[str]:
    """Return the members that hold rows, if the object is one of splits and not a row that has a list of objects."""
    found = [key for key, (kind, count) in kinds.items() if kind == "rows" and count]
    is_described = any(kind in ("value", "list") for kind, _ in kinds.values())
    return [key for key in found if not is_described or key.casefold() in _ROWS]


def _split(
    path: Path, kinds: dict[str, tuple[str, int]], names: list[str], problems: Problems, hints: Hints
) -> Iterator[Record]:
    listed = ", ".join(f"{name!r} ({kinds[name][1]} rows)" for name in names)
    if hints.split is not None and hints.split not in kinds:
        raise DataError(f"{path}: has no split {hints.split!r}; its splits are {listed}")
    if hints.split is None and len(names) > 1:
        raise DataError(f"{path}: is an object with the splits {listed}; name one (--split), or write it to a file")
    name = hints.split or names[0]
    if hints.split is None:
        problems.note(f"is an object, not a list of rows; the {kinds[name][1]} rows of its {name!r} are read")
    yield from _items(_Text(path).member(name), problems)


def _rows_of_columns(path: Path, value: dict[str, Any]) -> Iterator[Any] | None:
    """Return the rows of an object of columns; None if it is no such object."""
    columns = list(value.values())
    if not columns:
        return None
    if set(value) == {"columns", "index", "data"}:
        raise DataError(f"{path}: is valid JSON in the form of pandas' orient='split'; write it with orient='records'")
    if any(key.casefold() in _LISTS and column and not isinstance(column[0], list) for key, column in value.items()):
        return None  # a row whose columns hold lists
    if all(isinstance(column, list) for column in columns):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise DataError(
                f"{path}: is valid JSON, but an object of columns of different lengths ({shown}); "
                "a list of rows is wanted"
            )
        return (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
    if not all(isinstance(column, dict) and column for column in columns):
        return None
    if all(key.isdigit() for key in value):  # pandas' orient="index"
        return iter(columns)
    keys = list(columns[0])
    if any(list(column) != keys for column in columns):
        raise DataError(
            f"{path}: is valid JSON, but an object of objects with different keys; a list of rows is wanted"
        )
    return ({name: column[key] for name, column in value.items()} for key in keys)


def _rows(item: Any, number: int, problems: Problems) -> Iterator[Record]:
    if isinstance(item, str):
        yield Record(f"row {number}", {BARE: item})
    elif not isinstance(item, dict):
        problems.add(f"row {number}", f"neither a JSON object nor a string but {json_type(item)}")
    elif "paragraphs" in item:
        yield from _questions(item, f"article {number}", problems)
    else:
        yield Record(f"row {number}", item)


def _questions(article: dict[str, Any], location: str, problems: Problems) -> Iterator[Record]:
    for number, paragraph in enumerate(_objects(article, "paragraphs", location, problems), start=1):
        where = f"{location}, paragraph {number}"
        context = paragraph.get("context")
        if not isinstance(context, str):
            problems.add(where, "no text 'context'")
            continue
        for question in _objects(paragraph, "qas", where, problems):
            location_of_question = f"{where}, question {question.get('id', '?')!r}"
            # The questions of test sets have no answers.
            answers = _objects({"answers": [], **question}, "answers", location_of_question, problems)
            if missing := [key for key in ("text", "answer_start") if any(key not in answer for answer in answers)]:
                problems.add(location_of_question, f"an answer without {quoted(missing)}")
                continue
            values = {
                "id": question.get("id"),
                "title": article.get("title"),
                "question": question.get("question"),
                "context": context,
                "is_impossible": question.get("is_impossible", False),
            }
            if "answers" in question:
                values["answers"] = {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                }
            yield Record(location_of_question, values)


def _objects(parent: dict[str, Any], key: str, location: str, problems: Problems) -> list[dict[str, Any]]:
    found = parent.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        problems.add(location, f"{key!r} is {json_type(found)}, where an array of objects is expected")
        return []
    return found


class _Text:
    """Parse one JSON document while it is read; only the text that has not been parsed yet is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks = read_chunks(path)
        self._buffer = ""
        self._at = 0
        self._dropped = 0  # characters that came before the buffer, for messages
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not white space, or an empty string at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(CHUNK):
                return ""

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError as error:
                raise self._invalid("nested too deeply", self._at) from error
            except json.JSONDecodeError as error:
                # The value is parsed again from its beginning: doubling keeps the total work proportional to its size.
                size *= 2
                if not self._more(size):
                    raise self._invalid(error.msg, error.pos) from error
                continue
            except ValueError as error:  # a number of thousands of digits
                raise self._invalid(str(error), self._at) from error
            # A number at the end of the buffer may continue after it.
            if end == len(self._buffer) and not isinstance(value, str | list | dict) and self._more(size):
                continue
            if "\\u" in self._buffer[self._at : end] and not is_unicode(json.dumps(value, ensure_ascii=False)):
                raise self._invalid("half of a surrogate pair, which is not a character", self._at)
            self._at = end
            return value

    def array(self) -> Iterator[Any]:
        """Yield the items of the array that begins here."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._expect(",", "]") == "]":
                return

    def values(self) -> Iterator[Any]:
        """Yield the values that stand one after another."""
        while self.peek():
            yield self.value()

    def expect_end(self) -> None:
        """Raise if the document goes on."""
        if found := self.peek():
            raise self._invalid(f"the array ends, and {found!r} follows; one array holds all rows", self._at)

    def first_key(self) -> str | None:
        """Return the first key of the object that begins here, without moving on."""
        if self.peek() != "{":
            return None
        while len(self._buffer) - self._at < CHUNK and self._more(CHUNK):
            pass
        key = re.compile(r'\{\s*"(\w+)"').match(self._buffer, self._at)
        return key.group(1) if key else None

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller reads the value of each."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                raise self._invalid("a key in double quotes expected", self._at)
            key = self.value()
            self._expect(":")
            yield key
            if self._expect(",", "}") == "}":
                return

    def member(self, name: str) -> Iterator[Any]:
        """Yield the items of the array that one key of the object that begins here holds."""
        for key in self.members():
            if key != name:
                self.value()
                continue
            if self.peek() != "[":
                raise DataError(f"{self._path}: its {name!r} is {json_type(self.value())}, where an array is expected")
            yield from self.array()
            return
        raise DataError(f"{self._path}: has no array {name!r}, which the format of SQuAD needs")

    def _expect(self, *characters: str) -> str:
        found = self.peek()
        if found not in characters:
            shown = repr(found) if found else "the end of the file"
            raise self._invalid(f"{' or '.join(map(repr, characters))} expected, not {shown}", self._at)
        self._at += 1
        return found

    def _more(self, size: int) -> bool:
        """Read about ``size`` more characters and return whether there were any."""
        pieces = list(islice(self._chunks, max(1, size // CHUNK)))
        if pieces:
            self._dropped += self._at
            self._buffer = "".join([self._buffer[self._at :], *pieces])
            self._at = 0
        return bool(pieces)

    def _invalid(self, reason: str, position: int) -> DataError:
        return DataError(f"{self._path}: invalid JSON at character {self._dropped + position + 1}: {reason}")
