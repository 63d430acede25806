"""The manifest of a directory that qdq wrote: its kind and its files.

Only files that the manifest lists are ever removed, so that a user's own files are safe.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from qdq.errors import ConfigError, describe_problems

__all__ = ["MANIFEST", "check_replaceable", "entries_of", "remove_listed", "sync", "write_manifest"]

MANIFEST = ".qdq.json"
FORMAT = 1


def check_replaceable(target: Path, kind: str) -> None:
    """Raise unless ``target`` may be replaced: it is absent, empty, or holds an earlier result of the same kind.

    Raises:
        ConfigError: The target is a file or a mount point, was not made by qdq, is of another kind, or holds files
            that qdq did not write; all of those are named.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ConfigError(f"{target}: is a file; choose a folder")
    if target.is_mount():
        raise ConfigError(f"{target}: is a mount point, which cannot be replaced; choose a folder inside it")
    entries = entries_of(target)
    if not entries:
        return
    manifest = _read_manifest(target)
    if manifest is None:
        raise ConfigError(f"{target}: exists and was not made by qdq; choose another folder or remove it")
    if manifest["kind"] != kind:
        raise ConfigError(
            f"{target}: holds a result of another kind ({manifest['kind']}, not {kind}); "
            "choose another folder or remove it"
        )
    if foreign := sorted(entries - {MANIFEST} - manifest["files"]):
        problems = [f"{entry} was not made by qdq; move it elsewhere or choose another folder" for entry in foreign]
        raise ConfigError(describe_problems(str(target), problems))


def entries_of(directory: Path, prefix: str = "") -> set[str]:
    """Return the relative paths of all files and links, and of empty directories with a trailing slash."""
    entries: set[str] = set()
    with os.scandir(directory) as found:
        for entry in found:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                entries |= entries_of(Path(entry.path), f"{path}/") or {f"{path}/"}
            else:
                entries.add(path)
    return entries


def write_manifest(directory: Path, kind: str) -> None:
    """Write the manifest of a finished directory and flush everything in it to the disk."""
    files = sorted(entries_of(directory) - {MANIFEST})
    # The JSON stays ASCII because a file name need not be valid Unicode.
    text = json.dumps({"kind": kind, "format": FORMAT, "files": files}, indent=2)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(folder))


def remove_listed(directory: Path) -> None:
    """Remove the files that the manifest lists, then the manifest and the directory if nothing else is in it.

    The manifest goes last, so that a removal that was interrupted can be completed.
    """
    manifest = _read_manifest(directory) or {"files": set()}
    for entry in entries_of(directory) & manifest["files"]:
        if not entry.endswith("/"):
            (directory / entry).unlink()
    for folder, _, _ in os.walk(directory, topdown=False):
        if folder != str(directory):
            with suppress(OSError):  # A folder with files that qdq did not write stays.
                Path(folder).rmdir()
    if entries_of(directory) <= {MANIFEST}:
        (directory / MANIFEST).unlink(missing_ok=True)
    directory.rmdir()


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the kind and the files of a directory, or None if it has no manifest.

    The folders of the files are in the set too, for those that have become empty.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or not isinstance(manifest["kind"], str):
            raise ValueError(f"format {manifest['format']!r}, where this version knows {FORMAT}")
        files = set(manifest["files"])
        folders = {f"{folder}/" for file in files for folder in PurePosixPath(file).parents}
        return {"kind": manifest["kind"], "files": files | folders}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{directory / MANIFEST}: is damaged or of another version of qdq ({error}); "
            "choose another folder or remove this one"
        ) from error
