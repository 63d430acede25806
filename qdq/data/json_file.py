"""Read ``.json`` files of any size, one item at a time.

1. An array of objects: each object is a row.
2. An object whose first key is ``data`` or ``version``: its array ``data`` holds the rows, or the articles of SQuAD.
3. Objects one after another, as in ``.jsonl``.

An article of SQuAD (1.1 or 2.0) gives one row for each question, with the columns of the public sets on the Hub:
``id``, ``title``, ``question``, ``context``, ``answers`` (``{"text": [...], "answer_start": [...]}``) and
``is_impossible``.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from qdq.data.records import BARE, Record, json_type, quoted
from qdq.data.text_files import CHUNK, READERS, is_unicode, read_chunks
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.records import HeaderRule, Problems

__all__ = ["read_json"]

_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: Path, problems: Problems, rule: HeaderRule) -> Iterator[Record]:
    """Yield the rows of a ``.json`` file. Memory holds the largest item, which in SQuAD is an article.

    Args:
        path: The file.
        problems: Receives the problems of rows.
        rule: The header rule, which only tables use.

    Raises:
        DataError: The file is not JSON, or the JSON has another shape.
    """
    text = _Text(path)
    first = text.peek()
    if first == "":
        return
    if first == "[":
        items = text.array()
    elif first == "{":
        # Lines of objects look like one object at first; the first key tells them apart.
        if text.first_key() not in {"data", "version"}:  # case 3
            yield from READERS[".jsonl"](path, problems, rule)
            return
        items = text.member("data")
    else:
        raise DataError(
            f"{path}: holds {json_type(text.value())}, where an array of objects or SQuAD's object is expected"
        )
    for number, item in enumerate(items, start=1):
        yield from _rows(item, number, problems)


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

    def first_key(self) -> str | None:
        """Return the first key of the object that begins here, without moving on."""
        if self.peek() != "{":
            return None
        while len(self._buffer) - self._at < CHUNK and self._more(CHUNK):
            pass
        key = re.compile(r'\{\s*"(\w+)"').match(self._buffer, self._at)
        return key.group(1) if key else None

    def member(self, name: str) -> Iterator[Any]:
        """Yield the items of the array that one key of the object that begins here holds."""
        self._expect("{")
        while self.peek() == '"':
            key = self.value()
            self._expect(":")
            if key == name:
                if self.peek() != "[":
                    raise DataError(
                        f"{self._path}: its {name!r} is {json_type(self.value())}, where an array is expected"
                    )
                yield from self.array()
                return
            self.value()
            if self._expect(",", "}") == "}":
                break
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
