"""Give every command ``--details`` and ``--json``, and show brackets in its help as they are."""

import re
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from moesim.cli.options import with_parameters

_PANEL = "Output"
Details = Annotated[
    bool,
    typer.Option("--details", help="Print all rows, columns and remarks.", rich_help_panel=_PANEL),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document on stdout instead.", rich_help_panel=_PANEL
    ),
]
#: an opening bracket, which Rich would take for markup
_BRACKET = re.compile(r"(?<!\\)\[")


def with_output(command: Callable[..., object]) -> Callable[..., object]:
    """Add ``--details`` and ``--json`` to a command that prints through `moesim.report`.

    Args:
        command: The command; one that has an option of the name keeps its own.
    """
    own = [
        p.replace(kind=Parameter.KEYWORD_ONLY)
        for p in signature(command, eval_str=True).parameters.values()
    ]
    infos = [info for parameter in own for info in _infos(parameter)]
    taken = {flag for info in infos for flag in info.param_decls or ()}
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, flag, kind in (
            ("show_details", "--details", Details),
            ("show_json", "--json", AsJson),
        )
        if flag not in taken
    ]

    def shown(**given: Any) -> None:
        from moesim.report.document import showing

        details, as_json = (given.pop(name, False) for name in ("show_details", "show_json"))
        leaves: typer.Exit | None = None
        with showing(details=details, as_json=as_json):
            try:
                command(**given)
            except typer.Exit as found:  # with a code, after it has printed
                leaves = found
        if leaves is not None:
            raise leaves

    with_parameters(shown, [*own, *added], command)
    for info in infos:
        info.help = literal(info.help)
    shown.__doc__ = literal(command.__doc__)
    return shown


def literal(text: str | None) -> str | None:
    r"""Return a help text in which Rich takes no bracket for markup; ``\[`` stays as it is."""
    return None if text is None else _BRACKET.sub(r"\\[", text)


def commands_of(app: typer.Typer) -> Iterator[CommandInfo]:
    """Yield the commands of an application and of its groups."""
    yield from app.registered_commands
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from commands_of(group.typer_instance)


def _infos(parameter: Parameter) -> list[OptionInfo | ArgumentInfo]:
    found = (*get_args(parameter.annotation), parameter.default)
    return [info for info in found if isinstance(info, OptionInfo | ArgumentInfo)]


__all__ = ["commands_of", "literal", "with_output"]
