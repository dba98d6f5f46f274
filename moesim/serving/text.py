"""Say in words what a served model does, and what limits it."""

from collections.abc import Iterator

from moesim.hardware.economics import Economics
from moesim.serving.whole import WholeResult
from moesim.simulation.steps.simulate import StepResult
from moesim.units import GIB, MS

#: column at which what a line says begins
INDENT = 14


def lines_of(result: WholeResult, economics: Economics) -> Iterator[str]:
    """Yield a line for each thing to say: its name, and from column `INDENT` on what it is."""
    row, loop, served = result.row(economics), result.loop.row(), result.served

    def number(name: str) -> float:
        value = row[name]
        return 0.0 if value is None else float(str(value))

    copies = result.copies
    before = result.pools[0]
    yield f"{served.name} on {result.cluster.name}: {served.layout}" + (
        f", {copies} copies of {served.layout.num_devices} devices" if copies > 1 else ""
    )
    if before is not result.pools[-1]:
        yield f"prompts by    {before.copies} x {before.served.layout}, {before.devices} devices"
    yield (
        f"served by     {result.engine.title}; experts {served.precision.name} by "
        f"{result.decode.kernels or 'none'}, dense {served.dense_format}, KV {served.kv_format}"
    )
    if served.form_words:
        yield (
            f"experts       {', '.join(served.form_words)}; loss "
            f"{number('compression_loss_delta'):+.3f} ({number('compression_loss_delta_low'):+.3f} "
            f"to {number('compression_loss_delta_high'):+.3f}) nats"
        )
    clients = f"{loop['concurrency']} clients" if loop["concurrency"] else "open arrivals"
    lengths = f"{row['isl']} + {row['osl']} tokens"
    number_of = loop["num_requests"]
    how = f"{number_of} in all" if number_of else "the steady state"
    yield f"requests      {clients}, {lengths}, {how}"
    yield (
        f"TTFT          {_spread(row, 'ttft')}; from sending to the first token; P10-P90 of the "
        f"mean {number('ttft_low_ms'):,.0f}-{number('ttft_high_ms'):,.0f} ms"
    )
    yield (
        f"TPOT          {_spread(row, 'tpot')}; (last - first token) / (osl - 1); P10-P90 of the "
        f"mean {number('tpot_low_ms'):,.2f}-{number('tpot_high_ms'):,.2f} ms"
    )
    yield (
        f"throughput    {number('output_tokens_per_s'):,.0f} output tokens/s, "
        f"{number('output_tokens_per_s_per_device'):,.0f} per device, "
        f"{number('output_tokens_per_s_per_user'):,.1f} per user"
    )
    memory = result.pools[-1].memory
    away = memory.host_bytes > 0
    yield (
        f"memory        experts {memory.experts_bytes / GIB:.1f}, other weights "
        f"{memory.dense_bytes / GIB:.1f} of {memory.usable_bytes / GIB:.1f} usable GiB"
        + (f", {memory.host_bytes / GIB:.1f} GiB of a device's experts in the host's" * away)
        + f"; KV cache of {number('kv_tokens'):,.0f} tokens a rank, "
        + f"{number('peak_kv_fraction'):.0%} used"
    )
    if row["joules_per_million_tokens"] is not None or row["usd_per_million_tokens"] is not None:
        yield (
            f"energy, cost  {number('joules_per_million_tokens') / 1e6:,.2f} MJ and "
            f"{number('usd_per_million_tokens'):,.2f} USD per million output tokens "
            f"({economics.name}@{economics.digest})"
        )
    batch = float(str(loop["mean_batch"]))
    host_s = result.engine.time_s(0.0, batch, 0)
    yield (
        f"decode step   {_step(result.decode)}; {batch:,.1f} sequences a rank, and "
        f"{host_s / MS:,.2f} ms of the host"
    )
    yield f"prompt        {_step(result.prefill)}"
    yield f"grade         {row['grade']}: " + "; ".join(_grades(result.decode))


def _spread(row: dict[str, object], name: str) -> str:
    digits = 0 if name == "ttft" else 2
    if row[f"{name}_p50_ms"] is None:  # of a steady state
        return "on average " + _number(row[f"{name}_mean_ms"], digits) + " ms"
    values = [_number(row[f"{name}_{p}_ms"], digits) for p in ("p50", "p90", "p99")]
    return f"P50/P90/P99 {'/'.join(values)} ms"


def _number(value: object, digits: int) -> str:
    return "-" if value is None else f"{float(str(value)):,.{digits}f}"


def _step(step: StepResult) -> str:
    parts = sorted(step.phase_time_s.items(), key=lambda one: -one[1])[:4]
    shares = ", ".join(f"{name} {seconds / step.time_s:.0%}" for name, seconds in parts)
    error = step.chain_error_s / step.time_s
    return f"{step.time_s / MS:,.2f} ms (repeated layers +-{error:.1%}): {shares}"


def _grades(step: StepResult) -> Iterator[str]:
    for name, _ in sorted(step.phase_time_s.items(), key=lambda one: -one[1])[:3]:
        grade = step.grades.get(name)
        if grade is not None:
            yield f"{name} {grade.letter} ({grade.rests_on})"
