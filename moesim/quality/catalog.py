"""List the basis of the estimate: every law with its range and the source of its coefficients."""

from dataclasses import dataclass
from typing import Literal

from moesim.quality.laws import GRANULARITY_RANGE, JOINT_RANGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One scaling law.

    Attributes:
        name: Short name of the law.
        source: The paper that published it.
        fitted_on: The range and kind of models it was fitted on, in words.
        kind: ``published`` if we read the coefficients in the paper; ``assumed`` if we have them at
            second hand.
        used_for: The part of the law in the estimate.
        ranges: The range of each variable, if it is known.
    """

    name: str
    source: str
    fitted_on: str
    kind: Literal["published", "assumed"]
    used_for: str
    ranges: dict[str, tuple[float, float]]


LAWS = (
    Law(
        name="joint",
        source="Ludziejewski et al. 2025, arXiv 2502.05172",
        kind="published",
        used_for="central estimate",
        fitted_on="top-1 Switch, up to 32 experts, 79M-2.7B active, 0.5-80B tokens",
        ranges=JOINT_RANGE,
    ),
    Law(
        name="fine_grained",
        source="Krajewski et al. 2024, arXiv 2402.07871",
        kind="assumed",
        used_for="step of granularity",
        fitted_on="64 experts, granularity 1-16",
        ranges={"granularity": GRANULARITY_RANGE},
    ),
    Law(
        name="clark",
        source="Clark et al. 2022, arXiv 2202.01169",
        kind="assumed",
        used_for="second opinion beyond the joint law's experts; hash and RL routing",
        fitted_on="top-1, up to 512 experts, 130B tokens; S-BASE, RL-R, HASH",
        ranges={"E_eff": (1.0, 512.0)},
    ),
    Law(
        name="abnar",
        source="Abnar et al. 2025, arXiv 2501.12370",
        kind="assumed",
        used_for="second opinion beyond the joint law's experts",
        ranges={},
        fitted_on="total parameters and sparsity; R² 68 % on sparsity held out",
    ),
    Law(
        name="leverage",
        source="Tian et al. 2025, arXiv 2507.17702",
        kind="published",
        used_for="second opinion on experts and granularity",
        fitted_on="up to 28B total parameters; bases of its logarithms inferred",
        ranges={},
    ),
)
