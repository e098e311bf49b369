import os

import pytest

from lrdist_keras._storage import replacing, write_text
from lrdist_keras.data.local_files import package_folder


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
