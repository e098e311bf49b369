"""The checkpoint's own ids, whatever files it comes with, and rows for all of them."""

import json
import os

import keras_hub
import numpy as np
import pytest

from lrdist_keras.data import tokenizer as tokenizer_module
from lrdist_keras.data.keras_hub_tokenizer import keras_hub_tokenizer
from lrdist_keras.data.splits import Split
from lrdist_keras.data.token_ids import Tokenizer
from lrdist_keras.data.tokenizer import encode, load_tokenizer
from lrdist_keras.errors import InputError

HOSTILE = [
    "café Ångström naïve",
    "good\u00a0film",
    "good\u3000film",
    "日本語の映画は良い 한국어 𠀀𪜶",
    "film 👍🏽 great 👨\u200d👩\u200d👧",
    "bell\x07 null\x00 tab\t del\x7f \ufffd \ue000",
    "שלום مرحبا بالعالم नमस्ते ไทย",
    "zero\u200bwidth\u200djoin\ufeffbom\u2060 soft\u00adhyphen",
    "e\u0301 combining a\u030a İstanbul ẞ ß",
    "\u0085next\u2028line\r\n",
    "x" * 100,
    "x" * 101,
    "é" * 100,
    "a" * 5000,
    "",
    " \n",
    "[SEP] in [CLS] the [MASK] text [PAD] [UNK]",
    "don't stop—“quotes” … ﬁne ½ ①",
    "ＦＵＬＬＷＩＤＴＨ ##ing ##ed",
    "1,234.56 $%^&*()_+`~| Ω≈ç√∫",
    "a long one " * 400,
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "café", "Café", "good"]
BERT += ["film", "良", "[", "]", "sep", "##s", "<user>"]
PAIRS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6}
PAIRS |= {"Ġ": 7, "ab": 8, "Ġab": 9, "<": 10, "s": 11, ">": 12, "Ġ<": 13, "Ã": 14}
MERGES = "#version: 0.2\na b\nĠ ab\nĠ <\n"


def bare(minilm, folder):
    """The real checkpoint without its tokenizer.json."""
    folder.mkdir()
    for path in minilm.iterdir():
        if path.is_file() and path.name != "tokenizer.json":
            os.symlink(path, folder / path.name)
    return str(folder)


def checkpoint(folder, model_type, **files):
    """A folder in Hugging Face form; a name's last underscore is its dot."""
    folder.mkdir(exist_ok=True)
    files["config_json"] = {"model_type": model_type} | files.get("config_json", {})
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), "utf-8"
        )
    return str(folder)


def bert(folder, vocabulary=BERT, **files):
    return checkpoint(folder, "bert", vocab_txt="\n".join(vocabulary) + "\n", **files)


def roberta(folder, **files):
    return checkpoint(folder, "roberta", vocab_json=PAIRS, merges_txt=MERGES, **files)


def ids(tokenizer, *texts, length=64):
    return [list(found) for found, _ in tokenizer.encode(texts, length)]


def tokens(tokenizer, text):
    return [BERT[i] for i in ids(tokenizer, [text])[0]][1:-1]


@pytest.mark.parametrize("length", [512, 16])
def test_ids_without_a_tokenizer_json_are_those_with_it(minilm, tmp_path, length):
    own = load_tokenizer(str(minilm))
    built = load_tokenizer(bare(minilm, tmp_path / "bare"))
    assert built.encode((HOSTILE,), length) == own.encode((HOSTILE,), length)
    pairs = HOSTILE, HOSTILE[::-1]
    found = built.encode(pairs, length)
    assert found == own.encode(pairs, length)
    assert max(len(row) for row, _ in found) == length
    assert (built.pad_id, built.mask_id) == (own.pad_id, own.mask_id) == (0, 103)


@pytest.mark.parametrize(
    "settings, expected",
    [
        (None, ["cafe"]),
        ({}, ["cafe"]),
        ({"do_lower_case": True, "strip_accents": None}, ["cafe"]),
        ({"do_lower_case": True, "strip_accents": False}, ["café"]),
        ({"do_lower_case": False}, ["Café"]),
        ({"do_lower_case": False, "strip_accents": True}, ["[UNK]"]),
    ],
)
def test_case_and_accents_are_what_the_checkpoint_says(tmp_path, settings, expected):
    files = {} if settings is None else {"tokenizer_config_json": settings}
    assert tokens(load_tokenizer(bert(tmp_path, **files)), "Café") == expected


def test_chinese_characters_are_words_unless_the_checkpoint_says_otherwise(tmp_path):
    assert tokens(load_tokenizer(bert(tmp_path)), "良film") == ["良", "film"]
    settings = {"tokenize_chinese_chars": False}
    folder = bert(tmp_path, tokenizer_config_json=settings)
    assert tokens(load_tokenizer(folder), "良film") == ["[UNK]"]


@pytest.mark.parametrize("file", ["special_tokens_map_json", "tokenizer_config_json"])
def test_special_tokens_are_called_what_the_checkpoint_says(tmp_path, file):
    vocabulary = ["good", "<b>", "<e>", "<u>", "<m>", "<p>"]
    parts = {"cls": "<b>", "sep": "<e>", "unk": "<u>", "mask": "<m>", "pad": "<p>"}
    said = {f"{part}_token": {"content": text} for part, text in parts.items()}
    tokenizer = load_tokenizer(bert(tmp_path, vocabulary, **{file: said}))
    assert ids(tokenizer, ["good what"], ["good"]) == [[1, 0, 3, 2, 0, 2]]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (5, 4)


def test_of_added_tokens_a_text_holds_those_that_are_not_special(tmp_path):
    added = {"<user>": len(BERT) - 1, "newword": len(BERT), "[XYZ]": len(BERT) + 1}
    folder = bert(tmp_path, added_tokens_json=added)
    (found,) = ids(load_tokenizer(folder), ["good<user>newword"])
    assert found == [2, 8, added["<user>"], added["newword"], 3]
    decoder = {str(i): {"content": token} for token, i in added.items()}
    decoder[str(added["newword"])]["special"] = True
    folder = bert(tmp_path, tokenizer_config_json={"added_tokens_decoder": decoder})
    (found,) = ids(load_tokenizer(folder), ["good<user>newword"])
    assert found == [2, 8, added["<user>"], 1, 3]


def test_roberta_is_byte_pairs_with_two_separators(tmp_path):
    tokenizer = load_tokenizer(roberta(tmp_path))
    assert ids(tokenizer, ["ab ab"], ["b <s>"]) == [
        [0, 8, 9, 2, 2, 6, 13, 11, 12, 2],
    ]
    assert tokenizer.encode((["ab"], ["ab"]), 64)[0][1] == 6  # one segment alone
    assert ids(tokenizer, [""], [""]) == [[0, 2, 2, 2]]
    assert ids(tokenizer, ["ab ab ab ab ab"], ["ab"], length=8) == [
        [0, 8, 9, 9, 2, 2, 8, 2],
    ]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (1, 4)
    settings = {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizerFast"}
    folder = roberta(tmp_path, tokenizer_config_json=settings)
    assert ids(load_tokenizer(folder), ["ab ab"]) == [[0, 9, 9, 2]]


def test_gpt2_has_no_special_tokens_unless_the_checkpoint_says_so(tmp_path):
    vocabulary = {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5}
    files = {"vocab_json": vocabulary, "merges_txt": "a b\nĠ ab\n"}
    tokenizer = load_tokenizer(checkpoint(tmp_path, "gpt2", **files))
    assert ids(tokenizer, ["ab ab", ""], [" a", ""]) == [[3, 4, 2, 0], [5]]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (5, None)
    files["tokenizer_config_json"] = {"add_bos_token": True}
    tokenizer = load_tokenizer(checkpoint(tmp_path, "gpt2", **files))
    assert ids(tokenizer, ["ab"], ["a"]) == [[5, 3, 5, 0]]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("strip, expected", [(True, "cafe"), (False, "café")])
def test_keras_hubs_own_presets_follow_their_configuration(
    tmp_path, monkeypatch, named, strip, expected
):
    backbone = keras_hub.models.BertBackbone(len(BERT), 1, 1, 4, 4)
    backbone.save_to_preset(str(tmp_path))
    kept = keras_hub.models.BertTokenizer(BERT, lowercase=True, strip_accents=strip)
    kept.save_to_preset(str(tmp_path))
    preset = str(tmp_path)
    if named:
        from keras_hub.src.utils import preset_utils

        known = {"bert_of_this_test": {"kaggle_handle": preset}}
        monkeypatch.setattr(preset_utils, "BUILTIN_PRESETS", known)
        preset = "bert_of_this_test"
    tokenizer = load_tokenizer(preset, rows=len(BERT))
    assert tokenizer.identity.startswith("tokenizers ")
    assert tokens(tokenizer, "CAFÉ") == [expected]
    text = "Good\u00a0film\u3000good [SEP]"
    assert tokens(tokenizer, text) == ["good", "film", "good", "[", "sep", "]"]


def test_keras_hubs_own_roberta(tmp_path):
    keras_hub.models.RobertaTokenizer(
        PAIRS, MERGES.split("\n")[1:-1], add_prefix_space=True
    ).save_to_preset(str(tmp_path))
    keras_hub.models.RobertaBackbone(16, 1, 1, 4, 4).save_to_preset(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path), rows=16)
    assert tokenizer.identity.startswith("tokenizers ")
    assert ids(tokenizer, ["ab"], ["ab<s>"]) == [[0, 9, 2, 2, 9, 10, 11, 12, 2]]
    hub = keras_hub_tokenizer(str(tmp_path), 16)
    texts = ["ab ab", "", "ab ab ab ab ab"], ["b ab", "", "ab"]
    assert ids(hub, *texts, length=8) == ids(tokenizer, *texts, length=8)
    assert (hub.pad_id, hub.mask_id) == (tokenizer.pad_id, tokenizer.mask_id)


def test_other_kinds_are_left_to_keras_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        tokenizer_module, "keras_hub_tokenizer", lambda *x: asked.append(x)
    )
    unigram = checkpoint(tmp_path / "xlm", "xlm-roberta")
    split = bert(
        tmp_path / "e5",
        tokenizer_config_json={"tokenizer_class": "XLMRobertaTokenizer"},
    )
    albert = {"class_name": "AlbertTokenizer", "config": {}}
    own = checkpoint(tmp_path / "own", "-", tokenizer_json=albert)
    for folder in (unigram, split, own):
        load_tokenizer(folder, 7)
    assert asked == [(unigram, 7), (split, 7), (own, 7)]


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"tokenizer_config_json": {"tokenizer_class": "BertJapaneseTokenizer"}},
            "`tokenizer_class` must be one of BertTokenizer.*Received: 'BertJapanese",
        ),
        (
            {"tokenizer_config_json": {"do_lower_case": "false"}},
            "tokenizer_config.json: `do_lower_case` must be true or false.*'false'",
        ),
        ({"tokenizer_config_json": "[1]"}, "one JSON object.*Received: a list"),
        ({"tokenizer_config_json": {"cls_token": 3}}, "`cls_token` must be text"),
        (
            {"tokenizer_config_json": {"added_tokens_decoder": {"x": 1}}},
            "the id and the text of each added token",
        ),
        ({"vocab_txt": "good\nfilm\n"}, r"vocab.txt.*Missing: \[CLS\], \[SEP\], \[UNK"),
    ],
)
def test_files_of_a_vocabulary_that_break_a_rule(tmp_path, files, message):
    bert(tmp_path)
    with pytest.raises(InputError, match=message):
        load_tokenizer(checkpoint(tmp_path, "bert", **files))


@pytest.mark.parametrize(
    "files, message",
    [
        ({"vocab_json": PAIRS | {"a": -1}}, "an integer from 0. Received: -1 for 'a'"),
        ({"vocab_json": PAIRS | {"a": "1"}}, "an integer from 0. Received: '1'"),
        ({"merges_txt": "a b c\n"}, "merges.txt, line 1: must be two parts"),
        ({"merges_txt": "a x\n"}, "the tokenizer of.*damaged"),
        ({"vocab_json": {"a": 0}, "merges_txt": ""}, "Missing: <s>, </s>"),
    ],
)
def test_files_of_byte_pairs_that_break_a_rule(tmp_path, files, message):
    roberta(tmp_path)
    with pytest.raises(InputError, match=message):
        load_tokenizer(checkpoint(tmp_path, "roberta", **files))


def test_the_identity_has_all_that_determines_the_ids(tmp_path):
    said = [None, {"do_lower_case": False}, {"strip_accents": False}]
    said += [{"tokenize_chinese_chars": False}, {"pad_token": "good"}]
    found = [
        load_tokenizer(
            bert(tmp_path / str(i), **({"tokenizer_config_json": x} if x else {}))
        ).identity
        for i, x in enumerate(said)
    ]
    found.append(load_tokenizer(bert(tmp_path / "v", [*BERT[:-1], "other"])).identity)
    added = {"newword": len(BERT)}
    found.append(load_tokenizer(bert(tmp_path / "w", added_tokens_json=added)).identity)
    assert len({*found}) == len(found)
    assert load_tokenizer(bert(tmp_path / "again")).identity == found[0]


# Rows for all ids


def test_a_vocabulary_beyond_the_table_is_refused(minilm, tmp_path):
    assert load_tokenizer(str(minilm), rows=30522).rows == 30522
    for folder, source in [
        (str(minilm), "tokenizer.json"),
        (bare(minilm, tmp_path / "bare"), "vocab.txt"),
    ]:
        with pytest.raises(
            InputError,
            match=rf"\({source}\) has ids up to 30521.*\(model.safetensors\) have "
            "30000 rows.*same checkpoint",
        ):
            load_tokenizer(folder, rows=30000)


def with_added(minilm, folder, *added):
    """The real tokenizer.json with tokens beyond the 30,522 of its table."""
    content = json.loads((minilm / "tokenizer.json").read_text("utf-8"))
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    for i, token in enumerate(added):
        content["added_tokens"].append(
            {"id": 30522 + i, "content": token, "special": False} | flags
        )
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return folder, content


def split_of(*texts):
    return Split(texts, np.zeros(len(texts[0]), np.int32))


def test_added_tokens_beyond_the_table_are_refused_where_a_text_holds_one(
    minilm, tmp_path, capsys
):
    folder, _ = with_added(minilm, tmp_path / "preset", "<user>")
    tokenizer = load_tokenizer(str(folder), rows=30522)
    error = capsys.readouterr().err
    assert error.startswith("lrdist: warning: model.preset") and "<user>" in error
    assert "ids up to 30522" in error and "30522 rows" in error
    cache = tmp_path / "cache"
    encode(split_of(["a user"]), tokenizer, 16, cache)
    with pytest.raises(InputError, match="'t, train'.*30,522 rows.*Received: 30522"):
        encode(split_of(["a <user>"]), tokenizer, 16, cache, "t, train")
    # From a cache that another table filled, too.
    encode(split_of(["a <user>"]), load_tokenizer(str(folder)), 16, cache)
    with pytest.raises(InputError, match="'texts'.*Received: 30522"):
        encode(split_of(["a <user>"]), tokenizer, 16, cache)


def test_padding_and_masks_are_ids_of_the_table(minilm, tmp_path):
    folder, content = with_added(minilm, tmp_path / "preset", "[XPAD]", "[XMASK]")
    content["padding"] |= {"pad_token": "[XPAD]", "pad_id": 30522}
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] != "[MASK]"
    ]
    vocabulary = content["model"]["vocab"]
    vocabulary["<mask>"] = vocabulary.pop("[MASK]")
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    found = load_tokenizer(str(folder), rows=30522)
    assert (found.pad_id, found.mask_id) == (0, 103)
    assert load_tokenizer(str(folder)).pad_id == 30522
    assert load_tokenizer(str(folder), rows=30522).identity == found.identity


def test_without_a_padding_token_any_row_pads(tmp_path):
    vocabulary = ["good", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = load_tokenizer(bert(tmp_path, vocabulary), rows=4)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, None)


@pytest.mark.parametrize("bad", [-1, 1 << 31, 1 << 40])
def test_ids_that_no_table_has_are_refused(tmp_path, bad):
    tokenizer = Tokenizer("x", 0, lambda texts, n: [([5, bad], 2)])
    with pytest.raises(InputError, match=f"Received: {bad}"):
        encode(split_of(["a"]), tokenizer, 8, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_ids_in_the_cache_are_made_again(tiny_preset, tmp_path, capsys):
    tokenizer = load_tokenizer(str(tiny_preset))
    split = split_of(["good film", "bad plot and story"])
    expected = encode(split, tokenizer, 16, tmp_path).ids.tolist()
    (folder,) = tmp_path.iterdir()
    content = bytearray((folder / "ids.npy").read_bytes())
    content[-8] ^= 1
    (folder / "ids.npy").write_bytes(content)
    assert encode(split, tokenizer, 16, tmp_path).ids.tolist() == expected
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is damaged (ids.npy" in error
    assert encode(split, tokenizer, 16, tmp_path).ids.tolist() == expected
    assert capsys.readouterr().err == ""
