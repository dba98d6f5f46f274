"""The timeline of one simulated MoE layer: every rank's kernels and transfers."""

from collections.abc import Mapping

import numpy as np

from moesim.costs.phases.experts import slot_widths
from moesim.engines.run import run
from moesim.errors import require
from moesim.lowering.traffic import AnyTraffic
from moesim.report.slices import Sheet
from moesim.simulation.prepare import Prepared
from moesim.simulation.result import Result
from moesim.simulation.run import lower
from moesim.timeline.kernel_names import kernel_names
from moesim.timeline.of_program import sheet_of
from moesim.timeline.program_slices import OpGroup, RanProgram
from moesim.timeline.run_facts import with_facts
from moesim.units import US

_FLOPS_PER_WEIGHT = 2.0


def check_engine(engine: str) -> None:
    """Refuse an engine that has no timeline.

    Raises:
        ConfigError: The engine is ``bound``, whose times are no schedule.
    """
    require(
        engine != "bound",
        "--trace",
        "an engine that makes a schedule (flow, event or event_compiled)",
        engine,
    )


def layer_sheet(prepared: Prepared, result: Result) -> Sheet:
    """Return the timeline of a layer.

    Args:
        prepared: The design, its workload and its traffic.
        result: What simulating it gave; the same engine runs it again.

    Raises:
        ConfigError: The engine is ``bound``, whose times are no schedule.
    """
    check_engine(result.engine)
    candidate, cluster = prepared.candidate, prepared.cluster
    program = lower(prepared)
    exchange = cluster.exchange(candidate.schedule).name if cluster.num_devices > 1 else None
    ran = RanProgram(
        program=program,
        timeline=run(program, result.engine, scale_s=result.bound_s),
        cluster=cluster,
        names=kernel_names(
            cluster, prepared.kernels, exchange, candidate.layer.precision.activations
        ),
        facts=_Work(prepared).of,
    )
    sheet = sheet_of(ran, f"{candidate.label} on {cluster.name}")
    return with_facts(
        sheet,
        design=candidate.key,
        engine=result.engine,
        cluster=cluster.name,
        seed=result.workload.seed,
        profile_hash=result.profile_hash,
        layer_time_us=result.layer_time_s / US,
        phases_us={name: seconds / US for name, seconds in result.phase_time_s.items()},
        shown="one whole forward pass of the layer",
    )


class _Work:
    """Tokens and FLOPs of the slices of each micro-batch."""

    def __init__(self, prepared: Prepared) -> None:
        self._batches = prepared.batches
        candidate = prepared.built
        layer, tp = candidate.layer, candidate.parallelism.tp
        widths = slot_widths(layer, prepared.placement, tp)
        self._flops = [
            _FLOPS_PER_WEIGHT * layer.params_per_width * (batch.counts_DL * widths).sum(axis=1)
            for batch in self._batches
        ]
        self._per_token = {
            "gate": _FLOPS_PER_WEIGHT * layer.gate_params,
            "shared": _FLOPS_PER_WEIGHT * layer.shared_params,
        }

    def of(self, key: OpGroup, device: int) -> Mapping[str, object]:
        """Return the facts of one slice."""
        at = int(key.batch or 0)
        batch = self._batches[at]
        if key.phase == "experts":
            return {
                "tokens": _tokens(batch, device),
                "rows": int(batch.counts_DL[device].sum()),
                "flops": float(self._flops[at][device]),
            }
        own = float(batch.num_tokens_S[device])
        if key.phase in self._per_token:
            return {"tokens": own, "flops": own * self._per_token[key.phase]}
        return {"tokens": own}


def _tokens(batch: AnyTraffic, device: int) -> float:
    """Return the distinct tokens that a device computes."""
    return float(np.asarray(batch.tokens_D)[device])
