"""Read traces of recorded choices or counts, one block at a time, and check them while reading.

`moesim.routing.trace_files` documents the formats. A trace is read in blocks of 262,144 tokens and
arrays are memory-mapped, so that a trace larger than memory can be described and simulated.

Shape legend: T tokens, K choices, E experts, N = 1 domain.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from moesim.errors import ConfigError
from moesim.limits import MOST_EXPERTS
from moesim.routing.trace_files import TraceFile, open_file


@dataclass(kw_only=True, eq=False)
class Trace:
    """A recorded trace.

    Attributes:
        file: The opened file.
        num_experts: Number of experts that the trace may use; None for as many as it does use.
        top_k: Number of choices that each token must have; None for the number of the first token.
    """

    file: TraceFile
    num_experts: int | None = None
    top_k: int | None = None
    _counts: dict[int, np.ndarray] = field(default_factory=dict)
    _tokens: dict[int, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of trace, ``ids`` or ``counts``."""
        return self.file.kind

    def blocks(self, layer: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (layer, checked ids of some of its tokens), the ids as an ndarray of shape (n, K).

        Rows of -1 alone are padding, as serving engines write it up to the size of a batch: they
        are no tokens, and are left out.

        Args:
            layer: The layer to read; by default all layers.

        Raises:
            ConfigError: An id is out of range, a token has an expert twice, or its number of
                choices is wrong. The text names the token.
        """
        at: dict[int, int] = {}
        for number, ids in self.file.blocks():
            if layer is None or number == layer:
                padding = (ids == -1).all(axis=1)
                self._check(number, at.get(number, 0), ids, padding)
                yield number, ids[~padding] if padding.any() else ids
            at[number] = at.get(number, 0) + len(ids)

    def _check(self, layer: int, first: int, ids_TK: np.ndarray, padding_T: np.ndarray) -> None:
        path = self.file.path
        if self.top_k is None:
            self.top_k = ids_TK.shape[1]
        if ids_TK.shape[1] != self.top_k:
            raise ConfigError(
                f"{path}: layer {layer}: expected {self.top_k} experts a token, got "
                f"{ids_TK.shape[1]}"
            )
        most = self.num_experts or MOST_EXPERTS
        wrong_TK = ((ids_TK < 0) | (ids_TK >= most)) & ~padding_T[:, None]
        if wrong_TK.any():
            row, column = np.argwhere(wrong_TK)[0]
            raise ConfigError(
                f"{path}: layer {layer}, token {first + row}: expected expert ids from 0 to "
                f"{most - 1}, got {ids_TK[row, column]}"
            )
        if self.top_k > 1:
            twice = (np.diff(np.sort(ids_TK, axis=1), axis=1) == 0).any(axis=1) & ~padding_T
            if twice.any():
                row = int(twice.argmax())
                raise ConfigError(
                    f"{path}: layer {layer}, token {first + row}: expected {self.top_k} different "
                    f"experts, got {ids_TK[row].tolist()}"
                )

    def counts(self) -> dict[int, np.ndarray]:
        """Return the number of choices of each expert by layer: layer -> ndarray of shape (E,)."""
        if self._counts:
            return self._counts
        found = dict(self.file.counts)
        tokens: dict[int, int] = {}
        for layer, ids in self.blocks():
            more = np.bincount(ids.ravel(), minlength=len(found.get(layer, ())))
            more[: len(found.get(layer, ()))] += found.get(layer, 0)
            found[layer] = more
            tokens[layer] = tokens.get(layer, 0) + len(ids)
        self._tokens |= tokens
        most = max([self.num_experts or 0, *(len(count) for count in found.values())])
        if not found or not most:
            raise ConfigError(f"{self.file.path}: expected at least one token, got none")
        if self.num_experts is not None and most > self.num_experts:
            raise ConfigError(f"{self.file.path}: expected {self.num_experts} experts, got {most}")
        self._counts = {
            layer: np.pad(count, (0, most - len(count))) for layer, count in sorted(found.items())
        }
        return self._counts

    def layers(self) -> list[int]:
        """Return the layers of the trace in order."""
        return sorted(self.file.arrays or self.counts())

    def chosen_layer(self, layer: int | None) -> int:
        """Return a layer of the trace: the requested one, or the first that chose any expert (a
        model's first layers may be dense).

        Raises:
            ConfigError: The trace does not have that layer.
        """
        there = self.layers()
        if layer is not None and layer not in there:
            raise ConfigError(
                f"{self.file.path}: expected one of its {len(there)} layers, {there[0]} to "
                f"{there[-1]}, got {layer}"
            )
        if layer is not None:
            return layer
        chose = (number for number in there if self.kind == "ids" or self.counts()[number].any())
        return next(chose, there[0])

    def num_tokens(self, layer: int) -> int:
        """Return the number of tokens of a layer, padding left out."""
        if layer not in self._tokens:
            self._tokens[layer] = sum(len(ids) for _, ids in self.blocks(layer))
        return self._tokens[layer]

    def num_padding(self) -> int:
        """Return the number of rows of all layers that are padding."""
        return sum(int((ids == -1).all(axis=1).sum()) for _, ids in self.file.blocks())

    def window(self, layer: int | None, num_tokens: int, seed: int) -> np.ndarray:
        """Return consecutive tokens of a layer.

        Args:
            layer: The layer; by default the first.
            num_tokens: Number of tokens T.
            seed: Seed of the window, which begins at token (seed x T) modulo the number of possible
                positions.

        Returns:
            ndarray of shape (T, K), int32: the choices.

        Raises:
            ConfigError: The trace has fewer tokens.
        """
        layer = self.chosen_layer(layer)
        there = self.num_tokens(layer)
        if there < num_tokens:
            raise ConfigError(
                f"{self.file.path}: expected at least the {num_tokens} tokens of the workload in "
                f"layer {layer}, got {there}"
            )
        skip, parts, missing = seed * num_tokens % (there - num_tokens + 1), [], num_tokens
        for _, ids in self.blocks(layer):
            taken = ids[skip : skip + missing]
            skip = max(skip - len(ids), 0)
            parts.append(taken.astype(np.int32))
            missing -= len(taken)
            if not missing:
                break
        return np.concatenate(parts)

    def weights_NE(self, layer: int | None, num_experts: int) -> np.ndarray:
        """Return the counts of a layer as weights: ndarray of shape (1, E).

        Raises:
            ConfigError: The trace has counts for a different number of experts, or all counts
                are 0.
        """
        layer = self.chosen_layer(layer)
        count = self.counts()[layer]
        if len(count) != num_experts:
            raise ConfigError(
                f"{self.file.path}: expected counts of layer.num_experts = {num_experts} experts, "
                f"got {len(count)}"
            )
        if not count.any():
            raise ConfigError(f"{self.file.path}: expected counts above 0 in layer {layer}")
        return count[None].astype(np.float64)


def open_trace(
    path: str, kind: str | None = None, num_experts: int | None = None, top_k: int | None = None
) -> Trace:
    """Open a trace; an unchanged file is opened only once.

    Args:
        path: Path of the file.
        kind: The kind of trace, ``ids`` or ``counts``; by default the kind that the file indicates.
        num_experts: Number of experts that the trace may use.
        top_k: Number of choices that each token must have.

    Raises:
        ConfigError: The file does not exist or has a different form.
    """
    place = Path(path)
    try:
        changed = place.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file: {error.strerror}") from None
    return _open(place, changed, kind, num_experts, top_k)


@lru_cache(maxsize=16)
def _open(
    path: Path, _changed: int, kind: str | None, num_experts: int | None, top_k: int | None
) -> Trace:
    return Trace(file=open_file(path, kind), num_experts=num_experts, top_k=top_k)
