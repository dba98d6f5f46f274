"""Contract suites: what every engine, placement strategy, measurement source and exchange must do.

A third party can hold its own implementation to them, from any test framework or from none::

    from moesim.testing import check_engine, check_exchange, check_source, check_strategy

    check_engine(my_run, kind="fluid")
    check_strategy(my_plan, replicates=True)
    check_source(MySource())
    check_exchange("my_exchange")

Each of them runs small checks with names of their own, one after another, and raises
`AssertionError` with the case and the rule that it breaks. To see them apart in a test report,
parametrize over ``moesim.testing.engines.CHECKS`` and its likes, as moesim's own tests do.
"""

from moesim.testing.engines import check_engine
from moesim.testing.exchanges import check_exchange
from moesim.testing.placements import check_strategy
from moesim.testing.sources import check_source

__all__ = ["check_engine", "check_exchange", "check_source", "check_strategy"]
