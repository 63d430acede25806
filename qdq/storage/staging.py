"""The hidden directory in which the new content of a target is built.

A staging directory, ``.<name>.qdq-staging-<pid>-<start time>-<boot>-<random>/``, holds

    lock    a file that the process locks (flock) for as long as it works here; it names the inode of our ``new``
    new/    what will become the target; after an exchange, the previous target
    old/    the previous target, moved aside where the platform cannot exchange two directories

When a process is killed at any moment, these three tell the next one what to remove and what to put back.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import shutil
import sys
from pathlib import Path

from qdq.errors import ConfigError
from qdq.storage.io_errors import STAGING
from qdq.storage.manifest import entries_of, remove_listed, sync

if sys.platform != "win32":
    import fcntl

__all__ = ["StagingDirectory", "exchange_directories", "process_identity", "recover"]

_LOG = logging.getLogger(__name__)


class StagingDirectory:
    """A staging directory of this process.

    Args:
        target: The directory that the content is for; its parent exists.

    Raises:
        OSError: The directory cannot be created, or the target may not be moved.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{_prefix(target)}{process_identity(os.getpid())}-{secrets.token_hex(4)}")
        self.new = self.path / "new"
        self.path.mkdir(mode=0o700)
        self._lock: int | None = None
        try:
            self._lock = _lock(self.path)
            self.new.mkdir()
            if target.exists():
                if not os.access(target, os.W_OK):  # Moving a directory takes the right to write into it.
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
                shutil.copymode(target, self.new)
            (self.path / "lock").write_text(str(self.new.stat().st_ino), encoding="utf-8")
        except BaseException:
            self.close()
            raise

    def exchange(self) -> None:
        """Put the new content where the target is."""
        # A directory can be renamed onto an empty one. Otherwise this is one step if the platform can, else two.
        if not self.target.exists() or not entries_of(self.target):
            self.new.rename(self.target)
        elif not exchange_directories(self.new, self.target):
            self.target.rename(self.path / "old")
            self.new.rename(self.target)
        sync(self.target.parent)

    def close(self) -> None:
        """Remove the staging directory; put the previous target back if it was moved aside and not replaced."""
        try:
            _clean_up(self.path, self.target)
        finally:
            if self._lock is not None:
                os.close(self._lock)


def exchange_directories(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; return False where the system cannot.

    Linux can, on most file systems.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, exchange = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def recover(target: Path) -> None:
    """Clean up the staging directories beside ``target`` whose processes are dead."""
    if not target.parent.is_dir():
        return
    for staging in sorted(target.parent.iterdir()):
        if staging.name.startswith(_prefix(target)) and not _is_running(staging):
            lock = _lock(staging)
            if lock is None:
                continue
            try:
                _LOG.info("removing %s, left behind by a process that died", staging)
                _clean_up(staging, target)
            finally:
                os.close(lock)


def process_identity(pid: int) -> str:
    """Return ``<pid>-<start time>-<boot>``; process ids alone are used again, after a while and after every boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:8]
    except OSError:
        boot = "0"
    return f"{pid}-{_start_time(pid)}-{boot}"


def _clean_up(staging: Path, target: Path) -> None:
    """Remove a staging directory in whatever state it is, after putting back a target that was moved aside."""
    new, old = staging / "new", staging / "old"
    if old.exists() and not os.path.lexists(target):
        old.rename(target)
    try:
        ours = (staging / "lock").read_text(encoding="utf-8") if (staging / "lock").exists() else ""
        if old.exists():
            remove_listed(old)
        # The inode tells whether `new` is still ours or the previous target after an exchange. An empty lock file means
        # that the process died before anything could be exchanged.
        if new.exists() and ours in ("", str(new.stat().st_ino)):
            shutil.rmtree(new)
        elif new.exists():
            remove_listed(new)
        (staging / "lock").unlink(missing_ok=True)
        staging.rmdir()
    except (OSError, ConfigError) as error:
        _LOG.warning("%s could not be removed: %s", staging, error)


def _prefix(target: Path) -> str:
    return f".{target.name}{STAGING}"


def _lock(staging: Path) -> int | None:
    """Lock a staging directory; return None if another process holds the lock or locks are not supported.

    The lock ends with its process. It works across containers and network file systems, where process ids do not.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        return None  # It belongs to another user.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_running(staging: Path) -> bool:
    """Return whether the process in the directory's name is alive.

    A process has the name before it has the lock, so the lock alone would not protect a directory that was just made.
    """
    pid, _, rest = staging.name.rpartition("qdq-staging-")[2].partition("-")
    if not pid.isdecimal() or _start_time(int(pid)) == "0":
        return False
    return f"{pid}-{rest}".startswith(f"{process_identity(int(pid))}-")


def _start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since the boot; "0" if it is dead or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"
    fields = stat.rpartition(")")[2].split()  # from the third field on; the name in parentheses may hold spaces
    return "0" if fields[0] in "ZX" else fields[19]
