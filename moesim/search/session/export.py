"""Export a study's winner to a serving engine: the map of its experts, and the launch command.

A study simulates one MoE layer under one load, so every layer gets the winner's plan for that load.
The plan is as good as that load resembles the load that is served.
`moesim placement export --trace` plans maps layer by layer on recorded loads.

Flags are those of SGLang 0.5 (its documentation: ``docs/advanced_features/server_arguments.md`` and
``expert_parallelism.md`` of sgl-project/sglang at commits 004813e1 and 020017c4) and of vLLM 0.12
(docs.vllm.ai/en/v0.12.0: ``serving/expert_parallel_deployment``,
``serving/data_parallel_deployment``, ``design/dbo``). Simulated features without a counterpart
there become comments above the command:

- SGLang's DeepEP needs ``ep_size = tp_size``; its backend ``none`` gathers (``all_gather`` here).
  Replicas that take turns become ``--ep-dispatch-algorithm dynamic``, which draws one; nearest
  replicas become ``static``.
- vLLM keeps experts whole, spread over all ranks (``--enable-expert-parallel``), or cuts each over
  all of them, with nothing in between. It loads no initial map (proposed in vllm-project/vllm pull
  request 49572) but plans one from the loads it sees.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moesim.design.candidate import Candidate
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.placement import Placement
from moesim.placement.files import map_text, slot_map
from moesim.placement.spec import PlacementSpec
from moesim.search.study import Study
from moesim.simulation.prepare import prepare

FORMATS = ("placement-json", "sglang", "vllm")
#: shell variables of a command over several nodes
_HEAD, _NODE = "$HEAD", "$NODE"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Winner:
    """A design of a study's Pareto front.

    Attributes:
        rank: Row of pareto.csv, from 0.
        candidate: The design.
        cluster: The hardware it runs on.
        placement: The slots of its experts, the same for every layer.
        row: Its row in the study.
        num_layers: Number of layers with experts.
    """

    rank: int
    candidate: Candidate
    cluster: Cluster
    placement: Placement
    row: dict[str, Any]
    num_layers: int


def winner_of(study: Study, rank: int = 0) -> Winner:
    """Return a winner, with its placement planned again.

    Raises:
        ConfigError: There is no winner of that rank.
    """
    front = study.pareto_trials()
    if not front:
        raise ConfigError(
            f"study: expected a winner to export, got none: of {len(study.trials)} trials, no "
            "candidate fits in memory and keeps the constraints"
        )
    if not 0 <= rank < len(front):
        raise ConfigError(f"rank: expected 0 to {len(front) - 1}, a row of pareto.csv, got {rank}")
    candidate, cluster = study.space.decode(front[rank].params, study.problem.cluster)
    placement = prepare(candidate, cluster, study.problem.workload).placement
    return Winner(
        rank=rank,
        candidate=candidate,
        cluster=cluster,
        placement=placement,
        row=front[rank].evaluation.row,
        num_layers=study.space.dense().num_moe_layers,
    )


def winner_text(winner: Winner, layout: str) -> str:
    """Return the map of all layers as text that `moesim.placement.files.read_map` reads.

    ``placement-json`` also says where the map comes from: candidate, ranks, load, simulated time,
    version.

    Raises:
        UnknownNameError: There is no such format.
        ConfigError: The ranks hold different numbers of slots.
    """
    if layout not in FORMATS:
        raise UnknownNameError("export format", layout, FORMATS)
    if layout != "placement-json":
        return map_text([winner.placement] * winner.num_layers, layout)
    kept = (
        "candidate",
        "cluster",
        "num_tokens_per_device",
        "routing",
        "seed",
        "layer_time_us",
        "layer_time_low_us",
        "layer_time_high_us",
        "evidence",
        "calibration",
        "engine",
        "version",
        "profile_hash",
    )
    return json.dumps(
        {
            "physical_to_logical_map": [slot_map(winner.placement)] * winner.num_layers,
            "num_ranks": winner.placement.num_ranks,
            "num_experts": winner.placement.num_experts,
            "nearest_within": winner.placement.nearest_within,
            **{name: winner.row[name] for name in kept},
        }
    )


def launch_lines(winner: Winner, layout: str, map_file: str, model: str = "$MODEL") -> list[str]:
    """Return a shell command that starts the engine as simulated, below comments on what differs.

    Args:
        winner: The winner that was simulated.
        layout: ``sglang`` or ``vllm``.
        map_file: Path of its map.
        model: Checkpoint to serve.

    Raises:
        ConfigError: vLLM does not have the parallel layout.
    """
    notes = [
        f"# {winner.candidate.label} on {winner.cluster.name}",
        f"# simulated: {winner.row['layer_time_us']:,.0f} us a MoE layer at "
        f"{winner.row['num_tokens_per_device']:,} tokens per device, load {winner.row['routing']}",
    ]
    flags = _sglang(winner, map_file) if layout == "sglang" else _vllm(winner)
    model = model if model.startswith("$") else shlex.quote(model)
    words = [
        f"python3 -m sglang.launch_server --model-path {model}"
        if layout == "sglang"
        else f"vllm serve {model}"
    ]
    for flag in (*flags, *_format(winner.candidate)):
        (notes if flag.startswith("#") else words).append(flag)
    return [*notes, " \\\n  ".join(words)]


def _format(candidate: Candidate) -> Iterator[str]:
    name = candidate.layer.precision.name
    if name in ("fp8", "fp8_tensor"):
        yield f"# {name}: of a checkpoint quantised so; for one in bf16 add --quantization fp8"
    elif name not in ("bf16", "fp16"):
        yield f"# {name}: needs a checkpoint quantised so"


def _sglang(winner: Winner, map_file: str) -> Iterator[str]:
    candidate, devices, nodes = (
        winner.candidate,
        winner.cluster.num_devices,
        winner.cluster.num_nodes,
    )
    spread, schedule = candidate.parallelism, candidate.schedule
    exchange = winner.cluster.exchange(schedule)
    yield f"--tp-size {devices}"
    if devices > 1:
        yield f"--dp-size {devices} --enable-dp-attention --moe-dense-tp-size 1"
    if spread.ep > 1:
        yield f"--ep-size {spread.ep}"
    if nodes > 1:
        yield f"--nnodes {nodes} --node-rank {_NODE} --dist-init-addr {_HEAD}:5000"
    if devices > 1 and exchange.launch.get("sglang") and spread.tp == 1:
        yield exchange.launch["sglang"]
    elif devices > 1 and exchange.launch.get("sglang") != "":
        yield (
            f"# exchange {exchange.name} at tp{spread.tp} has no backend here: the command "
            "gathers instead (simulate it by exchange all_gather)"
        )
    if candidate.num_replicas:
        yield f"--ep-num-redundant-experts {candidate.num_replicas}"
    if _moved(candidate):
        how = "static" if PlacementSpec.parse(candidate.placement).nearest else "dynamic"
        yield f"--init-expert-location {shlex.quote(map_file)} --ep-dispatch-algorithm {how}"
    if schedule.num_micro_batches == 2:
        yield "--enable-two-batch-overlap"
    elif schedule.num_micro_batches > 2:
        yield (
            f"# {schedule.num_micro_batches} micro-batches: two are as many as overlap here; none "
            "without a flag"
        )


def _vllm(winner: Winner) -> Iterator[str]:
    candidate, devices, nodes = (
        winner.candidate,
        winner.cluster.num_devices,
        winner.cluster.num_nodes,
    )
    spread, schedule = candidate.parallelism, candidate.schedule
    if spread.ep > 1 and spread.tp > 1:
        raise ConfigError(
            f"export: expected experts that are whole or cut over all {devices} devices, which is "
            f"what vLLM has, got ep{spread.ep}tp{spread.tp}: use --format sglang"
        )
    yield "--tensor-parallel-size 1"
    if devices > 1:
        yield f"--data-parallel-size {devices}"
    if nodes > 1:
        local = winner.cluster.devices_per_domain
        yield (
            f"--data-parallel-size-local {local} --data-parallel-start-rank $(({_NODE} * {local})) "
            f"--data-parallel-address {_HEAD} --data-parallel-rpc-port 13345"
        )
        yield "# on every node but the first add --headless"
    exchange = winner.cluster.exchange(schedule)
    if spread.ep > 1:
        yield "--enable-expert-parallel"
        if "vllm" in exchange.launch:
            yield exchange.launch["vllm"]
        else:
            yield (
                f"# exchange {exchange.name} has no backend here: the command gathers instead "
                "(simulate it by exchange all_gather)"
            )
    if _moved(candidate):
        config = json.dumps({"num_redundant_experts": candidate.num_replicas})
        yield f"--enable-eplb --eplb-config {shlex.quote(config)}"
        yield (
            "# the map is not loaded at the start: EPLB plans one like it from the loads it records"
        )
    deepep = "deepep" in exchange.launch.get("vllm", "")
    if schedule.num_micro_batches == 2 and spread.ep > 1 and deepep:
        yield "--enable-dbo"
    elif schedule.num_micro_batches > 1:
        yield (
            f"# {schedule.num_micro_batches} micro-batches: only two overlap here, and only with "
            "DeepEP"
        )


def _moved(candidate: Candidate) -> bool:
    """Return whether the placement differs from plain expert order."""
    return candidate.parallelism.ep > 1 and (
        candidate.num_replicas > 0 or candidate.placement != "contiguous"
    )


__all__ = ["FORMATS", "Winner", "launch_lines", "winner_of", "winner_text"]
