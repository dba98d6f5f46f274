"""The ``moesim`` command: its subcommands, and ``measure`` itself.

Data goes to stdout, everything else to stderr. A `MoesimError` is printed as one line without a
traceback and ends the command with exit code 2. Each command imports what it runs when it runs, so
that help takes a quarter of a second.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import check, doctor, operate, recommend, report, serve, simulate, train
from moesim.cli.bench import bench_app
from moesim.cli.calibrate import calibrate_app
from moesim.cli.kernels import kernels_app
from moesim.cli.models import models_app
from moesim.cli.output import commands_of, with_output
from moesim.cli.placement import placement_app
from moesim.cli.profiles import profiles_app
from moesim.cli.quality import quality_app
from moesim.cli.study import study_app
from moesim.cli.trace import trace_app
from moesim.cli.validate import validate_app
from moesim.errors import MoesimError
from moesim.units import US

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Simulate, search and check Mixture-of-Experts designs on GPUs you may not have yet.",
)
app.add_typer(validate_app, name="validate")
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(bench_app, name="bench")
app.command()(check.check)
app.command()(recommend.recommend)
app.command()(serve.serve)
app.command()(train.train)
app.command()(operate.operate)
app.command()(doctor.doctor)
app.command()(report.report)
app.add_typer(trace_app, name="trace")
app.add_typer(placement_app, name="placement")
app.add_typer(kernels_app, name="kernels")
app.add_typer(models_app, name="models")
app.add_typer(study_app, name="study")
app.add_typer(quality_app, name="quality")
app.add_typer(profiles_app, name="profiles")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from moesim.version import VERSION

        typer.echo(VERSION)
        raise typer.Exit


app.command()(simulate.simulate)


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
    from moesim.files import toml
    from moesim.files.output import refused
    from moesim.hardware import load_profile
    from moesim.measured.sources import profilers
    from moesim.report.tables import check_writable
    from moesim.report.terminal import say, tell

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
        raise refused(path, error, "write this profile") from None
    profile = load_profile(str(path))
    peaks = ", ".join(
        f"{fmt} {rate / 1e9:,.0f} GFLOP/s" for fmt, rate in profile.peak_flops_per_s.items()
    )
    tell(f"{peaks}; memory {profile.hbm_bandwidth_bytes_per_s / 1e9:.1f} GB/s")
    if profile.host_launch_s is not None:
        tell(
            f"launch of a kernel: {profile.kernel_launch_s / US:.2f} us in a graph, "
            f"{profile.host_launch_s / US:.1f} us by the host"
        )
    if profile.host_fabric is not None:
        fabric = profile.host_fabric
        tell(
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


for _command in commands_of(app):
    assert _command.callback is not None, "commands are functions"
    _command.callback = with_output(_command.callback)
