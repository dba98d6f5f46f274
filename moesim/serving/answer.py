"""Say what serving a model comes to: the layout, how sure that is, and what is next."""

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.hardware.economics import Economics
from moesim.report.answer import Answer
from moesim.serving.whole import WholeResult


def serve_answer(results: Sequence[WholeResult], refused: int, economics: Economics) -> Answer:
    """Return which of several layouts to serve a model with.

    Args:
        results: Results of the layouts, the one with the most tokens/s per device first.
        refused: Number of layouts that do not run.
        economics: The cost and power model.
    """
    rows = [result.row(economics) for result in results]
    best, others = rows[0], rows[1:]
    ties = sum(
        _number(row, "output_tokens_per_s_per_device_high")
        >= _number(best, "output_tokens_per_s_per_device_low")
        for row in others
    )
    told = "It is the only layout that was run"
    why = ""
    if others:
        why = f"; the most tokens/s per device of {len(rows)} layouts"
        told = (
            f"{ties} of the {len(others)} others may reach as many, since their intervals overlap"
            if ties
            else f"None of the {len(others)} others reaches as many within the intervals"
        )
    if refused:
        told += f"; {refused} more do not run"
    step = "Find the limits it keeps with --slo" if others else "Leave out --layout to try all"
    return Answer(
        build=f"{served_words(results[0], best)}{why}.",
        confidence=f"{told}. {grounds(best)}",
        next_step=f"{step}, then launch it and compare TTFT and TPOT under your load.",
    )


def front_answer(front: Sequence[Mapping[str, Any]]) -> Answer:
    """Return which row of a front to take where nothing says what users need: the one with the
    largest product of tokens/s per device and per user.
    """
    rates = ("output_tokens_per_s_per_device", "output_tokens_per_s_per_user")
    if not front:
        return Answer(
            build="Nothing: no design that was tried runs.",
            confidence="Refusals follow from memory and from what divides, and stand above.",
            next_step="Add devices, or choose a narrower format.",
        )
    order = sorted(front, key=lambda row: -_number(row, rates[0]) * _number(row, rates[1]))
    best, others = order[0], order[1:]
    ties = sum(
        all(
            _number(row, f"{name}_high") >= _number(best, f"{name}_low")
            and _number(best, f"{name}_high") >= _number(row, f"{name}_low")
            for name in rates
        )
        for row in others
    )
    return Answer(
        build=f"{best['model']} on {best['cluster']} by {best['layout']} of "
        f"{best['serving_engine']}, {best['concurrency']} clients: {_number(best, rates[0]):,.0f} "
        f"tokens/s per device at {_number(best, rates[1]):,.1f} per user, the largest product of "
        f"the two on a front of {len(front)}.",
        confidence=f"{ties} of the {len(others)} others on the front overlap it in both. "
        f"{grounds(best)}",
        next_step="Say what users need with `moesim recommend --slo`, which picks one point of "
        "this front.",
    )


def served_words(result: WholeResult, row: Mapping[str, Any]) -> str:
    """Return a design with its clients, throughput and latencies in words."""
    served, pools = result.served, result.pools
    where = f"{served.layout} of {served.engine}"
    if len(pools) > 1:
        where = f"{pools[0].copies} x {pools[0].served.layout} for prompts and {where}"
    clients = f", {row['concurrency']} clients" if row.get("concurrency") else ""
    return (
        f"{served.name} by {where}{clients}: "
        f"{_number(row, 'output_tokens_per_s_per_device'):,.0f} tokens/s per device, "
        f"{_number(row, 'output_tokens_per_s_per_user'):,.1f} per user, TTFT "
        f"{_number(row, 'ttft_mean_ms'):,.0f} ms, TPOT {_number(row, 'tpot_mean_ms'):,.1f} ms on "
        "average"
    )


def grounds(row: Mapping[str, Any]) -> str:
    """Return the interval and the grade of a served design as a sentence."""
    low, high = (_number(row, f"tpot_{end}_ms") for end in ("low", "high"))
    return (
        f"TPOT is {low:,.1f} to {high:,.1f} ms (P10 to P90), grade {row['grade']} of A to D; it is "
        "simulated, and nothing was measured on your machine."
    )


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return 0.0 if value is None else float(str(value))


__all__ = ["front_answer", "grounds", "serve_answer", "served_words"]
