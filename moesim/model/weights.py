"""A weight matrix of a layer: what mixers and feed-forwards list, and what parameters are counted
from.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight matrix, or several of one shape.

    Biases, norms and scales are left out: they are under 0.2 % of any published model.

    Attributes:
        name: Name of the matrix, such as ``q`` or ``experts.down``.
        n: Number of outputs.
        k: Number of inputs.
        copies: Number of matrices of this shape.
        active: Number of them that one token multiplies with; None for all.
    """

    name: str
    n: int
    k: int
    copies: int = 1
    active: float | None = None

    @property
    def params(self) -> int:
        """The number of weights of all copies."""
        return self.n * self.k * self.copies

    @property
    def active_params(self) -> float:
        """The number of weights that one token multiplies with."""
        return self.n * self.k * (self.copies if self.active is None else self.active)


def total(weights: Iterable[Weight]) -> int:
    """Return the number of weights of several matrices."""
    return sum(weight.params for weight in weights)


def total_active(weights: Iterable[Weight]) -> float:
    """Return the number of weights of several matrices that one token multiplies with."""
    return sum(weight.active_params for weight in weights)
