"""From texts to token ids, by the checkpoint's own tokenizer, through a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from lrdist_keras.array_cache import Arrays, cache_errors, cached_arrays
from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.keras_hub_tokenizer import keras_hub_tokenizer
from lrdist_keras.data.preset_files import PresetFiles
from lrdist_keras.data.splits import Split
from lrdist_keras.data.token_ids import Texts, Tokenizer, check_ids, check_vocabulary
from lrdist_keras.data.vocabulary_files import OwnTokenizer, from_vocabulary
from lrdist_keras.errors import InputError

_FORMAT = "2"  # of the cache; part of its key
_CHUNK = 4096  # texts that are tokenised at a time
_LONG_CHUNK = 64  # the same where they are long: KerasHub pads them all to the limit
_PADS = ("[PAD]", "<pad>", "<|endoftext|>")
_MASKS = ("[MASK]", "<mask>")


def load_tokenizer(preset: str, rows: int | None = None) -> Tokenizer:
    """Loads the tokenizer of a checkpoint.

    The checkpoint's own: its `tokenizer.json`, or what its vocabulary and settings say,
    see `from_vocabulary`. KerasHub's only where it has neither, as with SentencePiece.

    Args:
        preset: A local folder or the name of a KerasHub preset.
        rows: Rows of the model's token embeddings. Tokens that were added beyond them
            are let pass with a warning, as long as no text holds one.

    Raises:
        InputError: If a file breaks its format, KerasHub has no tokenizer for the
            preset, or its vocabulary is larger than `rows`.
    """
    files = PresetFiles(preset)
    content = files.json("tokenizer.json")
    # KerasHub's own folders hold a file of this name too, with other content.
    if content is not None and "model" in content:
        own: OwnTokenizer | None = _from_file(files)
    else:
        with _errors_named(files):
            own = from_vocabulary(files)
    if own is None:
        return keras_hub_tokenizer(preset, rows)
    return _own_tokenizer(own, files, rows)


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
        what: How messages and the progress bar call the texts.

    Raises:
        InputError: If an id has no row in the model's token embeddings, or the cache
            cannot be read or written.
    """
    count = len(split.texts[0])

    def fits(arrays: Arrays) -> bool:
        if arrays.keys() != {"ids", "offsets", "second"}:
            return False
        ids, offsets, second = (arrays[x] for x in ("ids", "offsets", "second"))
        return (
            (ids.ndim, ids.dtype, offsets.dtype) == (1, np.int32, np.int64)
            and (offsets.shape, second.shape) == ((count + 1,), (count,))
            and offsets[0] == 0
            and offsets[-1] == len(ids)
            and bool((np.diff(offsets) >= 0).all())
        )

    arrays = cached_arrays(
        Path(cache) / _key(split.texts, tokenizer, max_length),
        partial(_encoded, split.texts, tokenizer, max_length, cache, what),
        fits,
    )
    check_ids(arrays["ids"], tokenizer.rows, what)
    return Encoded(
        arrays["ids"],
        arrays["offsets"],
        arrays["second"],
        split.labels,
        tokenizer.pad_id,
    )


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


def _encoded(
    texts: Texts,
    tokenizer: Tokenizer,
    max_length: int,
    cache: str | os.PathLike[str],
    what: str,
) -> Arrays:
    """Encodes texts; the ids are in a nameless file of the cache, not in memory."""
    from rich.console import Console
    from rich.progress import track

    count = len(texts[0])
    sizes = np.zeros(count, np.int64)
    second = np.zeros(count, np.int32)
    with cache_errors(cache), tempfile.TemporaryFile(dir=cache) as file:
        for start in track(
            range(0, count, _CHUNK),
            f"Encoding {what}",
            console=Console(stderr=True),
            transient=True,
            disable=count <= _CHUNK,
        ):
            part = tuple(column[start : start + _CHUNK] for column in texts)
            rows = tokenizer.encode(part, max_length)
            end = start + len(rows)
            sizes[start:end] = [len(ids) for ids, _ in rows]
            second[start:end] = [boundary for _, boundary in rows]
            found = np.concatenate([np.asarray(ids, np.int64) for ids, _ in rows])
            check_ids(found, tokenizer.rows or 1 << 31, what)
            file.write(found.astype(np.int32).tobytes())
        file.flush()
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        total = int(offsets[-1])
        flat = (
            np.memmap(file, np.int32, mode="r", shape=(total,))
            if total
            else np.zeros(0, np.int32)
        )
    return {"ids": flat, "offsets": offsets, "second": second}


def _from_file(files: PresetFiles) -> OwnTokenizer:
    from tokenizers import Tokenizer as FileTokenizer

    with _errors_named(files):
        tokenizer = FileTokenizer.from_str(files.text("tokenizer.json") or "")
    pad = (tokenizer.padding or {}).get("pad_token", "")
    return OwnTokenizer(tokenizer, pad, "", "tokenizer.json")


def _own_tokenizer(
    own: OwnTokenizer, files: PresetFiles, rows: int | None
) -> Tokenizer:
    import tokenizers

    tokenizer = own.tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A "[SEP]" in a user's text is text.
    tokenizer.encode_special_tokens = True

    def encode(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        pairs = list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))
        with _errors_named(files):
            tokenizer.enable_truncation(max_length, strategy="longest_first")
            encodings = tokenizer.encode_batch_fast(pairs)
        result: list[tuple[Sequence[int], int]] = []
        for encoding in encodings:
            ids = encoding.ids or [pad_id]
            types = encoding.type_ids
            result.append((ids, types.index(1) if 1 in types else len(ids)))
        return result

    largest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    added = {
        token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()
    }
    check_vocabulary(largest, added, rows, files.preset, own.source)
    # Where there is no such token any row does, since padding is masked.
    pad_id = _first_id(tokenizer.token_to_id, (own.pad, *_PADS), rows) or 0
    mask_id = _first_id(tokenizer.token_to_id, (own.mask, *_MASKS), rows)
    state = hashlib.sha256(f"{pad_id} {tokenizer.to_str()}".encode()).hexdigest()
    identity = f"tokenizers {tokenizers.__version__}: {state}"
    tokenizer.enable_padding(pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id))
    content = tokenizer.to_str()
    tokenizer.no_padding()
    encode((["a"],), 8), encode((["a"], ["b"]), 8)  # what is broken shows at once
    return Tokenizer(identity, pad_id, encode, mask_id, rows, content)


def _first_id(
    find: Callable[[str], int | None], tokens: Sequence[str], rows: int | None
) -> int | None:
    """Returns the id of the first of these tokens that there is a row for."""
    found = (find(token) for token in tokens)
    return next((i for i in found if i is not None and (not rows or i < rows)), None)


@contextmanager
def _errors_named(files: PresetFiles) -> Iterator[None]:
    """Names the preset where the library that tokenises it raises an error."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:  # of no narrower class; its panics are no Exception
        if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
            raise
        raise InputError(
            f"model.preset: the tokenizer of '{files.preset}' is damaged or made for "
            "another version of the library tokenizers; fetch its files from their "
            f"source again. Received: {error}"
        ) from error
