"""Which variable belongs to which group of layers, by the path of the variable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from glob import escape
from itertools import accumulate
from typing import Any, Literal

from lrdist_keras.errors import InputError

Groups = Mapping[str, str | Sequence[str]]

# No model has more; a damaged file may say so.
MOST_LAYERS = 10_000
MOST_GROUPS = 10_000
_LONGEST = 200  # characters of what was received
_LAYER = re.compile(r"(?:^|/)transformer_layer_(\d+)(?:/|$)")

# KerasHub's names for them: `token_embedding`, `embeddings_layer_norm`, `embeddings`, …
_EMBEDDINGS = "*embedding*"


@dataclass(frozen=True, eq=False)
class Scheme:
    """How the layers of a transformer are divided into groups.

    The groups are `embeddings`, `encoder_1` to `encoder_E` and `head`. With layers
    counted from 0, encoder group i of E over L layers holds
    `range(r(L / E * (i - 1)), r(L / E * i))`, where r rounds down (arXiv 2404.01317,
    section 3: layers 1; 2,3; 4; … of 12 in 8 groups) or up (the authors' code: 1,2; 3;
    4,5; …). A model with fewer layers than groups gets one group per layer. Groups of
    your own are given by their sizes instead, as `layer_groups`.

    Two schemes are equal if they divide the same number of layers in the same way.

    Args:
        layers: Number of transformer layers L, at least 1.
        encoder_groups: Number of encoder groups E, at least 1.
        rounding: `"floor"` or `"ceil"`.
        layer_groups: Number of consecutive layers of each encoder group, from the
            bottom, adding up to L: (1, 2, 9) are the layers 1; 2,3; 4 to 12. It stands
            in place of `encoder_groups`, which is then their number, and `rounding`.

    Raises:
        ValueError: If a number is below 1 or above 10,000, the rounding is unknown, or
            `layer_groups` do not add up to the layers or stand beside what they stand
            in place of.

    Example:
    >>> Scheme(12, layer_groups=(1, 2, 9)).names
    ('embeddings', 'encoder_1', 'encoder_2', 'encoder_3', 'head')
    """

    layers: int
    encoder_groups: int = 8
    rounding: Literal["floor", "ceil"] = "floor"
    layer_groups: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "encoder_groups"):
            value = getattr(self, name)
            if not (_is_whole(value) and 1 <= value <= MOST_LAYERS):
                raise InputError(
                    f"`{name}` must be an integer from 1 to {MOST_LAYERS}. "
                    f"Received: {name}={value!r}"
                )
        if self.rounding not in ("floor", "ceil"):
            raise InputError(
                "`rounding` must be 'floor' or 'ceil'. "
                f"Received: rounding={self.rounding!r}"
            )
        groups = min(self.encoder_groups, self.layers)
        if self.layer_groups is not None:
            sizes = _checked_sizes(self.layers, self.layer_groups)
            groups = len(sizes)
            if self.encoder_groups not in (8, groups) or self.rounding != "floor":
                raise InputError(
                    "`layer_groups` stand in place of `encoder_groups` and `rounding`; "
                    "leave these out. Received: encoder_groups="
                    f"{self.encoder_groups}, rounding={self.rounding!r}, "
                    f"layer_groups={_shown(sizes)}"
                )
            object.__setattr__(self, "layer_groups", sizes)
        object.__setattr__(self, "encoder_groups", groups)

    @cached_property
    def layer_ranges(self) -> tuple[range, ...]:
        """The layers of each encoder group, counted from 0."""
        total, groups = self.layers, self.encoder_groups
        up = groups - 1 if self.rounding == "ceil" else 0
        edges = [(total * i + up) // groups for i in range(groups + 1)]
        if self.layer_groups is not None:
            edges = [0, *accumulate(self.layer_groups)]
        return tuple(range(a, b) for a, b in zip(edges, edges[1:], strict=False))

    @property
    def names(self) -> tuple[str, ...]:
        """The group names in order."""
        encoder = (f"encoder_{i + 1}" for i in range(self.encoder_groups))
        return ("embeddings", *encoder, "head")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scheme):
            return NotImplemented
        return self.layer_ranges == other.layer_ranges

    def __hash__(self) -> int:
        return hash(self.layer_ranges)

    def __str__(self) -> str:
        # One group alone is that of the formula.
        if self.layer_groups is None or self.encoder_groups == 1:
            return f"{self.layers}/{self.encoder_groups}/{self.rounding}"
        return f"{self.layers}/{'-'.join(map(str, self.layer_groups))}"

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Reads what `str` writes.

        That is `layers/encoder_groups/rounding`, such as `12/8/ceil`, or the number of
        layers and those of each group, such as `12/1-2-9`.
        """
        if match := re.fullmatch(r"(\d{1,9})/(\d{1,9})/(floor|ceil)", text):
            rounding: Literal["floor", "ceil"]
            rounding = "ceil" if match[3] == "ceil" else "floor"
            return cls(int(match[1]), int(match[2]), rounding)
        if match := re.fullmatch(r"(\d{1,9})/(\d{1,9}(?:-\d{1,9})+)", text):
            sizes = tuple(map(int, match[2].split("-")))
            return cls(int(match[1]), layer_groups=sizes)
        raise InputError(
            "A scheme is written layers/encoder_groups/rounding with rounding 'floor' "
            "or 'ceil', for example 12/8/ceil, or layers/layer_groups, for example "
            f"12/1-2-9. Received: {text[:_LONGEST]!r}"
        )

    def to_json(self) -> dict[str, Any]:
        """The scheme as it stands in a distribution file."""
        if self.layer_groups is not None:
            return {"layers": self.layers, "layer_groups": list(self.layer_groups)}
        return {
            "layers": self.layers,
            "encoder_groups": self.encoder_groups,
            "rounding": self.rounding,
        }


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_sizes(layers: int, sizes: Any) -> tuple[int, ...]:
    """Returns the number of layers of each group of a user's own.

    Raises:
        ValueError: If they are not whole numbers of at least 1 that add up to `layers`.
    """
    is_list = isinstance(sizes, list | tuple) and len(sizes) > 0
    if not (is_list and all(_is_whole(n) and 1 <= n <= MOST_LAYERS for n in sizes)):
        raise InputError(
            "`layer_groups` must be a list of the number of layers of each encoder "
            f"group, from the bottom, integers from 1 to {MOST_LAYERS}. Received: "
            f"layer_groups={_shown(sizes)}"
        )
    if (total := sum(sizes)) != layers:
        raise InputError(
            f"`layer_groups` must add up to the {layers} transformer layers that there "
            f"are. Received: layer_groups={_shown(sizes)}, which add up to {total}"
        )
    return tuple(sizes)


def _shown(sizes: Any) -> str:
    """Returns what was received, as a list where it is one, and cut where it is long.

    A damaged file may hold anything.
    """
    text = repr(list(sizes) if isinstance(sizes, tuple) else sizes)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@dataclass(frozen=True)
class PatternScheme:
    """Groups that are given by path patterns, for models of any kind.

    Args:
        patterns: Ordered mapping from group name to one pattern or a list of them.
            A pattern is one or more path segments joined by `/`, each with shell
            wildcards. It matches a variable in whose path those segments stand side
            by side, anywhere, or at the beginning where the pattern begins with `/`.

    Raises:
        ValueError: If there is no group, or a group has no pattern or an empty one.
    """

    patterns: Groups = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", normalize(self.patterns))

    @property
    def names(self) -> tuple[str, ...]:
        """The group names in order."""
        return tuple(self.patterns)

    def __str__(self) -> str:
        return f"by patterns of {', '.join(self.names)}"

    def to_json(self) -> dict[str, Any]:
        """The scheme as it stands in a distribution file."""
        return {"patterns": {name: list(p) for name, p in self.patterns.items()}}


def normalize(groups: Groups) -> dict[str, tuple[str, ...]]:
    """Returns the groups with every value a tuple of patterns.

    Raises:
        ValueError: If there is no group or too many, or a group has no pattern or an
            empty one.
    """
    if not isinstance(groups, Mapping) or not groups:
        raise InputError(
            "`groups` must be a mapping from group name to one path pattern or a list "
            f"of them, with at least one group. Received: groups={groups!r}"
        )
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"`groups` must be at most {MOST_GROUPS}. Received: {len(groups)} groups"
        )
    result = {}
    for name, value in groups.items():
        if not isinstance(name, str):
            raise InputError(f"A group's name must be a string. Received: {name!r}")
        patterns = (value,) if isinstance(value, str) else value
        if not isinstance(patterns, Iterable) or not (
            (patterns := tuple(patterns))
            and all(isinstance(p, str) and p.strip("/") for p in patterns)
        ):
            raise InputError(
                f"Group {name!r} needs at least one path pattern, a non-empty string. "
                f"Received: {value!r}"
            )
        result[name] = patterns
    return result


def matches(pattern: str, path: str) -> bool:
    """Whether the segments of a pattern stand side by side in a variable's path."""
    wanted, segments = pattern.strip("/").split("/"), path.split("/")
    starts = range(len(segments) - len(wanted) + 1)
    if pattern.startswith("/"):
        starts = starts[:1]
    return any(all(map(fnmatchcase, segments[start:], wanted)) for start in starts)


def partition(
    paths: Iterable[str], groups: Groups, allow_empty: bool = False
) -> list[int]:
    """Returns the index of the one group that each path belongs to.

    Args:
        paths: Paths of variables, such as `transformer_layer_0/query/kernel`.
        groups: Ordered mapping from group name to pattern(s), see `PatternScheme`.
        allow_empty: Whether a group may hold no path.

    Returns:
        One index into the order of `groups` per path.

    Raises:
        ValueError: If a path belongs to no group or to several, or a group holds no
            path. Every such path and group is named.
    """
    paths = list(paths)
    patterns = normalize(groups)
    names = list(patterns)
    found = [
        [i for i, n in enumerate(names) if any(matches(p, path) for p in patterns[n])]
        for path in paths
    ]
    problems = [
        f"variable '{path}' is in no group"
        if not hits
        else f"variable '{path}' is in several groups: {[names[i] for i in hits]}"
        for path, hits in zip(paths, found, strict=True)
        if len(hits) != 1
    ]
    used = {i for hits in found for i in hits}
    problems += [
        f"group '{name}' ({', '.join(patterns[name])}) matches no variable"
        for i, name in enumerate(names)
        if i not in used and not allow_empty
    ]
    if problems:
        raise InputError(
            "Every trainable variable must be in exactly one group and every group "
            "hold one; change the patterns so that they do, and leave out groups of "
            "frozen layers. Found: " + "; ".join(problems)
        )
    return [hits[0] for hits in found]


def transformer_groups(
    model: Any,
    encoder_groups: int = 8,
    rounding: Literal["floor", "ceil"] = "floor",
    layer_groups: Sequence[int] | None = None,
) -> tuple[Scheme, dict[str, tuple[str, ...]]]:
    """Derives the groups of a model that holds one KerasHub transformer.

    Made for BERT, RoBERTa, DistilBERT and GPT-2, whose layers are called
    `transformer_layer_<i>`: those are the encoder groups, other variables with
    `embedding` in a path segment are the embeddings (their layer norm included), and
    all the rest is the head: pooler, final layer norm, and what a task model adds.

    Args:
        model: A backbone, a task model on one, or any Keras model that contains one.
        encoder_groups: Number of encoder groups, see `Scheme`.
        rounding: `"floor"` or `"ceil"`, see `Scheme`.
        layer_groups: Instead of both: the number of layers of each encoder group.

    Returns:
        The scheme, and an ordered mapping from group name to patterns. A group without
        variables is left out of the mapping: a bare RoBERTa backbone has no head.

    Raises:
        ValueError: If the model has no such layers, holds two such transformers, or has
            another number of layers than `layer_groups` add up to.
    """
    return path_groups(
        [v.path for v in model.trainable_variables],
        encoder_groups,
        rounding,
        layer_groups,
        f"{type(model).__name__} '{getattr(model, 'name', '')}'",
    )


def path_groups(
    paths: Sequence[str],
    encoder_groups: int = 8,
    rounding: Literal["floor", "ceil"] = "floor",
    layer_groups: Sequence[int] | None = None,
    what: str = "the paths",
) -> tuple[Scheme, dict[str, tuple[str, ...]]]:
    """Derives the groups as `transformer_groups` does, from the variables' paths."""
    layers = {int(m[1]) for path in paths if (m := _LAYER.search(path))}
    remedy = "give `groups` as a mapping from group name to path patterns."
    if not layers:
        raise InputError(
            "The groups of a model can be derived only where its layers are called "
            f"`transformer_layer_<i>`, as in KerasHub; {remedy} Received: {what}"
        )
    if len(set(paths)) < len(paths):
        raise InputError(
            f"Several variables of {what} share one path, as with two transformers in "
            f"one model; give the layers other names, then {remedy} "
            f"Received twice: {sorted({p for p in paths if paths.count(p) > 1})[:3]}"
        )
    scheme = Scheme(max(layers) + 1, encoder_groups, rounding, layer_groups)
    groups: dict[str, tuple[str, ...]] = {
        "embeddings": (_EMBEDDINGS,),
        **{
            group: tuple(f"transformer_layer_{i}" for i in layer_range if i in layers)
            for group, layer_range in zip(
                scheme.names[1:-1], scheme.layer_ranges, strict=True
            )
        },
    }
    groups = {g: p for g, p in groups.items() if _any_match(p, paths)}
    known = [pattern for patterns in groups.values() for pattern in patterns]
    # From the beginning, lest they match a longer path with the same end.
    rest = tuple(f"/{escape(path)}" for path in paths if not _any_match(known, [path]))
    return scheme, {**groups, "head": rest} if rest else groups


def _any_match(patterns: Iterable[str], paths: Iterable[str]) -> bool:
    paths = list(paths)
    return any(matches(pattern, path) for pattern in patterns for path in paths)
