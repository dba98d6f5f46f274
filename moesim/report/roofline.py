"""Draw a device in characters: its roofline and how its bandwidth depends on size."""

from collections.abc import Sequence
from math import log10

from moesim.hardware import Profile
from moesim.units import GB, MIB, TERA

#: characters of a line, of its label, and of the bars
_WIDTH, _LABEL = 78, 26
_BAR = _WIDTH - _LABEL
#: rows of the roofline, and points of its horizontal axis
_ROWS = 9


def roofline_lines(profile: Profile) -> list[str]:
    """Return FLOP/s over FLOPs per byte for each format, as lines of at most 80 characters.

    A format reaches its peak from its knee on: peak over bandwidth, in FLOPs per byte.

    Args:
        profile: The device.
    """
    bandwidth = profile.hbm_bandwidth_bytes_per_s
    # formats of one peak share a line
    formats: dict[float, list[str]] = {}
    for fmt, peak in profile.peak_flops_per_s.items():
        formats.setdefault(peak, []).append(fmt)
    peaks = sorted(formats)
    knees = {peak: peak / bandwidth for peak in peaks}
    top = peaks[-1]
    # from a tenth of the lowest to four times the highest knee
    low, high = log10(min(knees.values())) - 1.0, log10(max(knees.values())) + 0.6
    floor = log10(bandwidth * 10**low)
    step = (log10(top) - floor) / (_ROWS - 1)
    rows = [[" "] * _BAR for _ in range(_ROWS)]
    for mark, peak in zip(_marks(len(peaks)), peaks, strict=True):
        for x in range(_BAR):
            intensity = 10 ** (low + (high - low) * x / (_BAR - 1))
            height = (log10(min(peak, bandwidth * intensity)) - floor) / step
            at = _ROWS - 1 - round(height)
            if rows[at][x] == " ":
                rows[at][x] = "/" if bandwidth * intensity < peak else mark
    lines = [f"{'TFLOP/s over FLOPs per byte of memory':<{_LABEL}}"]
    for at, row in enumerate(rows):
        rate = 10 ** (floor + step * (_ROWS - 1 - at)) / TERA
        lines.append(f"{rate:>{_LABEL - 2},.1f} |{''.join(row)}".rstrip())
    left, right = f"{10**low:,.1f}", f"{10**high:,.0f} FLOPs/byte"
    lines.append(f"{'':{_LABEL}}{left}{right:>{_BAR - len(left)}}")
    for mark, peak in zip(_marks(len(peaks)), peaks, strict=True):
        names = ", ".join(formats[peak])
        told = f"{peak / TERA:,.1f} TFLOP/s, knee at {knees[peak]:,.0f} FLOPs/byte"
        lines.append(f"  {mark} {told}: {names}"[:_WIDTH])
    return lines


def bandwidth_lines(profile: Profile) -> list[str]:
    """Return how fast rows are gathered and working sets streamed, a bar for each size, as lines of
    at most 80 characters.

    Args:
        profile: The device.
    """
    rate = profile.hbm_bandwidth_bytes_per_s / GB
    lines = [f"gathered rows, GB/s of {rate:,.0f}"]
    lines += _bars(
        [f"{size:,.0f} B" for size in profile.gather_access_bytes],
        [share * rate for share in profile.gather_efficiency],
    )
    if profile.streaming_bytes:
        lines.append(f"streamed working sets, GB/s of {rate:,.0f}")
        lines += _bars(
            [f"{size / MIB:,.0f} MiB" for size in profile.streaming_bytes],
            [share * rate for share in profile.streaming_efficiency],
        )
    return lines


def _marks(count: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[:count]


def _bars(labels: Sequence[str], rates: Sequence[float]) -> list[str]:
    most = max(rates)
    return [
        f"{label:>14} {rate:>9,.0f} {'#' * max(round(rate / most * (_BAR - 2)), 1)}"
        for label, rate in zip(labels, rates, strict=True)
    ]
