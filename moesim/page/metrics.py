"""What the columns of studies mean: label, unit and definition, told wherever they are shown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The meaning of a column.

    Attributes:
        label: Its name for people.
        unit: Its unit; empty for none.
        says: One sentence that defines it.
    """

    label: str
    unit: str
    says: str

    @property
    def titled(self) -> str:
        """The label with the unit, for axes and headings."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def _metric(label: str, unit: str, says: str) -> Metric:
    return Metric(label=label, unit=unit, says=says)


_TPOT_SAYS = (
    "Time per output token of an answer: (end of the answer - first token) / (tokens - 1), the "
    "mean over requests. It spreads stalls over the answer; the gap between two tokens (ITL) does "
    "not."
)
METRICS: dict[str, Metric] = {
    "loss": _metric(
        "loss",
        "nats per token",
        "Estimated training loss of the whole model by a published scaling law; lower is better. "
        "Its interval is the law's own.",
    ),
    "layer_tokens_per_s_per_device": _metric(
        "MoE layer throughput",
        "tokens/s per device",
        "Tokens of one device over the time of one MoE layer. Attention and other layers are not "
        "included, so it is not the speed of a whole model.",
    ),
    "layer_time_us": _metric(
        "layer time",
        "us",
        "Time of one forward pass of one MoE layer, from the gate to the reduction.",
    ),
    "layer_joules_per_token": _metric(
        "layer energy",
        "J per token",
        "Energy at the wall for one token through one MoE layer, by the cost model's assumptions.",
    ),
    "layer_usd_per_million_tokens": _metric(
        "layer price",
        "USD per million tokens",
        "Price of the devices for the time of one MoE layer, by the cost model's assumptions.",
    ),
    "peak_memory_gib": _metric(
        "memory", "GiB", "Memory needed on the device with the least headroom."
    ),
    "memory_over_gib": _metric(
        "memory beyond the device's",
        "GiB",
        "Memory needed minus what a device has; below 0 it fits.",
    ),
    "num_replicas": _metric("replicas", "", "Further copies of experts, over all devices."),
    "hidden_size": _metric("hidden size", "", "Width of a token."),
    "gate": _metric("gate", "", "How a token's experts are chosen."),
    "wall_s": _metric("evaluation", "s", "Time that the evaluation took."),
    "dropped_token_fraction": _metric(
        "dropped choices", "share", "Choices of experts that exceed a capacity and are dropped."
    ),
    "bubble_fraction": _metric(
        "bubble", "share", "Share of the pipeline's time in which a stage waits, mean over stages."
    ),
    "exposed_communication_fraction": _metric(
        "exposed communication", "share", "Share of a step in which a device waits for an exchange."
    ),
    "watts_per_device": _metric(
        "power", "W per device", "Mean power of a device, by the cost model's assumptions."
    ),
    "usd_per_hour": _metric("price of the cluster", "USD per hour", "Sum of the devices' prices."),
    "tokens_per_s_per_device": _metric(
        "throughput",
        "tokens/s per device",
        "Tokens over the time and over all devices: of answers where a model is served, of the "
        "global batch where it is trained.",
    ),
    "tokens_per_s_per_user": _metric(
        "interactivity",
        "tokens/s per user",
        "Tokens per second that one user sees while an answer is written: 1 / TPOT.",
    ),
    "ttft_ms": _metric(
        "TTFT",
        "ms",
        "Time to first token: from the arrival of a request to its first token, queue included; "
        "the mean over requests.",
    ),
    "tpot_ms": _metric("TPOT", "ms", _TPOT_SAYS),
    "joules_per_million_tokens": _metric(
        "energy",
        "J per million tokens",
        "Energy at the wall for a million tokens of answers, by the cost model's assumptions.",
    ),
    "usd_per_million_tokens": _metric(
        "price",
        "USD per million tokens",
        "Price of the devices for a million tokens of answers, by the cost model's assumptions.",
    ),
    "compression_loss_delta": _metric(
        "loss of compression", "nats per token", "Loss that pruning and cold formats add."
    ),
    "train_days": _metric(
        "training time",
        "days",
        "Days of the whole training run without failures: tokens over tokens per second.",
    ),
    "train_usd": _metric(
        "price of training", "USD", "Days x devices x price of a device, without failures."
    ),
    "mfu": _metric(
        "MFU",
        "",
        "Model FLOPs utilization: FLOPs that a step needs without recomputation, over the bf16 "
        "peak.",
    ),
    "concurrency": _metric("clients", "", "Requests that are in flight at the same time."),
    "num_experts": _metric("experts", "", "Routed experts of a layer."),
    "top_k": _metric("top-k", "", "Experts that a token uses."),
    "expert_intermediate_size": _metric("expert width", "", "Width of an expert's hidden layer."),
    "bottleneck": _metric("bottleneck", "", "Phase with the most time on the critical path."),
    "limited_by": _metric("limited by", "", "Phase with the most time of a step."),
    "grade": _metric(
        "grade",
        "",
        "What the worst phase of a tenth or more of the time rests on: A fitted on this device to "
        "D assumed.",
    ),
    "calibration": _metric(
        "calibration",
        "",
        "calibrated: fitted on this device; few_shot: from a few of its rows; spec_sheet: from its "
        "data sheet; none: no measured rows.",
    ),
    "evidence": _metric("evidence", "", "simulated, measured, or interpolated between measured."),
    "group": _metric(
        "group", "", "Designs of one group have overlapping intervals: they cannot be told apart."
    ),
    "num_ties": _metric("ties", "", "Other designs of the front whose intervals all overlap."),
    "rank": _metric("rank", "", "Place along the front, ordered by the first objective."),
    "number": _metric("trial", "", "Number of the trial."),
    "design": _metric("design key", "", "Hash over every field of the design."),
    "state": _metric(
        "state",
        "",
        "fits, over_memory, over_constraint, infeasible (no candidate) or failed.",
    ),
    "load_imbalance": _metric(
        "imbalance", "", "Rows of the busiest device over the mean of all devices."
    ),
}

#: columns whose interval has another name: column -> (low, high)
_INTERVALS = {
    "ttft_ms": ("ttft_low_ms", "ttft_high_ms"),
    "tpot_ms": ("tpot_low_ms", "tpot_high_ms"),
    "layer_time_us": ("layer_time_low_us", "layer_time_high_us"),
    "tokens_per_s_per_user": (
        "output_tokens_per_s_per_user_low",
        "output_tokens_per_s_per_user_high",
    ),
}
_RATE = "layer_tokens_per_s_per_device"
_WHOLE = "output_tokens_per_s_per_device"


def metric(column: str) -> Metric:
    """Return the meaning of a column; one without a record is named by its words."""
    if column in METRICS:
        return METRICS[column]
    ends = re.fullmatch(r"(?:output_)?(\w+?)_(low|high)((?:_\w+)?)", column)
    of = ends and next((name for name in (f"{ends[1]}{ends[3]}", ends[1]) if name in METRICS), None)
    if not ends or not of:
        return _metric(column.replace("_", " "), "", "")
    end, about = ("P10", "Lower") if ends[2] == "low" else ("P90", "Upper"), METRICS[of]
    return _metric(
        f"{about.label}, {end[0]}", about.unit, f"{end[1]} end of the interval of {about.label}."
    )


def interval(row: Mapping[str, Any], column: str) -> tuple[float, float] | None:
    """Return the ends of the interval (P10 to P90) of a value of a row; None without one."""
    value = row.get(column)
    if value is None:
        return None
    if column == _RATE and row.get("layer_time_low_us"):
        rate = value * row["layer_time_us"]
        return rate / row["layer_time_high_us"], rate / row["layer_time_low_us"]
    names = _INTERVALS.get(column, (f"{column}_low", f"{column}_high"))
    if column == "tokens_per_s_per_device" and f"{_WHOLE}_low" in row:
        names = f"{_WHOLE}_low", f"{_WHOLE}_high"
    elif column == "tokens_per_s_per_device" and row.get("step_low_s"):
        tokens = value * row["step_s"]
        return tokens / row["step_high_s"], tokens / row["step_low_s"]
    low, high = (row.get(name) for name in names)
    return None if low is None or high is None else (float(low), float(high))
