"""The files of a preset, found by name and read with care: others have written them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrdist_keras import _tensorflow
from lrdist_keras.errors import InputError, MissingFile

WEIGHTS = ("model.safetensors", "model.weights.h5", "pytorch_model.bin")
_INDEX = "model.safetensors.index.json"  # of weights in several files
_READ = (".bin", ".h5", ".json", ".model", ".safetensors", ".spm", ".txt")
_ASSETS = "assets/tokenizer"  # where KerasHub keeps vocabularies
_LARGEST = 1 << 28  # bytes of a file that is read as a whole
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors format limits it
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class PresetFiles:
    """The files of a preset.

    Args:
        preset: A local folder or the name of a KerasHub preset.
    """

    preset: str

    @property
    def local(self) -> bool:
        """Whether the preset is a folder of this machine."""
        return Path(self.preset).is_dir()

    def path(self, name: str) -> Path | None:
        """Returns where a file lies, fetched where it must be; None if there is none.

        Args:
            name: Name within the preset, such as `config.json`.

        Raises:
            InputError: If what has the name is no file, or it cannot be fetched.
        """
        if not self.local:
            return self._fetched(name)
        path = Path(self.preset) / name
        if not path.exists() and not path.is_symlink():
            return None
        _check_file(path)
        return path

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None if there is none.

        Raises:
            InputError: If it cannot be read or is too large.
        """
        path = self.path(name)
        if path is None:
            return None
        with _readable(path):
            size = path.stat().st_size
            if size > _LARGEST:
                raise InputError(
                    f"model.preset: '{path}' must have at most {_LARGEST:,} bytes; it "
                    f"is none of a checkpoint. Received: {size:,} bytes"
                )
            return path.read_bytes()

    def text(self, name: str) -> str | None:
        """Returns the content of a text file; None if there is none.

        Raises:
            InputError: If it is not in UTF-8.
        """
        content = self.read(name)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"model.preset: '{self.preset}', {name}: must be text in UTF-8; fetch "
                f"it from its source again. Received: {error}"
            ) from None

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns the object that a JSON file holds; None if there is none.

        Raises:
            InputError: If it holds anything else.
        """
        content = self.text(name)
        return None if content is None else self._object(content, name)

    def tensor_names(self) -> list[str]:
        """Returns the names of the tensors in a folder of safetensors.

        Only the header is read. Empty where the weights are in another format.

        Raises:
            InputError: If the header breaks the format.
        """
        index = self.json(_INDEX)
        if index is not None:
            files = index.get("weight_map")
            if not isinstance(files, dict) or not all(
                isinstance(f, str) and Path(f).name == f for f in files.values()
            ):
                raise InputError(
                    f"model.preset: '{self.preset}', {_INDEX}: `weight_map` must name "
                    "a file of the same folder for each tensor; fetch the checkpoint "
                    "from its source again."
                )
            return list(files)
        path = self.path("model.safetensors")
        if path is None:
            return []
        header = _header(path).decode("utf-8", "replace")
        names = self._object(header, "the header of model.safetensors")
        return [name for name in names if name != "__metadata__"]

    def _object(self, content: str, name: str) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            found = error
        if not isinstance(found, dict):
            what = (
                found if isinstance(found, Exception) else f"a {type(found).__name__}"
            )
            raise InputError(
                f"model.preset: '{self.preset}', {name}: must hold one JSON object; "
                f"fetch it from its source again. Received: {what}"
            )
        return found

    def _fetched(self, name: str) -> Path | None:
        _tensorflow.keras_hub()
        from keras_hub.src.utils.preset_utils import get_file

        try:
            path = Path(get_file(self.preset, name))
        except FileNotFoundError as error:
            # The Hugging Face Hub says so too of what it could not ask for.
            if type(error.__cause__).__name__ != "LocalEntryNotFoundError":
                return None
            reason: Exception = error
        except Exception as error:  # hubs raise errors of their own, of many classes
            reason = error
        else:
            _check_file(path)
            return path
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise InputError(
            f"model.preset: '{name}' of '{self.preset}' cannot be had: "
            f"{text.rstrip('.')}. A KerasHub name needs the internet the first time."
        ) from reason


def check_folder(folder: Path) -> None:
    """Checks that what is read of a preset's folder is files: a pipe never ends.

    Raises:
        InputError: If a file name such as `config.json` is that of anything else.
    """
    with _readable(folder):
        entries = [*folder.iterdir()]
        if (folder / _ASSETS).is_dir():
            entries += (folder / _ASSETS).iterdir()
    for entry in entries:
        if entry.suffix in _READ:
            _check_file(entry)


def _check_file(path: Path) -> None:
    with _readable(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(
            f"model.preset: '{path}' must be a file; remove it, or put the "
            f"checkpoint's own file there. Received: {kind}"
        )


def _header(path: Path) -> bytes:
    """Reads the header of a safetensors file, whose size its first 8 bytes are."""
    with _readable(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LARGEST_HEADER, path.stat().st_size - 8):
            raise InputError(
                f"model.preset: '{path}' must begin with the size of its header, as "
                "safetensors files do; it is damaged or of another format: fetch it "
                f"from its source again. Received: {length:,} bytes"
            )
        return file.read(length)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says how to mend it if what a preset consists of cannot be read."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:  # it was listed or looked for before
        raise MissingFile(
            f"model.preset: '{path}' is a link to a file that is not there; fetch it "
            "from its source again."
        ) from None
    except OSError as error:
        raise InputError(
            f"model.preset: '{path}' must be one that can be read; mend its "
            f"permissions. Received: {error}"
        ) from error
