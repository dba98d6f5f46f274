"""Charts as records: what they show, not how it is drawn.

The page (``page/draw.js``) and `moesim.page.figures` draw the same records, and both take the
colors from here. Numbers travel to the page as little-endian arrays in base64, which are a third as
long as the digits and exact.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from moesim.errors import printable

#: colors that people with any color vision tell apart (Okabe and Ito 2008): light theme, dark theme
PALETTE: dict[str, tuple[str, str]] = {
    "blue": ("#0072B2", "#56B4E9"),
    "orange": ("#D55E00", "#E69F00"),
    "green": ("#009E73", "#2BC79A"),
    "purple": ("#9C4F7E", "#CC79A7"),
    "sky": ("#3C8DC0", "#8CCBF0"),
    "amber": ("#B87A00", "#F0E442"),
    "ink": ("#2B3038", "#E6E9ED"),
    "muted": ("#9AA3AD", "#6E7884"),
}
#: colors of parts and groups, in this order
CYCLE = ("blue", "orange", "green", "purple", "sky", "amber", "ink", "muted")
#: numbers from which on an array travels in base64
_PACKED = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of a chart.

    Attributes:
        label: What is along it, with the unit.
        log: Whether its scale is logarithmic.
        names: Names of the positions 0, 1, ...; empty where the axis holds numbers.
    """

    label: str
    log: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Points or a line of an `XYChart`.

    Attributes:
        name: Name in the legend.
        x: Positions along the x axis.
        y: Positions along the y axis, as many.
        x_low: Lower ends of intervals along x; None without.
        x_high: Upper ends along x.
        y_low: Lower ends along y.
        y_high: Upper ends along y.
        text: What a pointer on a point shows; empty for the point's trial.
        rows: Index of each point's trial in the table of trials, which filters look at; empty where
            points are no trials.
        color: A name in `PALETTE`.
        symbol: ``circle``, ``square``, ``diamond``, ``star``, ``x`` or ``triangle-up``.
        size: Diameter of a point in pixels.
        mode: ``markers``, ``lines`` or ``steps``.
        cloud: Whether these are the trials behind a front: faint, thinned, and left out unless
            dominated trials are asked for.
    """

    name: str
    x: Any
    y: Any
    x_low: Any = None
    x_high: Any = None
    y_low: Any = None
    y_high: Any = None
    text: Sequence[str] = ()
    rows: Any = ()
    color: str = "blue"
    symbol: str = "circle"
    size: float = 9.0
    mode: str = "markers"
    cloud: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XYChart:
    """Points and lines over two axes.

    Attributes:
        key: Name of its files.
        title: What it shows.
        note: What its quantities mean.
        x: The x axis.
        y: The y axis.
        series: The points, those drawn last on top.
        most: Points of a cloud that are drawn at most, evenly thinned.
        equal: Whether both axes hold the same quantity, so that a line marks where they are equal.
    """

    key: str
    title: str
    note: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    most: int = 1500
    equal: bool = False
    kind: str = "xy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BarChart:
    """Horizontal bars: a row per name, a color per part.

    Attributes:
        key: Name of its files.
        title: What it shows.
        note: What its quantities mean.
        x: The x axis.
        rows: Names of the rows, the top one first.
        parts: Name of a part -> its value in each row.
        colors: Part -> a name in `PALETTE`.
        stacked: Whether the parts of a row follow each other instead of lying below each other.
    """

    key: str
    title: str
    note: str
    x: Axis
    rows: tuple[str, ...]
    parts: Mapping[str, Sequence[float]]
    colors: Mapping[str, str]
    stacked: bool
    kind: str = "bars"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatChart:
    """A matrix of numbers as colors.

    Attributes:
        key: Name of its files.
        title: What it shows.
        note: What its quantities mean.
        x: The x axis.
        y: The y axis; row 0 is at the top.
        z: ndarray of shape (rows, columns): the numbers; NaN where there is none.
        label: What the numbers are, with the unit.
        text: What a pointer on a cell shows beside the number, row by row; empty for nothing.
    """

    key: str
    title: str
    note: str
    x: Axis
    y: Axis
    z: Any
    label: str
    text: Sequence[Sequence[str]] = ()
    kind: str = "heat"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapChart:
    """Devices and switches at places of a plane, and the links between them.

    Attributes:
        key: Name of its files.
        title: What it shows.
        note: What its quantities mean.
        nodes: Name -> (x, y, value); None for the value of a node that has none.
        links: (x, y of one end, x, y of the other, load) of each link.
        edges: Upper ends of the classes of load, ascending; the last one holds the largest load.
        about: Name of a node -> what a pointer on it shows beside its value.
        label: What the value of a node is, with the unit.
        load_label: What the load of a link is, with the unit.
    """

    key: str
    title: str
    note: str
    nodes: Mapping[str, tuple[float, float, float | None]]
    links: Sequence[tuple[float, float, float, float, float]]
    edges: tuple[float, ...]
    about: Mapping[str, str]
    label: str
    load_label: str
    kind: str = "map"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParallelChart:
    """A line per design through an axis per choice or quantity.

    Attributes:
        key: Name of its files.
        title: What it shows.
        note: What its quantities mean.
        axes: The axes, from left to right.
        values: Values of each design along each axis, axis by axis; positions where it has names.
        rows: Index of each design's trial.
        colors: A name in `PALETTE` for each design.
        names: Color -> what designs of this color are.
    """

    key: str
    title: str
    note: str
    axes: tuple[Axis, ...]
    values: tuple[Sequence[float], ...]
    rows: Sequence[int]
    colors: tuple[str, ...]
    names: Mapping[str, str]
    kind: str = "parallel"


Chart = XYChart | BarChart | HeatChart | MapChart | ParallelChart


def thinned(count: int, most: int) -> np.ndarray:
    """Return the indices of at most so many of a number of points, evenly spread, both ends
    included.
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def heights(chart: ParallelChart) -> np.ndarray:
    """Return where each design crosses each axis, from 0 at the bottom to 1 at the top: ndarray of
    shape (axes, designs).
    """
    found = []
    for axis, column in zip(chart.axes, chart.values, strict=True):
        values = np.asarray(column, dtype=float)
        if axis.names:
            found.append(values / max(len(axis.names) - 1, 1))
            continue
        scaled = np.log(values) if axis.log else values
        found.append((scaled - scaled.min()) / (np.ptp(scaled) or 1.0))
    return np.array(found)


def plain(value: Any) -> Any:
    """Return charts, arrays and texts as what JSON holds.

    Texts lose control characters; long arrays become ``{"f64": base64}`` or ``{"i32": base64}``.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        if value.ndim == 1 and len(value) >= _PACKED:
            return _packed(value)
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        if len(value) >= _PACKED and all(type(one) in (int, float) for one in value):
            return _packed(np.array(value))
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _packed(values: np.ndarray) -> dict[str, str]:
    name, kind = ("i32", "<i4") if values.dtype.kind in "iub" else ("f64", "<f8")
    return {name: base64.b64encode(values.astype(kind).tobytes()).decode()}
