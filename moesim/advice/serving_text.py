"""Write what is recommended for serving a whole model as lines of text."""

from collections.abc import Iterator

from moesim.advice.serving import ServingAdvice
from moesim.design.served import ServedModel
from moesim.hardware import Cluster
from moesim.serving.text import lines_of
from moesim.serving.whole import WholeResult
from moesim.simulation.steps.simulate import stage_of, with_exchange

#: columns of tables of layouts, in 80 characters; latencies in milliseconds
SHOWN = {
    "design": "layout",
    "concurrency": "clients",
    "output_tokens_per_s_per_device": "tok/s/dev",
    "output_tokens_per_s_per_user": "/user",
    "ttft_mean_ms": "TTFT",
    "tpot_mean_ms": "TPOT",
    "usd_per_million_tokens": "USD/M",
}
#: the same of pairs of pools
DIVIDED = {
    "prefill_layout": "prompts",
    "layout": "decoding",
    "concurrency": "clients",
    "output_tokens_per_s_per_device": "tok/s/dev",
    "ttft_mean_ms": "TTFT",
    "tpot_mean_ms": "TPOT",
    "prefill_copies": "copies for prompts",
    "copies": "copies that decode",
}


def lines_of_advice(found: ServingAdvice) -> Iterator[str]:
    """Yield lines, each with a subject and what there is to say about it."""
    best, task = found.best, found.task
    served, row = best.served, best.row(task.economics)
    yield from lines_of(best, task.economics)
    yield _line("pools", _pools(found))
    yield _line("intervals", _intervals(row))
    yield _line("experts", _experts(served, task.cluster))
    yield _line(
        "schedule",
        f"{served.schedule.num_micro_batches} micro-batches, whose exchanges overlap"
        if served.schedule.num_micro_batches > 1
        else "serial",
    )
    yield _line("limited by", _limit(found))
    if found.doubt:
        yield _line("may not load", found.doubt)
    steady = found.estimated.row(task.economics)
    yield _line(
        "looked at",
        f"{found.num_tried} estimates of {1 + len(found.others) + len(found.refused)} layouts; of "
        f"this one, with {steady['concurrency']} clients: TTFT {_ms(steady, 'ttft_mean_ms', 0)} "
        f"and TPOT {_ms(steady, 'tpot_mean_ms', 2)} on average",
    )


def _pools(found: ServingAdvice) -> str:
    """Return whether devices are divided between prompts and decoding, and what the best of the
    other kind would give.
    """
    divides = len(found.best.pools) > 1
    here = "divided" if divides else "colocated"
    if not found.num_divided:
        return f"{here}; no two copies fit beside each other"
    other = found.rival
    if other is None:
        kind = "no colocated one" if divides else f"none of {found.num_divided} divided ones"
        return f"{here}; {kind} keeps the limits"
    row, best, before = other.row(), found.best.row(), other.pools[0]
    if not other.loop.requests:
        best = found.estimated.row()
    what = f"{other.copies} x {other.served.layout}"
    if not divides:
        what = f"{before.copies} x {before.served.layout} for prompts and {what}"
    rate, rates = (
        f"{_number(each, 'output_tokens_per_s_per_device'):,.0f}" for each in (row, best)
    )
    return (
        f"{here}; the best {'colocated' if divides else f'of {found.num_divided} divided'} "
        f"design{'' if divides else 's'}, {what}, comes to {rate} tok/s per device, this one to "
        f"{rates} ({row['requests_by']})"
    )


def _line(subject: str, text: str) -> str:
    return f"{subject:14}{text}"


def _number(row: dict[str, object], name: str) -> float:
    value = row[name]
    return 0.0 if value is None else float(str(value))


def _ms(row: dict[str, object], name: str, digits: int) -> str:
    return f"{_number(row, name):,.{digits}f} ms"


def _intervals(row: dict[str, object]) -> str:
    words = {
        "output_tokens_per_s_per_device": ("tok/s per device", 0),
        "output_tokens_per_s_per_user": ("per user", 1),
        "joules_per_million_tokens": ("J", 0),
        "usd_per_million_tokens": ("USD per million tokens", 2),
    }
    found = [
        f"{_number(row, f'{name}_low'):,.{digits}f}-{_number(row, f'{name}_high'):,.{digits}f} "
        f"{word}"
        for name, (word, digits) in words.items()
        if row[name] is not None
    ]
    return "P10-P90 " + ", ".join(found)


def _experts(served: ServedModel, cluster: Cluster) -> str:
    moe = served.spec.moe
    if moe is None:
        return "none"
    layout = served.layout
    where = f"{served.placement} on {layout.ep} ranks, {served.num_replicas} redundant"
    if layout.ep == 1:
        where = f"each cut over {layout.moe_tp} devices" if layout.moe_tp > 1 else "all on a device"
    if not layout.exchanges_tokens:
        return f"{where}; no exchange, every device has all tokens"
    stage = stage_of(cluster, served.layout.devices_per_stage)
    decode, prompt = (
        with_exchange(served, stage, decodes=decodes).schedule.exchange for decodes in (True, False)
    )
    exchange = f"exchange {decode}" + (f", for prompts {prompt}" if prompt != decode else "")
    return f"{where}; {exchange}"


def _limit(found: ServingAdvice) -> str:
    """Return what keeps the design from more: a limit, room in the cache, or the clients; and what
    takes the time of its steps.
    """
    best, task = found.best, found.task
    row, loop = best.row(), best.loop.row()
    near = sorted(
        (
            (_number(loop, limit.column) / limit.most_ms, limit)
            for limit in task.limits
            if loop[limit.column] is not None
        ),
        key=lambda one: -one[0],
    )
    why = "the number of clients asked for" if task.clients else "more clients add nothing"
    if near and near[0][0] > 0.75 and not task.clients:
        limit = near[0][1]
        why = f"{limit.column} {_number(loop, limit.column):,.1f} of {limit.most_ms:,.0f} allowed"
    elif _full(best):
        why = f"the KV cache, {_number(row, 'peak_kv_fraction'):.0%} in use"
    parts = ", ".join(
        f"{name} {seconds / best.decode.time_s:.0%}"
        for name, seconds in sorted(best.decode.phase_time_s.items(), key=lambda p: -p[1])[:3]
    )
    return f"{why}; decode steps by {parts}"


def _full(result: WholeResult) -> bool:
    return float(str(result.row()["peak_kv_fraction"])) > 0.9


__all__ = ["DIVIDED", "SHOWN", "lines_of_advice"]
