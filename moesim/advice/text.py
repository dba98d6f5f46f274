"""Write a recommendation as lines of text."""

from collections.abc import Iterator

from moesim.advice.recommendation import Choice, Recommendation
from moesim.design.candidate import USUAL_CONTEXT
from moesim.placement.spec import PlacementSpec
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import prepare
from moesim.units import GIB, US

#: kinds of resources, with their names in the text
_RESOURCES = {
    "egress": "links out",
    "ingress": "links in",
    "link": "links",
    "nic_out": "NICs out",
    "nic_in": "NICs in",
    "hbm": "memory bandwidth",
    "sm": "matrix units",
}
#: limiting stages of an exchange, with their names in the text
_STAGES = {
    "near": "the links within a node",
    "far": "the network between nodes",
    "start": "its start",
}
_LINES_OF_HELP = 4
#: objective -> what a better design has less of, and its column
_COSTS = {
    "throughput": ("time", "layer_time_us"),
    "energy": ("energy", "moe_layers_joules_per_token"),
    "cost": ("money", "moe_layers_usd_per_million_tokens"),
}


def lines_of(found: Recommendation) -> Iterator[str]:
    """Yield lines, each with a subject and what there is to say about it."""

    def line(subject: str, text: str) -> str:
        return f"{subject:14} {text}"

    best, work, cluster = found.best, found.workload, found.cluster
    candidate, result = best.candidate, best.result
    spread, layer, schedule = candidate.parallelism, candidate.layer, candidate.schedule
    yield line(
        "workload",
        f"{work.phase}, {work.num_tokens_per_device:,} tokens per device; load of the experts "
        f"{work.routing}, seed {work.seed}",
    )
    yield line(
        "parallelism",
        f"ep{spread.ep}"
        + (
            f" x tp{spread.tp}: {spread.tp} devices share each expert"
            if spread.tp > 1
            else ": whole experts, no tp"
        )
        + "; attention data-parallel",
    )
    yield line(
        "placement",
        f"{candidate.placement}"
        + (
            ", planned on the load it is scored on"
            if PlacementSpec.parse(candidate.placement).strategy != "contiguous"
            else ""
        )
        + f"; busiest device {result.load_imbalance:.2f} x the mean",
    )
    slots = layer.num_experts + candidate.num_replicas
    yield line(
        "redundancy",
        f"{candidate.num_replicas} replicas: {slots} slots, {slots / spread.ep:g} per rank",
    )
    yield line("precision", _precision(found))
    exchange = cluster.exchange(schedule).name
    yield line(
        "exchange",
        (exchange if cluster.num_devices > 1 else "none (one device)")
        + f", {schedule.num_micro_batches} micro-batch"
        + ("es" if schedule.num_micro_batches > 1 else ""),
    )
    yield line("kernels", _kernels(found))
    event = best.event_layer_time_s
    yield line(
        "layer",
        f"{result.layer_time_s / US:,.0f} us, P10 to P90 {result.layer_time_low_s / US:,.0f} to "
        f"{result.layer_time_high_s / US:,.0f}; {result.evidence}, {result.calibration}"
        + (f"; {event / US:,.0f} us by the event engine" if event is not None else ""),
    )
    yield from (line("" if i else "grade", text) for i, text in enumerate(_grades(found)))
    low, high = (
        result.layer_time_s / t for t in (result.layer_time_high_s, result.layer_time_low_s)
    )
    rate = best.tokens_per_s_per_device
    yield line(
        "throughput",
        f"{rate:,.0f} tokens/s per device ({rate * low:,.0f} to {rate * high:,.0f}) through the "
        f"{best.moe_layers} MoE layers, {best.pass_time_s * 1e3:,.1f} ms a pass",
    )
    yield line(
        "",
        "MoE layers only: attention, embeddings and dense layers are not simulated; the whole "
        "model is slower",
    )
    yield line("memory", _memory(found))
    yield from (
        line(subject, text)
        for subject, text in zip(("limited by", ""), _limits(found), strict=False)
    )
    for i, h in enumerate(found.helps[:_LINES_OF_HELP]):
        yield line(
            "" if i else "would help",
            f"{h.change}: {_percent(h.factor.mid)} % layer tokens/s "
            f"({_percent(h.factor.low)} to {_percent(h.factor.high)})",
        )
    yield line("power, price", _economics(best))
    yield from (line("" if i else "ties", text) for i, text in enumerate(_ties(found)))
    yield line(
        "looked at",
        f"{found.num_screened:,} designs by their bound, {found.num_fitting:,} fit in memory, "
        f"{len(found.choices)} simulated",
    )
    yield from (line("" if i else "assumed", note) for i, note in enumerate(_notes(found)))


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f}"


def _grades(found: Recommendation) -> Iterator[str]:
    """Yield what the time rests on: the experts, then the exchange."""
    result = found.best.result
    phase, grade = result.graded
    experts = result.grades["experts"]
    yield f"{grade.letter} by {phase}; experts {experts.letter}: {experts.rests_on}"
    if "dispatch" in result.grades:
        moved = result.grades["dispatch"]
        yield f"exchange {moved.letter}: {moved.rests_on}; the other phases D: assumed"


def _kernels(found: Recommendation) -> str:
    result, engines = found.best.result, found.engines
    if not result.kernels:
        return "those of the device, which serving engines do not choose"
    launched = f"launched by {', '.join(engines)}" if engines else "no serving engine launches this"
    return f"{result.kernels}, tile {result.tile}; {launched}"


def _precision(found: Recommendation) -> str:
    name = found.best.candidate.layer.precision.name
    published = found.model.published_as
    if name == published:
        return f"{name} (as published)"
    middle, low, high = found.best.loss_delta
    return f"{name} (published in {published}); loss {middle:+.4f} nats ({low:+.4f} to {high:+.4f})"


def _memory(found: Recommendation) -> str:
    fullest = memory_of(prepare(found.best.candidate, found.cluster, found.workload))
    assert fullest is not None, "a model has a dense part"
    parts = fullest.need
    text = (
        f"{fullest.total_bytes / GIB:.1f} of {fullest.usable_bytes / GIB:.1f} usable GiB on the "
        f"fullest device ({fullest.device}): experts {float(parts.experts_bytes) / GIB:.1f}, "
        f"dense part {parts.dense_bytes / GIB:.1f}, KV cache {parts.kv_bytes / GIB:.1f}, buffers "
        f"{float(parts.buffer_bytes) / GIB:.1f}; room for {found.kv_tokens_left:,} more tokens of "
        "KV cache"
    )
    if found.workload.phase == "decode":
        batch = found.workload.num_tokens_per_device
        text += (
            f" ({found.kv_tokens_left // batch:,} for each of the {batch:,} sequences, in addition "
            f"to {found.workload.kv_tokens // batch:,})"
        )
    return text


def _limits(found: Recommendation) -> Iterator[str]:
    result = found.best.result
    shares = sorted(
        ((t / result.layer_time_s, name) for name, t in result.phase_time_s.items()), reverse=True
    )
    busiest = sorted(((share, kind) for kind, share in result.utilisation.items()), reverse=True)
    yield (
        ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares[:3] if share > 0.005)
        + " of the critical path; busiest: "
        + ", ".join(
            f"{_RESOURCES.get(kind, kind)} {100 * share:.0f} %"
            for share, kind in busiest[:2]
            if share > 0.005
        )
    )
    if found.exchange:
        yield "; ".join(
            f"{row['direction']} {row['copies_per_token']:.2f} copies a token, limited by "
            f"{_STAGES.get(str(row['limited_by']), row['limited_by'])}"
            for row in found.exchange
        )


def _economics(best: Choice) -> str:
    row = best.row()
    power = (
        "power unknown"
        if best.wall_watts_per_device is None
        else f"{best.watts_per_device:,.0f} W per device, {best.wall_watts_per_device:,.0f} with "
        "its share of host and cooling, "
        f"{row['moe_layers_joules_per_token']:.3g} J per token"
    )
    price = (
        "price unknown"
        if best.usd_per_hour is None
        else f"{best.usd_per_hour:,.0f} USD/h, {row['moe_layers_usd_per_million_tokens']:.3g} USD "
        "per million tokens"
    )
    return f"{power}; {price} (MoE layers only; assumptions of {best.cost_model})"


def _ties(found: Recommendation) -> Iterator[str]:
    first, best = found.choices[0], found.best
    if len(found.choices) == 1:
        yield "none: there is no other design"
        return
    if len(found.tied) == 1:
        yield "none: every other design is slower for certain, as far as its kernels' residuals say"
        return
    yield (
        f"{len(found.tied)} designs cannot be told apart by their intervals; this is the simplest "
        "of them"
    )
    if first is not best:
        what, column = _COSTS[found.objective]
        less = 1.0 - first.row()[column] / best.row()[column]
        name = first.candidate.label
        yield f"first by {found.objective}: {name} ({100 * less:.1f} % less {what})"


def _notes(found: Recommendation) -> Iterator[str]:
    yield (
        f"load {found.workload.routing} of the experts, known when they are placed; --routing "
        "trace:FILE takes yours"
    )
    if found.workload.phase == "decode" and found.workload.kv_tokens_per_device is None:
        yield (
            f"a context of {USUAL_CONTEXT:,} tokens a sequence in the KV cache; --kv-tokens takes "
            "the tokens of a device"
        )
    if found.cluster.is_what_if:
        yield f"{found.cluster.name}: sizes that nobody measured, counted as spec_sheet"
    yield from found.notes
