"""Find the number of experts from which a resource breaks, and what is known of the loss there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from moesim.advice.gains import loss_step
from moesim.advice.limits import Row
from moesim.model.gate import Gate
from moesim.model.presets import load_preset
from moesim.version import VERSION

#: columns that a figure shows over the number of experts, with their titles
METRICS = {
    "memory_gib": "memory of a device, GiB",
    "gate_share": "gate, share of the layer",
    "exchange_share": "dispatch and combine, share",
    "experts_efficiency": "experts, share of their roofline",
}
#: columns of `breaks` and of remedies that the terminal shows, with their headings
BREAKS_SHOWN = {
    "cluster": "cluster",
    "scale": "x size",
    "memory": "memory",
    "gate_flat": "flat gate",
    "gate_two_level": "two-level",
    "gate_product_key": "product keys",
    "exchange": "dispatch",
    "experts": "expert kernels",
}
REMEDIES_SHOWN = {
    "cluster": "cluster",
    "scale": "x size",
    "remedy": "remedy",
    "layer_time_us": "layer us",
    "gate_share": "gate",
    "exchange_share": "exchange",
    "experts_efficiency": "efficiency",
    "memory_gib": "GiB",
    "devices_needed": "devices needed",
    "breaks": "breaks",
}
#: experts -> perplexity on 100B words (Shazeer et al. 2017, arXiv 1701.06538)
_SHAZEER = {4096: 30.9, 65536: 28.9, 131072: 29.2}
_SHAZEER_TOKENS = 130e9


def first_broken(rows: Sequence[Row], name: str) -> str:
    """Say at how many experts something breaks first, and at how many it is no longer broken, if
    any.

    Args:
        rows: Rows of one cluster, scale and gate.
        name: What may break: ``memory``, ``gate``, ``exchange`` or ``experts``.
    """
    ordered = sorted(rows, key=lambda row: row["num_experts"])
    hit = [(row["num_experts"], row[f"{name}_broken"]) for row in ordered]
    where = [experts for experts, broken in hit if broken]
    if not where:
        return "never"
    healed = [experts for experts, broken in hit if not broken and experts > where[0]]
    return f"{where[0]:,}" + (f", not at {healed[-1]:,}" if healed else "")


def breaks(rows: Sequence[Row], gates: Sequence[str]) -> Iterator[Row]:
    """Yield for each cluster and scale the first number of experts that breaks each resource.

    Args:
        rows: Rows of `limit_row`.
        gates: Kinds of gate; the last of them is the lightest, by which memory, exchange and
            kernels are judged.
    """
    done = [row for row in rows if "breaks" in row]
    for where, scale in dict.fromkeys((row["cluster"], row["scale"]) for row in done):
        part = {
            kind: [
                r
                for r in done
                if (r["cluster"], r["scale"], r["gate_kind"]) == (where, scale, kind)
            ]
            for kind in gates
        }
        lightest = part[gates[-1]]
        yield {
            "cluster": where,
            "scale": scale,
            "memory": first_broken(lightest, "memory"),
            **{f"gate_{k}": first_broken(part[k], "gate") if part[k] else "" for k in gates},
            "exchange": first_broken(lightest, "exchange"),
            "experts": first_broken(lightest, "experts"),
            "evidence": "simulated",
            "version": VERSION,
        }


def against_shazeer(name: str) -> str:
    """Say how the estimate's steps of loss compare with the largest ever measured.

    Shazeer et al. 2017 chose 4 experts through two levels, in models smaller than today's.

    Args:
        name: The published model whose dense part the estimate uses.

    Raises:
        MoesimError: There is no such model.
    """
    preset, texts = load_preset(name), []
    one, *others = (
        replace(
            preset.layer,
            top_k=4,
            num_experts=count,
            gate=Gate.parse(f"two_level:{count >> 8}:1"),
        )
        for count in _SHAZEER
    )
    for other in others:
        step = loss_step(one, other, preset.dense_part, _SHAZEER_TOKENS)
        measured = math.log(_SHAZEER[other.num_experts] / _SHAZEER[one.num_experts])
        texts.append(
            f"{one.num_experts:,} -> {other.num_experts:,} experts {step.mid:+.4f} "
            f"[{step.low:+.4f}, {step.high:+.4f}] nats, measured {measured:+.4f}"
        )
    about = "loss, extrapolated, against Shazeer et al. 2017 (smaller models)"
    return f"{about}: {'; '.join(texts)}"
