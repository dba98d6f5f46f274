"""Lower the passes of one kind of layer: its parts as pieces on the streams of the devices among
which its tokens travel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from moesim.costs.steps import rest
from moesim.costs.training.parts import Part
from moesim.design.schedule import Schedule
from moesim.hardware import Cluster
from moesim.lowering.canvas import Canvas
from moesim.lowering.priced import Priced
from moesim.lowering.streams import Arrive, BeginCombine, BeginDispatch, Local, Piece
from moesim.program import Program


class Travel(Enum):
    """What happens to an exchange between the parts of a pass."""

    DISPATCH = "dispatch begins"
    COMBINE = "combine begins"
    ARRIVE = "arrives"


Item = Part | Travel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPasses:
    """The passes of a kind of layer.

    Attributes:
        forward: Parts in order, with the exchanges among them.
        backward: Parts of the pass through activations and through weights.
        dgrad: Parts of the pass through activations alone.
        wgrad: Parts of the pass through weights.
        cluster: The devices among which tokens travel.
        schedule: The exchange's name and granularity.
        priced: The exchange; empty if there is none.
        fmt: Format whose peak the compute resource counts in.
    """

    forward: list[Item]
    backward: list[Item]
    dgrad: list[Item]
    wgrad: list[Item]
    cluster: Cluster
    schedule: Schedule
    priced: list[Priced]
    fmt: str

    def flops(self, which: str) -> float:
        """Return the FLOPs of a pass on one device."""
        return sum(one.flops for one in getattr(self, which) if isinstance(one, Part))

    def lower(self, *passes: str) -> Program:
        """Return one pass as a program, or two side by side.

        Args:
            *passes: Names of passes: ``forward``, ``backward``, ``dgrad``, ``wgrad``.
        """
        canvas = Canvas.of(self.cluster, self.fmt, overlapped=len(passes) > 1, priced=self.priced)
        canvas.streams.run([self._pieces(getattr(self, name), canvas) for name in passes])
        return canvas.builder.build()

    def _pieces(self, items: Sequence[Item], canvas: Canvas) -> list[Piece]:
        exchange = canvas.exchange(self.priced[0], self.schedule) if self.priced else None
        found: list[Piece] = []
        for item in items:
            if isinstance(item, Part):
                cost = rest.on_all(item.cost, canvas.cluster.num_devices)
                found.append(Local(name=item.name, cost=cost))
            elif exchange is None:
                # a single device sends nothing
                continue
            elif item is Travel.ARRIVE:
                found.append(Arrive())
            elif item is Travel.DISPATCH:
                found.append(BeginDispatch(exchange=exchange))
            else:
                found.append(BeginCombine(exchange=exchange))
        return found
