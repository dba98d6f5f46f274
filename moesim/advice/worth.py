"""Rank what each change is worth, in groups: gain, elasticity, price, power and loss.

Elasticities are d ln(throughput) / d ln(number) from steps of +-10 %. To compare hardware with
design, the change "2x experts at equal loss" narrows the experts until the loss is unchanged.
Intervals are those of `moesim.advice.gains`, and changes that they do not tell apart form a group.
A larger NVLink domain has no price in the economics file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moesim.advice.doubled import EQUAL_LOSS, HBM, NVLINK, System, designs, hardware
from moesim.advice.gains import Outcome, elasticity, gain, loss_step, narrowed
from moesim.design.candidate import Candidate
from moesim.errors import ConfigError, MoesimError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics, priced
from moesim.model import DensePart
from moesim.version import VERSION

Row = dict[str, Any]
#: half of the step of an elasticity, as a factor
STEP = 1.1
COLUMNS = (
    *("model", "cluster", "workload", "change", "kind", "rank", "group"),
    *("gain", "gain_low", "gain_high", "elasticity", "elasticity_low", "elasticity_high"),
    *("tokens_per_usd_gain", "tokens_per_joule_gain", "usd_per_hour_ratio", "watts_ratio"),
    *("loss_change", "loss_change_low", "loss_change_high", "note"),
    *("num_experts", "top_k", "expert_intermediate_size", "precision", "placement"),
    *("num_replicas", "exchange", "num_micro_batches", "num_tokens_per_device", "routing"),
    *("layer_time_us", "layer_time_low_us", "layer_time_high_us"),
    *("layer_tokens_per_s_per_device", "bottleneck", "load_imbalance", "peak_memory_gib"),
    *("cost_model", "evidence", "calibration", "engine", "seed", "version", "profile_hash"),
)
#: columns that the terminal shows, with their headings
SHOWN = {
    "change": "change",
    "group": "group",
    "gain": "gain",
    "range": "interval",
    "elasticity": "elasticity",
    "tokens_per_usd_gain": "per USD",
    "tokens_per_joule_gain": "per joule",
    "loss_change": "loss",
    "loss_range": "interval ",
    "bottleneck": "bottleneck",
    "calibration": "calibration",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One unchanged design, and everything that measures a change of it.

    Attributes:
        system: How designs run.
        base: The unchanged design, simulated.
        train_tokens: Training tokens of the model, for the loss.
        economics: The cost and power model.
    """

    system: System
    base: Outcome
    train_tokens: float
    economics: Economics

    @property
    def dense_part(self) -> DensePart:
        """The rest of the model, which the loss depends on.

        Raises:
            ConfigError: The design has none.
        """
        dense = self.base.result.candidate.dense_part
        if dense is None:
            raise ConfigError("dense_part: expected the rest of the model, for its loss, got none")
        return dense

    def row(self, after: Outcome) -> Row:
        """Return the columns of one change.

        Args:
            after: The changed design, simulated.

        Raises:
            MoesimError: The laws have no loss for one of the two layers.
        """
        was, now = (_prices(self.economics, one) for one in (self.base, after))

        def ratio(name: str, power: int = 1) -> float | None:
            known = was[name] is not None and now[name] is not None
            return (now[name] / was[name]) ** power if known else None

        old, new = self.base.result.candidate, after.result.candidate
        row = after.result.row() | gain(self.base, after).row("gain")
        if old.layer != new.layer:
            step = loss_step(old.layer, new.layer, self.dense_part, self.train_tokens)
            row |= step.row("loss_change")
        row |= {
            "tokens_per_usd_gain": ratio("layer_usd_per_million_tokens", -1),
            "tokens_per_joule_gain": ratio("layer_joules_per_token", -1),
            "usd_per_hour_ratio": ratio("usd_per_hour"),
            "cost_model": now["cost_model"],
            "watts_ratio": ratio("watts_per_device"),
        }
        if was["domain"] != now["domain"]:
            row["tokens_per_usd_gain"] = row["usd_per_hour_ratio"] = None
            row["note"] = "a larger NVLink domain has no price"
        return row

    def of_hardware(self, cluster: Cluster, twice: dict[str, Any], key: str) -> Row:
        """Return the row of a cluster with other numbers.

        Args:
            cluster: The unchanged cluster.
            twice: Arguments of `Cluster.with_` that make the change.
            key: The number whose elasticity belongs in the row; empty for none.

        Raises:
            MoesimError: There is no such cluster, or the design does not run on it.
        """
        candidate = self.base.result.candidate
        row = self.row(self.system.run(candidate, cluster.with_(**twice)))
        if key:
            below, above = (
                self.system.run(candidate, cluster.with_(**{key: f"{factor:.6f}x"}))
                for factor in (1 / STEP, STEP)
            )
            row |= elasticity(below, above, STEP**2).row("elasticity")
        return row

    def at_equal_loss(self) -> Row:
        """Return the row of twice the experts, narrowed until the loss is unchanged.

        Raises:
            ConfigError: No width reaches that loss.
            MoesimError: A narrowed design cannot be simulated.
        """
        candidate, cluster = self.base.result.candidate, self.base.cluster
        larger = replace(candidate.layer, num_experts=2 * candidate.layer.num_experts)
        narrow = narrowed(candidate.layer, larger, self.dense_part, self.train_tokens)
        if "mid" not in narrow:
            raise ConfigError("expected a narrower layer of the same loss, got none")
        found = {
            end: self.system.run(replace(candidate, layer=layer), cluster)
            for end, layer in narrow.items()
        }
        row = self.row(found["mid"])
        # where not even the full width is certain to keep the loss, no gain is certain
        worst = gain(self.base, found["high"]).low if "high" in found else min(row["gain_low"], 1.0)
        best = gain(self.base, found["low"]).high
        return row | {
            "gain_low": min(worst, row["gain_low"]),
            "gain_high": max(best, row["gain_high"]),
        }

    def changes(self) -> Iterator[Row]:
        """Yield a row per change; a change without a result says why in the column ``note``."""
        candidate, cluster = self.base.result.candidate, self.base.cluster
        for name, twice, key in hardware(cluster):
            yield _noted(name, "hardware", partial(self.of_hardware, cluster, twice, key))
        for name, design, spare in designs(candidate):
            yield _noted(name, "design", partial(self._of_design, design, spare))
        yield _noted(EQUAL_LOSS, "design", self.at_equal_loss)

    def _of_design(self, design: Candidate, spare: int) -> Row:
        return self.row(self.system.run(design, self.base.cluster, spare=spare))


def _prices(economics: Economics, one: Outcome) -> Row:
    """Return the columns of price and power of a simulated design, and the size of its NVLink
    domain.
    """
    result = one.result
    tokens = round(result.tokens_per_s * result.layer_time_s)
    columns = priced(economics, one.cluster, result.layer_time_s, tokens, result.mean_utilisation)
    return columns | {"domain": one.cluster.devices_per_domain}


def _noted(name: str, kind: str, make: Callable[[], Row]) -> Row:
    """Return the row of a change, or one that says why there is none."""
    named = {"change": name, "kind": kind}
    try:
        return named | make()
    except MoesimError as error:
        about = {"evidence": "simulated", "calibration": "none", "engine": "flow"}
        return named | {"note": str(error), **about, "version": VERSION}


def ranked(rows: list[Row]) -> list[Row]:
    """Rank changes by gain, and group those whose intervals overlap that of the group's first.

    Args:
        rows: Rows of `Comparison.changes`.

    Returns:
        The rows with a result, largest gain first, with ``rank``, ``group`` and texts of their
        intervals; then the others.
    """
    done = sorted((row for row in rows if row.get("gain")), key=lambda row: -row["gain"])
    group, leader = -1, None
    for rank, row in enumerate(done):
        if leader is None or row["gain_high"] < leader["gain_low"]:
            group, leader = group + 1, row
        between = f"{row['gain_low']:.3f}-{row['gain_high']:.3f}"
        row |= {"rank": rank, "group": group, "range": between}
        if row.get("loss_change") is not None:
            low, high = row["loss_change_low"], row["loss_change_high"]
            row["loss_range"] = f"{low:+.4f} to {high:+.4f}"
    return done + [row for row in rows if not row.get("gain")]


def answer(rows: list[Row]) -> str:
    """Say which of NVLink, HBM and experts is worth most, where the intervals tell.

    Args:
        rows: Rows that `ranked` returned, best first.
    """
    named = (NVLINK, HBM, EQUAL_LOSS)
    asked = [row for row in rows if row["change"] in named and row.get("gain")]
    best = [row["change"] for row in asked if row["gain_high"] >= asked[0]["gain_low"]]
    first = f"worth most: {best[0]}" if len(best) == 1 else f"not told apart: {', '.join(best)}"
    each = [f"{row['change']} x {row['gain']:.3f} [{row['range']}]" for row in asked]
    return f"{first} ({', '.join(each)})"
