"""Presets whose files are no files, or hold what none of a checkpoint does."""

import json
import os
import socket
import struct
import time

import keras_hub  # noqa: F401  imported before a clock runs
import pytest

from lrdist_keras.config import ModelSettings
from lrdist_keras.data.preset_files import PresetFiles
from lrdist_keras.data.tokenizer import load_tokenizer
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import find_preset, load_encoder

NESTED = b"[" * 100_000
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="pipes and devices"),
    pytest.mark.timeout(30),
]


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder as a download leaves it."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (tmp_path / "1_Pooling").mkdir()
    return tmp_path


def refused(function, message):
    """The function refuses its input with this message, within a second of work."""
    start = time.process_time()  # others may be busy; what waits runs into the limit
    with pytest.raises(InputError, match=message):
        function()
    assert time.process_time() - start < 1


def pipe(path):
    os.mkfifo(path)


def device(path):
    os.symlink("/dev/zero", path)


def bound(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def nothing(path):
    os.symlink("no_such_file", path)


def itself(path):
    os.symlink(path, path)


@pytest.mark.parametrize(
    "make, message",
    [
        (pipe, "must be a file.*Received: a named pipe"),
        (device, "must be a file.*Received: a device"),
        (os.mkdir, "must be a file.*Received: a folder"),
        (bound, "must be a file.*Received: a socket"),
        (nothing, "a link to a file that is not there"),
        (itself, "can be read.*Received"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_what_is_no_file_is_not_opened(folder, make, message, name):
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    refused(lambda: find_preset(ModelSettings(preset=str(folder))), message)
    refused(lambda: load_encoder(str(folder)), message)
    if name == "tokenizer.json":
        refused(lambda: load_tokenizer(str(folder)), message)


def test_vocabularies_that_are_no_files(folder, tiny_preset, tmp_path):
    (folder / "vocab.txt").unlink()
    pipe(folder / "vocab.txt")
    refused(lambda: load_tokenizer(str(folder)), "vocab.txt' must be a file")
    own = tmp_path / "own"
    (own / "assets" / "tokenizer").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (own / name).write_bytes((tiny_preset / name).read_bytes())
    pipe(own / "assets" / "tokenizer" / "vocabulary.txt")
    for load in (load_tokenizer, load_encoder):
        refused(lambda load=load: load(str(own)), "vocabulary.txt' must be a file")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[]", "one JSON object.*Received: a list"),
        (b"null", "one JSON object.*Received: a NoneType"),
        (b"", "one JSON object.*Received: Expecting value"),
        (NESTED, "one JSON object.*Received: maximum recursion"),
        (b'{"model": ' + NESTED, "one JSON object.*Received: maximum recursion"),
        (b'{"model": {"type": "\xff\xfe"}}', "UTF-8"),
        (b'{"model": []}', "tokenizer of.*damaged"),
        (b"{}", "a file of the library tokenizers, with `model`, or KerasHub's"),
        (b'{"class_name": [], "config": 3}', "or KerasHub's"),
    ],
)
def test_a_tokenizer_json_of_anything_else(folder, content, message):
    (folder / "tokenizer.json").write_bytes(content)
    refused(lambda: load_tokenizer(str(folder)), message)


@pytest.mark.parametrize("part", ["normalizer", "post_processor"])
def test_what_the_library_panics_at(minilm, tmp_path, part):
    content = json.loads((minilm / "tokenizer.json").read_text("utf-8"))
    if part == "normalizer":
        content[part] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    else:
        content[part]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    refused(lambda: load_tokenizer(str(tmp_path)), "tokenizer of.*damaged")


def test_a_tokenizer_json_larger_than_any(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    refused(lambda: load_tokenizer(str(folder)), "at most 268,435,456 bytes")


@pytest.mark.parametrize(
    "content, message",
    [
        (NESTED, "config.json: must hold one JSON object"),
        (b"\x00garbage", "config.json: must hold one JSON object"),
        (b"[]", "config.json: must hold one JSON object"),
        (b"\xff\xfe", "config.json: must be text in UTF-8"),
        (b'{"model_type": ' + b'{"a":' * 500 + b"1" + b"}" * 501, "cannot be had"),
        (b'{"registered_name": 1, "class_name": 2}', "cannot be had"),
        (b'{"model_type": "bert", "vocab_size": "many"}', "cannot be had"),
    ],
)
def test_a_config_json_of_anything_else(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(lambda: load_encoder(str(folder)), message)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "begin with the size of its header"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header.*4,611,686,018,427,387,904"),
        (struct.pack("<Q", 3) + b"[1]", "the header.*one JSON object"),
        (struct.pack("<Q", len(NESTED)) + NESTED, "the header.*maximum recursion"),
    ],
)
def test_weights_without_a_header(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    refused(lambda: load_encoder(str(folder)), message)


@pytest.mark.parametrize("file", ["/dev/zero", "../other.safetensors", 3])
def test_weights_in_several_files_lie_in_the_folder(folder, file):
    index = {"weight_map": {"embeddings.weight": file}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    refused(
        lambda: load_encoder(str(folder)), "`weight_map` must name a file of the sa"
    )
    path.write_text(json.dumps({"weight_map": {"a": "x", "b": "y"}}))
    assert PresetFiles(str(folder)).tensor_names() == ["a", "b"]


def test_a_folder_keras_hub_has_no_tokenizer_for(folder):
    (folder / "vocab.txt").unlink()
    refused(lambda: load_tokenizer(str(folder)), "KerasHub has no tokenizer for")
