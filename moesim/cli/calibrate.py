"""``moesim calibrate``: refit the calibration files to the measured rows that may be fitted."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from moesim.errors import ConfigError

calibrate_app = typer.Typer(
    no_args_is_help=True, help="Refit the calibration files to the rows that may be fitted."
)


@calibrate_app.command("comm")
def calibrate_comm(
    out: Annotated[Path, typer.Option(help="Folder for the calibration files.")] = Path("."),
) -> None:
    """Fit the communication kernels to measured A100, H100 and GB200 rows (about half a minute)."""
    from moesim.measured.exchanges import calibrate as fitting
    from moesim.report.terminal import print_table, say

    if not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the calibration files")
    scores = fitting.calibrate(out)
    print_table(
        "Error on rows left out of the fit, %",
        [{"class": k, **v} for k, v in scores.items()],
        ["class", "rows", "median", "mape", "p90", "bias"],
    )
    say(f"wrote {', '.join(str(out / f'{name}.toml') for name in fitting.NAMES)}")


@calibrate_app.command("kernels")
def calibrate_kernels(
    framework: Annotated[str, typer.Option(help="sglang (what is simulated) or vllm.")] = "sglang",
    family: Annotated[
        str, typer.Option(help="Another library instead, such as trtllm-deepgemm.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Calibration file to write; default: NAME.toml here.")
    ] = None,
) -> None:
    """Fit the kernel model to a framework's measured rows that may be fitted (about a minute)."""
    from moesim.report.tables import check_writable

    out = out or Path(f"{family}.toml" if family else "triton-moe.toml")
    check_writable(out)
    if family:
        from moesim.measured.kernels.family_calibrate import calibrate as fit_family

        _report_fit(fit_family(out, family), out)
        return
    from moesim.measured.kernels import calibrate as fitting

    _report_fit(fitting.calibrate(out, framework), out)


@calibrate_app.command("crossings")
def calibrate_crossings(
    out: Annotated[Path, typer.Option(help="Folder for crossings.csv and crossings.toml.")] = Path(
        "."
    ),
) -> None:
    """Estimate what crossing a device, a format, an EP kind or a version costs (some minutes)."""
    from moesim.measured.kernels.crossing_families import family_events
    from moesim.measured.kernels.crossing_files import write_crossings
    from moesim.measured.kernels.crossing_nested import nested_table
    from moesim.measured.kernels.crossing_triton import triton_events
    from moesim.report.terminal import print_table, say

    if not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for crossings.csv and crossings.toml")
    events = [*triton_events(), *family_events()]
    costs = write_crossings(out, events)
    print_table(
        "What crossings add to half the logarithmic width of the 80 % interval",
        [{"crossed": kind, **row} for kind, row in costs.items()],
        ["crossed", "half", "pairs"],
    )
    print_table(
        "Measurements inside the interval, % (costs without the row's library)",
        nested_table(events),
        ["crossed", "events", "inside", "width"],
    )
    say(f"wrote {out / 'crossings.csv'}, {out / 'crossings.toml'}")


@calibrate_app.command("tiles")
def calibrate_tiles(
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="Timed tiles of one GPU (`moesim kernels sweep`); default: the shipped."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Calibration file to write.")] = Path(
        "moesim-triton.toml"
    ),
) -> None:
    """Fit the tile model of this project's kernels to timed tiles (about ten seconds)."""
    from moesim.measured.tiles import calibrate as fitting
    from moesim.report.tables import check_writable

    check_writable(out)
    _report_fit(fitting.calibrate(out, rows), out)


@calibrate_app.command("dense")
def calibrate_dense(
    out: Annotated[Path, typer.Option(help="Folder for the calibration files.")] = Path("."),
) -> None:
    """Fit dense GEMMs and engines' all-reduces to measured H100 rows (about ten seconds)."""
    _calibrate_dense_parts("dense", out)


@calibrate_app.command("attention")
def calibrate_attention(
    out: Annotated[Path, typer.Option(help="Folder for the calibration files.")] = Path("."),
) -> None:
    """Fit the attention of prefills and decodes to measured H100 and B200 rows (ten seconds)."""
    _calibrate_dense_parts("attention", out)


def _calibrate_dense_parts(kind: Literal["dense", "attention"], out: Path) -> None:
    from moesim.measured.dense.fit import calibrate

    if not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the calibration files")
    _report_fit(calibrate(kind, out), out)


def _report_fit(scores: dict[str, dict[str, float]], out: Path) -> None:
    from moesim.report.terminal import print_table, say

    print_table(
        "Error on rows left out of the fit, %",
        [{"class": k, **v} for k, v in scores.items()],
        ["class", "rows", "median", "mape", "p90", "bias"],
    )
    say(f"wrote {out}")


@calibrate_app.command("host")
def calibrate_host(
    out: Annotated[Path, typer.Option(help="Folder for the records of engines.")] = Path("."),
) -> None:
    """Fit what the hosts of serving engines take to the serving runs that may be fitted (about ten
    minutes).
    """
    from moesim.measured.models.host import calibrate_hosts
    from moesim.report.terminal import say

    if not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the records of engines")
    for path in calibrate_hosts(out):
        say(f"wrote {path}")
