"""KerasHub's tokenizers; against our own see `test_batches` and `test_tokenizer`."""

import base64
import zlib

import keras_hub
import pytest

from lrdist_keras.data.keras_hub_tokenizer import _state, keras_hub_tokenizer
from lrdist_keras.data.tokenizer import load_tokenizer
from lrdist_keras.errors import InputError

PAIRS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "b": 5, "ab": 14}
# A model that the library sentencepiece was trained to on nine words, compressed.
SENTENCE_PIECES = zlib.decompress(
    base64.b85decode(
        "c-rIQ<6^Zb&C9kEWdH&RCN3T>W}9LtkC}^?i^WDC!R6y(e>APJASb^>^y4J<15kcSX-<x4*bGh>K"
        "RrJ`MfAocAfK0u4ahIaNEOv8;6A{`&BX%bCW@Z0;ynPgh!x1mEEZi60_5>?ae$<fOY)0EUw#1!aB"
        "wjuiS9BJ1+#KRV=W-8G*Lz?2&+hRi8X|kEb49xVHJzMwu7)TMEe{dtW;4WCkQKD^r|z2RVrHP3Sk"
        "w9%D6*VnWFnWAgn~uWG@ISMU>44!YUD6<qKiui2C|NSoxwK1Ar_pE@q(9MW+Ob9uSh0U{sJfz{GH"
        "ZiSYsx(+#HoFu*9q!^M%AlA2eNSyCy)005FEWsU"
    )
)


# KerasHub leaves the file of a vocabulary open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_sentence_pieces_are_keras_hubs(tmp_path):
    kept = keras_hub.models.XLMRobertaTokenizer(proto=SENTENCE_PIECES)
    kept.save_to_preset(str(tmp_path))
    size = 28 + 2  # of sentencepiece, with padding and mask
    backbone = keras_hub.models.XLMRobertaBackbone(size, 1, 1, 4, 4)
    backbone.save_to_preset(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path), size)
    assert tokenizer.identity.startswith("keras_hub ")
    # What sentencepiece gives, one more since padding stands between.
    good_film, bad, the_plot = [5, 27, 12, 21, 25, 11], [27, 10, 22, 23], [6, 3]
    first, second = ([i + 1 for i in x] for x in (good_film, the_plot))
    texts = ["good film", "bad"], ["the plot", ""]
    found = [list(ids) for ids, _ in tokenizer.encode(texts, 64)]
    assert found[0] == [0, *first, 2, 2, *second, 2]
    assert found[1] == [0, *(i + 1 for i in bad), 2, 2, 2]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (1, size - 1)
    with pytest.raises(InputError, match="XLMRobertaTokenizer.* ids up to 29.* 20 row"):
        load_tokenizer(str(tmp_path), 20)


def test_keras_hubs_tokenizer_is_known_by_the_ids_of_its_tokens(tmp_path):
    found = [
        _state(keras_hub.models.RobertaTokenizer(vocabulary, ["a b"]))
        for vocabulary in (PAIRS, PAIRS, PAIRS | {"a": 5, "b": 4})
    ]
    assert found[0] == found[1] != found[2]


def test_keras_hubs_vocabulary_beyond_the_table_is_refused(tmp_path):
    keras_hub.models.RobertaBackbone(10, 1, 1, 4, 4).save_to_preset(str(tmp_path))
    keras_hub.models.RobertaTokenizer(PAIRS, ["a b"]).save_to_preset(str(tmp_path))
    with pytest.raises(InputError, match="RobertaTokenizer.* ids up to 14.* 10 rows"):
        keras_hub_tokenizer(str(tmp_path), 10)
