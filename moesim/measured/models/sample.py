"""Read measured serving runs from NVIDIA's aiconfigurator-core, and repair them.

The package's ``silicon_sample.csv`` (Apache-2.0) holds 5,221 runs of benchmarks: TTFT and TPOT of a
model, a system, an engine, a layout and a closed loop of clients. Columns hold other things than
their names say in a third of them. `repaired` returns runs of MoE models on aggregated servers in
which these are put right:

- ``tp`` or ``attention_dp`` may hold TP x EP: 64 with experts 8 x 8 is 8 of each (SGLang,
  TensorRT-LLM); with vLLM ``tp 4, dp 4, ep 16`` is 4 attention ranks with 4 expert ranks. The names
  of runs keep the true numbers, and repaired runs equal clean ones where both exist.
- Aggregated runs on GB200 with 12 devices and more are disaggregated ones: left out. So are layouts
  in which attention and experts still use different numbers of devices, and runs that state no
  number of clients or, with an unstated number of attention ranks, a batch for each device.
- Several dumps hold the same run: one is kept of those that agree in model, system, lengths,
  clients and four digits of the milliseconds of TPOT, the first by name.
- Words for formats: models published in MXFP4 say nvfp4 and run bf16 beside it, with 16-bit tokens
  before Blackwell and 8-bit ones on it; fp8 means blocks; int4 is of experts only.
- Where TTFT is more than 30 % of the decoding time, requests waited: ``queued``.

Some runs contradict each other: the same model, system, engine, formats, layout, lengths and
clients with times that differ by up to 1.8, since no column says whether drafts were verified, or
which flags a server had. `contradicted` names whose they are.

What may be fitted is named by `FITTED`; everything else is for scoring.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moesim.errors import MeasurementError
from moesim.measured.kernels.table import package_root

#: models without experts
_DENSE = ("Llama-3", "Qwen3-32B")
#: model published in MXFP4 (its config.json: quant_method mxfp4)
_MXFP4 = "gpt-oss"
_HOPPER = ("a100", "h100", "h200")
_QUEUED_FRACTION = 0.3
#: what makes two runs the same setting
_SETTING = (
    *("model", "system", "backend", "isl", "osl", "concurrency", "tp", "pp", "attention_dp"),
    *("moe_tp", "moe_ep", "gemm_format", "moe_format"),
)
#: by how much times of one setting differ that contradict each other, and in what share of settings
_CONTRADICTS, _CONTRADICTED_SHARE = 1.25, 0.2
#: (part of the model's name, system, engine) of the runs to which an engine's host is fitted
FITTED = (
    ("Qwen3-235B-A22B", "h100_sxm", "trtllm"),
    ("gpt-oss-120b", "h100_sxm", "vllm"),
    ("Qwen3-235B-A22B", "h200_sxm", "sglang"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRow:
    """One serving run, measured or to be predicted.

    Attributes:
        row_id: Its name.
        model: Path or name of the model.
        system: System, such as ``h100_sxm``.
        backend: Serving engine.
        backend_version: Its version; empty if unknown.
        isl: Tokens of a prompt.
        osl: Tokens of an answer.
        concurrency: Clients of the closed loop.
        tp: Devices of an attention rank.
        pp: Pipeline stages.
        attention_dp: Attention ranks.
        moe_tp: Devices that share an expert's width.
        moe_ep: Expert-parallel ranks.
        gemm_format: Format of dense GEMMs, as measured tables name it.
        moe_format: Format of the experts.
        tpot_ms: Measured time per output token; None if there is none.
        ttft_ms: Measured time to first token; None if there is none.
        repaired: Whether its layout was repaired.
    """

    row_id: str
    model: str
    system: str
    backend: str
    backend_version: str
    isl: int
    osl: int
    concurrency: int
    tp: int
    pp: int
    attention_dp: int
    moe_tp: int
    moe_ep: int
    gemm_format: str
    moe_format: str
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    repaired: bool = False

    @property
    def whose(self) -> tuple[str, str, str]:
        """The model, the system and the engine."""
        return self.model, self.system, self.backend

    @property
    def queued(self) -> bool:
        """Whether requests waited: a row about the scheduler, not about steps."""
        if self.tpot_ms is None or self.ttft_ms is None:
            return False
        return self.ttft_ms > _QUEUED_FRACTION * self.tpot_ms * self.osl

    @property
    def may_fit(self) -> bool:
        """Whether an engine's host may be fitted to it."""
        return any(
            part in self.model and (self.system, self.backend) == (system, backend)
            for part, system, backend in FITTED
        )


@cache
def repaired() -> tuple[tuple[ServingRow, ...], dict[str, int]]:
    """Return the runs of the package that can be used, and how many were left out or changed, and
    why.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    path = package_root() / "systems" / "silicon_sample.csv"
    if not path.is_file():
        raise MeasurementError(f"{path.name}: expected it in aiconfigurator-core, got none")
    with open(path, encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    counts: Counter[str] = Counter({"runs": len(runs)})
    found, seen = [], set()
    for run in sorted(runs, key=lambda one: one["id"]):
        if any(name in run["model_path"] for name in _DENSE):
            counts["dense models"] += 1
            continue
        if run["mode"] != "agg":
            counts["disaggregated"] += 1
            continue
        layout, clients = _layout(run), _clients(run)
        if layout is None or clients is None:
            counts["ambiguous"] += 1
            continue
        tp, dp, moe_tp, ep, changed = layout
        tpot = float(run["silicon_tpot_ms"])
        key = (run["model_path"], run["system"], run["isl"], run["osl"], clients, f"{tpot:.4f}")
        if key in seen:
            counts["duplicates"] += 1
            continue
        seen.add(key)
        gemm, moe = _formats(run)
        row = ServingRow(
            row_id=run["id"],
            model=run["model_path"],
            system=run["system"],
            backend=run["backend"],
            backend_version=run["backend_version"],
            isl=int(float(run["isl"])),
            osl=int(float(run["osl"])),
            concurrency=clients,
            tp=tp,
            pp=int(float(run["pp_size"] or 1)),
            attention_dp=dp,
            moe_tp=moe_tp,
            moe_ep=ep,
            gemm_format=gemm,
            moe_format=moe,
            tpot_ms=tpot,
            ttft_ms=float(run["silicon_ttft_ms"]) if run["silicon_ttft_ms"] else None,
            repaired=changed,
        )
        counts["repaired layouts"] += changed
        counts["queued"] += row.queued
        found.append(row)
    counts["kept"] = len(found)
    return tuple(found), dict(counts)


def contradicted(rows: Iterable[ServingRow]) -> frozenset[tuple[str, str, str]]:
    """Return the (model, system, engine) whose runs contradict each other: where settings were run
    more than once, TPOT differs by more than a quarter in at least a fifth of them.
    """
    runs: defaultdict[tuple[object, ...], list[ServingRow]] = defaultdict(list)
    for row in rows:
        runs[tuple(getattr(row, name) for name in _SETTING)].append(row)
    times: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for same in runs.values():
        if len(same) > 1:
            tpot = [row.tpot_ms or 0.0 for row in same]
            times[same[0].whose].append(max(tpot) / max(min(tpot), 1e-9))
    return frozenset(
        whose
        for whose, ratios in times.items()
        if sum(ratio > _CONTRADICTS for ratio in ratios) >= _CONTRADICTED_SHARE * len(ratios)
    )


def _layout(run: dict[str, str]) -> tuple[int, int, int, int, bool] | None:
    """Return (tp, attention dp, moe tp, ep, whether they were changed); None if unknown."""
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    tp, dp, moe_tp, ep = (int(float(run[name] or 1)) for name in names)
    if run["system"].startswith("gb") and tp >= 12:
        return None
    if run["backend"] == "vllm":
        if dp == tp > 1 and ep == tp * dp:
            return 1, dp, 1, dp, True
    elif run["attention_dp_size"] and moe_tp == ep > 1 and tp * dp == moe_tp * ep:
        return (ep if tp > 1 else 1), (ep if dp > 1 else 1), 1, ep, True
    return (tp, dp, moe_tp, ep, False) if tp * dp == moe_tp * ep else None


def _clients(run: dict[str, str]) -> int | None:
    """Return the clients; None if only a batch is stated, or one for each of the devices that share
    a rank, which leaves open whether they do.
    """
    stated = re.search(r"silicon_concurrency=(\d+)", run["silicon_data_source"])
    if stated is None:
        return None
    clients, tp = int(stated[1]), int(float(run["tp_size"]))
    of_each = tp > 1 and float(run["batch_size"]) * tp == clients
    return None if of_each and not run["attention_dp_size"] else clients


def _formats(run: dict[str, str]) -> tuple[str, str]:
    """Return the formats of dense GEMMs and of experts."""
    if _MXFP4 in run["model_path"]:
        before = run["system"].startswith(_HOPPER)
        return "bfloat16", "w4a16_mxfp4" if before else "w4a8_mxfp4_mxfp8"
    moe = run["moe_quant_mode"] or {"bf16": "bfloat16"}.get(run["precision"], "bfloat16")
    if moe == "int4_wo":
        return "bfloat16", "int4_wo"
    if moe in ("fp8", "fp8_block"):
        return "fp8_block", "fp8_block"
    return run["gemm_quant_mode"] or moe, moe


def model_file(name: str) -> Path | None:
    """Return the config.json that the package has of a published model; None if it has none.

    Args:
        name: Its name with the maker's, such as ``zai-org/GLM-5``; another maker's copy of the same
            name counts.
    """
    folder = package_root() / "model_configs"
    own = folder / f"{name.replace('/', '--')}_config.json"
    if own.is_file():
        return own
    return next(iter(sorted(folder.glob(f"*--{name.rpartition('/')[2]}_config.json"))), None)


__all__ = ["FITTED", "ServingRow", "model_file", "repaired"]
