"""Say which serving engines can launch a design as it is simulated: its exchange and its layout.

- SGLang's DeepEP and other all-to-all backends need whole experts (``ep_size = tp_size``); its
  backend ``none`` gathers and also cuts experts. Two micro-batches are its two-batch overlap.
- vLLM keeps experts whole, spread over all ranks, or cuts each over all of them, with nothing in
  between. Two micro-batches are ``--enable-dbo``, which needs DeepEP.
- TensorRT-LLM spreads and cuts experts in any proportion, but its all-to-all needs whole ones. It
  overlaps no micro-batches.

The flags behind this are in the records of exchanges and kernel libraries.
"""

from moesim.design.candidate import Candidate
from moesim.hardware.exchanges import Exchange
from moesim.hardware.libraries import ENGINES


def launching_engines(candidate: Candidate, exchange: Exchange | None) -> tuple[str, ...]:
    """Return the serving engines that launch a design's layout with an exchange.

    Args:
        candidate: The design.
        exchange: Its exchange; None on one device, which has none.
    """
    return tuple(engine for engine in ENGINES if _refusal(engine, candidate, exchange) is None)


def _refusal(engine: str, candidate: Candidate, exchange: Exchange | None) -> str | None:
    """Say why an engine does not launch a design; None if it does."""
    spread, parts = candidate.parallelism, candidate.schedule.num_micro_batches
    if exchange is None:
        return None if parts == 1 else "one device overlaps nothing"
    if engine not in exchange.launch:
        return f"it has no exchange {exchange.name}"
    gathers = exchange.pattern == "all_gather"
    if engine == "vllm":
        if spread.ep > 1 and spread.tp > 1:
            return "experts are whole or cut over all devices"
        overlaps = spread.ep > 1 and "deepep" in exchange.launch[engine]
        return None if parts == 1 or (parts == 2 and overlaps) else "only DeepEP is overlapped"
    if spread.tp > 1 and not gathers:
        return "its all-to-all needs whole experts"
    most = 2 if engine == "sglang" else 1
    return None if parts <= most else f"it overlaps {most} micro-batches at most"


__all__ = ["launching_engines"]
