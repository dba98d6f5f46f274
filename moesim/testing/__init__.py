"""Contract suites: what every engine, placement strategy, measurement source and exchange must do.

A third party can check its own implementation with them, in any test framework or in none::

    from moesim.testing import check_engine, check_exchange, check_source, check_strategy

    check_engine(my_run, kind="fluid")
    check_strategy(my_plan, replicates=True)
    check_source(MySource())
    check_exchange("my_exchange")

Each function runs small, named checks one after another, and raises `AssertionError` with the case
and the rule that is broken. To see the checks separately in a test report, parametrize over
``moesim.testing.engines.CHECKS`` and the ``CHECKS`` of the other modules; moesim's own tests do so.
"""

from moesim.testing.engines import check_engine
from moesim.testing.exchanges import check_exchange
from moesim.testing.placements import check_strategy
from moesim.testing.sources import check_source

__all__ = ["check_engine", "check_exchange", "check_source", "check_strategy"]
