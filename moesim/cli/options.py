"""Commands with many options: a dataclass lists them, and a function takes the dataclass.

The fields of the dataclass are the options, in order, with their types, help and defaults; a field
without a default is required. So a command's options can be read, shared and handed on as one
value.
"""

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from moesim.errors import ConfigError

if TYPE_CHECKING:
    from moesim.model.hf_config import Model
    from moesim.report.slices import Sheet

TraceOut = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Write a timeline (Chrome trace JSON), which ui.perfetto.dev opens."
    ),
]
# experts that are compressed, or in host memory
PrunedFraction = Annotated[float, typer.Option(help="Share of experts removed, the least loaded.")]
ColdFraction = Annotated[
    float, typer.Option(help="Share of experts that is compressed, the least loaded.")
]
ColdFormat = Annotated[
    str | None, typer.Option(help="Format of their weights, such as int4 or float8_e4m3.")
]
ColdRankFraction = Annotated[
    float | None, typer.Option(help="Rank of their two factors over the smaller side.")
]
ResidentFraction = Annotated[
    float, typer.Option(help="Share of a device's experts in its memory; others: host.")
]
PrefetchRecall = Annotated[
    str,
    typer.Option(
        help="Share of missing experts that is guessed a layer ahead; routing: by popularity."
    ),
]
Lenient = Annotated[
    bool,
    typer.Option(
        "--lenient",
        help="Read a model's file even where keys contradict or are not understood; notes say so.",
    ),
]


def model_of(name: str, lenient: bool = False) -> "Model":
    """Load the model that an option names, and print what was assumed on stderr.

    So the assumptions are there whatever a command then prints, an error included.

    Raises:
        ConfigError: The name is no preset, or the file cannot be read.
    """
    from moesim.model.hf_config import load_model

    model = load_model(name, lenient)
    say_notes(model)
    return model


def say_notes(model: "Model") -> None:
    """Print what was assumed when a model was read, on stderr."""
    from moesim.report.terminal import say

    for note in model.notes:
        say(f"assumed: {note}")


def check_trace(path: Path | None) -> None:
    """Refuse a timeline's file before the work rather than after it.

    Raises:
        ConfigError: The file cannot be written.
    """
    from moesim.files.output import check_writable

    if path is not None:
        check_writable(path, make_folder=True)


def write_trace_of(path: Path, sheet: "Sheet") -> None:
    """Write a timeline and say so on stderr."""
    from moesim.report.chrome_trace import write_trace
    from moesim.report.terminal import say

    write_trace(path, sheet)
    say(f"wrote {path}: {len(sheet.slices):,} slices; open it at ui.perfetto.dev")


def recall_of(text: str) -> float | None:
    """Return the recall of guessed experts that an option says; None for ``routing``.

    Raises:
        ConfigError: The text is neither that word nor a number.
    """
    if text == "routing":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"prefetch_recall: expected routing or a share from 0 to 1, got {text!r}"
        ) from None


def parameters_of(kind: type, defaults: dict[str, Any] | None = None) -> list[Parameter]:
    """Return the fields of a dataclass as the function parameters that typer reads.

    Args:
        kind: The dataclass; its annotations hold what typer needs.
        defaults: Field name -> default that replaces the field's own.
    """
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):
        default = (defaults or {}).get(
            field.name, Parameter.empty if field.default is MISSING else field.default
        )
        found.append(
            Parameter(
                field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
            )
        )
    return found


def with_parameters(
    command: Callable[..., object], parameters: list[Parameter], help_of: Callable[..., object]
) -> None:
    """Give a command the signature and the docstring from which typer reads options and help."""
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = help_of.__doc__
    command.__name__ = help_of.__name__


def takes(kind: type) -> Callable[[Callable[[Any], object]], Callable[..., object]]:
    """Turn a function of one dataclass into a command.

    Args:
        kind: The dataclass; its fields become the command's options.

    Returns:
        A decorator for the function; it goes below the one that registers the command.
    """

    def decorate(function: Callable[[Any], object]) -> Callable[..., object]:
        def command(**given: Any) -> object:
            return function(kind(**given))

        with_parameters(command, parameters_of(kind), function)
        return command

    return decorate
