import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from lrdist_keras._storage import replacing, write_text
from lrdist_keras.array_cache import cached_arrays
from lrdist_keras.data.local_files import package_folder
from lrdist_keras.errors import InputError

KEY = "0" * 64
HOUR = 3600
needs_posix = pytest.mark.skipif(os.name != "posix", reason="pipes, users and locks")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_name_is_taken_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as file:
        file.write(b"text")
        assert not path.exists()
    assert path.read_bytes() == b"text"


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    write_text(tmp_path / "file", "text")
    with (tmp_path / "other").open("w"):
        pass
    modes = {os.stat(tmp_path / name).st_mode for name in ("file", "other")}
    assert len(modes) == 1


def test_a_package_is_found_without_being_imported():
    assert (package_folder("lrdist_keras") / "cli.py").is_file()
    for name in ("no_such_package", "not a name"):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is not installed"):
            package_folder(name)


class Numbers:
    """Arrays, and how often they were made."""

    def __init__(self, cache):
        self.cache, self.made = cache, 0

    def make(self):
        self.made += 1
        return {"x": np.arange(100, dtype=np.int32), "y": np.zeros((0, 3))}

    def get(self, fits=lambda arrays: arrays.keys() == {"x", "y"}):
        found = cached_arrays(self.cache / KEY, self.make, fits)
        np.testing.assert_array_equal(found["x"], np.arange(100))
        assert found["y"].shape == (0, 3)
        return found


def test_arrays_are_made_once_and_mapped(tmp_path):
    numbers = Numbers(tmp_path / "new" / "cache")
    for _ in range(3):
        found = numbers.get()
    assert numbers.made == 1
    assert isinstance(found["x"], np.memmap) and not found["x"].flags.writeable
    folder = numbers.cache / KEY
    assert {p.name for p in folder.iterdir()} == {"x.npy", "y.npy", "SHA256SUMS"}
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{64}  [xy]\.npy", line) for line in lines)
    assert [p.name for p in numbers.cache.iterdir()] == [KEY]


def truncate(folder):
    with (folder / "x.npy").open("r+b") as file:
        file.truncate(130)


def flip(folder):
    content = bytearray((folder / "x.npy").read_bytes())
    content[-1] ^= 1
    (folder / "x.npy").write_bytes(content)


def empty(folder):
    (folder / "x.npy").write_bytes(b"")


def lose(folder):
    (folder / "x.npy").unlink()


def lose_sums(folder):
    (folder / "SHA256SUMS").unlink()


def garble_sums(folder):
    (folder / "SHA256SUMS").write_bytes(os.urandom(500))


def forget_one(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text(lines[0])


def become_a_file(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("text")


def become_a_pipe(folder):
    (folder / "x.npy").unlink()
    os.mkfifo(folder / "x.npy")


def become_a_folder(folder):
    (folder / "SHA256SUMS").unlink()
    (folder / "SHA256SUMS").mkdir()


@needs_posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        empty,
        lose,
        lose_sums,
        garble_sums,
        forget_one,
        become_a_file,
        become_a_pipe,
        become_a_folder,
    ],
)
def test_damaged_arrays_are_made_again_and_one_line_says_so(tmp_path, capsys, damage):
    numbers = Numbers(tmp_path)
    numbers.get()
    assert capsys.readouterr().err == ""
    damage(tmp_path / KEY)
    numbers.get()
    assert numbers.made == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"The cache '{tmp_path / KEY}' is damaged (")
    assert line.endswith("it is made again.")
    numbers.get()
    assert numbers.made == 2 and capsys.readouterr().err == ""
    assert [p.name for p in tmp_path.iterdir()] == [KEY]


def test_arrays_of_another_shape_are_made_again(tmp_path, capsys):
    numbers = Numbers(tmp_path)
    other = {"x": np.arange(3), "y": np.zeros(3)}
    cached_arrays(tmp_path / KEY, lambda: other, lambda arrays: True)
    numbers.get(lambda arrays: arrays["x"].shape == (100,))
    assert numbers.made == 1
    assert "other names or shapes" in capsys.readouterr().err


def test_a_failure_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_arrays(tmp_path / KEY, fail, lambda arrays: True)
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_faster_wins(tmp_path):
    """Another process puts the same arrays there while this one makes them."""
    numbers = Numbers(tmp_path)

    def make():
        numbers.get()
        return numbers.make()

    cached_arrays(tmp_path / KEY, make, lambda arrays: True)
    assert [p.name for p in tmp_path.iterdir()] == [KEY]


def test_a_cache_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    for cache in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(InputError, match="cache '.*file.*data.cache.*Received"):
            Numbers(cache).get()


@needs_posix
@pytest.mark.parametrize("what", ["the cache", "the arrays", "one array"])
def test_a_cache_without_permission(what):
    # Of which all but the last folder may be looked into.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed_cache(Path(folder), what)


def closed_cache(folder, what):
    numbers = Numbers(folder / "cache")
    numbers.get()
    paths = {"the cache": numbers.cache, "the arrays": numbers.cache / KEY}
    closed = paths.get(what, numbers.cache / KEY / "x.npy")
    closed.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read it all
            os.seteuid(65534)
        with pytest.raises(InputError, match="data.cache.*Permission denied"):
            numbers.get()
    finally:
        os.seteuid(user)
        closed.chmod(0o755)


def aged(path, seconds):
    """Makes a file or folder look as if it had been made so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


@needs_posix
def test_what_dead_writers_left_is_removed(tmp_path):
    names = [f".{KEY}.abcdef12", f".fisher-{KEY}.abcdef_2", f".embeddings-{KEY}.npy.a"]
    names[2] += "bcdefgh"
    for name in names:
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "x.npy").write_bytes(b"half")
        aged(tmp_path / name, 60)
    old = tmp_path / ".encoding-abcd_f12"
    old.mkdir(mode=0o700)
    aged(old, 25 * HOUR)
    Numbers(tmp_path).get()
    assert [p.name for p in tmp_path.iterdir()] == [KEY]


@needs_posix
def test_what_is_not_ours_or_still_written_stays(tmp_path):
    """Of the living, of a version without locks, of others, and of other names."""
    kept = [
        (f".{KEY}.abcdef12", 0o700, 0),  # just made
        (".encoding-abcd_f12", 0o700, HOUR),
        (f".{KEY}.abcdef13", 0o755, 48 * HOUR),
        (".bashrc.abcdef12", 0o700, 48 * HOUR),
        (f"{KEY}.abcdef12", 0o700, 48 * HOUR),
    ]
    for name, mode, age in kept:
        (tmp_path / name).mkdir(mode=mode)
        aged(tmp_path / name, age)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path])
    try:
        held = wait_for(tmp_path, f".{'1' * 64}.*")
        aged(held, 60)
        Numbers(tmp_path).get()
        assert held.exists()
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    Numbers(tmp_path).get()
    assert not held.exists()
    assert {p.name for p in tmp_path.iterdir()} == {KEY, *(name for name, *_ in kept)}


# Writes arrays, and waits in the middle of it.
WRITER = """
import sys, time
import numpy as np
from lrdist_keras.array_cache import cached_arrays
np.save = lambda *arguments, **options: time.sleep(100)
cached_arrays(sys.argv[1] + "/" + "1" * 64, lambda: {"x": np.zeros(3)}, bool)
"""


def wait_for(folder, pattern):
    for _ in range(300):
        if found := list(folder.glob(pattern)):
            time.sleep(0.2)
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no {pattern}")


@needs_posix
def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "results.json"
    code = "import sys, time\nfrom lrdist_keras._storage import replacing\n"
    code += "with replacing(sys.argv[1]) as file:\n    time.sleep(100)"
    writer = subprocess.Popen([sys.executable, "-c", code, path])
    try:
        left = aged(wait_for(tmp_path, ".results.json.*"), 60)
        write_text(path, "of another")
        assert left.exists()
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    notes = tmp_path / ".results.json.20261127"  # a user's own copy
    notes.write_text("text")
    notes.chmod(0o644)
    aged(notes, 48 * HOUR)
    write_text(path, "text")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, notes.name}
