"""The spool of corrections: bounded by what lies there, whole files or none, many writers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.records.corrections import CorrectionSpool, SpoolFullError, read_corrections
from pipelines.storage.folder import StorageFolder

PNG = b"\x89PNG\r\n\x1a\n"


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.ns = 86_400 * 10**9

    def __call__(self) -> int:
        return self.ns

    def later(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def image(number: int, size: int = 1000) -> bytes:
    return PNG + str(number).encode().rjust(size, b"0")


def add(spool: CorrectionSpool, number: int) -> str:
    return spool.add(image(number), sender="a", caption="a dot")


def fill(spool: CorrectionSpool, first: int) -> int:
    """How many it took until it was full."""
    for count in range(10_000):
        try:
            add(spool, first + count)
        except SpoolFullError:
            return count
    raise AssertionError("it is never full")


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in files(folder))


def test_writers_share_one_limit(tmp_path: Path) -> None:
    clock = Clock()
    first, second = (CorrectionSpool(tmp_path / "spool", 50_000, clock) for _ in range(2))
    add(first, 0)
    add(second, 1)
    assert 30 < fill(first, 100) < 50
    assert fill(second, 1000) == 0
    clock.later(3600)
    assert fill(second, 2000) == fill(first, 3000) == 0
    assert 45_000 < size(tmp_path / "spool") <= 50_000


@pytest.mark.parametrize("what", ["spool", "spool/1970-01-02"])
def test_days_that_are_taken_away_make_room(tmp_path: Path, what: str) -> None:
    clock = Clock()
    spool = CorrectionSpool(tmp_path / "spool", 50_000, clock)
    taken = fill(spool, 0)
    shutil.move(tmp_path / what, tmp_path / "imported")
    clock.later(2)
    assert fill(spool, 1000) == taken
    assert size(tmp_path / "spool") <= 50_000


def test_many_threads_and_spools_keep_the_limit_and_lose_nothing(tmp_path: Path) -> None:
    spools = [CorrectionSpool(tmp_path, 30_000) for _ in range(3)]

    def one(number: int) -> bool:
        try:
            add(spools[number % 3], number)
        except SpoolFullError:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        taken = sum(threads.map(one, range(60)))
    assert 15 < taken < 30
    assert len(list(read_corrections(tmp_path))) == taken
    assert size(tmp_path) <= 30_000


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    add(CorrectionSpool(tmp_path / "spool", 10_000), 0)
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def refuse_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after so many files."""
    left, fsync = [calls], os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("written", [0, 1])
def test_nothing_is_left_of_what_a_full_disk_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    spool = CorrectionSpool(tmp_path, 50_000)
    add(spool, 0)
    before = sorted(files(tmp_path))
    with monkeypatch.context() as patched:
        refuse_after(written, patched)
        with pytest.raises(OSError, match="No space"):
            add(spool, 1)
    assert sorted(files(tmp_path)) == before
    with monkeypatch.context() as patched:
        refuse_after(0, patched)
        with pytest.raises(OSError, match="No space"):
            add(spool, 0)
    assert sorted(files(tmp_path)) == before, "the picture belongs to the first correction too"
    add(spool, 1)
    assert len(list(read_corrections(tmp_path))) == 2


def test_a_count_that_cannot_be_kept_is_counted_anew(tmp_path: Path) -> None:
    spool = CorrectionSpool(tmp_path, 50_000, Clock())
    add(spool, 0)
    for content in ("", "12", "a b"):
        (tmp_path / ".count").write_text(content)
        add(spool, 1)
        assert int((tmp_path / ".count").read_text().split()[0]) == size(tmp_path)


def test_what_a_killed_writer_left_is_removed_and_counts_no_more(tmp_path: Path) -> None:
    clock = Clock()
    spool = CorrectionSpool(tmp_path, 20_000, clock)
    add(spool, 0)
    left = tmp_path / "1970-01-02" / "images" / ".x.png.0123456789abcdef.partial"
    left.write_bytes(bytes(15_000))
    clock.later(3600)
    add(spool, 1)
    assert not left.exists()
    assert fill(spool, 2) > 10


@pytest.mark.parametrize("kind", ["write", "duplicate"])
def test_a_folder_removes_what_it_could_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = StorageFolder(str(tmp_path))
    folder.write("a", b"first")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        folder.write("a", b"x") if kind == "write" else folder.copy_file("a", "b")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert folder.read("a") == b"first"


_FILL = """
import json, sys
from pipelines.records.corrections import CorrectionSpool
spool, refused = CorrectionSpool(sys.argv[1], 10**9), 0
for number in range(200):
    try:
        spool.add(b"\\x89PNG\\r\\n\\x1a\\n" + str(number).encode() * 4000, sender="x", caption="c")
    except OSError:
        refused += 1
left = [file.name for file in spool.folder.rglob("*") if file.name.endswith(".partial")]
pictures = {file.name for file in spool.folder.glob("*/images/*")}
named = {json.loads(file.read_text())["image"] for file in spool.folder.glob("*/corrections/*.json")}
print(json.dumps([refused, left, len(pictures), pictures == named]))
"""


def test_a_disk_that_is_full_is_left_clean(tmp_path: Path) -> None:
    command = 'mount -t tmpfs -o size=500k tmpfs "$1" && exec "$2" -c "$3" "$1/spool"'
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", command, "-", str(tmp_path), sys.executable, _FILL],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    refused, left, pictures, matched = json.loads(done.stdout)
    assert refused > 0, done.stderr
    assert pictures > 0
    assert (left, matched) == ([], True)
