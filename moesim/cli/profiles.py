"""``moesim profiles``: list what can be named, show what a file says, begin a file of your own."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class _NamesOrCommands(TyperGroup):
    """A group in which anything but a command is a name to show, and nothing is the list."""

    def parse_args(self, ctx, args):
        """Read the arguments, the command that is meant first."""
        first = args[0] if args else ""
        if first != "--help" and (not first or first.startswith("-")):
            args = ["list", *args]
        elif first != "--help" and first not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


profiles_app = typer.Typer(
    cls=_NamesOrCommands,
    help="List devices, clusters, presets, kernel libraries and fleets; `moesim profiles NAME` "
    "shows what one file says, `new` begins a file of your own.",
)


@profiles_app.command("list")
def list_names() -> None:
    """List what can be named: devices, clusters, presets, kernel libraries and fleets."""
    from moesim.files import toml
    from moesim.model.presets import preset_names
    from moesim.report.terminal import print_table

    rows = [
        {"what": what, "names": ", ".join(found)}
        for what, found in (
            ("devices", toml.names("devices")),
            ("clusters", toml.names("clusters")),
            ("presets", preset_names()),
            ("kernels", toml.names("libraries")),
            ("failures", toml.names("failures")),
        )
    ]
    print_table("What can be named", rows, ["what", "names"])


@profiles_app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(help="Name or file of a device or cluster; a kernel library or fleet."),
    ],
) -> None:
    """Show what one file says: numbers with kind and source, a roofline, bandwidth over size."""
    from moesim.files import toml
    from moesim.hardware.libraries import known_library
    from moesim.operations.failure_rates import load_fleet
    from moesim.report.terminal import print_table

    if library := known_library(name):
        print_table(f"{library.name}: {library.title}", library.rows_of_record(), ["what", "says"])
    elif name in toml.names("failures"):
        fleet = load_fleet(name)
        print_table(f"{fleet.name}: {fleet.title}", fleet.rows(), list(fleet.rows()[0]))
    else:
        _hardware(name)


def _hardware(name: str) -> None:
    from moesim.files import toml
    from moesim.files.texts import parse_toml, read_text
    from moesim.hardware import load_cluster, load_profile
    from moesim.hardware.loading import hardware_path, is_device
    from moesim.report.roofline import bandwidth_lines, roofline_lines
    from moesim.report.terminal import tell_command

    try:
        path = hardware_path(name)
    except toml.UnknownNameError:
        kinds = ("devices", "clusters", "libraries", "failures")
        known = [one for kind in kinds for one in toml.index_names(kind)]
        raise toml.UnknownNameError("profile", name, known) from None
    if is_device(parse_toml(read_text(path), path.name)):
        profile = load_profile(str(path))
        _numbers(f"device {profile.name}", path, profile.provenance)
        tell_command("\n".join([*roofline_lines(profile), "", *bandwidth_lines(profile)]))
        return
    cluster = load_cluster(str(path))
    _numbers(f"cluster {cluster.name} of {cluster.profile.name}", path, cluster.provenance)


def _numbers(title: str, path: Path, provenance: dict[str, tuple[str, str]]) -> None:
    from moesim.files import toml
    from moesim.report.terminal import print_table

    values = toml.raw_values(path)
    rows = [
        {"key": key, "value": values.get(key), "kind": kind, "source": source}
        for key, (kind, source) in provenance.items()
    ]
    print_table(title, rows, ["key", "value", "kind", "source"])


@profiles_app.command("new")
def new(
    like: Annotated[str, typer.Option(help="Device or cluster whose numbers it begins with.")],
    out: Annotated[Path, typer.Option(help="File to write; it must not exist yet.")],
) -> None:
    """Begin a device or cluster file of your own: every key with unit and meaning."""
    from moesim.errors import require
    from moesim.files.output import check_writable, write_file
    from moesim.hardware.templates import template_like
    from moesim.report.terminal import say

    text = template_like(like)
    check_writable(out, make_folder=True)
    require(not out.exists(), "--out", "a file that does not exist yet", str(out))
    write_file(out, text)
    say(f"wrote {out}: edit it, then `moesim profiles {out}` and `--cluster {out}`")
