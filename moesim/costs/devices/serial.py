"""Price kernels on a device that runs one group after another: a CPU, priced from primitives
measured on it.

Nothing here is fitted to a layer. The profile's ``serial`` tables hold seconds per unit, fitted
with non-negative coefficients to the log error of stand-alone primitives
(`moesim_kernels.profile.cpu_profile`); a coefficient that is absent is 0. Each ``*_features``
function returns the terms of one primitive, for the fit and for the price alike.

Caches are cold, which holds for one of many layers: weights, buffers and the framework's code come
from memory, and only what the previous primitive has just written is near. Most of what a small
call costs is therefore the first use of a piece of code; ``launch.call_s`` is that cost, averaged
over calls of the framework.

Shape legend: D devices or rows, L local experts.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.costs.devices.separate import SeparateKernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.work import GemmSpec, by_width
from moesim.errors import ConfigError
from moesim.hardware import Profile

Array = np.ndarray
#: up to this many rows a GEMM spends its time on fetching the weights
_FEW_ROWS = 16
#: rows shorter than this are not vectorized by a softmax
_SHORT_ROW = 16
#: torch.topk sorts partially if k times this fits into a row; otherwise it partitions the whole row
_PARTIAL_SORT = 64
#: assumed size of a core's own cache: what it holds need not come from further away
OWN_CACHE_BYTES = 2**20
_LOGIT_BYTES = 4.0
#: numbers that AdamW reads and writes per parameter
ADAMW_NUMBERS = 7.0
#: calls of the framework in a primitive, beyond those its callers count as launches
_MORE_CALLS = {"top_k": 1, "softmax": 2, "align": 3, "stream": 3}
#: tables that older profiles lack, which count that work in ``top_k`` and ``stream``
_NEWER = ("softmax", "cast", "mask")
#: share of one GEMM's spread that remains in the sum of an up and a down projection with
#: independent errors
_TWO_GEMMS = ((2 / 3) ** 2 + (1 / 3) ** 2) ** 0.5
#: phase -> primitives that make up most of it
_MOSTLY = {
    "gate": ("gemm", "top_k"),
    "experts": ("gemm",),
    "shared": ("gemm",),
    "permute": ("align", "gather", "stream"),
    "reduce": ("gather", "stream"),
}


def missing(num_bytes: Array | float, cache_bytes: float) -> Array:
    """Return the share of bytes that a cache misses when ``num_bytes`` are used in turn: 0 up to
    half of its size, 1 from twice its size.
    """
    return np.clip(np.log2(np.maximum(num_bytes, 1.0) / (0.5 * cache_bytes)) / 2.0, 0.0, 1.0)


def gemm_features(
    m: Array, n: Size, k: Size, *, weight_bytes: float, away: Array | float
) -> dict[str, Array]:
    """Return the terms of the groups of a grouped GEMM, (m x k) times (k x n).

    The terms are a constant, and one for each different number of rows (libraries compile a kernel
    for each, and fetch its code); multiply-adds; weights once, as a whole and in proportion to few
    rows (a library packs them only above some number of rows); columns, each of which begins at
    another address; weights from memory; inputs; outputs, and those that are not in the cache.

    Args:
        m: ndarray of shape (..., L): rows of each group; groups without rows cost nothing.
        n: Columns of the result.
        k: Depth of the product.
        weight_bytes: Bytes of one weight.
        away: Share of weights and outputs that is not in the cache, a number or ndarray of shape
            (...).

    Returns:
        Term -> ndarray of shape (...), summed over the groups.
    """
    m = np.asarray(m, dtype=np.float64)
    groups, rows, few = (
        (m > 0).sum(axis=-1),
        m.sum(axis=-1),
        (np.minimum(m, _FEW_ROWS) / _FEW_ROWS).sum(axis=-1),
    )
    # the number of different row counts that are not zero
    kinds = (np.diff(np.sort(m, axis=-1), axis=-1, prepend=0.0) > 0).sum(axis=-1)
    return {
        "call_away_s": away * (rows > 0),
        "group_s": groups,
        "row_count_away_s": kinds * away,
        "mkn_s": rows * n * k,
        "kn_s": groups * n * k,
        "kn_few_s": few * n * k,
        "n_s": groups * n,
        "kn_missing_byte_s": groups * n * k * weight_bytes * away,
        "mk_s": rows * k,
        "mn_s": rows * n,
        "mn_away_s": rows * n * away,
    }


def element_features(elements: Array, bytes_each: float, cache_bytes: float) -> dict[str, Array]:
    """Return the terms of a pass over all elements: the elements, and those that a cache misses,
    given the bytes that the pass touches.
    """
    return {
        "element_s": elements,
        "missing_element_s": elements * missing(elements * bytes_each, cache_bytes),
    }


def softmax_features(rows: Array, columns: Size, cache_bytes: float) -> dict[str, Array]:
    """Return the terms of a softmax of rows; a short row is not vectorized."""
    elements = rows * columns
    return {
        "row_s": rows,
        "short_element_s": elements * np.asarray(columns < _SHORT_ROW),
        **element_features(elements, 8.0, cache_bytes),
    }


def top_k_features(
    rows: Array, columns: Size, k: Size, cache_bytes: float = 1e18
) -> dict[str, Array]:
    """Return the terms of top-k of rows, for which torch.topk has two algorithms."""
    partial = np.asarray(_PARTIAL_SORT * k <= columns)
    return {
        "row_s": rows,
        "element_s": rows * columns,
        "short_element_s": rows * columns * np.asarray(columns < _SHORT_ROW),
        "partition_element_s": rows * columns * ~partial,
        "missing_element_s": rows * columns * missing(4.0 * rows * columns, cache_bytes),
        "choice_s": rows * k,
        "partial_choice_s": rows * k * np.log2(columns / k + 1.0) * partial,
    }


def gather_features(rows: Array, row_bytes: float) -> dict[str, Array]:
    """Return the terms of reading rows at random places and writing them in order."""
    return {"row_s": rows, "byte_s": rows * row_bytes}


def align_features(rows: Array, num_experts: Size) -> dict[str, Array]:
    """Return the terms of a stable merge sort of expert ids and their histogram; from 32,768 rows
    torch uses a faster radix sort.
    """
    return {
        "element_s": rows,
        "level_s": rows * np.log2(np.clip(num_experts, 1, np.maximum(rows, 1))),
    }


def stream_features(num_bytes: Array, cache_bytes: float) -> dict[str, Array]:
    """Return the terms of an element-wise pass: bytes, those beyond the core's own cache, and those
    beyond the last cache.
    """
    return {
        "byte_s": num_bytes,
        "far_byte_s": num_bytes * missing(num_bytes, OWN_CACHE_BYTES),
        "missing_byte_s": num_bytes * missing(num_bytes, cache_bytes),
    }


def adamw_features(params: Array, bytes_each: float, cache_bytes: float) -> dict[str, Array]:
    """Return the terms of a fused AdamW: gradient, weight and two states are read, and all but the
    gradient are written.
    """
    return element_features(params, ADAMW_NUMBERS * bytes_each, cache_bytes)


def phase_intervals(profile: Profile, fmt: str, gate_fmt: str) -> dict[str, tuple[float, float]]:
    """Return the P10 and P90 of measured over predicted time of phases, from the residuals of calls
    left out of the fit.

    A phase is taken to be as far off as the worst of the primitives that make up most of it. The
    experts are less far off, since the errors of their two GEMMs, with two thirds and one third of
    the work, add up in quadrature. (On one machine, 103 of 120 random layers took a time within the
    interval that follows.)

    Args:
        profile: A measured profile; without residuals there are no intervals.
        fmt: Format of the experts' GEMMs.
        gate_fmt: Format of the gate's GEMMs.
    """
    found = {}
    for phase, parts in _MOSTLY.items():
        tables = [
            f"gemm_{gate_fmt if phase == 'gate' else fmt}" if part == "gemm" else part
            for part in parts
        ]
        known = [profile.residuals[table] for table in tables if table in profile.residuals]
        if len(known) == len(tables):
            power = _TWO_GEMMS if phase == "experts" else 1.0
            found[phase] = (
                min(low for low, _ in known) ** power,
                max(high for _, high in known) ** power,
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SerialKernels(SeparateKernels):
    """Primitives of one CPU: grouped GEMM, top-k, gather, align, element-wise passes, launch."""

    profile: Profile

    rows_may_differ: ClassVar[bool] = False

    def _table(self, name: str) -> dict[str, float]:
        try:
            return self.profile.serial[name]
        except KeyError:
            if name in _NEWER:
                return {}
            raise ConfigError(
                f"{self.profile.name}: serial.{name}: expected measured coefficients, got nothing"
            ) from None

    def _sum(self, name: str, features: dict[str, Array], calls: Array | float = 0.0) -> PhaseCost:
        table = self._table(name)
        seconds = calls * self._table("launch")["call_s"]
        for key, value in features.items():
            seconds = seconds + table.get(key, 0.0) * np.asarray(value, dtype=np.float64)
        seconds = np.asarray(seconds)
        zero = np.zeros_like(seconds)
        return PhaseCost(compute_s_D=seconds, memory_s_D=zero, latency_s_D=zero)

    def launches(self, count: float | Array) -> PhaseCost:
        """Price calls of the framework that do nothing else."""
        return self._sum("launch", {}, np.asarray(count, dtype=np.float64))

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Price an element-wise pass of the expert phase: the activation, or rows to their experts
        and weighted sums back.

        ``num_bytes_D`` counts 2 bytes per element read or written, which is how the expert phase
        counts; the passes it was measured on are counted the same way, in either format. Copies
        that only a CPU makes are part of them.
        """
        num_bytes = np.asarray(num_bytes_D, dtype=np.float64)
        return self._sum(
            "stream",
            stream_features(num_bytes, self.profile.l2_bytes),
            _MORE_CALLS["stream"] * (num_bytes > 0),
        )

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Price rows of ``access_bytes`` that are read at random places and written in order."""
        num_bytes = np.asarray(num_bytes_D, dtype=np.float64)
        return self._sum("gather", gather_features(num_bytes / access_bytes, access_bytes))

    def gather_sum(self, rows_D: Array, sums_D: Array, row_bytes: Size) -> PhaseCost:
        """Price weighted sums of rows, one of the passes that `stream` was measured on."""
        return self.stream((np.asarray(rows_D) + np.asarray(sums_D)) * row_bytes)

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """Price a stable sort of the choices and a histogram."""
        rows = np.asarray(rows_D, dtype=np.float64)
        return self._sum(
            "align", align_features(rows, num_experts), _MORE_CALLS["align"] * (rows > 0)
        )

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Price top-k of float32 rows; if ``scored``, of their softmax, which is a
        separate pass.
        """
        rows, cache = np.asarray(rows_D, dtype=np.float64), self.profile.l2_bytes
        cost = self._sum(
            "top_k", top_k_features(rows, columns, k, cache), _MORE_CALLS["top_k"] * (rows > 0)
        )
        if not scored:
            return cost
        return sequence(
            cost,
            self._sum(
                "softmax",
                softmax_features(rows, columns, cache),
                _MORE_CALLS["softmax"] * (rows > 0),
            ),
        )

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Price the two best of each group, their sum, the best groups, and a mask over
        all logits.
        """
        rows = np.asarray(rows_D, dtype=np.float64)
        mask = element_features(rows * groups * per_group, 9.0, self.profile.l2_bytes)
        return sequence(
            self.top_k(rows * groups, per_group, min(2, per_group), scored=False),
            self.top_k(rows, groups, kept, scored=False),
            self._sum("mask", mask, 4.0 * (rows > 0)),
        )

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Price the float32 sums of pairs, and expert indices by a product and a sum:
        three passes.
        """
        rows = np.asarray(rows_D, dtype=np.float64)
        return self._passes(rows * halves**2, 3.0)

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Price passes that each read and write every float32 logit."""
        return self._passes(np.asarray(elements_D, dtype=np.float64), passes)

    def _passes(self, elements: Array, passes: float) -> PhaseCost:
        features = element_features(elements, 8.0, self.profile.l2_bytes)
        return self._sum(
            "cast",
            {name: passes * value for name, value in features.items()},
            passes * (elements > 0),
        )

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price groups in turn, each by `gemm_features`; the tile is ignored.

        Float32 results are logits: where the format has two bytes, an extra pass converts them;
        where rows are gathered and logits scattered, both are copied. Weights come from memory;
        with ``gemm.warm_bytes_D``, which is what back-to-back calls touch, only the part that does
        not fit the cache does. Experts of different widths take a call for each width. Other rows
        are gathered by a pass of their own, which is not counted here.
        """

        def call(part: Load, columns: Size, depth: Size) -> PhaseCost:
            assert part.counts_DL is not None
            touched = part.rows_D * (depth * gemm.input_bytes + columns * gemm.output_bytes)
            away = (
                1.0
                if gemm.warm_bytes_D is None
                else missing(gemm.warm_bytes_D + touched, self.profile.l2_bytes)
            )
            features = gemm_features(
                part.counts_DL, columns, depth, weight_bytes=gemm.weight_bytes, away=away
            )
            cost = self._sum(f"gemm_{gemm.fmt}", features)
            return (
                sequence(cost, *logits(part, columns))
                if gemm.output_bytes == _LOGIT_BYTES
                else cost
            )

        def logits(part: Load, columns: Size) -> list[PhaseCost]:
            phases = (
                [self._passes(part.rows_D * columns, 1.0)]
                if gemm.weight_bytes < _LOGIT_BYTES
                else []
            )
            if gemm.gather_inputs:
                phases.append(
                    self.gather(
                        part.rows_D * k * gemm.input_bytes, float(np.max(k * gemm.input_bytes))
                    )
                )
            if gemm.scatter_outputs:
                row_bytes = float(np.max(columns)) * gemm.weight_bytes
                phases.append(self.gather(part.rows_D * row_bytes, row_bytes))
            return phases

        return by_width(load, n, k, call)
