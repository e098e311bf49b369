"""From texts to token ids, by the checkpoint's own tokenizer, through a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.splits import Split
from lrdist_keras.errors import InputError

Texts = tuple[Sequence[str], ...]
_FORMAT = "1"  # of the cache; part of its key
_CHUNK = 4096  # texts that are tokenised at a time
_LONG_CHUNK = 64  # the same where they are long: KerasHub pads them all to the limit


@dataclass(frozen=True)
class Tokenizer:
    """How a checkpoint turns texts into token ids.

    Args:
        identity: A hash of all that determines the ids.
        pad_id: Id that fills up a row.
        encode: From texts (one or two columns) and a maximal length to, for each
            example, its ids with special tokens and the position at which the second
            segment begins (the number of ids where there is none).
        mask_id: Id that stands for a masked token, None where there is none.
    """

    identity: str
    pad_id: int
    encode: Callable[[Texts, int], list[tuple[Sequence[int], int]]]
    mask_id: int | None = None


def load_tokenizer(preset: str) -> Tokenizer:
    """Loads the tokenizer of a checkpoint.

    The checkpoint's own `tokenizer.json` where its folder has one, KerasHub's
    otherwise.

    Args:
        preset: A local folder or the name of a KerasHub preset.

    Raises:
        ValueError: If KerasHub has no tokenizer for it.
    """
    path = Path(preset) / "tokenizer.json"
    if path.is_file():
        content = path.read_bytes()
        # KerasHub's own folders hold a file of this name too, with other content.
        if "model" in json.loads(content):
            return _file_tokenizer(content)
    return _keras_hub_tokenizer(preset)


def encode(
    split: Split,
    tokenizer: Tokenizer,
    max_length: int,
    cache: str | os.PathLike[str],
    what: str = "texts",
) -> Encoded:
    """Encodes a split, or takes it from the cache.

    Args:
        split: Texts and labels.
        tokenizer: The checkpoint's tokenizer.
        max_length: Tokens per example at most, special tokens included; of a pair the
            longer text is cut first.
        cache: Folder of the cache. The key is a hash of the texts, the tokenizer and
            `max_length`.
        what: How the progress bar calls the texts.

    Raises:
        OSError: If the cache cannot be written.
    """
    folder = Path(cache) / _key(split.texts, tokenizer, max_length)
    if not folder.is_dir():
        _write(folder, split.texts, tokenizer, max_length, what)
    ids, offsets, second = (
        np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("ids", "offsets", "second")
    )
    return Encoded(ids, offsets, second, split.labels, tokenizer.pad_id)


def uncut_lengths(
    split: Split, encoded: Encoded, tokenizer: Tokenizer, max_length: int
) -> np.ndarray:
    """Returns the numbers of tokens that texts have without any limit.

    Args:
        split: Texts; of pairs the tokens are counted together.
        encoded: The same texts, encoded with at most `max_length` tokens.
        tokenizer: The tokenizer they were encoded with.
        max_length: Tokens per example at most, special tokens included.

    Returns:
        Numbers with special tokens, int64, shape [examples].
    """
    lengths, limit = encoded.lengths.copy(), max_length
    # Those that reach the limit may have been cut: they are encoded with a higher one.
    while len(cut := np.flatnonzero(lengths >= limit)):
        limit *= 4
        for rows in np.split(cut, range(_LONG_CHUNK, len(cut), _LONG_CHUNK)):
            found = tokenizer.encode(split.take(rows).texts, limit)
            lengths[rows] = [len(ids) for ids, _ in found]
    return lengths


def _key(texts: Texts, tokenizer: Tokenizer, max_length: int) -> str:
    digest = hashlib.sha256()
    head = [_FORMAT, tokenizer.identity, str(max_length), str(len(texts))]
    for part in head:
        digest.update(part.encode() + b"\n")
    for column in texts:
        for text in column:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _write(
    folder: Path, texts: Texts, tokenizer: Tokenizer, max_length: int, what: str
) -> None:
    """Encodes into a temporary folder that takes its name once it is whole."""
    from rich.console import Console
    from rich.progress import track

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".encoding-"))
    try:
        count = len(texts[0])
        sizes = np.zeros(count, np.int64)
        second = np.zeros(count, np.int32)
        raw = temporary / "ids.raw"
        with raw.open("wb") as file:
            for start in track(
                range(0, count, _CHUNK),
                f"Encoding {what}",
                console=Console(stderr=True),
                transient=True,
                disable=count <= _CHUNK,
            ):
                part = tuple(column[start : start + _CHUNK] for column in texts)
                for i, (ids, boundary) in enumerate(tokenizer.encode(part, max_length)):
                    sizes[start + i], second[start + i] = len(ids), boundary
                    file.write(np.asarray(ids, np.int32).tobytes())
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        flat = np.memmap(raw, np.int32, mode="r", shape=(int(offsets[-1]),))
        for name, array in (("ids", flat), ("offsets", offsets), ("second", second)):
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        raw.unlink()
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file_tokenizer(content: bytes) -> Tokenizer:
    from tokenizers import Tokenizer as FileTokenizer

    try:
        tokenizer = FileTokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # what the library raises, of no narrower class
        raise InputError(f"The checkpoint's tokenizer.json: {error}") from error
    pad_id = (tokenizer.padding or {}).get("pad_id")
    if pad_id is None:
        found = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        pad_id = next((i for i in found if i is not None), 0)
    tokenizer.no_padding()
    # A "[SEP]" in a user's text is text.
    tokenizer.encode_special_tokens = True

    def encode(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        tokenizer.enable_truncation(max_length, strategy="longest_first")
        pairs = list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))
        result: list[tuple[Sequence[int], int]] = []
        for encoding in tokenizer.encode_batch_fast(pairs):
            ids = encoding.ids or [pad_id]
            types = encoding.type_ids
            result.append((ids, types.index(1) if 1 in types else len(ids)))
        return result

    identity = "file:" + hashlib.sha256(content).hexdigest()
    masks = (tokenizer.token_to_id(token) for token in ("[MASK]", "<mask>"))
    mask_id = next((i for i in masks if i is not None), None)
    return Tokenizer(identity, pad_id, encode, mask_id)


def _keras_hub_tokenizer(preset: str) -> Tokenizer:
    keras_hub = _tensorflow.keras_hub()
    tokenizer = keras_hub.models.Tokenizer.from_preset(preset)
    state = [tokenizer.get_config(), list(tokenizer.get_vocabulary())]
    state.append(getattr(tokenizer, "merges", None))
    identity = hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()
    try:
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(preset)
    except ValueError:  # GPT-2 has none: its texts carry no special tokens
        preprocessor = None
    pad_id = tokenizer.pad_token_id or 0

    def packed(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        preprocessor.sequence_length = max_length
        columns = tuple(list(column) for column in texts)
        # Given alone, the second of two texts would be taken for the label.
        inputs, _ = preprocessor(
            columns if len(columns) == 2 else columns[0], y=np.zeros(len(columns[0]))
        )
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        sizes = arrays["padding_mask"].sum(axis=1)
        segments = arrays.get("segment_ids", np.zeros_like(arrays["token_ids"]))
        return [
            (ids[:size], int(np.argmax(types)) if types[:size].any() else int(size))
            for ids, types, size in zip(
                arrays["token_ids"], segments, sizes, strict=True
            )
        ]

    def plain(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        columns = [[list(map(int, ids)) for ids in tokenizer(list(c))] for c in texts]
        result: list[tuple[Sequence[int], int]] = []
        for parts in zip(*columns, strict=True):
            cut = [list(part) for part in parts]
            while sum(map(len, cut)) > max_length:
                max(cut, key=len).pop()
            ids = [i for part in cut for i in part] or [pad_id]
            result.append((ids, len(ids)))
        return result

    return Tokenizer(
        f"keras_hub {keras_hub.__version__}: {identity}",
        pad_id,
        packed if preprocessor is not None else plain,
        getattr(tokenizer, "mask_token_id", None),
    )
