"""Measure what a choice of gate does to the loss of tiny byte-level MoE language models on this
CPU.

Each variant is trained with the same seeds as flat top-k routing, from the same weights (except its
own) on the same batches of Python's standard library, and measured on held-out files. So the
differences are paired, seed by seed. They are shown next to the table `moesim.quality.deltas`.
``null`` is flat routing from another draw of the router's keys: it shows how far apart two models
end that differ in nothing.

Models of 0.1M active parameters that see 0.4M bytes say whether the references train, which way a
choice pulls early on, and how large the noise is. They do not transfer: a byte vocabulary favors
hash routing, seconds of training punish whatever slows learning, and no figure from here enters the
table.

Writes runs.csv (a row per model), deltas.csv (a row per variant) and deltas.html.
"""

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from model import Probe, Variant, text, train, unigram_entropy

from moesim.cli.script import Out, Quick, run_script
from moesim.errors import ConfigError
from moesim.model import Gate
from moesim.quality import PUBLISHED
from moesim.quality.deltas import DELTAS, Delta, capacity_delta
from moesim.quality.gates import gate_delta
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.quality import paired_differences
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.version import VERSION

OUT = Path(__file__).parents[1] / "out" / "quality_probe"
FLAT = "flat"
VARIANTS = {
    FLAT: Variant(),
    "two_level": Variant(gate="two_level:4:2", learns_groups=True),
    "noisy_top_k": Variant(gate="flat+noisy_top_k:1"),
    "expert_dropout": Variant(dropout=0.4),
    "null": Variant(redraw=1),
    "two_level_selects": Variant(gate="two_level:4:2"),
    "group_limited": Variant(gate="group_limited:8:4"),
    "hash": Variant(gate="flat+hash"),
    "bias": Variant(gate="flat+sigmoid+bias"),
    "share_tokens": Variant(gate="flat+share_tokens:2"),
    "capacity_1": Variant(capacity_factor=1.0),
    "dense": Variant(dense=True),
}
QUICK = (FLAT, "two_level", "noisy_top_k", "expert_dropout")
#: two-sided share of the interval of the mean
_SHARE = 0.90
COLUMNS = {
    "variant": "variant",
    "delta": "delta",
    "low": "low",
    "high": "high",
    "deviation": "sd",
    "table": "table",
    "table_low": "low",
    "table_high": "high",
    "verdict": "verdict",
    "load_imbalance": "imbalance",
    "ms_per_step": "ms/step",
}


def expected(name: str, probe: Probe) -> Delta:
    """Return the table's entry for a variant; for a dense model, that of the joint law at its
    smallest fitted size.
    """
    variant = VARIANTS[name]
    if variant.dense:
        experts, size, tokens = probe.num_experts / probe.top_k, 79e6, 0.5e9
        ends = [PUBLISHED.interval(e, size, tokens, 1.0) for e in (1.0, experts)]
        return Delta(
            ends[0][1] - ends[1][1],
            ends[0][0] - ends[1][2],
            ends[0][2] - ends[1][0],
            source=f"joint law, 1 against {experts:g} experts, 79M parameters, 0.5B tokens",
        )
    if variant.dropout:
        return DELTAS["expert_dropout"]
    if variant.capacity_factor is not None:
        return capacity_delta(variant.capacity_factor, probe.top_k)
    return gate_delta(Gate.parse(variant.gate))


def verdict(low: float, high: float, table: Delta) -> str:
    """Say whether the measured and the tabulated sign agree, or which of the two has none."""
    if low <= 0 <= high:
        return "undecided: within noise"
    if table.nats == 0:
        return "table has no sign"
    if (low > 0) != (table.nats > 0):
        return "sign disagrees"
    return (
        "sign agrees"
        if table.low <= (low + high) / 2 <= table.high
        else "sign agrees, size does not"
    )


def summary(runs: list[dict[str, Any]], probe: Probe) -> list[dict[str, Any]]:
    """Return paired differences to flat routing by variant, with the t interval of their mean."""
    from scipy.stats import t

    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        part = [run for run in runs if run["variant"] == name]
        deltas = np.array([run["delta"] for run in part])
        mean, deviation = float(deltas.mean()), float(deltas.std(ddof=1))
        reach = float(t.ppf((1 + _SHARE) / 2, len(deltas) - 1)) * deviation / len(deltas) ** 0.5
        table = expected(name, probe)
        found = {
            "variant": name,
            "gate": VARIANTS[name].gate,
            "seeds": len(part),
            "loss": float(np.mean([run["loss"] for run in part])),
            "delta": mean,
            "deviation": deviation,
            "low": mean - reach,
            "high": mean + reach,
            "table": table.nats,
            "table_low": table.low,
            "table_high": table.high,
            "table_unknown": table.unknown,
            "verdict": "" if name in (FLAT, "null") else verdict(mean - reach, mean + reach, table),
        }
        found |= {
            key: float(np.mean([run[key] for run in part]))
            for key in ("load_imbalance", "ms_per_step")
        }
        rows.append(found | {"evidence": "measured", "calibration": "none", "version": VERSION})
    return rows


def run_all(names: list[str], seeds: int, probe: Probe) -> list[dict[str, Any]]:
    """Train every variant with every seed; an interruption leaves whole pairs, as seeds are the
    outer loop.
    """
    entropy, digest = unigram_entropy(), text()[2]
    common = {
        "evidence": "measured",
        "calibration": "none",
        "engine": "torch",
        "version": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "text_digest": digest,
        "unigram_entropy": entropy,
        **asdict(probe),
    }
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in names:
            found = train(probe, VARIANTS[name], seed)
            base = (
                found["loss"]
                if name == FLAT
                else next(
                    run["loss"] for run in runs if run["variant"] == FLAT and run["seed"] == seed
                )
            )
            runs.append(
                {
                    "variant": name,
                    "gate": VARIANTS[name].gate,
                    "seed": seed,
                    **found,
                    "delta": found["loss"] - base,
                    **common,
                }
            )
            say(
                f"seed {seed} {name}: {found['loss']:.4f} nats per byte, "
                f"{found['loss'] - base:+.4f}, {found['ms_per_step']:.0f} ms a step"
            )
    return runs


def main(
    out: Out = OUT,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0; at least 2.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps of a model.", min=1)] = Probe().steps,
    quick: Quick = False,
) -> None:
    """Train tiny MoE language models and report how their losses differ by gate."""
    if seeds < 2:
        raise ConfigError(f"--seeds: expected at least 2, since one tells no spread, got {seeds}")
    writable_folder(out)
    # one thread: the same numbers every time, and tensors too small for more
    torch.set_num_threads(1)
    probe, names = Probe(steps=steps), list(VARIANTS)
    if quick:
        probe, names = (
            replace(probe, steps=min(steps, 30), hidden_size=32, held_out_batches=4, batch=8),
            list(QUICK),
        )
    runs = run_all(names, 2 if quick else seeds, probe)
    rows = summary(runs, probe)
    write_csv(out / "runs.csv", runs)
    write_csv(out / "deltas.csv", rows)
    write_html(out / "deltas.html", paired_differences(rows, runs, base=FLAT, same="null"))
    entropy = runs[0]["unigram_entropy"]
    print_table(
        f"Held-out loss against flat top-k ({rows[0]['loss']:.3f} nats per byte; byte frequencies "
        f"alone {entropy:.3f}), {rows[0]['seeds']} seeds, paired",
        rows[1:],
        COLUMNS,
    )
    print(
        "tiny models do not transfer: this checks that the references train and how large the "
        "noise is; nothing of it enters the table"
    )
    say(f"wrote {out}/runs.csv, deltas.csv and deltas.html")


if __name__ == "__main__":
    run_script(main)
