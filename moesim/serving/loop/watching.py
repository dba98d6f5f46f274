"""Watch the steps of a request loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moesim.serving.loop.rank import Rank
from moesim.serving.loop.stretch import Stretch


class StepWatch(Protocol):
    """Whatever looks at the steps of a server as they end."""

    def __call__(
        self, server: str, begin_s: float, stretch: Stretch, steps: int, ranks: Sequence[Rank]
    ) -> None:
        """Take steps that have run, before their requests move on.

        Args:
            server: Name of the server.
            begin_s: When the first of them began.
            stretch: Their durations.
            steps: Their number.
            ranks: The attention ranks of the server; those that took part have planned steps.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenStep:
    """A step of a server.

    Attributes:
        server: Name of the server.
        begin_s: When it began.
        end_s: When it ended.
        prompt_tokens: Prompt tokens of the rank with most of them.
        sequences: Decoding sequences of the rank with most of them.
        running: Sequences that decode or could, of all ranks.
        waiting: Requests in the queues of all ranks.
    """

    server: str
    begin_s: float
    end_s: float
    prompt_tokens: int
    sequences: int
    running: int
    waiting: int


@dataclass(kw_only=True, eq=False)
class FirstSteps:
    """A watch that keeps the first steps of each server after a moment.

    Attributes:
        after_s: The moment.
        most: Steps of a server that are kept.
        steps: The steps.
    """

    after_s: float
    most: int
    steps: list[SeenStep] = field(default_factory=list)
    _kept: dict[str, int] = field(default_factory=dict, init=False)

    def __call__(
        self, server: str, begin_s: float, stretch: Stretch, steps: int, ranks: Sequence[Rank]
    ) -> None:
        """Take steps that have run, see `StepWatch`."""
        # steps that are jumped over all begin with the same requests
        for at in range(steps):
            began_s = begin_s + stretch.seconds(at)
            if began_s < self.after_s:
                continue
            if self._kept.setdefault(server, 0) >= self.most:
                return
            self._kept[server] += 1
            self.steps.append(
                SeenStep(
                    server=server,
                    begin_s=began_s,
                    end_s=begin_s + stretch.seconds(at + 1),
                    prompt_tokens=max(rank.prompt_tokens for rank in ranks),
                    sequences=max(len(rank.decoding) if rank.decodes else 0 for rank in ranks),
                    running=sum(len(rank.decoding) for rank in ranks),
                    waiting=sum(len(rank.waiting) for rank in ranks),
                )
            )
