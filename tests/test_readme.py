import re
from pathlib import Path

import keras
import numpy as np

from lrdist_keras import transformer_groups
from lrdist_keras.distribution import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_five_lines_give_every_layer_of_a_classifier_its_rate():
    import keras_hub

    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [block for block in blocks if "LayerwiseOptimizer" in block]
    backbone = keras_hub.models.BertBackbone(11, 2, 2, 4, 8, max_sequence_length=8)
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2)
    names = {"keras": keras, "model": model}
    exec(code, names)
    assert model.optimizer is names["optimizer"]
    rates = PRESETS[names["rates"]]().resample(transformer_groups(model)[0])
    optimizer = names["optimizer"]
    found = {
        name: float(optimizer.learning_rate) * multiplier
        for name, multiplier in optimizer.multipliers.items()
    }
    assert found.keys() == rates.rates.keys()
    for name, rate in rates.rates.items():
        assert np.isclose(found[name], rate, rtol=1e-6)


def test_every_file_that_is_linked_is_there():
    folder = Path(__file__).parents[1]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (folder / link).exists(), link
