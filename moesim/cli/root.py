"""The command line: ``profiles | simulate | measure | validate | calibrate | study``; the other
modules add theirs.

Data goes to stdout, everything else to stderr. A `MoesimError` is one line and exit code 2, without
a traceback.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import check, comm, recommend
from moesim.cli.bench import bench_app
from moesim.cli.kernels import kernels_app
from moesim.cli.options import takes
from moesim.cli.placement import placement_app
from moesim.cli.quality import quality_app
from moesim.cli.script import run_command, run_script
from moesim.cli.study import study_app
from moesim.cli.trace import trace_app
from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.design.schedule import Schedule
from moesim.errors import MoesimError
from moesim.files import toml
from moesim.hardware import load_cluster, load_profile
from moesim.hardware.exchanges import EXCHANGES
from moesim.model import Gate, Precision
from moesim.model.hf_config import load_model
from moesim.model.presets import preset_names
from moesim.model.widths import read_width
from moesim.units import GIB, US
from moesim.version import VERSION

__all__ = ["app", "main", "run_command", "run_script"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Simulate, search and check Mixture-of-Experts designs on GPUs you may not have yet.",
)
validate_app = typer.Typer(
    no_args_is_help=True, help="Compare simulated with measured or published figures."
)
calibrate_app = typer.Typer(
    no_args_is_help=True, help="Refit the calibration files to the rows that may be fitted."
)
app.add_typer(validate_app, name="validate")
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(bench_app, name="bench")
app.command()(check.check)
app.command()(recommend.recommend)
app.add_typer(trace_app, name="trace")
app.add_typer(placement_app, name="placement")
app.add_typer(kernels_app, name="kernels")
app.add_typer(study_app, name="study")
app.add_typer(quality_app, name="quality")
validate_app.command("comm")(comm.validate_comm)
validate_app.command("published")(comm.validate_published)
calibrate_app.command("comm")(comm.calibrate_comm)


def main() -> None:
    """Entry point of the ``moesim`` command."""
    run_command(lambda: app())


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(VERSION)
        raise typer.Exit


@app.command()
def profiles(
    name: Annotated[
        str | None, typer.Argument(help="A profile or cluster: show its numbers.")
    ] = None,
) -> None:
    """List device profiles, clusters and model presets, or one file's numbers with kind and source.
    """
    from moesim.report.terminal import print_table

    if name is None:
        rows = [
            {"what": what, "names": ", ".join(found)}
            for what, found in (
                ("devices", toml.names("devices")),
                ("clusters", toml.names("clusters")),
                ("presets", preset_names()),
            )
        ]
        print_table("What can be named", rows, ["what", "names"])
        return
    try:
        provenance, title = load_profile(name).provenance, f"device {load_profile(name).name}"
        path = toml.find("devices", name)
    except toml.UnknownNameError:
        cluster = load_cluster(name)
        provenance, title = cluster.provenance, f"cluster {cluster.name} of {cluster.profile.name}"
        path = toml.find("clusters", name)
    values = toml.raw_values(path)
    numbers = [
        {"key": key, "value": values.get(key), "kind": kind, "source": source}
        for key, (kind, source) in provenance.items()
    ]
    print_table(title, numbers, ["key", "value", "kind", "source"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """The options of moesim simulate."""

    preset: Annotated[str, typer.Option(help="Published model, or path of a config.json.")] = (
        "qwen3-235b-a22b"
    )
    cluster: Annotated[
        str, typer.Option(help="Cluster, device profile, or path of a TOML file.")
    ] = "hgx-h100-8"
    tokens: Annotated[int, typer.Option(help="Tokens per device.")] = 1024
    routing: Annotated[
        str, typer.Option(help="Such as uniform, zipf:0.8, olmoe-c4, w2, trace:FILE.")
    ] = "uniform"
    ep: Annotated[
        int | None, typer.Option(help="Expert-parallel ranks; default: devices / tp.")
    ] = None
    tp: Annotated[int, typer.Option(help="Devices that share each expert.")] = 1
    placement: Annotated[
        str, typer.Option(help="Such as contiguous, balanced, eplb, affinity, local_search:200.")
    ] = "contiguous"
    replicas: Annotated[int, typer.Option(help="Expert replicas (eplb and others).")] = 0
    precision: Annotated[
        str, typer.Option(help="bf16, fp16, fp8, fp8_tensor, int8, int4, mxfp4 or nvfp4.")
    ] = "bf16"
    gate: Annotated[
        str | None,
        typer.Option(
            help="flat, group_limited:8:4, two_level:16:4, product_key, and options such as "
            "flat+bias+share_tokens:4; default: the preset's."
        ),
    ] = None
    num_experts: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None
    expert_intermediate_size: Annotated[
        str | None,
        typer.Option(
            help=(
                "Instead of the preset's: a width, or 64x256+64x1024 for experts that differ; 0 "
                "prunes."
            )
        ),
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None
    capacity_factor: Annotated[
        float | None, typer.Option(help="Places of an expert over its mean load.")
    ] = None
    overflow: Annotated[str, typer.Option(help="Choices of full experts: drop or reroute.")] = (
        "drop"
    )
    padded: Annotated[
        bool, typer.Option("--padded", help="Fill empty places with rows of zeros.")
    ] = False
    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange", "--dispatch", help=f"{', '.join(EXCHANGES)}; default: the cluster's."
        ),
    ] = None
    micro_batches: Annotated[
        int, typer.Option(help="Parts of the batch; 2 overlaps travel with compute.")
    ] = 1
    granularity: Annotated[str, typer.Option(help="device, or pair (to 256 devices).")] = "device"
    engine: Annotated[str, typer.Option(help="bound, flow, event or event_compiled.")] = "flow"
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0
    layer_only: Annotated[
        bool, typer.Option("--layer-only", help="Do not check that the whole model fits.")
    ] = False
    out: Annotated[Path | None, typer.Option(help="Write the result as CSV.")] = None


@app.command()
@takes(SimulateOptions)
def simulate(given: SimulateOptions) -> None:
    """Simulate one MoE layer of a published model on a cluster."""
    from dataclasses import replace

    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table
    from moesim.simulation.prepare import prepare
    from moesim.simulation.run import exchange_of, simulate_prepared

    model = load_model(given.preset).with_precision(Precision.named(given.precision))
    changes = {
        "num_experts": given.num_experts,
        "top_k": given.top_k,
        "capacity_factor": given.capacity_factor,
        "gate": Gate.parse(given.gate) if given.gate else None,
        "expert_intermediate_size": None
        if given.expert_intermediate_size is None
        else read_width(given.expert_intermediate_size),
    }
    layer = replace(
        model.layer,
        **{k: v for k, v in changes.items() if v is not None},  # type: ignore[arg-type]
        overflow=given.overflow,
        padded=given.padded,
    )  # type: ignore[arg-type]
    machine = load_cluster(given.cluster)
    spread = Parallelism(
        ep=given.ep if given.ep is not None else max(machine.num_devices // max(given.tp, 1), 1),
        tp=given.tp,
    )
    candidate = Candidate(
        layer=layer,
        parallelism=spread,
        placement=given.placement,
        num_replicas=given.replicas,
        dense_part=None if given.layer_only else model.dense_part,
        schedule=Schedule(
            exchange=given.exchange,
            num_micro_batches=given.micro_batches,
            granularity=given.granularity,
        ),  # type: ignore[arg-type]
    )
    workload = Workload(num_tokens_per_device=given.tokens, routing=given.routing, seed=given.seed)
    prepared = prepare(candidate, machine, workload)
    result = simulate_prepared(prepared, engine=given.engine)
    rows = [
        {
            "phase": name,
            "time_us": seconds / US,
            "share": f"{100 * seconds / result.layer_time_s:.0f} %",
        }
        for name, seconds in result.phase_time_s.items()
        if seconds > 0
    ]
    print_table(
        f"{given.preset} on {machine.name}: {candidate.label}",
        rows,
        {"phase": "critical path", "time_us": "us", "share": "share"},
    )
    print(
        f"layer          {result.layer_time_s / US:,.0f} us ({result.layer_time_low_s / US:,.0f} "
        f"to {result.layer_time_high_s / US:,.0f}), engine {given.engine}"
    )
    print(f"throughput     {result.tokens_per_s_per_device:,.0f} layer tokens/s per device")
    for row in exchange_of(prepared):
        print(
            f"{row['direction']:14} {row['exchange']}: {row['copies_per_token']:.2f} copies a "
            f"token, {row['near_mb']:,.1f} MB near and {row['far_mb']:,.1f} MB far through the "
            f"busiest port, {row['num_sms']} SMs; limited by {row['limited_by']}"
        )
    print(f"imbalance      {result.load_imbalance:.2f} (busiest device's rows over the mean)")
    effects = result.effects
    print(
        f"gate           {effects.devices_per_token:.2f} devices and "
        f"{effects.domains_per_token:.2f} domains a token; "
        f"{100 * result.dropped_token_fraction:.1f} % of choices dropped, "
        f"{100 * effects.rerouted_token_fraction:.1f} % re-routed; "
        f"{100 * effects.padded_row_fraction:.1f} % of rows padded"
    )
    if result.peak_memory_bytes is not None:
        usable = machine.profile.usable_bytes / GIB
        print(f"memory         {result.peak_memory_bytes / GIB:.1f} of {usable:.1f} usable GiB")
    print(
        f"evidence       {result.evidence}, {result.calibration}; bottleneck {result.bottleneck}"
        + (f"; tile {result.tile}" if result.tile else "")
    )
    if given.out is not None:
        write_csv(given.out, [result.row()])


@validate_app.command("kernels")
def validate_kernels(
    rows: Annotated[
        Path | None, typer.Option(help="Table of rows (parquet or CSV) to predict.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="calibrated, or spec: fitted on A100 and H100 plus the spec sheet.")
    ] = "calibrated",
    system: Annotated[
        str, typer.Option(help="Without --rows: which system's measured rows, or all.")
    ] = "h100_sxm",
    limit: Annotated[
        int, typer.Option(help="Without --rows: rows per class, drawn; 0 for all.", min=0)
    ] = 500,
    out: Annotated[
        Path | None, typer.Option(help="Write every row with its prediction as CSV.")
    ] = None,
) -> None:
    """Predict measured Triton MoE kernels, rows that were fitted and rows that were not, beside a
    roofline.
    """
    from moesim.measured.kernels.predict import read_rows
    from moesim.measured.kernels.scoreboard import error_table, ranking_table
    from moesim.measured.kernels.validate import PREDICTIONS, measured_rows, predicted
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say

    if mode not in ("calibrated", "spec"):
        raise MoesimError(f"--mode: expected calibrated or spec, got {mode!r}")
    given = read_rows(rows) if rows is not None else measured_rows(system, limit)
    table = predicted(given, mode)
    if "latency_ms" in table:
        errors = error_table(table)
        print_table(
            "Measured Triton MoE kernels: error in %, share inside the 80 % interval in %",
            errors,
            list(errors[0]),
        )
        ranks = ranking_table(table)
        if ranks:
            print_table(
                "Ranking of architecture x TP x EP under equal conditions", ranks, list(ranks[0])
            )
    if out is not None:
        columns = [c for c in given.columns if c not in PREDICTIONS]
        write_csv(out, table.to_dict("records"), [*columns, *PREDICTIONS])
        say(f"wrote {out}")


@calibrate_app.command("kernels")
def calibrate_kernels(
    framework: Annotated[str, typer.Option(help="sglang (what is simulated) or vllm.")] = "sglang",
    out: Annotated[Path, typer.Option(help="Calibration file to write.")] = Path("triton-moe.toml"),
) -> None:
    """Fit the kernel model to a framework's measured rows that may be fitted; about a minute."""
    from moesim.measured.kernels import calibrate as fitting
    from moesim.report.tables import check_writable

    check_writable(out)
    _report_fit(fitting.calibrate(out, framework), out)


def _report_fit(scores: dict[str, dict[str, float]], out: Path) -> None:
    from moesim.report.terminal import print_table, say

    print_table(
        "Error on rows left out of the fit, %",
        [{"class": k, **v} for k, v in scores.items()],
        ["class", "rows", "median", "mape", "p90", "bias"],
    )
    say(f"wrote {out}")


@app.command()
def measure(
    out: Annotated[
        Path | None,
        typer.Option(help="Profile to write; default: `local` in the user's data folder."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, gpu, or auto: the GPU where there is one.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(help="About how long to measure.", min=0.5, max=60.0)
    ] = 20.0,
) -> None:
    """Measure this machine (one CPU thread, or its GPU) and write its profile; then
    `--cluster local` simulates it.
    """
    from moesim.measured.sources import profilers
    from moesim.report.tables import check_writable
    from moesim.report.terminal import say

    found = profilers()
    if device not in ("cpu", "gpu", "auto"):
        raise MoesimError(f"--device: expected cpu, gpu or auto, got {device!r}")
    reasons = {
        name: found[name].unavailable_because()
        if name in found
        else "no installed package measures it"
        for name in (("gpu", "cpu") if device == "auto" else (device,))
    }
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    if chosen is None:
        raise MoesimError(
            "measure: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        )
    path = out or toml.user_folder() / "devices" / "local.toml"
    unavailable = "".join(
        f" ({name}: {reason})" for name, reason in reasons.items() if reason is not None
    )
    say(
        f"measuring this machine's {chosen}{unavailable}, about {seconds:.0f} s; "
        "other work on the machine shows in the result"
    )
    given = f" --out {out}" if out is not None else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
        found[chosen].write(
            path, seconds, f"moesim measure --device {chosen} --seconds {seconds:g}{given}"
        )
    except OSError as error:
        raise MoesimError(f"{path}: cannot write this profile: {error.strerror}") from None
    profile = load_profile(str(path))
    peaks = ", ".join(
        f"{fmt} {rate / 1e9:,.0f} GFLOP/s" for fmt, rate in profile.peak_flops_per_s.items()
    )
    print(f"{peaks}; memory {profile.hbm_bandwidth_bytes_per_s / 1e9:.1f} GB/s")
    if profile.host_fabric is not None:
        fabric = profile.host_fabric
        print(
            f"all-to-all of {max(fabric.ranks)} ranks over {fabric.backend}: start "
            f"{fabric.start_s / US:.0f} us, {fabric.port_bytes_per_s / 1e9:.2f} GB/s per port and "
            "direction"
        )
    if profile.contended:
        say(
            "contended: something else slowed the machine down meanwhile; measure again when it "
            "is idle"
        )
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
