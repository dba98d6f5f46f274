"""Fit the host of serving engines to the runs that may be fitted: ``moesim calibrate host``.

Five numbers an engine: microseconds of a step, of each sequence of a step, of launching a layer's
kernels one by one (prompts), and of taking in a request, beside others and alone. The times of
devices are simulated and stay as they are. What is minimized is the mean of the absolute logarithms
of predicted over measured TPOT, and half that of TTFT, over at most 24 runs drawn evenly, by Nelder
and Mead's simplex from several begins. The intervals are the tenth and ninetieth percentile of
measured over predicted on all runs that may be fitted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.design.served import ENGINES
from moesim.errors import MeasurementError
from moesim.files import toml
from moesim.files.output import write_file
from moesim.files.texts import read_text
from moesim.hardware.serving_engines import ServingEngine, serving_engine
from moesim.measured.models.predict import means_ms, run_of
from moesim.measured.models.sample import ServingRow, repaired
from moesim.simulation.steps.times import StepTable
from moesim.units import US

_ROWS = 24
_TTFT_WEIGHT = 0.5
#: begins of the search: step, request, layer, receiving and intake in microseconds
_BEGINS = ((100.0, 20.0, 500.0, 1e4, 5e3), (3000.0, 20.0, 300.0, 8e4, 2e3))
#: factor between the corners of the first simplex: less, and the search stays where it begins,
#: since TTFT goes in steps
_WIDTH = 1.7
_EVALUATIONS = 80
Array = np.ndarray


class _Runs:
    """Runs of one engine, with the times of their designs' steps."""

    def __init__(self, rows: Sequence[ServingRow]) -> None:
        self.rows = rows
        self._tables: dict[object, StepTable] = {}

    def errors(self, engine: ServingEngine) -> Array:
        """Return ln(measured / predicted) of TPOT and TTFT: ndarray of shape (rows, 2)."""
        found = []
        for row in self.rows:
            key = (row.model, row.system, row.tp, row.attention_dp, row.moe_ep, row.moe_format)
            table = self._tables.get(key)
            if table is not None:
                table.engine = engine
            result, self._tables[key] = run_of(row, table, engine=engine)
            tpot, ttft = means_ms(result)
            assert row.tpot_ms is not None, "runs were measured"
            found.append([np.log(row.tpot_ms / tpot), np.log((row.ttft_ms or ttft) / ttft)])
        return np.array(found)


def fit_host(name: str) -> ServingEngine:
    """Return an engine's record with the host that fits its runs best.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or no run of the engine may be
            fitted.
    """
    from scipy.optimize import minimize

    rows = [row for row in repaired()[0] if row.may_fit and row.backend == name and not row.queued]
    if not rows:
        raise MeasurementError(f"host: no run of {name} may be fitted")
    few = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(_ROWS, len(rows)))]
    runs, engine = _Runs(few), serving_engine(name)

    def made(values: Array) -> ServingEngine:
        step, request, layer, receive, intake = (np.maximum(values, 0.0) * US).tolist()
        return replace(
            engine,
            step_s=step,
            request_s=request,
            eager_layer_s=layer,
            receive_s=receive,
            intake_s=intake,
        )

    def loss(values: Array) -> float:
        size = np.abs(runs.errors(made(values))).mean(axis=0)
        # below zero a number counts as zero: lead the search back
        return float(size[0] + _TTFT_WEIGHT * size[1] - 1e-4 * np.minimum(values, 0.0).sum())

    best = min(
        (
            minimize(
                loss,
                begin,
                method="Nelder-Mead",
                options={
                    "maxfev": _EVALUATIONS,
                    "xatol": 5.0,
                    "initial_simplex": _corners(begin),
                },
            )
            for begin in _BEGINS
        ),
        key=lambda found: float(found.fun),
    )
    errors = _Runs(rows).errors(made(best.x))
    low, high = np.exp(np.quantile(errors, (0.1, 0.9), axis=0)).tolist()
    intervals = tuple(zip(("tpot", "ttft"), low, high, strict=True))
    words = f"{len(rows)} runs of {rows[0].model} on {rows[0].system}, silicon_sample.csv"
    return replace(made(best.x), rows=words, intervals=intervals)


def _corners(begin: Sequence[float]) -> Array:
    """Return the corners of a simplex: ndarray of shape (6, 5) for five numbers."""
    wider = np.diag(np.array(begin) * (_WIDTH - 1.0))
    return np.vstack([begin, np.array(begin) + wider])


def written(engine: ServingEngine, text: str) -> str:
    """Return the text of a record with another host."""
    head, _, rest = text.partition("[host]\n")
    _, _, tail = rest.partition("[[sources]]")
    intervals = "".join(
        f"{what} = {{low = {low:.4g}, high = {high:.4g}}}\n" for what, low, high in engine.intervals
    )
    return (
        f"{head}[host]\n"
        f"step_us = {engine.step_s / US:.4g}\n"
        f"request_us = {engine.request_s / US:.4g}\n"
        f"eager_layer_us = {engine.eager_layer_s / US:.4g}\n"
        f"receive_us = {engine.receive_s / US:.4g}\n"
        f"intake_us = {engine.intake_s / US:.4g}\n"
        f'rows = "{engine.rows}"\n\n'
        f"# P10 and P90 of measured over predicted on these rows\n[intervals]\n{intervals}\n"
        f"[[sources]]{tail}"
    )


def calibrate_hosts(folder: Path) -> list[Path]:
    """Fit the host of every engine, and write the records.

    Args:
        folder: Folder that the files are written to.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    found = []
    for name in ENGINES:
        text = read_text(toml.find("engines", name))
        path = folder / f"{name}.toml"
        write_file(path, written(fit_host(name), text))
        found.append(path)
    return found
