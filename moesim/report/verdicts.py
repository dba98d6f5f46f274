"""Count what measurements said about the winners of a search, from rows of check.csv."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: how the detail of a check begins that ran a stand-in for the design
SCALED_DOWN = "scaled down"
#: verdicts, the worst first
_ORDER = ("refuted", "inconclusive", "confirmed")


@dataclass(frozen=True, slots=True, kw_only=True)
class WinnerVerdicts:
    """The winners of a search, with what was measured of each.

    Attributes:
        verdicts: Key of the design -> ``confirmed``, ``inconclusive``, ``refuted`` or
            ``not_measured``. Only measurements of the design itself count; those of a scaled-down
            stand-in do not.
        stand_ins: Number of winners that only have a measured stand-in.
    """

    verdicts: Mapping[str, str]
    stand_ins: int

    def count(self, verdict: str) -> int:
        """Return the number of winners with a verdict."""
        return list(self.verdicts.values()).count(verdict)

    @property
    def measured(self) -> int:
        """The number of winners that have a measurement."""
        return len(self.verdicts) - self.count("not_measured")

    def sentence(self) -> str:
        """Say how many winners were measured and what came of it, as one sentence."""
        total = len(self.verdicts)
        if not total:
            return "No winner was checked against a measurement."
        whole = f"of {total} winner" + ("s" if total > 1 else "")
        if not self.measured:
            none = f"0 {whole} have a measurement" if total > 1 else "The winner was not measured"
            stand_in = (
                f" ({self.stand_ins} only as a scaled-down stand-in on this machine)"
                if self.stand_ins
                else ""
            )
            return f"{none}{stand_in}."
        said = [
            f"{self.count(verdict)} {verdict}"
            for verdict in reversed(_ORDER)
            if self.count(verdict)
        ]
        have = "has" if self.measured == 1 else "have"
        return f"{self.measured} {whole} {have} a measurement: {', '.join(said)}."


def winners_measured(checks: Iterable[Mapping[str, Any]]) -> WinnerVerdicts:
    """Return the verdict on each winner, from rows as in check.csv.

    Args:
        checks: Rows with at least ``role``, ``design``, ``quantity``, ``verdict`` and ``detail``.
    """
    own: dict[str, set[str]] = {}
    others: set[str] = set()
    for row in checks:
        if row["role"] != "winner":
            continue
        found = own.setdefault(str(row["design"]), set())
        stand_in = str(row["detail"]).startswith(SCALED_DOWN)
        if row["verdict"] == "refuted" and not str(row["quantity"]).endswith("_us"):
            found.add("refuted")  # the kernels compute something else
        elif str(row["quantity"]).endswith("_us") and row["verdict"] != "not_measured":
            if stand_in:
                others.add(str(row["design"]))
            else:
                found.add(str(row["verdict"]))
    verdicts = {
        design: next((verdict for verdict in _ORDER if verdict in found), "not_measured")
        for design, found in own.items()
    }
    return WinnerVerdicts(
        verdicts=verdicts,
        stand_ins=sum(verdicts[design] == "not_measured" for design in others),
    )


__all__ = ["SCALED_DOWN", "WinnerVerdicts", "winners_measured"]
