"""What a study found, as files and on the screen: tables, winners by the event engine, and the front as a figure."""

from pathlib import Path
from typing import Any

from moesim.report.plots import write_html
from moesim.report.study_plots import fronts
from moesim.report.tables import write_csv
from moesim.report.terminal import print_table, say
from moesim.search.study import Study
from moesim.search.watch import confirmed_rows, say_fidelity, write_study

#: columns of the winners that are shown: key -> heading
_WINNERS = {"group": "group", "candidate": "candidate", "loss": "loss", "layer_time_us": "layer us",
            "interval": "interval", "layer_tokens_per_s_per_device": "tokens/s", "layer_joules_per_token": "J/token",
            "layer_usd_per_million_tokens": "USD/M"}


def show_findings(study: Study, folder: Path, *, limit: int, title: str) -> list[dict[str, Any]]:
    """Write trials.csv, pareto.csv, importance.csv, winners.csv and front.html, and say what they hold.

    Args:
        study: A finished one.
        folder: Where to.
        limit: Winners to confirm with the event engine; 0 writes no winners.csv.
        title: Of the figure and the table.

    Returns:
        Rows of winners.csv.
    """
    write_study(study, folder)
    rows = confirmed_rows(study, limit) if limit else []
    if limit:
        write_csv(folder / "winners.csv", rows)
    pareto = study.pareto_trials()
    found = [t.row() | {"group": g} for t, g in zip(pareto, study.groups(pareto), strict=True)]
    write_html(folder / "front.html", fronts({title: ([t.row() for t in study.trials if t.feasible], found)}))
    shown = [row | {"interval": f"{row['layer_time_low_us']:,.0f}-{row['layer_time_high_us']:,.0f}",
                    "loss": f"{row['loss']:.4f}"} for row in rows]
    print_table(f"{title}: Pareto winners, simulated with the event engine; tokens per second and device", shown,
                _WINNERS)
    say_fidelity(study)
    if rows:
        off = [row["event_over_search"] for row in rows]
        say(f"event engine over the search's: {min(off):.4f} to {max(off):.4f} on {len(off)} winners")
    return rows

