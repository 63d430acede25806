"""Output directories that appear whole or not at all.

The work is done in a hidden staging directory beside the target and exchanged with it at the end. Whatever happens, the
target is one of: as it was, or the new content whole.

A staging directory, ``.<name>.qdq-staging-<pid>-<start>-<boot>-<random>/``, holds

    lock    locked (flock) by the process that works here, for as long as it lives; says which inode is our ``new``
    new/    what will become the target; after an exchange, the previous target
    old/    the previous target, moved aside where the platform cannot exchange two directories

A directory made here carries a manifest, ``.qdq.json``, of its kind and its files. Of what was there before, only what
the manifest lists is ever removed; a target that holds anything else is refused before the work begins.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import re
import secrets
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, ConfigError, QDQError, StorageError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

if sys.platform != "win32":
    import fcntl

__all__ = [
    "MANIFEST",
    "atomic_directory",
    "no_directory",
    "other_work",
    "read_json",
    "write_bytes_atomic",
    "write_json",
    "write_text_atomic",
]

MANIFEST = ".qdq.json"
FORMAT = 1

_LOG = logging.getLogger(__name__)


@contextmanager
def atomic_directory(target: Path, *, kind: str) -> Iterator[Path]:
    """A fresh directory to write into, which becomes ``target`` when the block ends without an exception.

    Any exception, KeyboardInterrupt included, removes what was written and leaves the target as it was. What a killed
    process left behind is put in order by the next start for the same target.

    Args:
        target: Absent, empty, or an earlier result of the same kind. Missing parents are created.
        kind: What the directory is (``checkpoint``, ``export``, ...); one kind never replaces another.

    Raises:
        ConfigError: The target is a file, was not made here, is of another kind or holds somebody else's files.
        StorageError: Disk full, no permission or other I/O, also where a library inside the block reports it in an
            exception of its own.
    """
    target = Path(os.path.realpath(target))
    with _storage_errors(target):
        _recover(target)
        _check(target, kind)
        with _parents(target):
            staging = _Staging(target)
            try:
                yield staging.new
                _finish(staging.new, kind)
                _check(target, kind)  # again: the work may have taken hours
                staging.exchange()
            finally:
                staging.close()


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is whole at every moment.

    Raises:
        StorageError: Disk full, no permission or other I/O.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole at every moment.

    Raises:
        StorageError: Disk full, no permission or other I/O.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.qdq-partial-{secrets.token_hex(4)}")
    with _storage_errors(path):
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines: indented, in the given order, without NaN, with a last line end."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(
    path: Path, *, error: type[CheckpointError | ConfigError] = CheckpointError, missing: str | None = None
) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: of the file.
        error: what is raised where it is missing or damaged.
        missing: the message for a file that is not there.

    Raises:
        CheckpointError: it is missing, not UTF-8, not JSON, or holds something else than an object; or ``error``.
        StorageError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(missing or f"{path}: no such file") from cause
    except OSError as cause:
        raise StorageError(f"cannot read {path}: {cause.strerror or cause}") from cause
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, numbers or nesting beyond all bounds
        raise error(f"{path}: not valid JSON ({cause})") from cause
    if not isinstance(found, dict):
        raise error(f"{path}: must hold a JSON object, not a {type(found).__name__}")
    return found


def no_directory(path: Path, cure: str) -> str:
    """The message for a path where a directory should be: nothing is there, or a file; and ``cure``, what to give."""
    return f"{path}: {'is a file, no directory' if path.exists() else 'no such directory'}; {cure}"


def other_work(folder: Path, theirs: Mapping[str, str], mine: Mapping[str, str], *, what: str) -> str | None:
    """Why work that was interrupted in ``folder`` is not what is asked for now, everything that differs; None if it is.

    Args:
        folder: with the state of the work.
        theirs: what that belongs to, by name.
        mine: what is asked for, likewise.
        what: the work: ``training``, ``calibration``.
    """
    problems = [
        f"{name}: {theirs.get(name, 'nothing')} there, {mine.get(name, 'nothing')} here"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]
    if not problems:
        return None
    return (
        describe_problems(f"{folder}: what was interrupted there is another {what}", problems)
        + "\nresume with what it was begun with, or begin anew without resuming"
    )


# What a directory holds, and whose it is


def _check(target: Path, kind: str) -> None:
    """Refuse a target that is not ours to replace."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ConfigError(f"{target}: is a file; choose a folder")
    if target.is_mount():
        raise ConfigError(f"{target}: is a mount point, which cannot be replaced; choose a folder inside it")
    entries = _entries(target)
    if not entries:
        return
    manifest = _manifest(target)
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


def _entries(directory: Path, prefix: str = "") -> set[str]:
    """Relative paths of all that is not a directory, and of the empty directories (``name/``)."""
    entries: set[str] = set()
    with os.scandir(directory) as found:
        for entry in found:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                entries |= _entries(Path(entry.path), f"{path}/") or {f"{path}/"}
            else:
                entries.add(path)
    return entries


def _manifest(directory: Path) -> dict[str, Any] | None:
    """The kind and the files (with the folders they are in, should those be empty by now), or None without manifest."""
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


def _finish(directory: Path, kind: str) -> None:
    """Write the manifest and bring everything to the disk."""
    files = sorted(_entries(directory) - {MANIFEST})
    # plain ASCII: a file name need not be valid Unicode
    text = json.dumps({"kind": kind, "format": FORMAT, "files": files}, indent=2)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_listed(directory: Path) -> None:
    """Remove a previous target: what its manifest lists, the manifest last, so that a half-done removal can go on."""
    manifest = _manifest(directory) or {"files": set()}
    for entry in _entries(directory) & manifest["files"]:
        if not entry.endswith("/"):
            (directory / entry).unlink()
    for folder, _, _ in os.walk(directory, topdown=False):
        if folder != str(directory):
            with suppress(OSError):  # not empty: somebody else's file came at the last moment
                Path(folder).rmdir()
    if _entries(directory) <= {MANIFEST}:
        (directory / MANIFEST).unlink(missing_ok=True)
    directory.rmdir()


# The staging directory


class _Staging:
    """A staging directory of this process."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{_prefix(target)}{_owner(os.getpid())}-{secrets.token_hex(4)}")
        self.new = self.path / "new"
        self.path.mkdir(mode=0o700)
        self._lock: int | None = None
        try:
            self._lock = _lock(self.path)
            self.new.mkdir()
            if target.exists():
                if not os.access(target, os.W_OK):  # to move a directory takes the right to write in it
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
                shutil.copymode(target, self.new)
            (self.path / "lock").write_text(str(self.new.stat().st_ino), encoding="utf-8")
        except BaseException:
            self.close()
            raise

    def exchange(self) -> None:
        """Put ``new`` in the target's place."""
        # A directory may be renamed onto an empty one; otherwise it is one step where the platform can, else two
        if not self.target.exists() or not _entries(self.target):
            self.new.rename(self.target)
        elif not _exchange(self.new, self.target):
            self.target.rename(self.path / "old")
            self.new.rename(self.target)
        _sync(self.target.parent)

    def close(self) -> None:
        """Remove what is left, or put back what was moved aside."""
        try:
            _settle(self.path, self.target)
        finally:
            if self._lock is not None:
                os.close(self._lock)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step (Linux, most file systems); False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, exchange = ctypes.c_int(-100), ctypes.c_uint(2)
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def _settle(staging: Path, target: Path) -> None:
    """End a staging directory in whatever state it is: the previous target goes back or goes away, ours goes away."""
    new, old = staging / "new", staging / "old"
    if old.exists() and not os.path.lexists(target):
        old.rename(target)
    try:
        ours = (staging / "lock").read_text(encoding="utf-8") if (staging / "lock").exists() else ""
        if old.exists():
            _remove_listed(old)
        if new.exists() and ours in ("", str(new.stat().st_ino)):  # "": died before anything could be exchanged
            shutil.rmtree(new)
        elif new.exists():
            _remove_listed(new)
        (staging / "lock").unlink(missing_ok=True)
        staging.rmdir()
    except (OSError, ConfigError) as error:
        _LOG.warning("%s could not be removed: %s", staging, error)


def _recover(target: Path) -> None:
    """Put in order what dead processes left beside the target."""
    if not target.parent.is_dir():
        return
    for staging in sorted(target.parent.iterdir()):
        if staging.name.startswith(_prefix(target)) and not _is_running(staging):
            lock = _lock(staging)
            if lock is None:
                continue
            try:
                _LOG.info("removing %s, left behind by a process that died", staging)
                _settle(staging, target)
            finally:
                os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.qdq-staging-"


def _lock(staging: Path) -> int | None:
    """The lock of a staging directory, or None when another process holds it or nobody can tell.

    It goes with its process, and holds across containers and network file systems, where process ids mean nothing.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        return None  # another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_running(staging: Path) -> bool:
    """Whether the process in the name is alive: before it has its lock, the name is all there is."""
    pid, _, rest = staging.name.rpartition("qdq-staging-")[2].partition("-")
    return pid.isdecimal() and f"{pid}-{rest}".startswith(f"{_owner(int(pid))}-") and _start(int(pid)) != "0"


def _owner(pid: int) -> str:
    """``pid-start-boot``: a process id alone is used again, after a while and after every boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:8]
    except OSError:
        boot = "0"
    return f"{pid}-{_start(pid)}-{boot}"


def _start(pid: int) -> str:
    """When the process started, in clock ticks since the boot; "0" where it is dead or nobody can tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"
    fields = stat.rpartition(")")[2].split()  # from the third on: the name in parentheses may hold spaces
    return "0" if fields[0] in "ZX" else fields[19]


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing parents; take them away again when the work fails."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


# Errors

#: Said by libraries of other languages, in exceptions of their own, where Python would raise an OSError.
_DISK_REASONS = tuple(
    os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)
)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """Every I/O failure inside becomes a StorageError that names the path, as the user knows it, and the reason."""
    try:
        yield
    except QDQError as error:
        # By somebody who knows only the hidden directory that the work is done in
        hidden = re.escape(str(target.parent / _prefix(target))) + r"[^/]*/new"
        error.args = tuple(re.sub(hidden, lambda _: str(target), str(part)) for part in error.args)
        raise
    except (ConnectionError, TimeoutError, ChildProcessError):
        raise  # errors of the operating system, but not of a file
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{_shown(error.filename, target)}: {error.strerror}") from error
        if reason := _disk_reason(error):
            raise StorageError(f"{target}: {reason}") from error
        raise


def _shown(path: Any, target: Path) -> Path:
    """The path of an error; one that is still hidden beside the target is given as what it would become."""
    if not isinstance(path, str | bytes | os.PathLike):
        return target
    failed = Path(os.fsdecode(path))
    if not failed.is_relative_to(target.parent):
        return failed
    parts = failed.relative_to(target.parent).parts
    if parts and parts[0].startswith(f".{target.name}.qdq-"):
        return target.joinpath(*parts[2:])
    return failed


def _disk_reason(error: BaseException | None) -> str | None:
    """What the message of an exception, or of its cause, says about the disk."""
    while error is not None:
        text = str(error).lower()
        for reason in _DISK_REASONS:
            if reason.lower() in text:
                return reason
        if "enforce fail at inline_container" in text:  # torch.save, which drops the reason
            return "writing failed; is the disk full?"
        error = error.__cause__
    return None
