"""``moesim trace``: describe a recorded trace of expert choices."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import MoesimError
from moesim.limits import MOST_EXPERTS

trace_app = typer.Typer(
    no_args_is_help=True, help="Recorded choices of experts: what they are like."
)


@trace_app.command("describe")
def describe(
    file: Annotated[
        Path,
        typer.Argument(
            help="Ids or counts as .npy, .npz, .json, .csv, .parquet, or a recorder's dump as .pt."
        ),
    ],
    kind: Annotated[
        str | None, typer.Option(help="ids or counts, where the file does not say.")
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            help="Experts the model has; ids beyond are refused.", min=1, max=MOST_EXPERTS
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts a token must have.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the statistics as CSV.")] = None,
) -> None:
    """Print statistics of every layer: tokens, max/mean, CV, Gini, imbalance of contiguous EP8,
    Zipf exponent.
    """
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say
    from moesim.routing.statistics import load_statistics
    from moesim.routing.trace import open_trace

    if kind not in (None, "ids", "counts"):
        raise MoesimError(f"--kind: expected ids or counts, got {kind!r}")
    trace = open_trace(str(file), kind, experts, top_k)
    rows, empty = [], []
    for layer, count_E in trace.counts().items():
        if not count_E.any():
            empty.append(layer)
            continue
        rows.append(
            {
                "layer": layer,
                "tokens": trace.num_tokens(layer) if trace.kind == "ids" else None,
                "top_k": trace.top_k,
                "experts": len(count_E),
                "choices": float(count_E.sum()),
                **load_statistics(count_E),
            }
        )
    if not rows:
        raise MoesimError(f"{file}: expected counts above 0, got none in {len(empty)} layers")
    if empty:
        say(f"{file}: no choices in {len(empty)} layers, left out: {_listed(empty)}")
    if padding := trace.num_padding():
        say(f"{file}: {padding} rows of -1 are padding, no tokens")
    print_table(f"{file}: {trace.kind} of {len(rows)} layers", rows, list(rows[0]))
    if out is not None:
        write_csv(out, rows)


def _listed(layers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, layers[:most])) + (", ..." if len(layers) > most else "")
