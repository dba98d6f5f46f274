"""Read measured communication kernels from NVIDIA's aiconfigurator-core, and say which rows may be
fitted.

A family is one kernel's table, with that table's own columns:

- ``nccl``: collectives; ``message_size`` counts elements of the larger buffer, own chunk included;
  latency in ms.
- ``deepep_normal`` and ``deepep_ll``: tokens per rank, fp8 dispatch and bf16 combine of uniformly
  random choices; kernel time in us.
- ``nvl72_alltoall``: TensorRT-LLM on GB200, tokens per rank, balanced choices; latency in ms.

The package is aiconfigurator-core 0.12 (Apache-2.0); only its parquet files are read.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from moesim.costs.comm.work import Ports
from moesim.errors import MeasurementError
from moesim.hardware import Profile, load_profile
from moesim.measured.kernels import table as silicon
from moesim.units import GB

#: family -> columns that a row needs; all but those of `TEXT` are integers > 0
COLUMNS: dict[str, tuple[str, ...]] = {
    "nccl": ("op_name", "nccl_dtype", "num_gpus", "message_size"),
    "deepep_normal": (
        "node_num",
        "hidden_size",
        "num_token",
        "num_topk",
        "num_experts",
        "dispatch_sms",
        "combine_sms",
    ),
    "deepep_ll": ("node_num", "hidden_size", "num_token", "num_topk", "num_experts"),
    "nvl72_alltoall": (
        "op_name",
        "kernel_source",
        "moe_dtype",
        "num_tokens",
        "hidden_size",
        "topk",
        "num_experts",
        "moe_ep_size",
        "distribution",
    ),
}
TEXT = ("op_name", "nccl_dtype", "kernel_source", "moe_dtype", "distribution")
#: family -> its measured columns and the microseconds of their unit, in the order of `quantities`
MEASURED: dict[str, dict[str, float]] = {
    "nccl": {"latency": 1e3},
    "deepep_normal": {"dispatch_transmit_us": 1.0, "combine_transmit_us": 1.0},
    "deepep_ll": {"dispatch_avg_t_us": 1.0, "combine_avg_t_us": 1.0},
    "nvl72_alltoall": {"latency": 1e3},
}
_FILES = {
    "nccl": "nccl_perf",
    "deepep_normal": "wideep_deepep_normal_perf",
    "deepep_ll": "wideep_deepep_ll_perf",
    "nvl72_alltoall": "trtllm_alltoall_perf",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredSystem:
    """A measured system: a device, and the ports to devices of its kind.

    Attributes:
        profile: The device.
        near_bytes_per_s: Rate of one direction of its port.
        far_bytes_per_s: Rate of one direction of its NIC.
        ranks_per_domain: Number of GPUs that the port reaches.
        ranks_per_node: Number of GPUs of one node (of one tray on an NVL72).
        bridge_bytes_per_s: Rate of one direction of a PCIe switch's link to the host; 0 without.
        ranks_per_bridge: Number of GPUs that share that link.
    """

    profile: Profile
    near_bytes_per_s: float
    far_bytes_per_s: float
    ranks_per_domain: int
    ranks_per_node: int
    bridge_bytes_per_s: float = 0.0
    ranks_per_bridge: int = 1

    def ports(self, num_ranks) -> Ports:
        """Return the ports when ``num_ranks`` take part, a number or an ndarray with one
        per row.
        """
        return Ports(
            near_bytes_per_s=self.near_bytes_per_s,
            far_bytes_per_s=self.far_bytes_per_s,
            num_ranks=num_ranks,
            ranks_per_domain=self.ranks_per_domain,
            num_sms=self.profile.num_sms,
            memory_bytes_per_s=self.profile.hbm_bandwidth_bytes_per_s,
            bridge_bytes_per_s=self.bridge_bytes_per_s,
            ranks_per_bridge=self.ranks_per_bridge,
        )


@cache
def systems() -> dict[str, MeasuredSystem]:
    """Return the systems by the package's name, from ``hw_profiles/silicon/comm_systems.toml``."""
    text = (files("moesim_hw_profiles") / "silicon" / "comm_systems.toml").read_text(
        encoding="utf-8"
    )
    return {
        name: MeasuredSystem(
            profile=load_profile(s["profile"]),
            near_bytes_per_s=s["near_gb_per_s"] * GB,
            far_bytes_per_s=s["nic_gb_per_s"] * GB,
            ranks_per_domain=s["ranks_per_domain"],
            ranks_per_node=s["ranks_per_node"],
            bridge_bytes_per_s=s.get("uplink_gb_per_s", 0.0) * GB,
            ranks_per_bridge=s.get("devices_per_switch", 1),
        )
        for name, s in tomllib.loads(text)["systems"].items()
    }


def quantities(family: str) -> tuple[str, ...]:
    """Return what a family's rows time: ``("dispatch", "combine")``, or one unnamed quantity."""
    return ("dispatch", "combine") if family.startswith("deepep") else ("",)


@cache
def load_comm_rows(family: str, system: str):
    """Return all rows of a family on one system; several measurements of one row become their
    median.

    Returns:
        pandas DataFrame with ``family``, ``system``, ``dataset``, ``version``, and the family's
        `COLUMNS` and `MEASURED`; empty if the package has no such rows.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    import pandas as pd

    tables = []
    for path in silicon.find_tables(system, f"comm/*/*/{_FILES[family]}.parquet"):
        table = silicon.read_table(path)
        version = table.get("version")
        tables.append(
            table.assign(
                family=family, system=system, dataset="/".join(path.parts[-3:-1]), version=version
            )
        )
    keys = ["family", "system", "dataset", "version", *COLUMNS[family]]
    if not tables:
        return pd.DataFrame(columns=[*keys, *MEASURED[family]])
    rows = pd.concat(tables, ignore_index=True)
    return rows.groupby(keys, as_index=False, dropna=False)[list(MEASURED[family])].median()


def load_family(family: str, names: tuple[str, ...] | None = None):
    """Return the rows of a family on several systems (by default all) as one DataFrame, see
    `load_comm_rows`.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or none of the systems has such
            rows.
    """
    import pandas as pd

    tables = [t for name in names or tuple(systems()) if len(t := load_comm_rows(family, name))]
    if not tables:
        raise MeasurementError(
            f"measured rows: aiconfigurator-core has none of {family} on {', '.join(names or ())}"
        )
    return pd.concat(tables, ignore_index=True)


def may_fit(rows) -> np.ndarray:
    """Return which rows of one family may be fitted: ndarray of bool, shape (rows,).

    These are NCCL on A100 and H100; DeepEP on H100 with top-k not 1, 2 or 22, on at most two nodes
    (EP16); and NVL72 on GB200 at EP 4, 8 and 16. In few-shot mode ten NCCL rows of other devices
    may be used, too; they are listed in ``few_shot_comm_rows.csv``.
    """
    family = rows["family"].iloc[0]
    system = rows["system"]
    if family == "nccl":
        return system.isin(["a100_sxm", "h100_sxm"]).to_numpy()
    if family == "nvl72_alltoall":
        return ((system == "gb200") & rows["moe_ep_size"].isin([4, 8, 16])).to_numpy()
    return (
        (system == "h100_sxm") & ~rows["num_topk"].isin([1, 2, 22]) & (rows["node_num"] <= 2)
    ).to_numpy()


def few_shot_rows():
    """Return ten NCCL rows each of B200, B300 and GB200, as a DataFrame with the columns of
    `load_comm_rows`.
    """
    import pandas as pd

    with (files("moesim_hw_profiles") / "silicon" / "few_shot_comm_rows.csv").open(
        encoding="utf-8"
    ) as file:
        rows = pd.read_csv(file)
    return rows.rename(columns={"latency_ms": "latency"}).assign(family="nccl")


def was_shot(rows) -> np.ndarray:
    """Return which NCCL rows are among `few_shot_rows`: ndarray of bool, shape (rows,)."""
    keys = ["system", "dataset", *COLUMNS["nccl"]]
    known = set(few_shot_rows()[keys].itertuples(index=False, name=None))
    return np.array(
        [row in known for row in rows[keys].itertuples(index=False, name=None)], dtype=bool
    )
