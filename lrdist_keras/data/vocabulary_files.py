"""A checkpoint's own tokenizer from its vocabulary, where there is no other file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrdist_keras.data.preset_files import PresetFiles
from lrdist_keras.errors import InputError

# The rules that hold, by the class of the tokenizer, which KerasHub and Hugging Face
# call the same, and the tokens that have a part in them.
_BERT = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]"}
_BERT |= {"mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
_GPT2 = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}
_WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
_TOKENS = dict.fromkeys(_WORD_PIECE, _BERT)
_TOKENS |= {"RobertaTokenizer": _ROBERTA, "GPT2Tokenizer": _GPT2}
_CLASSES = {  # Hugging Face's, by `model_type`
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
}
_LARGEST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class OwnTokenizer:
    """A tokenizer of the library `tokenizers`.

    Args:
        tokenizer: `tokenizers.Tokenizer`.
        pad: The token that fills up a row, if it has such a token.
        mask: The token that stands for a masked one, if it has such a token.
        source: Names of the files that it is made of.
    """

    tokenizer: Any
    pad: str
    mask: str
    source: str


def from_vocabulary(files: PresetFiles) -> OwnTokenizer | None:
    """Builds the tokenizer that a checkpoint's vocabulary and settings describe.

    WordPiece of BERT, DistilBERT and ELECTRA from `vocab.txt`, byte-level BPE of
    RoBERTa and GPT-2 from `vocab.json` and `merges.txt`, with the same rules as Hugging
    Face's `transformers`, whose defaults hold where no file says otherwise. Of
    KerasHub's own presets the vocabulary lies in `assets`, and the settings are those
    of its `tokenizer.json`.

    Returns:
        The tokenizer, or None where the checkpoint has one of another kind.

    Raises:
        InputError: If a file breaks its format, or the class of the tokenizer does not
            say which rules hold.
    """
    kept = files.json("tokenizer.json")
    if kept is not None:
        return _keras_hub(files, kept)
    return _hugging_face(files)


def _keras_hub(files: PresetFiles, kept: Mapping[str, Any]) -> OwnTokenizer | None:
    name, settings = kept.get("class_name"), kept.get("config")
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise InputError(
            f"model.preset: '{files.preset}', tokenizer.json: must be a file of the "
            "library tokenizers, with `model`, or KerasHub's, with `class_name` and "
            "`config`; fetch it from its source again."
        )
    where = f"'{files.preset}', tokenizer.json"
    if name not in _TOKENS or not _flag(settings, "split", True, where):
        return None
    tokens, folder = _TOKENS[name], "assets/tokenizer/"
    if name in _WORD_PIECE:
        return _word_piece(
            files,
            folder + "vocabulary.txt",
            tokens | {"unk": _text(settings, "oov_token", "[UNK]", where)},
            lowercase=_flag(settings, "lowercase", False, where),
            strip_accents=_flag(settings, "strip_accents", False, where),
            chinese=_flag(settings, "split_on_cjk", True, where),
            prefix=_text(settings, "suffix_indicator", "##", where),
        )
    return _byte_pairs(
        files,
        folder + "vocabulary.json",
        folder + "merges.txt",
        tokens,
        prefix_space=_flag(settings, "add_prefix_space", False, where),
    )


def _hugging_face(files: PresetFiles) -> OwnTokenizer | None:
    settings = files.json("tokenizer_config.json") or {}
    name = _class_name(files, settings)
    if name is None:
        return None
    where = f"'{files.preset}', tokenizer_config.json"
    tokens = _tokens(files, settings, _TOKENS[name])
    if name in _WORD_PIECE:
        lowercase = _flag(settings, "do_lower_case", True, where)
        found = _word_piece(
            files,
            "vocab.txt",
            tokens,
            lowercase=lowercase,
            strip_accents=_flag(settings, "strip_accents", lowercase, where),
            chinese=_flag(settings, "tokenize_chinese_chars", True, where),
            prefix="##",
        )
    else:
        found = _byte_pairs(
            files,
            "vocab.json",
            "merges.txt",
            tokens,
            prefix_space=_flag(settings, "add_prefix_space", False, where),
            begins=_flag(settings, "add_bos_token", False, where),
            ends=_flag(settings, "add_eos_token", False, where),
        )
    if found is not None:
        found.tokenizer.add_tokens(_added_tokens(files, settings, tokens))
    return found


def _class_name(files: PresetFiles, settings: Mapping[str, Any]) -> str | None:
    """Returns the class whose rules hold; None where they are left to KerasHub."""
    config = files.json("config.json") or {}
    usual = _CLASSES.get(str(config.get("model_type")))
    said = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if usual is None or "XLMRoberta" in str(said):
        return None
    if said is None:
        return usual
    name = str(said).removesuffix("Fast")
    if name not in _TOKENS:
        raise InputError(
            f"model.preset: '{files.preset}': `tokenizer_class` must be one of "
            f"{', '.join(_TOKENS)} where there is no tokenizer.json. Let the library "
            "transformers write one: AutoTokenizer.from_pretrained(folder)"
            f".save_pretrained(folder). Received: {said!r}"
        )
    return name


def _tokens(
    files: PresetFiles, settings: Mapping[str, Any], usual: Mapping[str, str]
) -> dict[str, str]:
    """Returns the tokens with a part in the rules, as the checkpoint calls them."""
    sources = {"tokenizer_config.json": settings}
    if "added_tokens_decoder" not in settings:  # newer checkpoints say it all there
        name = "special_tokens_map.json"
        sources[name] = files.json(name) or {}
    found = dict(usual)
    for name, source in sources.items():
        for part in usual:
            said = source.get(f"{part}_token")
            said = said.get("content") if isinstance(said, dict) else said
            where = f"'{files.preset}', {name}"
            found[part] = _text(
                {f"{part}_token": said}, f"{part}_token", found[part], where
            )
    return found


def _added_tokens(
    files: PresetFiles, settings: Mapping[str, Any], tokens: Mapping[str, str]
) -> list[Any]:
    """Returns the tokens that were added to the vocabulary, in the order of their ids.

    Of these a text can only hold the ones that are not special.
    """
    from tokenizers import AddedToken

    found: dict[int, Any] = {}
    try:
        if "added_tokens_decoder" in settings:
            for i, token in settings["added_tokens_decoder"].items():
                found[int(i)] = AddedToken(**token)
        else:
            for text, i in (files.json("added_tokens.json") or {}).items():
                special = text in tokens.values()
                found[int(i)] = AddedToken(
                    text, normalized=not special, special=special
                )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"model.preset: '{files.preset}': tokenizer_config.json or "
            "added_tokens.json must say the id and the text of each added token; fetch "
            f"it from its source again. Received: {error}"
        ) from None
    return [found[i] for i in sorted(found)]


def _word_piece(
    files: PresetFiles,
    name: str,
    tokens: Mapping[str, str],
    *,
    lowercase: bool,
    strip_accents: bool,
    chinese: bool,
    prefix: str,
) -> OwnTokenizer | None:
    """Builds BERT's tokenizer: `[CLS] A [SEP]`, or `[CLS] A [SEP] B [SEP]`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    lines = files.text(name)
    if lines is None:
        return None
    # Of equal lines the last counts. No text has an empty token.
    vocabulary = {token.rstrip(): i for i, token in enumerate(lines.split("\n"))}
    vocabulary.pop("", None)
    needed = _ids(
        vocabulary, tokens, ("cls", "sep", "unk"), f"'{files.preset}', {name}"
    )
    tokenizer = Tokenizer(
        WordPiece(
            vocabulary,
            unk_token=tokens["unk"],
            max_input_chars_per_word=100,
            continuing_subword_prefix=prefix,
        )
    )
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(needed["sep"], needed["cls"])
    return OwnTokenizer(tokenizer, tokens["pad"], tokens["mask"], name)


def _byte_pairs(
    files: PresetFiles,
    name: str,
    merges_name: str,
    tokens: Mapping[str, str],
    *,
    prefix_space: bool,
    begins: bool = False,
    ends: bool = False,
) -> OwnTokenizer | None:
    """Builds RoBERTa's, `<s> A </s>` or `<s> A </s></s> B </s>`, or GPT-2's: `A B`."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import RobertaProcessing, TemplateProcessing

    vocabulary, lines = files.json(name), files.text(merges_name)
    if vocabulary is None or lines is None:
        return None
    where = f"'{files.preset}', {name}"
    for token, i in vocabulary.items():
        if type(i) is not int or not 0 <= i <= _LARGEST_ID:
            raise InputError(
                f"model.preset: {where}: the id of a token must be an integer from 0. "
                f"Received: {i!r} for {token!r}"
            )
    tokenizer = Tokenizer(BPE(vocabulary, _merges(lines, files.preset, merges_name)))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=prefix_space)
    if "cls" in tokens:
        needed = _ids(vocabulary, tokens, ("cls", "sep"), where)
        tokenizer.post_processor = RobertaProcessing(needed["sep"], needed["cls"])
    elif begins or ends:
        parts = ("bos",) * begins + ("eos",) * ends
        needed = _ids(vocabulary, tokens, parts, where)
        first, last = ([tokens["bos"]] * begins, [tokens["eos"]] * ends)
        tokenizer.post_processor = TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B:1", *last],
            special_tokens=list(needed.values()),
        )
    source = f"{name} and {merges_name}"
    return OwnTokenizer(tokenizer, tokens["pad"], tokens.get("mask", ""), source)


def _merges(lines: str, preset: str, name: str) -> list[tuple[str, str]]:
    """Returns the pairs that are merged, the first ones first."""
    found = []
    for number, line in enumerate(lines.split("\n"), start=1):
        line = line.rstrip()
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise InputError(
                f"model.preset: '{preset}', {name}, line {number}: must be two parts "
                f"of a token with one space between them. Received: {line[:80]!r}"
            )
        found.append((pair[0], pair[1]))
    return found


def _ids(
    vocabulary: Mapping[str, int],
    tokens: Mapping[str, str],
    parts: tuple[str, ...],
    where: str,
) -> dict[str, tuple[str, int]]:
    """Returns token and id of each of these parts."""
    missing = [tokens[part] for part in parts if tokens[part] not in vocabulary]
    if missing:
        raise InputError(
            f"model.preset: {where}: must hold the special tokens that the checkpoint "
            f"uses; fetch it from its source again. Missing: {', '.join(missing)}"
        )
    return {part: (tokens[part], vocabulary[tokens[part]]) for part in parts}


def _flag(settings: Mapping[str, Any], key: str, usual: bool, where: str) -> bool:
    found = settings.get(key)
    if found is not None and not isinstance(found, bool):
        raise InputError(
            f"model.preset: {where}: `{key}` must be true or false. Received: {found!r}"
        )
    return usual if found is None else found


def _text(settings: Mapping[str, Any], key: str, usual: str, where: str) -> str:
    found = settings.get(key)
    if found is not None and not isinstance(found, str):
        raise InputError(
            f"model.preset: {where}: `{key}` must be text. Received: {found!r}"
        )
    return usual if found is None else found
