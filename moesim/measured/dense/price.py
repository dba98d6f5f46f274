"""Price rows of measured GEMMs, all-reduces and attention."""

from dataclasses import dataclass

import numpy as np

from moesim.costs.comm.work import Ports
from moesim.costs.dense.all_reduce import all_reduce_roofline_s, all_reduce_seconds
from moesim.costs.dense.decode import decode_limits_s, decode_seconds
from moesim.costs.dense.fitted import FittedSet
from moesim.costs.dense.gemm import GemmFormat, gemm_limits_s, gemm_seconds, quantize_seconds
from moesim.costs.dense.heads import Heads
from moesim.costs.dense.prefill import prefill_limits_s, prefill_seconds
from moesim.costs.dense.prices import Op, dense_prices
from moesim.hardware import Profile, load_profile
from moesim.measured.exchanges.table import systems

Array = np.ndarray
_ELEMENT_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseBatch:
    """Rows of one kind of price, system, dataset and format.

    Attributes:
        op: Kind of price.
        fmt: Format.
        system: The package's name of the system.
        sizes: Column -> ndarray of shape (N,).
    """

    op: Op
    fmt: str
    system: str
    sizes: dict[str, Array]

    @property
    def profile(self) -> Profile:
        """The device."""
        return load_profile(self.system)

    def seconds(self, values: FittedSet | dict[str, float]) -> Array:
        """Return the predicted seconds of each row, with a KV cache that is warm as in the table:
        ndarray of shape (N,).

        Args:
            values: Fitted parameters.
        """
        found = values.values if isinstance(values, FittedSet) else values
        if self.op == "gemm":
            made = GemmFormat.named(self.fmt)
            m, n, k = (self.sizes[name] for name in "mnk")
            seconds = gemm_seconds(found, made, self.profile, (m, n, k))
            if made.quantizes:
                seconds += quantize_seconds(found, self.profile, m, k)
            return seconds
        if self.op == "all_reduce":
            return all_reduce_seconds(found, self.profile, self._ports, self._num_bytes)
        if self.op in ("prefill", "mla_prefill"):
            return prefill_seconds(found, self.fmt, self.profile, self._heads, self._prefill)
        return decode_seconds(found, self.fmt, self.profile, self._heads, self._decode, cold=False)

    def roofline_s(self) -> Array:
        """Return FLOPs over the peak or bytes over the bandwidth, whichever is larger."""
        if self.op == "gemm":
            sizes = (self.sizes["m"], self.sizes["n"], self.sizes["k"])
            return np.maximum(*gemm_limits_s(GemmFormat.named(self.fmt), self.profile, sizes))
        if self.op == "all_reduce":
            return all_reduce_roofline_s(self._ports, self._num_bytes)
        if self.op in ("prefill", "mla_prefill"):
            return np.maximum(*prefill_limits_s(self.fmt, self.profile, self._heads, self._prefill))
        return np.maximum(*decode_limits_s(self.fmt, self.profile, self._heads, self._decode))

    @property
    def _num_bytes(self) -> Array:
        return self.sizes["message_size"] * _ELEMENT_BYTES

    @property
    def _ports(self) -> Ports:
        return systems()[self.system].ports(self.sizes["num_gpus"])

    @property
    def _heads(self) -> Heads:
        heads = self.sizes["num_heads"]
        if self.op == "mla_prefill":
            return Heads.mla_prefill(heads)
        if self.op == "mla_decode":
            return Heads.mla_decode(heads)
        return Heads.grouped(heads, self.sizes["num_key_value_heads"], self.sizes["head_dim"])

    @property
    def _window(self) -> Array:
        return self.sizes.get("window_size", np.zeros_like(self.sizes["isl"]))

    @property
    def _prefill(self) -> tuple[Array, Array, Array, Array]:
        s = self.sizes
        return s["batch_size"], s["isl"], s["step"], self._window

    @property
    def _decode(self) -> tuple[Array, Array, Array]:
        s = self.sizes
        return s["batch_size"], s["isl"] + s["step"], self._window


def batches(rows, columns: dict[Op, tuple[str, ...]]):
    """Yield (positions, batch, fitted set, grade, level) of each group of rows that are priced
    alike; the level is that of the calibration.

    Args:
        rows: DataFrame with ``op``, ``system``, ``dataset``, ``format`` and the columns of sizes,
            index 0 to N - 1.
        columns: Kind of price -> its columns of sizes.
    """
    keys = ["op", "system", "dataset", "format"]
    for (op, system, dataset, fmt, windowed), part in rows.groupby(
        [*keys, is_windowed(rows)], sort=False
    ):
        prices = dense_prices(load_profile(system), str(dataset))
        batch = DenseBatch(op=op, fmt=fmt, system=system, sizes=sizes_of(part, columns[op]))
        grade = prices.grade(op, fmt, windowed=windowed)
        level = prices.calibrations[op].level
        yield part.index.to_numpy(), batch, prices.fitted(op, fmt), grade, level


def is_windowed(rows) -> Array:
    """Return which rows have a window: ndarray of bool, shape (rows,)."""
    if "window_size" not in rows:
        return np.zeros(len(rows), dtype=bool)
    here = rows["op"].isin(["prefill", "decode"])
    return (here & (rows["window_size"] > 0)).to_numpy(dtype=bool)


def sizes_of(rows, columns: tuple[str, ...]) -> dict[str, Array]:
    """Return the columns of sizes of a DataFrame, as ndarrays of float64."""
    return {name: rows[name].to_numpy(dtype=np.float64) for name in columns}
