"""Divide the layers of a model over the parts of a pipeline."""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.model.spec import LayerKind


def stages_of(
    name: str, blocks: Sequence[LayerKind], parts: int, *, uneven: bool
) -> list[tuple[LayerKind, ...]]:
    """Return the layers of every part, in order.

    Args:
        name: Name of the model, for the error.
        blocks: Its layers.
        parts: Number of parts.
        uneven: Whether parts may differ by a layer. The longer ones are then in the middle, since
            the first also has the embedding and the last the head.

    Raises:
        ConfigError: The parts do not divide the layers, or there are more parts than layers.
    """
    count = len(blocks)
    if parts > count:
        raise ConfigError(f"layout: expected pp x vp <= the {count} layers of {name}, got {parts}")
    if count % parts and not uneven:
        raise ConfigError(
            f"layout: expected pp x vp that divides the {count} layers of {name} (or "
            f"uneven_stages), got {parts}"
        )
    each, more = divmod(count, parts)
    first = (parts - more) // 2
    found, at = [], 0
    for part in range(parts):
        size = each + (first <= part < first + more)
        found.append(tuple(blocks[at : at + size]))
        at += size
    return found
