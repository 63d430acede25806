"""Output directories are whole or absent at every moment, however the process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

import qdq
from qdq.errors import ConfigError, QDQError, StorageError
from qdq.storage import MANIFEST, atomic_directory, staging

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = {"config.json": "old config", "weights/a.bin": "old a", "weights/b.bin": "old b"}
NEW = {"config.json": "new config", "weights/a.bin": "new a", "plots/c.png": "new c"}


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def make(target: Path, files: dict[str, str], kind: str = "export") -> None:
    with atomic_directory(target, kind=kind) as folder:
        fill(folder, files)


def fail(target: Path, files: dict[str, str], error: BaseException) -> None:
    with atomic_directory(target, kind="export") as folder:
        fill(folder, files)
        raise error


def content(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def leftovers(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path != target]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "room" / "out"


@pytest.fixture(params=["exchange", "move aside"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the system call that exchanges two directories."""
    if request.param == "move aside":
        monkeypatch.setattr(staging, "exchange_directories", lambda one, other: False)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own, with this file's helpers."""
    prelude = "import importlib.util, sys\n" + textwrap.dedent(
        f"""
        sys.path.insert(0, {str(Path(qdq.__file__).parents[1])!r})
        from pathlib import Path
        from qdq.storage import atomic_directory
        from qdq.errors import StorageError
        target = Path(sys.argv[1])
        """
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


class TestSuccess:
    def test_a_new_directory_with_its_parents(self, target: Path) -> None:
        make(target, NEW)
        assert content(target) == NEW
        assert leftovers(target) == []
        manifest = json.loads((target / MANIFEST).read_text())
        assert manifest == {"kind": "export", "format": 1, "files": sorted(NEW)}

    def test_the_target_is_not_there_before_the_end(self, target: Path) -> None:
        with atomic_directory(target, kind="export") as folder:
            fill(folder, NEW)
            assert not target.exists()
            assert folder.parent.parent == target.parent
            assert folder.parent.name.startswith(".out.qdq-staging-")

    def test_an_earlier_result_is_replaced_whole(self, target: Path, platform: None) -> None:
        make(target, OLD)
        with atomic_directory(target, kind="export") as folder:
            assert list(folder.iterdir()) == []
            fill(folder, NEW)
            assert content(target) == OLD
        assert content(target) == NEW
        assert leftovers(target) == []

    def test_an_empty_directory_is_taken(self, target: Path) -> None:
        target.mkdir(parents=True)
        make(target, NEW)
        assert content(target) == NEW

    def test_what_the_user_removed_may_be_gone(self, target: Path) -> None:
        make(target, NEW)
        (target / "plots" / "c.png").unlink()
        make(target, OLD)
        assert content(target) == OLD

    def test_a_link_leads_to_the_directory_where_the_result_goes(self, target: Path) -> None:
        target.parent.mkdir()
        (target.parent / "link").symlink_to(target)
        make(target.parent / "link", OLD)
        make(target.parent / "link", NEW)
        assert (target.parent / "link").is_symlink()
        assert content(target) == NEW

    def test_permissions_are_the_usual_ones_or_those_of_the_earlier_result(self, target: Path) -> None:
        before = os.umask(0o027)
        try:
            make(target, OLD)
        finally:
            os.umask(before)
        assert target.stat().st_mode & 0o777 == 0o750
        target.chmod(0o701)
        make(target, NEW)
        assert target.stat().st_mode & 0o777 == 0o701

    def test_links_empty_folders_and_odd_names_are_replaced_as_well(self, target: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        fill(outside, OLD)
        with atomic_directory(target, kind="export") as folder:
            (folder / "link").symlink_to(outside, target_is_directory=True)
            (folder / "empty" / "deep").mkdir(parents=True)
            (folder / os.fsdecode(b"caf\xe9 \n")).write_text("x")
        make(target, NEW)
        assert content(target) == NEW
        assert content(outside) == OLD
        assert leftovers(target) == []


class TestFailure:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, ConfigError, MemoryError])
    def test_the_earlier_result_stays(self, target: Path, error: type[BaseException], platform: None) -> None:
        make(target, OLD)
        inode = target.stat().st_ino
        with pytest.raises(error):
            fail(target, NEW, error())
        assert content(target) == OLD
        assert target.stat().st_ino == inode
        assert leftovers(target) == []

    def test_nothing_stays_where_nothing_was(self, target: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            fail(target, NEW, KeyboardInterrupt())
        assert not target.parent.exists()

    def test_files_that_came_during_the_work_stop_the_exchange(self, target: Path) -> None:
        make(target, OLD)
        work = atomic_directory(target, kind="export")
        fill(work.__enter__(), NEW)
        fill(target, {"notes.txt": "mine"})
        with pytest.raises(ConfigError, match=r"notes\.txt"):
            work.__exit__(None, None, None)
        assert content(target) == {**OLD, "notes.txt": "mine"}
        assert leftovers(target) == []


class TestRefusals:
    def refused(self, target: Path, match: str, error: type[QDQError] = ConfigError) -> None:
        before = content(target) if target.is_dir() else None
        with pytest.raises(error, match=match), atomic_directory(target, kind="export"):
            pytest.fail("the work began")
        assert before is None or content(target) == before

    def test_a_file(self, target: Path) -> None:
        fill(target.parent, {"out": "a file"})
        self.refused(target, "is a file")
        assert target.read_text() == "a file"

    def test_a_directory_that_was_not_made_here(self, target: Path) -> None:
        fill(target, {"thesis.tex": "years of work"})
        self.refused(target, "exists and was not made by qdq; choose another folder or remove it")

    def test_a_directory_that_holds_an_empty_folder_only(self, target: Path) -> None:
        (target / "photos").mkdir(parents=True)
        self.refused(target, "was not made by qdq")
        assert (target / "photos").is_dir()

    def test_all_files_of_others_are_named(self, target: Path) -> None:
        make(target, OLD)
        fill(target, {"notes.txt": "mine", "weights/mine.bin": "mine"})
        (target / "folder").mkdir()
        self.refused(target, r"(?s)3 problems.*folder/.*notes\.txt.*weights/mine\.bin")

    def test_another_kind(self, target: Path) -> None:
        make(target, OLD, kind="checkpoint")
        self.refused(target, r"another kind \(checkpoint, not export\)")

    @pytest.mark.parametrize(
        "manifest",
        [
            "",
            "{",
            "[]",
            '{"kind": "export"}',
            '{"kind": "export", "format": 2, "files": []}',
            '{"kind": "export", "format": 1, "files": 3}',
        ],
    )
    def test_a_manifest_that_cannot_be_read(self, target: Path, manifest: str) -> None:
        make(target, OLD)
        (target / MANIFEST).write_text(manifest)
        self.refused(target, r"\.qdq\.json: is damaged or of another version")

    def test_a_manifest_cannot_reach_outside(self, target: Path) -> None:
        make(target, OLD)
        fill(target.parent, {"outside.txt": "mine"})
        manifest = json.loads((target / MANIFEST).read_text())
        manifest["files"] += ["../outside.txt", str(target.parent / "outside.txt")]
        (target / MANIFEST).write_text(json.dumps(manifest))
        make(target, NEW)
        assert (target.parent / "outside.txt").read_text() == "mine"

    def test_a_parent_that_is_a_file(self, target: Path) -> None:
        fill(target.parent.parent, {"room": "a file"})
        self.refused(target, "room", StorageError)

    def test_a_name_too_long(self, tmp_path: Path) -> None:
        self.refused(tmp_path / ("x" * 250), "name too long", StorageError)


# A child process that dies, or is interrupted, at the n-th access to the file system. Every open, rename, removal, scan
# and system call through ctypes is announced to Python's audit hooks before it is done.
DISTURBED = """
import json, logging, os, signal
from qdq.errors import ConfigError
from qdq.storage import staging

logging.disable()
how, exchange = sys.argv[2:]
OLD, NEW = {"a": "old", "only old": "old"}, {"a": "new", "d/only new": "new"}
if exchange == "move aside":
    staging.exchange_directories = lambda one, other: False
armed = [-1]

def hook(event, arguments):
    if armed[0] < 0 or not event.startswith(("os.", "open", "fcntl.", "ctypes.", "shutil.")):
        return
    armed[0] -= 1
    if armed[0] >= 0:
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt if how == "interrupt" else OSError(28, "No space left on device")

sys.addaudithook(hook)

def write(files):
    with atomic_directory(target, kind="export") as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)

def read():
    if not target.exists():
        return None
    files = [path for path in target.rglob("*") if path.is_file() and path.name != ".qdq.json"]
    return {str(path.relative_to(target)): path.read_text() for path in files}

def beside():
    return [name for name in os.listdir(target.parent) if name != target.name]

report = []
for step in range(10_000):
    write(OLD)
    child = os.fork()
    if child == 0:
        armed[0] = step
        try:
            write(NEW)
        except BaseException as error:
            armed[0] = -1
            os._exit({KeyboardInterrupt: 2, StorageError: 3}.get(type(error), 4))
        done = armed[0] >= 0
        armed[0] = -1
        os._exit(0 if done else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found, after_death = read(), beside()
    try:
        with atomic_directory(target, kind="another kind"):
            pass
    except ConfigError:
        pass
    report.append({"code": code, "found": found, "recovered": read(), "beside": after_death, "tidy": beside()})
    if code == 0:
        break
print(json.dumps(report))
"""


SMALL_OLD = {"a": "old", "only old": "old"}
SMALL_NEW = {"a": "new", "d/only new": "new"}


class TestDisturbance:
    """The same work, disturbed at its first access to the file system, its second, and so on to its last."""

    def disturbed(self, target: Path, how: str, exchange: str) -> list[dict[str, Any]]:
        child = python(DISTURBED, target, how, exchange)
        output, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        report = json.loads(output)
        assert len(report) > 40
        assert report[-1]["found"] == SMALL_NEW
        return report[:-1]

    @pytest.mark.parametrize("exchange", ["exchange", "move aside"])
    def test_killed(self, target: Path, exchange: str) -> None:
        report = self.disturbed(target, "kill", exchange)
        assert {step["code"] for step in report} == {-signal.SIGKILL}
        for step in report:
            whole = (SMALL_OLD, SMALL_NEW) if exchange == "exchange" else (SMALL_OLD, SMALL_NEW, None)
            assert step["found"] in whole
            assert step["recovered"] in (SMALL_OLD, SMALL_NEW)
            assert step["tidy"] == []
        assert any(step["beside"] for step in report)
        gone = [step for step in report if step["found"] is None]
        assert all(step["recovered"] == SMALL_OLD for step in gone)
        assert bool(gone) == (exchange == "move aside")

    @pytest.mark.parametrize("exchange", ["exchange", "move aside"])
    @pytest.mark.parametrize(("how", "code"), [("interrupt", 2), ("disk full", 3)])
    def test_interrupted(self, target: Path, how: str, code: int, exchange: str) -> None:
        report = self.disturbed(target, how, exchange)
        for step in report:
            assert step["code"] in (
                code,
                1,
            )  # 1: it happened where the work was done and only the old one left to remove
            assert step["found"] in (SMALL_OLD, SMALL_NEW)
            assert step["recovered"] == step["found"]
            assert step["tidy"] == []
        untouched = [step for step in report if step["found"] == SMALL_OLD]
        assert len(untouched) > len(report) // 2
        assert {step["code"] for step in untouched} == {code}


class TestOtherProcesses:
    WAIT = """
        with atomic_directory(target, kind="export") as folder:
            (folder / "from").write_text("child")
            print(folder, flush=True)
            sys.stdin.readline()
    """

    def test_the_staging_of_a_living_process_is_left_alone(self, target: Path) -> None:
        child = python(self.WAIT, target)
        folder = Path(child.stdout.readline().strip())
        make(target, NEW)
        assert content(target) == NEW
        assert content(folder) == {"from": "child"}
        _, errors = child.communicate("\n", timeout=30)
        assert child.returncode == 0, errors
        assert content(target) == {"from": "child"}
        assert leftovers(target) == []

    def test_the_staging_of_a_killed_process_goes_at_the_next_start(self, target: Path) -> None:
        make(target, OLD)
        child = python(self.WAIT, target)
        folder = Path(child.stdout.readline().strip())
        child.kill()
        child.communicate()
        assert folder.exists()
        assert content(target) == OLD
        with atomic_directory(target, kind="export") as own:
            assert not folder.exists()
            fill(own, NEW)
        assert leftovers(target) == []

    def test_a_process_killed_but_not_yet_buried_is_dead(self, target: Path) -> None:
        child = python(self.WAIT, target)
        folder = Path(child.stdout.readline().strip())
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        make(target, NEW)
        assert not folder.exists()
        child.communicate()

    @pytest.mark.parametrize("other", ["start", "boot"])
    def test_a_process_id_used_again_is_not_mistaken(self, target: Path, other: str) -> None:
        pid, start, boot = staging.process_identity(os.getpid()).split("-")
        name = f"{pid}-{int(start) + (other == 'start')}-{'f' * 8 if other == 'boot' else boot}"
        stale = target.parent / f".out.qdq-staging-{name}-00000000"
        fill(stale / "new", NEW)
        alive = target.parent / f".out.qdq-staging-{pid}-{start}-{boot}-00000000"
        fill(alive / "new", NEW)
        make(target, OLD)
        assert leftovers(target) == [alive.name]

    def test_neighbours_are_left_alone(self, target: Path) -> None:
        fill(target.parent, {".outer.qdq-staging-1-1-f-0/new/a": "x", ".out/a": "x", "out2/a": "x"})
        before = content(target.parent)
        make(target, OLD)
        assert sorted(leftovers(target)) == [".out", ".outer.qdq-staging-1-1-f-0", "out2"]
        assert before.items() <= content(target.parent).items()


class TestDisk:
    def test_full_by_python(self, small_disk: Path) -> None:
        target = small_disk / "out"
        make(target, OLD)
        with (
            pytest.raises(StorageError, match="No space left on device") as caught,
            atomic_directory(target, kind="export") as folder,
        ):
            (folder / "big").write_bytes(bytes(1 << 20))
        assert str(target) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert content(target) == OLD
        assert leftovers(target) == []

    @pytest.mark.parametrize(
        ("save", "reason"),
        [
            (lambda tensor, path: safetensors.torch.save_file({"a": tensor}, path), "No space left on device"),
            (torch.save, "is the disk full"),
        ],
        ids=["safetensors", "torch"],
    )
    def test_full_by_a_library(self, small_disk: Path, save: Callable[[torch.Tensor, Path], None], reason: str) -> None:
        target = small_disk / "out"
        make(target, OLD)
        with pytest.raises(StorageError, match=reason), atomic_directory(target, kind="export") as folder:
            save(torch.zeros(200_000), folder / "model")
        assert content(target) == OLD
        assert leftovers(target) == []

    def test_full_when_the_manifest_is_written(self, small_disk: Path) -> None:
        target = small_disk / "out"
        work = atomic_directory(target, kind="export")
        with (work.__enter__() / "big").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with pytest.raises(StorageError, match="No space left"):
            work.__exit__(None, None, None)
        assert not target.exists()
        assert leftovers(target) == []

    def test_read_only(self, small_disk: Path) -> None:
        target = small_disk / "out"
        make(target, OLD)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(StorageError, match="Read-only"), atomic_directory(target, kind="export"):
            pytest.fail("the work began")
        assert content(target) == OLD

    def test_a_mount_point_is_refused(self, small_disk: Path) -> None:
        with pytest.raises(ConfigError, match="is a mount point"), atomic_directory(small_disk, kind="export"):
            pytest.fail("the work began")

    def test_a_limit_on_the_size_of_files(self, target: Path) -> None:
        make(target, OLD)
        child = python(
            """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
            try:
                with atomic_directory(target, kind="export") as folder:
                    (folder / "big").write_bytes(bytes(1 << 20))
            except StorageError as error:
                print(error)
            """,
            target,
        )
        output, errors = child.communicate(timeout=30)
        assert "File too large" in output, errors
        assert content(target) == OLD
        assert leftovers(target) == []

    @pytest.mark.parametrize("closed", ["parent", "target"])
    def test_no_permission(self, closed: str) -> None:
        with tempfile.TemporaryDirectory() as open_to_all:
            target = Path(open_to_all) / "room" / "out"
            make(target, OLD)
            Path(open_to_all).chmod(0o755)
            target.parent.chmod(0o777 if closed == "target" else 0o555)
            target.chmod(0o555)
            child = python(
                """
                import os
                if os.getuid() == 0:  # who may write everywhere
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                try:
                    with atomic_directory(target, kind="export"):
                        print("the work began")
                except StorageError as error:
                    print(error)
                """,
                target,
            )
            output, errors = child.communicate(timeout=30)
            assert "Permission denied" in output, errors
            assert content(target) == OLD
            assert leftovers(target) == []
            target.parent.chmod(0o755)
            target.chmod(0o755)


class TestTranslation:
    @pytest.mark.parametrize(
        "error", [RuntimeError("shape mismatch"), ConnectionError(111, "refused"), OSError("cannot find the model")]
    )
    def test_other_errors_pass_as_they_are(self, target: Path, error: BaseException) -> None:
        with pytest.raises(type(error)) as caught:
            fail(target, NEW, error)
        assert caught.value is error

    def test_a_path_in_the_staging_directory_is_shown_as_the_target_s(self, target: Path) -> None:
        with (
            pytest.raises(StorageError, match=r"out/missing/model\.onnx: No such file"),
            atomic_directory(target, kind="export") as folder,
        ):
            (folder / "missing" / "model.onnx").write_text("x")

    def test_a_cause_is_read_as_well(self, target: Path) -> None:
        error = RuntimeError("export failed")
        error.__cause__ = OSError(28, "No space left on device")
        with pytest.raises(StorageError, match="No space left"):
            fail(target, NEW, error)


def test_a_file_among_the_parents_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"a\.txt/b/c: .*a\.txt is not a folder"):
        make(tmp_path / "a.txt" / "b" / "c", NEW)
    assert (tmp_path / "a.txt").read_text() == "precious"


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "out", OLD)
    (tmp_path / "link").symlink_to("out")
    with (
        pytest.raises(ConfigError, match="link: is read by this command"),
        atomic_directory(tmp_path / "link", kind="export", inputs=[None, tmp_path / "out"]),
    ):
        pytest.fail("the block must not run")
    assert content(tmp_path / "out") == OLD
