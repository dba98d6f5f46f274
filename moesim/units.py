"""Units: the code uses SI units and converts once, where a number enters (bytes, seconds, FLOP/s,
bytes/s).

``GB`` is 1e9, as vendors count; ``GIB`` is 2**30, as allocators count. Multiply on the way in,
divide on the way out: ``3350 * GB`` bytes/s, ``time_s / US`` microseconds.
"""

US = 1e-6
MS = 1e-3
KB = 1e3
MB = 1e6
GB = 1e9
TERA = 1e12
KIB = 2**10
MIB = 2**20
GIB = 2**30


def short_number(value: float) -> str:
    """Return the shortest text that reads back as the same number: ``1.25``, ``1e+20``,
    ``0.1234567``.
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
