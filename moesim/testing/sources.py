"""Check what every measurement source must do, whatever it measures.

A source is an object with the methods of `moesim.measured.sources.MeasurementSource`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.hardware import Cluster, load_cluster
from moesim.measured.check import check_candidate
from moesim.measured.sources import QUANTITIES, STATUSES, VERDICTS, CheckRow, MeasurementSource
from moesim.model import MoELayer, Precision
from moesim.model.gate import Gate
from moesim.testing.expect import expect


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One candidate to check against a source.

    Attributes:
        candidate: The design.
        cluster: Name of the hardware.
        workload: Tokens and routing.
    """

    candidate: Candidate
    cluster: str
    workload: Workload

    @property
    def hardware(self) -> Cluster:
        """The cluster, loaded."""
        return load_cluster(self.cluster)


def _case(ep: int = 8, gate: str = "flat", **sizes: object) -> SourceCase:
    """Make a case of a small layer on one H100 or on a node of them."""
    usual = {"hidden_size": 128, "expert_intermediate_size": 64, "num_experts": 32, "top_k": 2}
    layer = MoELayer(gate=Gate.parse(gate), **(usual | sizes))  # type: ignore[arg-type]
    return SourceCase(
        candidate=Candidate(layer=layer, parallelism=Parallelism(ep=ep)),
        cluster="h100-sxm" if ep == 1 else "hgx-h100-8",
        workload=Workload(num_tokens_per_device=64, routing="zipf:0.8", seed=11),
    )


#: name -> case; together they have everything that a source may be unable to run
CASES: Mapping[str, SourceCase] = {
    "plain": _case(),
    "one device": _case(ep=1),
    "fp8": _case(precision=Precision.named("fp8")),
    "capacity, shared": _case(capacity_factor=1.25, num_shared_experts=1),
    "different widths": _case(expert_intermediate_size=(64,) * 16 + (32,) * 16),
    "two matrices": _case(gated=False),
    "odd product keys": _case(ep=1, gate="product_key:3:8", num_experts=49, top_k=4),
    "two experts": _case(ep=1, num_experts=2),
    "one expert": _case(ep=1, num_experts=1, top_k=1),
    "options of a gate": _case(gate="two_level:8:4+noisy_top_k:1+bias+share_tokens:4"),
}


def name_and_reason_are_text(source: MeasurementSource) -> None:
    """Check that a source has a name, and that it says in one line why it is unavailable.

    Args:
        source: The source.

    Raises:
        AssertionError: There is no name, or the reason is empty or has several lines.
    """
    expect(source.name and source.name == source.name.strip(), "a name", source.name)
    reason = source.unavailable_because()
    if reason is not None:
        one_line = bool(reason.strip()) and "\n" not in reason
        expect(one_line, f"{source.name}: a reason of one line", reason)


def ask(source: MeasurementSource, case: SourceCase) -> list[CheckRow]:
    """Ask a source to check a case; refused and unavailable checks are rows, too.

    Args:
        source: The source.
        case: The case that it is asked about.
    """
    return check_candidate(source, case.candidate, case.hardware, case.workload)


def rows_say_what_was_asked(
    source: MeasurementSource, case: SourceCase, rows: Sequence[CheckRow]
) -> None:
    """Check that every row names its candidate, source and seed, and uses the known words.

    Args:
        source: The source.
        case: The case that it is asked about.
        rows: The rows that it answered.

    Raises:
        AssertionError: There is no row, or one that names another candidate or an unknown word.
    """
    expect(rows, f"{source.name}: at least one row")
    for row in rows:
        asked = (case.candidate.label, source.name, case.workload.seed)
        found = (row.candidate, row.source, row.seed)
        expect(found == asked, f"{source.name}: a row of {asked}", found)
        words = {"status": STATUSES, "quantity": QUANTITIES, "verdict": VERDICTS}
        for name, known in words.items():
            value = getattr(row, name)
            expect(value in known, f"{source.name}: a {name} of {', '.join(known)}", value)
        one_line = bool(row.detail) and "\n" not in row.detail
        expect(one_line, f"{source.name}: a detail of one line", row.detail)
        expect(row.engine, f"{source.name}: the engine of the simulated value", row.engine)
        digits = len(row.profile_hash) == 12
        expect(digits, f"{source.name}: a profile_hash of 12 digits", row.profile_hash)


def only_checked_rows_are_measured(
    source: MeasurementSource, case: SourceCase, rows: Sequence[CheckRow]
) -> None:
    """Check that a row has a measured value exactly where its status says so.

    Args:
        source: The source.
        case: The case that it is asked about.
        rows: The rows that it answered.

    Raises:
        AssertionError: A row that was not checked has numbers, or statuses are mixed.
    """
    for row in rows:
        checked = row.status == "checked"
        rule = f"{source.name}: a measured value exactly where the status is checked"
        expect((row.measured is not None) == checked, rule, (row.status, row.measured))
        evidence = "measured" if checked else "simulated"
        expect(row.evidence == evidence, f"{source.name}: evidence {evidence}", row.evidence)
        if not checked:
            nothing = (row.simulated, row.verdict) == (None, "not_measured")
            expect(nothing, f"{source.name}: no numbers in a {row.status} row", row.simulated)
    statuses = {row.status for row in rows}
    expect(len(statuses) == 1, f"{source.name}: one status for all rows", statuses)
    if source.unavailable_because() is not None:
        away = statuses == {"unavailable"}
        expect(away, f"{source.name}: status unavailable, since it is not here", statuses)


def numbers_are_in_order(
    source: MeasurementSource, case: SourceCase, rows: Sequence[CheckRow]
) -> None:
    """Check that times are positive and stand within their own intervals.

    A source whose table has means alone leaves out the measured interval and says so.

    Args:
        source: The source.
        case: The case that it is asked about.
        rows: The rows that it answered.

    Raises:
        AssertionError: A number is out of order, or a numerical check has no limit.
    """
    for row in rows:
        if row.status != "checked":
            continue
        if not row.is_time:
            expect(row.limit is not None and row.limit > 0, f"{source.name}: a limit", row.limit)
            continue
        simulated = (row.simulated_low, row.simulated, row.simulated_high)
        _expect_ascending(simulated, f"{source.name}: P10 <= simulated <= P90")
        if row.measured_low is None:
            said = row.measured_high is None and "a mean" in row.detail
            expect(said, f"{source.name}: a detail that says 'a mean'", row.detail)
            _expect_ascending((row.measured,), f"{source.name}: a measured time")
        else:
            measured = (row.measured_low, row.measured, row.measured_high)
            _expect_ascending(measured, f"{source.name}: 0 < P10 <= measured <= P90")


def _expect_ascending(values: Sequence[float | None], rule: str) -> None:
    """Raise unless numbers are positive and ascend."""
    known = [value for value in values if value is not None]
    there = len(known) == len(values) and known[0] > 0
    expect(there and known == sorted(known), rule, values)


#: the checks of every case
CHECKS: tuple[Callable[[MeasurementSource, SourceCase, Sequence[CheckRow]], None], ...] = (
    rows_say_what_was_asked,
    only_checked_rows_are_measured,
    numbers_are_in_order,
)


def check_source(source: MeasurementSource, names: Sequence[str] = tuple(CASES)) -> None:
    """Run all checks of measurement sources on a source.

    Args:
        source: The source.
        names: Names of the `CASES` to ask about; all by default.

    Raises:
        KeyError: There is no such case.
        AssertionError: The source breaks a rule, which the text names.
    """
    name_and_reason_are_text(source)
    for name in names:
        rows = ask(source, CASES[name])
        for check in CHECKS:
            check(source, CASES[name], rows)
