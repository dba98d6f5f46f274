"""Which experts stay in the memory of their device, and how the others come from the host.

The experts of every device that can expect the most tokens are resident, like a cache that has
settled. When the gate has chosen, those of the active ones that are missing are copied over the
host link, and the experts wait for them. While they run, the experts of the *next* layer are
guessed from this layer's tokens and fetched ahead (Eliseev and Mazur 2023, arXiv 2312.17238).
A wrong guess costs the link as much as a right one.
"""

from dataclasses import dataclass

from moesim.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Where the weights of routed experts lie.

    Attributes:
        resident_fraction: Share of the experts of a device that its memory holds; 1 offloads none.
        prefetch_recall: Share of the missing experts that is guessed one layer ahead; 0 fetches
            nothing ahead, and None takes what the routing model predicts of a guess by popularity,
            see `moesim.lowering.fetches.popular_recall`. As many are guessed as will be missing.

    Raises:
        ConfigError: A share is not from 0 to 1, or experts are fetched ahead while all are
            resident.
    """

    resident_fraction: float = 1.0
    prefetch_recall: float | None = 0.0

    def __post_init__(self) -> None:
        for name in ("resident_fraction", "prefetch_recall"):
            share = getattr(self, name)
            if share is not None:
                require(0 <= share <= 1, f"offload.{name}", "a share from 0 to 1", share)
        require(
            self.resident_fraction < 1 or self.prefetch_recall == 0,
            "offload.prefetch_recall",
            "0, since all experts are resident",
            self.recall_word,
        )

    @property
    def fetches_ahead(self) -> bool:
        """Whether experts are guessed and copied one layer ahead."""
        return self.prefetch_recall != 0

    @property
    def recall_word(self) -> float | str:
        """The recall, or ``routing`` for what the routing model predicts."""
        return "routing" if self.prefetch_recall is None else self.prefetch_recall

    @property
    def is_nothing(self) -> bool:
        """Whether all experts stay on their device."""
        return self.resident_fraction == 1
