"""What the prices of tiled kernels share: the units that run tiles, and the evaluation of many rows
block by block, so that temporaries stay in the cache.
"""

from collections.abc import Callable

import numpy as np

from moesim.hardware import Profile

Array = np.ndarray
Amount = int | float | np.ndarray
#: rows whose temporaries fit in a core's L2
_BLOCK = 4096
#: units of a device whose matrix units are few and large, so that its waves are as short as those
#: of the devices that were fitted (assumed)
_UNITS = 128


def units_of(profile: Profile) -> int:
    """Return the number of units of a device that run one tile each: its SMs."""
    return profile.num_sms if profile.execution == "waves" else _UNITS


def in_blocks(price: Callable[..., Array], *columns: Amount) -> Array:
    """Return the price of every row.

    Args:
        price: Function from 1-D float64 arrays to seconds, elementwise.
        *columns: Numbers or ndarrays whose shapes broadcast.

    Returns:
        ndarray of float64 of the common shape.
    """
    wide = np.broadcast_arrays(*(np.asarray(c, dtype=np.float64) for c in columns))
    flat = [np.ravel(c) for c in wide]
    out = np.empty(flat[0].shape)
    for start in range(0, len(out), _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part] = price(*(c[part] for c in flat))
    return out.reshape(wide[0].shape)
