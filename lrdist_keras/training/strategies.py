"""What is done against forgetting and is no penalty on weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.training.penalties import AnnealedPull, QuadraticPenalty, Weights

# The projections that LoRA adapts: section 7.1 of arXiv 2106.09685. KerasHub's names.
_ADAPTED = ("query", "value", "query_dense", "value_dense")
_ALPHAS = np.linspace(0, 1, 11)


class Distillation(NamedTuple):
    """Learning without forgetting: the old model's answers on the new inputs.

    Args:
        strength: The factor lambda_o of arXiv 1606.09282, 1 in the paper.
        temperature: Of both softmaxes, 2 in the paper.
    """

    strength: Any
    temperature: Any

    def __call__(
        self, logits: Sequence[Any], teacher: Sequence[Any], weights: Any
    ) -> Any:
        """Returns strength * sum over old heads of the mean of -sum_c p_c log q_c.

        With p the softmax of the old model's logits over the temperature and q that of
        the current ones: equations 2 to 4 of arXiv 1606.09282, without a factor T^2.
        The paper's warm-up, in which the new head is trained alone first, is left out.

        Args:
            logits: Per old head its current logits, shape [examples, classes].
            teacher: The logits that the old model gave, in the same shapes.
            weights: Factor of each example, shape [examples]; 0 for padding.
        """
        each = [
            -jnp.sum(
                jax.nn.softmax(old / self.temperature)
                * jax.nn.log_softmax(new / self.temperature),
                axis=-1,
            )
            for new, old in zip(logits, teacher, strict=True)
        ]
        return self.strength * sum(
            jnp.sum(x * weights) / jnp.sum(weights) for x in each
        )


class Terms(NamedTuple):
    """What a training step obeys beside the likelihood of the labels.

    All numbers in it are arguments of the compiled step. A term that is None costs
    nothing.

    Args:
        penalty: On weights.
        pull: Of RecAdam.
        distillation: Of learning without forgetting.
        head_steps: For moments that go on from task to task: the steps done before on
            each active head, float32, shape [heads]. Adam corrects its bias by them.
    """

    penalty: QuadraticPenalty | None = None
    pull: AnnealedPull | None = None
    distillation: Distillation | None = None
    head_steps: Any = None


@dataclass(frozen=True)
class TrainingSet:
    """Examples that one training runs on.

    Args:
        encoded: Token ids and labels.
        head: Which of the active heads each example belongs to, int32, shape
            [examples]; None where there is one active head.
        teacher: For distillation: the old model's logits for each old head, each of
            shape [examples, classes].
    """

    encoded: Encoded
    head: np.ndarray | None = None
    teacher: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded)

    def arrays(self, indices: np.ndarray, length: int) -> dict[str, Any]:
        """Returns a batch, see `Encoded.arrays`, with each example's `head`."""
        inputs: dict[str, Any] = self.encoded.arrays(indices, length)
        if self.head is not None:
            inputs["head"] = self.head[indices]
        if self.teacher:
            inputs["teacher"] = [logits[indices] for logits in self.teacher]
        return inputs


def mixed(parts: Sequence[Encoded]) -> TrainingSet:
    """Returns the examples of several tasks as one set; part i belongs to head i.

    With all of each task it is joint training, with a few of the earlier ones
    experience replay (arXiv 1902.10486, where batches are drawn from both; here an
    epoch takes every example once, and a batch whatever falls into it).
    """
    starts = np.cumsum([0, *[len(part.ids) for part in parts[:-1]]])
    offsets = [p.offsets[1:] + start for p, start in zip(parts, starts, strict=True)]
    return TrainingSet(
        Encoded(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([[0], *offsets]),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.labels for part in parts]),
            parts[0].pad_id,
        ),
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts]),
    )


def memory(
    train: Encoded, classes: int, per_class: int, rng: np.random.Generator, name: str
) -> Encoded:
    """Draws the examples of a task that are replayed later, in their old order.

    Args:
        train: Training examples of the task.
        classes: Number of classes.
        per_class: Examples of each class.
        rng: What the draw follows.
        name: The task, for the error.

    Raises:
        ValueError: If a class has fewer examples.
    """
    counts = np.bincount(train.labels, minlength=classes)
    if (least := counts.min()) < per_class:
        raise ValueError(
            f"`examples_per_class` must be at most the {least} training examples of "
            f"the smallest class of '{name}'. Received: {per_class}"
        )
    chosen = [
        rng.choice(np.flatnonzero(train.labels == label), per_class, replace=False)
        for label in range(classes)
    ]
    return take(train, np.sort(np.concatenate(chosen)))


def negative_log_likelihood(logits: Sequence[Any], batch: dict[str, Any]) -> Any:
    """Returns -log p(label) of each example by the head it belongs to, [examples].

    Args:
        logits: Of each active head for all examples, shape [examples, classes].
        batch: `labels`, and `head` where several are active; otherwise it is the last.
    """
    if "head" not in batch:
        return _nll(logits[-1], batch["labels"])
    total = jnp.zeros(batch["labels"].shape)
    for i, of_head in enumerate(logits):
        mine = batch["head"] == i
        # Another head may have more classes than this one.
        total += jnp.where(mine, _nll(of_head, jnp.where(mine, batch["labels"], 0)), 0)
    return total


def _nll(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[
        :, 0
    ]


def average(previous: Sequence[Any], new: Sequence[Any], alpha: Any) -> Weights:
    """Returns (1 - alpha) * previous + alpha * new.

    Equation 1 of arXiv 2109.01903 (WiSE-FT), once a task is trained; and with alpha =
    1 - beta the step of SFA (arXiv 2501.05559), every p T of T steps and at the end,
    after which training goes on from the average.
    """
    return [(1 - alpha) * p + alpha * n for p, n in zip(previous, new, strict=True)]


def best_alpha(score: Callable[[float], float]) -> float:
    """Returns which of 0, 0.1, …, 1 scores best, of equals the smallest."""
    return float(_ALPHAS[np.argmax([score(float(alpha)) for alpha in _ALPHAS])])


def averaging_steps(total: int, period: float) -> set[int]:
    """Returns after which of `total` steps SFA averages: every period, and the end."""
    count = int(1 / period + 1e-9)
    return {round(total * period * k) for k in range(1, count + 1)} - {0} | {total}


def with_lora(encoder: Encoder, rank: int) -> Encoder:
    """Returns a copy of the encoder of which only low-rank adapters are trained.

    The query and value projections W become W + A B by Keras's own `enable_lora`; all
    other weights are frozen (arXiv 2106.09685, equation 3, with alpha = rank). Keras
    takes the last axis of W for its columns: where that is the width of a head, every
    head has an A of `rank` columns and all share B. The adapters are the `weights` of
    what is returned, the pretrained weights are part of its `state`.

    Args:
        encoder: The pretrained encoder.
        rank: Rank of the adapters.

    Raises:
        ValueError: If the model has no such projections.
    """
    import keras

    model = keras.models.clone_model(encoder.model)
    _assign(model, encoder)
    found = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if layer.name in _ADAPTED and hasattr(layer, "enable_lora")
    ]
    if not found:
        raise ValueError(
            "The strategy lora needs layers called `query` and `value` that have "
            "Keras's `enable_lora` (Dense, EinsumDense), as KerasHub's encoders do; "
            f"choose another strategy for this one. Received: {encoder.family}"
        )
    for layer in found:
        layer.enable_lora(rank)
    for variable in model.variables:
        variable.trainable = _is_adapter(variable.path)
    return replace(
        encoder,
        model=model,
        weights=[np.asarray(v.value) for v in model.trainable_variables],
        state=[np.asarray(v.value) for v in model.non_trainable_variables],
    )


def new_adapters(encoder: Encoder, rng: np.random.Generator) -> list[np.ndarray]:
    """Draws adapters: A uniform within sqrt(1 / inputs), as LoRA's authors do, B zero.

    So the model begins as the pretrained one.
    """
    return [
        rng.uniform(-1, 1, w.shape).astype(np.float32) / np.float32(np.sqrt(w.shape[0]))
        if v.path.endswith("lora_kernel_a")
        else np.zeros_like(w)
        for v, w in zip(encoder.model.trainable_variables, encoder.weights, strict=True)
    ]


def merged(
    encoder: Encoder, adapted: Encoder, adapters: Sequence[Any]
) -> list[np.ndarray]:
    """Returns the weights of `encoder` that do what `adapted` does with its adapters.

    Args:
        encoder: The pretrained encoder.
        adapted: What `with_lora` made of it.
        adapters: Values in the order of its weights.
    """
    paths = [v.path for v in adapted.model.trainable_variables]
    low_rank = dict(zip(paths, map(np.asarray, adapters), strict=True))
    result = []
    for variable, value in zip(
        encoder.model.trainable_variables, encoder.weights, strict=True
    ):
        layer = variable.path.removesuffix("/kernel")
        a = low_rank.get(f"{layer}/lora_kernel_a")
        if a is not None and layer != variable.path:
            value = value + a @ low_rank[f"{layer}/lora_kernel_b"]
        result.append(value)
    return result


def _is_adapter(path: str) -> bool:
    return path.endswith(("lora_kernel_a", "lora_kernel_b"))


def _assign(model: Any, encoder: Encoder) -> None:
    """Gives a copy of the encoder's model the pretrained values."""
    values = dict(
        zip(
            [v.path for v in encoder.model.trainable_variables],
            encoder.weights,
            strict=True,
        )
    )
    for variable in model.trainable_variables:
        variable.assign(values[variable.path])
