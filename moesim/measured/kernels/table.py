"""Read measured Triton MoE kernels from NVIDIA's aiconfigurator-core (extra ``silicon``), and say
what each row times.

aiconfigurator-core 0.12 (Apache-2.0) contains operator timings as parquet files; only these are
read, never its code. One row of kernel ``sglang_fused_moe_triton`` or ``vllm_*_tritonexperts`` is
the mean latency of a fused expert phase on one GPU, called back to back in a CUDA graph without
flushing L2, so rows are warm. Experts are placed contiguously on the ranks, and the rank with the
largest load is timed. Which tokens enter for EP > 1 depends on the version and its code path; see
`local_counts`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, MeasurementError
from moesim.files import toml
from moesim.routing.distributions import RoutingSpec

#: columns that a table of rows must have: those of the package's moe_perf.parquet, and where the
#: row was found
COLUMNS = (
    "system",
    "dataset",
    "kernel_source",
    "moe_dtype",
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
    "distribution",
)
#: columns of some files: which operation, slots of experts and their replicas, and tokens that
#: enter the timed rank
EXTRAS = ("op_name", "num_slots", "rank0_num_tokens")
_DRAWS = 4


def unavailable_because() -> str | None:
    """Say why measured rows cannot be read here, or return None."""
    missing = [name for name in ("aiconfigurator_core", "pyarrow") if find_spec(name) is None]
    return (
        f"{', '.join(missing)} not installed: pip install 'moesim[silicon]' (Python < 3.14)"
        if missing
        else None
    )


@cache
def load_rows(system: str, dataset: str, every: bool = False, name: str = "moe_perf"):
    """Return all Triton rows of one system and dataset as a pandas DataFrame with `COLUMNS`,
    ``latency_ms`` and, of every kernel, those of `EXTRAS` that the file has.

    Args:
        system: Name of the system, such as ``h100_sxm``.
        dataset: Name of the dataset, ``framework/version``.
        every: Whether to return rows of every kernel, not only Triton's.
        name: Name of the file, without ``.parquet``.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or the package has no such file.
    """
    path = _data(system) / "moe" / dataset / f"{name}.parquet"
    if not path.is_file():
        raise MeasurementError(
            f"measured rows: aiconfigurator-core has no {name} of {dataset} on {system}"
        )
    table = _read(path)
    if not every:
        table = table[table["kernel_source"].str.contains("triton")]
    table = table.assign(system=system, dataset=dataset).rename(columns={"latency": "latency_ms"})
    extras = [column for column in EXTRAS if every and column in table]
    return table[[*COLUMNS, *extras, "latency_ms"]].reset_index(drop=True)


def systems() -> list[str]:
    """Return the systems that have Triton MoE rows and a device profile."""
    known = set(toml.index_names("devices"))
    return [
        path.name
        for path in sorted(_data("").iterdir())
        if path.name.replace("_", "-") in known or path.name in known
    ]


def datasets(system: str, every: bool = False, name: str = "moe_perf") -> list[str]:
    """Return the datasets (``framework/version``) of a system that hold rows of sglang's or vLLM's
    Triton kernels, or if ``every``, of any kernel, in the file of this name.
    """
    found = []
    for path in sorted((_data(system) / "moe").glob(f"*/*/{name}.parquet")):
        dataset = "/".join(path.parts[-3:-1])
        ours = every or dataset.startswith(("sglang", "vllm"))
        if ours and len(load_rows(system, dataset, every, name)):
            found.append(dataset)
    return found


def find_tables(system: str, pattern: str) -> list[Path]:
    """Return the parquet files of a system that match a glob pattern, in order.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    return sorted(_data(system).glob(pattern))


def read_table(path: Path):
    """Read one parquet file as a pandas DataFrame."""
    return _read(path)


def package_root() -> Path:
    """Return the folder of the package aiconfigurator-core.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    if reason := unavailable_because():
        raise MeasurementError(f"measured rows: {reason}")
    spec = find_spec("aiconfigurator_core")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _data(system: str) -> Path:
    return package_root() / "systems" / "data" / system


def _read(path: Path):
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pandas()


@cache
def _shapes() -> dict[tuple[int, int, int, int], dict]:
    """Return how the collector ran each shape (hidden, width, top_k, experts)."""
    text = (files("moesim_hw_profiles") / "silicon" / "collector_paths.toml").read_text(
        encoding="utf-8"
    )
    return {tuple(s["shape"]): s for s in tomllib.loads(text)["shapes"]}


def _path(row: Mapping[str, Any]) -> dict:
    key = (row["hidden_size"], row["inter_size"], row["topk"], row["num_experts"])
    return _shapes().get(key, {"layer_path": True, "gated": True})


def is_gated(row: Mapping[str, Any]) -> bool:
    """Return whether a row's experts have a gate projection.

    Shapes that a collector called directly ran the gated kernel even if their model has no gate;
    the collector of sglang 0.5.10 called all shapes directly.
    """
    path = _path(row)
    return path["gated"] or not path["layer_path"] or row["dataset"] == "sglang/0.5.10"


def masks_remote(row: Mapping[str, Any]) -> bool:
    """Return whether, for EP > 1, all tokens enter and choices of other ranks are masked; otherwise
    they are clamped.
    """
    path = _path(row)
    layer = path["layer_path"] or path.get("masked_ep", False)
    return row["dataset"].startswith("vllm") or (row["dataset"] == "sglang/0.5.14" and layer)


def _balanced(num_tokens: int, experts: int, top_k: int) -> np.ndarray:
    """Return the loads of the collector's balanced routing: ndarray of shape (E,)."""
    stride = -(-experts // top_k)
    token, slot = np.arange(num_tokens)[:, None], np.arange(top_k)[None, :]
    first = token if num_tokens >= stride else token * stride // num_tokens
    return np.bincount(((first + slot * stride) % experts).ravel(), minlength=experts)


@cache
def loads(distribution: str, num_tokens: int, experts: int, top_k: int, draw: int) -> np.ndarray:
    """Return the loads of all experts in one row: ndarray of shape (E,), int64.

    Args:
        distribution: ``balanced`` or ``power_law_ALPHA``.
        num_tokens: Number of tokens, T.
        experts: Number of experts, E.
        top_k: Number of choices of a token, k.
        draw: Number of the Monte-Carlo draw, since the collector's own draws are not reproducible.

    Raises:
        ConfigError: The distribution is neither of these.
    """
    if distribution == "balanced":
        return _balanced(num_tokens, experts, top_k)
    if not distribution.startswith("power_law_"):
        raise ConfigError(
            f"distribution: expected balanced or power_law_ALPHA, got {distribution!r}"
        )
    spec = RoutingSpec(kind="power_law", alpha=float(distribution.removeprefix("power_law_")))
    return spec.loads(
        experts, top_k, num_tokens, np.random.default_rng([draw, experts, top_k, num_tokens])
    )


def hottest_rank(loads_E: np.ndarray, ranks: int) -> np.ndarray:
    """Return the loads of the rank that is timed, with experts placed contiguously: ndarray of
    shape (E / ranks,).
    """
    loads_WL = loads_E.reshape(ranks, -1)
    return loads_WL[loads_WL.sum(axis=1).argmax()]


def entering_tokens(local_L: np.ndarray, num_tokens: int, top_k: int, ranks: int) -> float:
    """Return the expected distinct tokens with a choice on this rank, if choices are independent: T
    (1 - prod(1 - load / T)).
    """
    if ranks == 1:
        return float(num_tokens)
    return float(num_tokens * (1.0 - np.prod(1.0 - np.minimum(local_L / num_tokens, 1.0))))


def local_counts(row: Mapping[str, Any], draw: int) -> tuple[np.ndarray, float]:
    """Return the rows per local expert that the timed kernel computes, and the tokens that enter
    it.

    With EP = 1 these are all loads. With EP > 1 and masking, they are the hottest rank's loads,
    while all tokens enter. With clamping (sglang 0.5.10, and the direct path of 0.5.14) only tokens
    that touch the rank enter, and local expert 0 computes their remote choices.

    Args:
        row: One row as a dict with `COLUMNS`.
        draw: Number of the Monte-Carlo draw.

        Returns:
        (ndarray of shape (L,), tokens that enter).
    """
    tokens, experts, top_k, ranks = (
        row["num_tokens"],
        row["num_experts"],
        row["topk"],
        row["moe_ep_size"],
    )
    local = hottest_rank(loads(row["distribution"], tokens, experts, top_k, draw), ranks)
    if ranks == 1:
        return local, float(tokens)
    if masks_remote(row):
        return local, float(tokens)
    entering = round(entering_tokens(local, tokens, top_k, ranks))
    clamped = local.copy()
    clamped[0] += max(entering * top_k - int(local.sum()), 0)
    return clamped, float(entering)


def draws(distribution: str) -> Sequence[int]:
    """Return the Monte-Carlo draws over which a prediction averages."""
    return range(1) if distribution == "balanced" else range(_DRAWS)
