"""Compare two machines at equal loss by the most tokens per dollar on each.

Loss depends on the model alone, so the fronts of different machines can be compared at every loss
that either of them reaches. Where the intervals of two designs overlap, the verdict is a tie.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError
from moesim.hardware import Cluster, load_cluster
from moesim.hardware.economics import Economics
from moesim.report.answer import Answer
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.study import fronts
from moesim.report.tables import write_csv
from moesim.report.terminal import print_table, tell
from moesim.search.study import Study
from moesim.search.trial import Trial
from moesim.version import VERSION

Row = dict[str, Any]
#: columns of a design that the table of verdicts repeats for each machine
_KEPT = (
    "tokens_per_usd",
    "tokens_per_usd_low",
    "tokens_per_usd_high",
    "candidate",
    "calibration",
    "profile_hash",
)


def equal_price(axes: str, model: Economics) -> dict[str, Cluster]:
    """Return a v5p slice, and the nodes of 8 H100 whose price per hour is nearest to its own.

    Args:
        axes: The sides of the slice, such as ``4x4x12``, in the form of a study's ``--axes``.
        model: The cost model.

    Raises:
        ConfigError: The sides are malformed, a device has no price, or the slice is worth less
            than two nodes.
    """
    try:
        chips = load_cluster("tpu-v5p-4x4x4").with_(axes=[int(n) for n in axes.split("x")])
    except ValueError:
        raise ConfigError(f"--axes: expected sizes such as '4x4x12', got {axes!r}") from None
    gpus = load_cluster("h100-rail-8x8")
    nodes = model.nodes_for_price(gpus, model.usd_per_hour(chips))
    if nodes < 2:
        rule = "expected a slice worth at least 2 nodes of 8 H100"
        raise ConfigError(f"--axes: {rule}, got {chips.num_devices} chips")
    return {"tpu": chips, "gpu": gpus.with_(num_nodes=nodes)}


def price_text(model: Economics, machines: Mapping[str, Cluster], names: Mapping[str, str]) -> str:
    """Say in one line what two machines cost and by how much the second is more expensive.

    Args:
        model: The cost model.
        machines: The two clusters by their short names.
        names: Names of their devices in the text.
    """
    price = {name: model.usd_per_hour(cluster) for name, cluster in machines.items()}
    one, other = price.values()
    dearer = round(100 * (other / one - 1), 1) + 0.0
    texts = [
        f"{cluster.num_devices} {names[name]} at {price[name]:,.2f} USD/h"
        for name, cluster in machines.items()
    ]
    return f"{' against '.join(texts)}: {dearer:+.1f} %, all prices assumed"


def per_dollar(trial: Trial, machine: str) -> Row:
    """Return the row of a trial with its tokens per dollar and their interval.

    Args:
        trial: A feasible trial of a study that knows the price of its cluster.
        machine: The name to write into the column ``machine``.
    """
    row = trial.row()
    rate = 1e6 / row["layer_usd_per_million_tokens"]
    # a longer layer time means fewer tokens for the same money
    low, high = (
        rate * row["layer_time_us"] / row[f"layer_time_{end}_us"] for end in ("high", "low")
    )
    found = {"tokens_per_usd": rate, "tokens_per_usd_low": low, "tokens_per_usd_high": high}
    return {"machine": machine, **found, **row}


def front_of(study: Study, machine: str) -> tuple[list[Row], list[Row]]:
    """Return the rows of all trials that fit, and those of the front with their groups.

    Args:
        study: A finished study with a price among its columns.
        machine: The name of its machine.
    """
    front = study.pareto_trials()
    groups = study.groups(front)
    every = [per_dollar(trial, machine) for trial in study.trials if trial.feasible]
    best = [
        per_dollar(trial, machine) | {"group": group}
        for trial, group in zip(front, groups, strict=True)
    ]
    return every, best


def verdicts(
    best_of: Mapping[str, Sequence[Row]], names: Mapping[str, str], common: Row
) -> list[Row]:
    """Compare two machines at every loss that either front reaches.

    Args:
        best_of: Rows of the front of each of two machines, as `front_of` makes them.
        names: Name of each machine in a verdict.
        common: Columns that every row ends with.

    Returns:
        One row per loss with the best design of each machine at no more than that loss, the ratio
        of their tokens per dollar, and the verdict: a name, ``NAME alone``, or ``tie``.
    """
    found = []
    for loss in sorted({row["loss"] for front in best_of.values() for row in front}):
        best = {}
        for machine, front in best_of.items():
            reached = [row for row in front if row["loss"] <= loss]
            if reached:
                best[machine] = max(reached, key=lambda row: row["tokens_per_usd"])
        row: Row = {"loss": loss}
        for machine, design in best.items():
            row |= {f"{machine}_{column}": design[column] for column in _KEPT}
        found.append(row | _verdict(best, names) | common)
    return found


def _verdict(best: Mapping[str, Row], names: Mapping[str, str]) -> Row:
    """Return the columns ``ratio`` and ``verdict`` of one loss."""
    if len(best) == 1:
        return {"verdict": f"{names[next(iter(best))]} alone"}
    one, other = names
    ratio = best[one]["tokens_per_usd"] / best[other]["tokens_per_usd"]
    verdict = "tie"
    for this, that in ((one, other), (other, one)):
        if best[this]["tokens_per_usd_low"] > best[that]["tokens_per_usd_high"]:
            verdict = names[this]
    return {"ratio": ratio, "verdict": verdict}


def write_versus(
    out: Path,
    machines: Mapping[str, Cluster],
    found: Mapping[str, tuple[Sequence[Row], Sequence[Row]]],
    names: Mapping[str, str],
    *,
    title: str,
    seed: int,
) -> Answer:
    """Write fronts.csv, verdicts.csv and fronts.html, print the verdicts, and return the answer.

    Args:
        out: The output folder.
        machines: The two clusters by their short names.
        found: All rows and those of the front of each, as `front_of` returns them.
        names: Names of their devices in tables and figures.
        title: The title of the figure.
        seed: The seed of both searches.

    Raises:
        ConfigError: A file cannot be written.
    """
    common = {"evidence": "simulated", "engine": "flow", "seed": seed, "version": VERSION}
    best_of = {name: front for name, (_, front) in found.items()}
    table = verdicts(best_of, names, common)
    one, other = names.values()
    headings = {
        "at": "loss at most",
        **{f"{name}_shown": f"{names[name]}, M tokens/USD" for name in names},
        "ratio": f"{one} / {other}",
        "verdict": "wins",
        f"{next(iter(names))}_candidate": f"on {one}",
    }
    print_table(
        "At equal price: most tokens per dollar through one MoE layer at no more than a loss",
        [_shown(row, list(names)) for row in table],
        headings,
    )
    wins = [row["verdict"] for row in table]
    counts = {verdict: wins.count(verdict) for verdict in dict.fromkeys(wins)}
    tell(", ".join(f"{verdict}: {n} of {len(wins)} losses" for verdict, n in counts.items()))
    write_csv(out / "fronts.csv", [row for front in best_of.values() for row in front])
    write_csv(out / "verdicts.csv", table)
    titles = {name: f"{machines[name].num_devices} {names[name]}" for name in names}
    figure = fronts(
        {titles[name]: found[name] for name in names},
        rate="tokens_per_usd",
        label="tokens through one MoE layer per USD (assumed prices)",
        title=title,
    )
    write_html(out / "fronts.html", figure)
    return _answer(counts, list(names.values()))


def _answer(counts: Mapping[str, int], names: Sequence[str]) -> Answer:
    """Say which machine wins, from the number of losses at which each does."""
    total = sum(counts.values())
    wins = {name: counts.get(name, 0) + counts.get(f"{name} alone", 0) for name in names}
    best = max(wins, key=lambda name: wins[name])
    open_ = total - sum(wins.values())
    build = f"{best}: at {wins[best]} of {total} losses it certainly gives more tokens per dollar"
    if not wins[best]:
        build = f"Neither {names[0]} nor {names[1]} in preference: at none of {total} losses does "
        build += "one certainly give more tokens per dollar"
    return Answer(
        build=f"{build}.",
        confidence=f"At {open_} of {total} losses their intervals overlap. Prices are assumed, "
        "tori have no measured rows behind them, and nothing was measured here.",
        next_step="Put the prices you are offered into a file for --economics, and measure an "
        "all-to-all on both machines.",
    )


def _shown(row: Row, machines: Sequence[str]) -> Row:
    """Return a row of verdicts as the terminal shows it, in millions of tokens per dollar."""
    shown = row | {"at": f"{row['loss']:.4f}"}
    for machine in machines:
        if f"{machine}_tokens_per_usd" in row:
            mid, low, high = (
                row[f"{machine}_tokens_per_usd{end}"] / 1e6 for end in ("", "_low", "_high")
            )
            shown[f"{machine}_shown"] = f"{mid:,.1f} ({low:,.1f}-{high:,.1f})"
    return shown
