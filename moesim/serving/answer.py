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


__all__ = ["grounds", "serve_answer", "served_words"]
