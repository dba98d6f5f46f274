"""Price the experts of a library whose kernels are priced as a whole: few parameters per format.

    rows of a tile    the power of two at or above an expert's mean load, within a library's limits
    busy              waves of tiles over the SMs: products, and a start of each tile
    read              active experts' weights at the memory's rate
    fed               what tiles ask of L2: a row block reads its expert's weights again
    a GEMM            (busy^p + read^p + fed^p)^(1/p)
    experts           two GEMMs + activations moved + start + a time per active and per local expert
                      + a time per choice of the tokens present, or per choice that is skipped;
                      where the host launches while the GPU works, a share of the start is hidden,
                      but no phase is shorter than the start

Libraries keep their tiles to themselves (autotuned CUTLASS, TensorRT-LLM's generated kernels,
FlashInfer, DeepGEMM), so that nothing finer than the histogram and the size of row blocks is known.
The form is ours; the parameters are fitted to measured expert phases
(`moesim.measured.kernels.family_calibrate`).

Shape legend: R rows of a table, or devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moesim.costs.load import Size
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
#: columns of a tile, which no library tells: the usual 128
_COLUMNS = 128
_OUTPUT_BYTES = 2.0
#: parameters of a format: first guess, lowest, highest
BOUNDS = {
    "start_us": (20.0, 1.0, 1000.0),
    "expert_us": (0.02, 1e-4, 5.0),
    "local_us": (0.01, 1e-4, 2.0),
    "choice_ns": (0.5, 1e-3, 60.0),
    "mma_efficiency": (0.6, 0.05, 1.0),
    "weight_efficiency": (0.85, 0.1, 1.0),
    "activation_efficiency": (0.5, 0.03, 1.0),
    "l2_bytes_per_cycle": (40.0, 3.0, 1000.0),
    "tile_cycles": (800.0, 10.0, 40000.0),
    "overlap_power": (2.0, 1.0, 8.0),
}
#: what a format's tiles are, chosen among few values: rows at least and at most, the factor over
#: the mean load, whether a last wave takes as long as a full one, whether the mean load is that
#: expected before routing, whether only choices of other devices cost a time each, and the share of
#: the start that no work hides
RULES = {
    "least_rows": (8, 16, 64, 128),
    "most_rows": (128, 256),
    "row_factor": (0.5, 1.0, 2.0),
    "whole_waves": (0, 1),
    "by_expected": (0,),
    "remote_only": (0, 1),
    "exposed": (1.0,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRule:
    """How many rows a library's tiles have.

    Attributes:
        least_rows: Fewest rows.
        most_rows: Most rows.
        row_factor: Factor over the mean load of an expert.
        whole_waves: Whether a last wave takes as long as a full one.
        by_expected: Whether the mean load is that expected before routing, over all experts of the
            layer, instead of that of this device's active experts.
        remote_only: Whether the time of a choice is that of skipping one of another device's
            experts.
        exposed: Share of the start that no work hides: 1 in a CUDA graph, less where the host
            launches kernels while the GPU works on earlier ones.
    """

    least_rows: int
    most_rows: int
    row_factor: float
    whole_waves: bool
    by_expected: bool = False
    remote_only: bool = False
    exposed: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, float]) -> "TileRule":
        """Return the rule with these values of the keys of `RULES`."""
        return cls(
            least_rows=int(values["least_rows"]),
            most_rows=int(values["most_rows"]),
            row_factor=float(values["row_factor"]),
            whole_waves=values["whole_waves"] > 0,
            by_expected=values["by_expected"] > 0,
            remote_only=values["remote_only"] > 0,
            exposed=float(values["exposed"]),
        )

    def block_m(self, rows: float, active: float, expected: float) -> int:
        """Return the rows of a tile: a power of two; arguments are those of `block_m_R`."""
        return int(self.block_m_R(np.asarray(rows), np.asarray(active), np.asarray(expected)))

    def block_m_R(self, rows_R: Array, active_R: Array, expected_R: Array) -> Array:
        """Return the rows of a tile for each load, a power of two: ndarray of shape (R,), int64.

        Args:
            rows_R: Rows of all experts of the device.
            active_R: Experts with at least one row.
            expected_R: Choices of the tokens present over the number of all experts of the layer.
        """
        mean = expected_R if self.by_expected else rows_R / np.maximum(active_R, 1.0)
        load = np.maximum(self.row_factor * mean, 1.0)
        power = np.left_shift(1, np.ceil(np.log2(load)).astype(np.int64))
        return np.clip(power, self.least_rows, self.most_rows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedWork:
    """Expert phases, one per row.

    Attributes:
        rows_R: Rows of all experts of the device.
        active_R: Experts with at least one row.
        local_R: Experts on the device.
        blocks_R: Row blocks: the sum over experts of ceil(rows / block_m).
        block_m_R: Rows of a tile.
        tokens_R: Distinct tokens whose rows enter.
        choices_R: Choices of all tokens present, local or not.
        hidden_R: Hidden size H.
        width_R: Expert width I on the device.
        num_up_R: Up projections: 2 for SwiGLU, otherwise 1.
        fmt: Format in which the matrix units multiply.
        weight_bytes: Bytes of one weight, scales included.
        input_bytes: Bytes of one input element, scales included.
    """

    rows_R: Array
    active_R: Array
    local_R: Array
    blocks_R: Array
    block_m_R: Array
    tokens_R: Array
    choices_R: Array
    hidden_R: Array
    width_R: Array
    num_up_R: Array
    fmt: str
    weight_bytes: float
    input_bytes: float

    @classmethod
    def of(
        cls,
        counts_DL: Array,
        *,
        rule: TileRule,
        tokens_D: Array,
        choices_D: Array,
        num_experts: Size,
        hidden: Size,
        width: Size,
        num_up: Size,
        fmt: str,
        weight_bytes: float,
        input_bytes: float,
    ) -> "FusedWork":
        """Return the expert phase of each device from its rows.

        Args:
            counts_DL: Rows of each local expert of each device, shape (D, L).
            rule: Rule of the tiles.
            tokens_D: Distinct tokens whose rows enter, shape (D,).
            choices_D: Choices of all tokens present, local or not, shape (D,).
            num_experts: Experts of the layer, on all devices.
            hidden: Hidden size.
            width: Expert width on a device.
            num_up: Up projections: 2 for SwiGLU, otherwise 1.
            fmt: Format in which the matrix units multiply.
            weight_bytes: Bytes of one weight, scales included.
            input_bytes: Bytes of one input element, scales included.
        """
        rows_D, active_D = counts_DL.sum(axis=1), (counts_DL > 0).sum(axis=1)
        block_m_D = rule.block_m_R(rows_D, active_D, np.asarray(choices_D) / num_experts)
        same = np.ones(len(counts_DL))
        return cls(
            rows_R=rows_D.astype(float),
            active_R=active_D.astype(float),
            local_R=same * counts_DL.shape[1],
            blocks_R=(-(-counts_DL // block_m_D[:, None])).sum(axis=1).astype(float),
            block_m_R=block_m_D,
            tokens_R=np.asarray(tokens_D, dtype=float),
            choices_R=np.asarray(choices_D, dtype=float),
            hidden_R=same * hidden,
            width_R=same * width,
            num_up_R=same * num_up,
            fmt=fmt,
            weight_bytes=weight_bytes,
            input_bytes=input_bytes,
        )


def fused_parts_R(
    work: FusedWork, profile: Profile, rule: TileRule, c: dict[str, float]
) -> tuple[Array, Array, Array]:
    """Return the compute, memory and other seconds of expert phases, each of shape (R,).

    Args:
        work: The expert phases.
        profile: The GPU.
        rule: Rule of the tiles that ``work`` was counted with.
        c: Parameters of the format, the keys of `BOUNDS`.

    Raises:
        ConfigError: The profile has no rate for the format.
    """
    sms, bandwidth = profile.num_sms, profile.hbm_bandwidth_bytes_per_s
    rate = profile.peak(work.fmt) / sms * c["mma_efficiency"]
    fed_rate = c["l2_bytes_per_cycle"] * sms * profile.clock_hz
    busy_all, read_all, gemms = (np.zeros(np.shape(work.rows_R)) for _ in range(3))
    for columns, depth in (
        (work.num_up_R * work.width_R, work.hidden_R),
        (work.hidden_R, work.width_R),
    ):
        tiles = work.blocks_R * np.ceil(columns / _COLUMNS)
        per_sm = tiles / sms
        waves = np.ceil(per_sm) if rule.whole_waves else per_sm + 0.5 * (tiles > 0)
        tile_s = 2.0 * work.block_m_R * _COLUMNS * depth / rate
        busy = waves * (tile_s + c["tile_cycles"] / profile.clock_hz)
        read = (
            work.active_R
            * columns
            * depth
            * work.weight_bytes
            / (bandwidth * c["weight_efficiency"])
        )
        asked = work.blocks_R * columns * depth * work.weight_bytes
        asked = asked + tiles * work.block_m_R * depth * work.input_bytes
        fed = asked / fed_rate
        busiest = np.maximum(np.maximum(busy, read), fed)
        safe = np.where(busiest > 0, busiest, 1.0)
        power = 1.0 + c["overlap_power"]
        joint = sum((part / safe) ** power for part in (busy, read, fed))
        gemm, own = busiest * joint ** (1.0 / power), np.maximum(busy, fed)
        gemms = gemms + gemm
        # fewer SMs, or less of the memory, slow a GEMM as a whole: what decides is busy all along
        busy_all = busy_all + np.where(own >= read, gemm, own)
        read_all = read_all + np.where(own >= read, read, gemm)
    moved = 2.0 * work.tokens_R * work.hidden_R * _OUTPUT_BYTES + work.rows_R * (
        work.hidden_R * (_OUTPUT_BYTES + work.input_bytes)
        + work.width_R * ((work.num_up_R + 1.0) * _OUTPUT_BYTES + work.input_bytes)
    )
    other = US * (c["expert_us"] * work.active_R + c["local_us"] * work.local_R)
    looked_at = work.choices_R
    if rule.remote_only:
        looked_at = np.maximum(looked_at - work.rows_R, 0.0)
    other = other + 1e-9 * c["choice_ns"] * looked_at
    streams = moved / (bandwidth * c["activation_efficiency"])
    memory, start = read_all + streams, US * c["start_us"]
    # GEMMs and streams follow each other: what one pool leaves idle is no other's to fill
    total = gemms + streams + other
    total = np.maximum(total + rule.exposed * start, start)
    return busy_all, memory, total - np.maximum(busy_all, memory)


def fused_seconds_R(
    work: FusedWork, profile: Profile, rule: TileRule, c: dict[str, float]
) -> Array:
    """Return the seconds of expert phases; arguments and errors are those of `fused_parts_R`."""
    compute, memory, other = fused_parts_R(work, profile, rule, c)
    return np.where(work.rows_R > 0, np.maximum(compute, memory) + other, 0.0)
