"""Every file that is read: it is taken as it is, or refused within a second.

Whole files are damaged at random: an entry is replaced, removed or repeated, bytes are
flipped or cut off. What a reader then does is to return what stands there, or to raise
an `InputError`; never another error, and never another value. 200 examples of each in
the suite, 20,000 by `make test-slow`.
"""

import json
import math
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_cases import record

from lrdist_keras import _tensorflow, config
from lrdist_keras.data.local_files import load_files
from lrdist_keras.data.tokenizer import load_tokenizer
from lrdist_keras.distribution import (
    Distribution,
    flat,
    kenneweg2022,
    scheme_from_json,
)
from lrdist_keras.errors import InputError
from lrdist_keras.groups import PatternScheme, Scheme
from lrdist_keras.laboratory.inputs import Input, check_inputs
from lrdist_keras.laboratory.records import read_runs
from lrdist_keras.laboratory.run_folder import read_configuration
from lrdist_keras.settings import TaskSettings
from lrdist_keras.strict_json import parse_json

ROOT = Path(__file__).parents[1]
SECOND = 1.0  # of the processor: others may use it at the same time

ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2, 10**30, 10**400, 0.0, -0.0, 1e-320, 1.5, 1e308,
        math.nan, math.inf, -math.inf, "", " ", "a", "head", "nan", "1e-4", "\x1b[31m",
        "\u202e", "\x00", "ä" * 500, "../..", "/etc/passwd", [], {}, [[]], [None],
        {"a": {}}, {"": 0}, [0] * 2000,
    ]
)  # fmt: skip


def places(content, path=()):
    """The path of every entry of a document."""
    items = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content, path, how):
    """The document with what `how` makes of the entry at a path; None removes it."""
    key, *rest = path
    copy = dict(content) if isinstance(content, dict) else list(content)
    if rest:
        copy[key] = changed(copy[key], rest, how)
    elif how is None:
        del copy[key]
    else:
        copy[key] = how(copy[key])
    return copy


@st.composite
def damaged_json(draw, documents):
    """JSON text of one of some documents, damaged in one to three places or bytes."""
    content = draw(st.sampled_from(documents))
    for _ in range(draw(st.integers(0, 2))):
        known = list(places(content))
        if not known:
            break
        path = draw(st.sampled_from(known))
        odd = draw(ODD)
        how = draw(st.sampled_from([None, lambda old, odd=odd: odd, lambda x: [x]]))
        content = changed(content, path, how)
    return damaged_bytes(draw, json.dumps(content).encode())


@st.composite
def damaged(draw, texts):
    """One of some texts, damaged in its bytes."""
    return damaged_bytes(draw, draw(st.sampled_from(texts)).encode())


def damaged_bytes(draw, text):
    kind = draw(st.sampled_from(["whole", "whole", "flipped", "cut", "twice", "more"]))
    at = draw(st.integers(0, max(len(text) - 1, 0)))
    if kind == "flipped" and text:
        text = text[:at] + bytes([draw(st.integers(0, 255))]) + text[at + 1 :]
    elif kind == "cut":
        text = text[:at]
    elif kind == "twice":
        text = text[:at] + text
    elif kind == "more":
        text = text[:at] + draw(st.binary(max_size=20)) + text[at:]
    return text


def refused(read, path, content):
    """Reads a file; returns what was read, or None if it was refused in time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    start = time.thread_time()
    try:
        return read()
    except InputError as error:
        assert str(error) and "Traceback" not in str(error)
        return None
    finally:
        assert time.thread_time() - start < SECOND


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


PATTERNS = PatternScheme({"stem": "conv_*", "body": ["block_[0-5]", "x"], "head": "d"})
SIZES = Scheme(12, layer_groups=(1, 2, 9))
DISTRIBUTIONS = [
    kenneweg2022().to_json(),
    *(flat(1e-4, scheme).to_json() for scheme in (PATTERNS, SIZES)),
]


@given(content=damaged_json(DISTRIBUTIONS))
def test_distributions(folder, content):
    path = folder / "d.json"
    found = refused(partial(Distribution.load, path), path, content)
    if found is not None:
        told = json.loads(content)
        assert found.rates == told["rates"]
        found.save(path)
        assert Distribution.load(path) == found


RECORDS = [record(), record("ä", 3, accuracy=((0.1, None), (None, None)))]


@given(content=damaged_json(RECORDS))
def test_records(folder, content):
    path = folder / "runs" / "runs.jsonl"
    found = refused(partial(read_runs, path.parent), path, content + b"\n")
    if found:
        told = [json.loads(line) for line in content.split(b"\n") if line.strip()]
        assert found == told


INPUTS = [{"weights": {"source": "bert", "sha256": "a" * 64}}]


@given(content=damaged_json(INPUTS))
def test_digests_of_inputs(folder, content):
    path = folder / "inputs" / "inputs.json"
    now = {"weights": Input("bert", "a" * 64)}

    def read():
        check_inputs(path.parent, now, has_results=True)
        return True

    if refused(read, path, content):
        told = json.loads(content)
        assert {name: entry["sha256"] for name, entry in told.items()} == {
            "weights": "a" * 64
        }


CONFIGURATIONS = [
    path.read_text() for path in sorted((ROOT / "configs").rglob("*.toml"))
]


@given(content=damaged(CONFIGURATIONS))
def test_configurations(folder, content):
    path = folder / "c.toml"
    found = refused(partial(config.load, path), path, content)
    if found is not None:
        told = tomllib.loads(content.decode())
        assert found.name == told["name"]
        arms = told.get("arms", [])
        assert [arm.name for arm in found.arms] == [arm["name"] for arm in arms]


RESOLVED = [
    config.load(path).model_dump() for path in sorted((ROOT / "configs").glob("*.toml"))
]


@given(content=damaged_json(RESOLVED))
def test_configurations_of_results(folder, content):
    path = folder / "results" / "configuration.json"
    found = refused(partial(read_configuration, path.parent), path, content)
    if found is not None:
        assert found.name == json.loads(content)["name"]


KEYS = ["name", "seeds", "arms.0.rate", "arms.x.strategy", "tasks", "search.low", "a.b"]


@given(
    overrides=st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), st.text(max_size=20))
        | st.tuples(st.sampled_from(KEYS), ODD.map(repr)),
        max_size=3,
    )
)
def test_overrides(folder, overrides):
    path = ROOT / "configs" / "quickstart.toml"
    given = [f"{key}={value}" for key, value in overrides]
    read = partial(config.load, path, given)
    refused(read, folder / "unused", b"")


VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfilm\n##s\ngood\n"
CHECKPOINTS = {
    "vocab.txt": VOCABULARY,
    "config.json": {"model_type": "bert", "vocab_size": 9, "pad_token_id": 0},
    "tokenizer_config.json": {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "cls_token": {"content": "[CLS]", "special": True},
    },
    "special_tokens_map.json": {"unk_token": "[UNK]", "mask_token": "[MASK]"},
}


@pytest.fixture(scope="module")
def checkpoint(folder):
    """A checkpoint's folder with its own tokenizer in every form, and the files."""
    from tokenizers import BertWordPieceTokenizer

    _tensorflow.keras_hub()  # imported here, for it takes seconds
    place = folder / "checkpoint"
    place.mkdir()
    files = {
        name: content if isinstance(content, str) else json.dumps(content)
        for name, content in CHECKPOINTS.items()
    }
    for name, content in files.items():
        (place / name).write_text(content)
    own = BertWordPieceTokenizer(str(place / "vocab.txt"))
    return place, files | {"tokenizer.json": own.to_str()}


@pytest.mark.parametrize("name", [*CHECKPOINTS, "tokenizer.json"])
def test_tokenizers(checkpoint, name):
    place, files = checkpoint
    is_json = name.endswith(".json")
    content = json.loads(files[name]) if is_json else files[name]

    @given(content=damaged_json([content]) if is_json else damaged([content]))
    def holds(content):
        found = refused(partial(load_tokenizer, str(place)), place / name, content)
        if found is not None:
            ((ids, boundary),) = found.encode((["the good films"],), 8)
            assert 0 < len(ids) <= 8 and boundary == len(ids)
            assert all(isinstance(i, int) and i >= 0 for i in ids)

    holds()
    if name == "tokenizer.json":
        (place / name).unlink()
    else:
        (place / name).write_text(files[name])


SCHEMES = [s.to_json() for s in (kenneweg2022().scheme, PATTERNS, SIZES)]


@given(content=damaged_json(SCHEMES))
def test_schemes(folder, content):
    path = folder / "scheme.json"

    def read():
        return scheme_from_json(parse_json(path.read_bytes()))

    found = refused(read, path, content)
    if found is not None:
        assert scheme_from_json(found.to_json()) == found


TABLES = {
    "t.csv": [
        'text,label\n"a, ""b""",x\nc,y\n\n"d\ne",x\n',
        "\ufefftext,label\r\na,0\r\nb,1\r\n",
        "text,label\na,1.0\nb,2.0\n",
    ],
    "t.tsv": ['text\tlabel\na "b\tx\nc\ty\n', "label\ttext\n1\ta\n0\tb\n"],
    "t.jsonl": [
        '{"text": "a", "label": 0}\n{"text": "\\u00e4", "label": 1}\n',
        '{"text": "a", "label": "x"}\n\n{"label": "y", "text": ""}\n',
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_data(folder, name):
    settings = TaskSettings(
        name="t", source="files", train=name, text="text", label="label"
    )

    @given(content=damaged(TABLES[name]))
    def holds(content):
        found = refused(partial(load_files, settings, folder), folder / name, content)
        if found is not None:
            known = len(found.class_names)
            for split in found.splits.values():
                assert len(split.texts[0]) == len(split.labels)
                assert all(0 <= label < known for label in split.labels)

    holds()
