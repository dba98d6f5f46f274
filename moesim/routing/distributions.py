"""Distribute the load over experts: how many of the T x k choices each expert gets.

A routing is written ``BASE[+drift:RATE][+burst:COUNT:FACTOR][+stale:SIGMA][@STEP]``. The base is a
shape (`moesim.routing.shapes`), a measured profile such as ``olmoe-c4`` or ``olmoe-c4:15`` for
layer 15 (`moesim.routing.measured`), a named skew ``w0`` to ``w7`` (`moesim.routing.workloads`), or
``trace:PATH``, ``trace:PATH#LAYER`` (`moesim.routing.trace`). ``drift`` lets a share of the experts
exchange their loads in every step. ``burst`` makes some experts hotter by a factor, different ones
in each step. Apart from the burst, the first step of a seed equals the base. ``stale`` changes no
token: a placement is planned on loads that differ from those it meets by a log-normal factor of
each expert, as the window that a planner saw differs from the batch that is served.

``domains:N:ALPHA``, ``olmoe-domains`` and ``mixtral-domains`` map data to experts: source s serves
domain s modulo N, and each domain has its own load profile.

Shape legend: E experts, T tokens, k choices per token, N domains.
"""

from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError, require
from moesim.limits import check_request
from moesim.routing import measured
from moesim.routing.apportion import apportion, capped
from moesim.routing.shapes import ONE_NUMBER, burst, drifted, shape_weights
from moesim.routing.workloads import WORKLOADS, workload_weights

#: largest number of steps, since each step is drawn after all steps before it
MAX_STEP = 100_000
MAX_DOMAINS = 1024
#: a number of a shape beyond which weights overflow, or nothing changes any more
MAX_NUMBER, MAX_SIGMA = 1e6, 100.0
#: keeps what a stale plan draws apart from the seed's other draws
_STALE = 0x57A1E
#: bytes of the weight of an expert in a domain while it is drawn
_WEIGHT_BYTES = 24.0
#: a standard deviation beyond which a plan knows nothing of the loads
MAX_STALE = 4.0
_FORM = (
    "'uniform', 'zipf:ALPHA', 'power_law:ALPHA', 'lognormal:SIGMA', 'dirichlet:ALPHA', "
    "'domains:N:ALPHA', 'w0' to 'w7', a measured profile such as 'olmoe-c4' or 'trace:PATH', "
    "with numbers > 0, then '+drift:RATE', '+burst:COUNT:FACTOR', '+stale:SIGMA' or '@STEP'"
)
#: shapes that are apportioned as drawn, without a cap, since the measured data is defined so
_NOT_CAPPED = ("power_law",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSpec:
    """A named distribution of load.

    Attributes:
        kind: Name of the base; see the module docstring.
        alpha: Number of the base; 0 if it has none.
        num_domains: Number of data domains with their own profile.
        layer: Layer of a measured profile or trace; None for its default.
        path: Path of a trace.
        drift: Share of experts that exchange their loads in each step.
        burst_count: Number of experts that are hotter in a step.
        burst_factor: Factor by which these experts are hotter.
        stale: Standard deviation of the logarithm of planned over met loads.
        step: The step that is drawn.
    """

    kind: str
    alpha: float = 0.0
    num_domains: int = 1
    layer: int | None = None
    path: str = ""
    drift: float = 0.0
    burst_count: int = 0
    burst_factor: float = 1.0
    stale: float = 0.0
    step: int = 0

    @classmethod
    def parse(cls, text: str) -> "RoutingSpec":
        """Read a routing such as ``"zipf:0.8"`` or ``"olmoe-mix+drift:0.1@20"``.

        Raises:
            ConfigError: The text does not have that form.
        """
        # it is printed, and stands in the comments of scripts
        require(text.isprintable(), "routing", "a text without control characters", text)
        if text.startswith("trace:") and len(text) > 6:
            path, mark, layer = text[6:].rpartition("#")
            if mark and path and layer.isascii() and layer.isdigit():
                return cls(kind="trace", path=path, layer=int(layer))
            return cls(kind="trace", path=text[6:])
        body, at, step = text.partition("@")
        base, *extras = body.split("+")
        fields = _base(base)
        if fields is not None and at:
            fields["step"] = _whole(step, 0, MAX_STEP)
        for extra in extras:
            name, *numbers = extra.split(":")
            if fields is None or name not in ("drift", "burst", "stale") or name in fields:
                fields = None
                break
            fields[name] = None
            if name == "drift" and len(numbers) == 1:
                fields |= {"drift": _number(numbers[0], 1.0)}
            elif name == "stale" and len(numbers) == 1:
                fields |= {"stale": _number(numbers[0], MAX_STALE)}
            elif name == "burst" and len(numbers) == 2:
                fields |= {
                    "burst": 0,
                    "burst_count": _whole(numbers[0], 1),
                    "burst_factor": _number(numbers[1]),
                }
        if fields is None or None in fields.values():
            raise ConfigError(f"routing: expected {_FORM}, got {text!r}")
        fields.pop("burst", None)
        return cls(**fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind == "trace":
            return f"trace:{self.path}" + ("" if self.layer is None else f"#{self.layer}")
        text = self.kind
        if self.kind == "domains":
            text += f":{self.num_domains}"
        if self.kind in ONE_NUMBER or self.kind == "domains":
            text += f":{self.alpha:g}"
        if self.layer is not None:
            text += f":{self.layer}"
        text += f"+drift:{self.drift:g}" if self.drift else ""
        text += f"+burst:{self.burst_count}:{self.burst_factor:g}" if self.burst_count else ""
        text += f"+stale:{self.stale:g}" if self.stale else ""
        return text + (f"@{self.step}" if self.step else "")

    def planned_E(self, load_E: np.ndarray, seed: int) -> np.ndarray:
        """Return the loads that a placement is planned on: ndarray of shape (E,).

        Args:
            load_E: ndarray of shape (E,): the loads that it meets.
            seed: Seed of the workload.
        """
        if not self.stale:
            return load_E
        rng = np.random.default_rng([seed, _STALE, len(load_E)])
        return load_E * np.exp(self.stale * rng.standard_normal(len(load_E)))

    def weights_NE(
        self, num_experts: int, top_k: int, num_tokens: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw the weight of every expert in every domain.

        Args:
            num_experts: Number of experts E.
            top_k: Number of choices per token k.
            num_tokens: Number of tokens T.
            rng: Source of randomness. It decides which experts are hot, and for most shapes also
                how hot.

        Returns:
            ndarray of shape (N, E): weights >= 0, no row all 0.
        """
        if self.kind == "domains":
            check_request(
                f"routing: {self.num_domains} domains of {num_experts} experts",
                memory_bytes=_WEIGHT_BYTES * self.num_domains * num_experts,
                advice="fewer domains",
            )
            weight = np.stack(
                [
                    shape_weights("dirichlet", self.alpha, num_experts, 0, 0, rng)
                    for _ in range(self.num_domains)
                ]
            )
        elif self.kind in measured.PRESETS:
            counts = measured.counts_NE(self.kind, self.layer)
            # one seed, so that the order of experts is the same in every domain
            order = rng.integers(2**62)
            weight = np.stack(
                [
                    measured.stretched(row, num_experts, np.random.default_rng(order))
                    for row in counts
                ]
            )
        elif self.kind in WORKLOADS:
            weight = workload_weights(self.kind, num_experts, top_k, self.step, rng)[None]
        else:
            weight = shape_weights(
                self.kind, self.alpha, num_experts, num_tokens * top_k, num_tokens, rng
            )[None]
        if self.drift or self.burst_count:
            own = rng.spawn(1)[0]
            if self.drift and num_experts > 1:
                weight = drifted(weight, self.drift, self.step, own.spawn(1)[0])
            if self.burst_count:
                weight = burst(weight, self.burst_count, self.burst_factor, self.step, own)
        return weight

    def loads(
        self,
        num_experts: int,
        top_k: int,
        num_tokens: int,
        rng: np.random.Generator,
        left_E: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw the load of every expert, with equally many tokens in all domains.

        The share of pruned experts goes to the others, in proportion to their loads.

        Args:
            num_experts: Number of experts E.
            top_k: Number of choices per token k.
            num_tokens: Number of tokens T.
            rng: Source of randomness.
            left_E: ndarray of shape (E,), bool: whether an expert is not pruned (at least top_k are
                not); None if no expert is pruned.

        Returns:
            ndarray of shape (E,), int64: loads that sum to T * k, none above T.

        Raises:
            ConfigError: The routing is a trace, which has no distribution; `moesim.routing.route`
                reads it.
        """
        if self.kind == "trace":
            raise ConfigError(
                f"routing: {self}: a trace says where each token goes; it is not drawn"
            )
        weight_NE = self.weights_NE(num_experts, top_k, num_tokens, rng)
        weight = (
            (weight_NE / weight_NE.sum(axis=1, keepdims=True)).mean(axis=0)
            if len(weight_NE) > 1
            else weight_NE[0]
        )
        return self.spread(weight, top_k, num_tokens, left_E)

    def spread(
        self, weight_E: np.ndarray, top_k: int, num_tokens: int, left_E: np.ndarray | None = None
    ) -> np.ndarray:
        """Return loads in proportion to weights that are already drawn; otherwise the same as
        `loads`.
        """
        left = np.ones(len(weight_E), dtype=bool) if left_E is None else left_E
        weight = weight_E[left]
        if self.kind not in _NOT_CAPPED or not weight.any():
            weight = capped(weight, num_tokens * top_k, num_tokens)
        loads = np.zeros(len(weight_E), dtype=np.int64)
        loads[left] = apportion(weight, num_tokens * top_k, num_tokens)
        return loads


def _base(text: str) -> dict[str, float | int | str | None] | None:
    """Return the fields of a base; None if the text is not a base, and a field of None if its
    number is wrong.
    """
    kind, *numbers = text.split(":")
    if kind in ONE_NUMBER and len(numbers) == 1:
        most = MAX_SIGMA if kind == "lognormal" else MAX_NUMBER
        return {"kind": kind, "alpha": _number(numbers[0], most)}
    if kind == "domains" and len(numbers) == 2:
        return {
            "kind": kind,
            "num_domains": _whole(numbers[0], 1, MAX_DOMAINS),
            "alpha": _number(numbers[1]),
        }
    if (kind == "uniform" or kind in WORKLOADS) and not numbers:
        return {"kind": kind}
    if kind in measured.PRESETS and len(numbers) < 2:
        domains = max(len(measured.PRESETS[kind][1]), 1)
        fields: dict[str, float | int | str | None] = {"kind": kind, "num_domains": domains}
        if numbers:
            layer = _whole(numbers[0], 0)
            fields["layer"] = layer if layer in measured.layers(kind) else None
        return fields
    return None


def _number(text: str, most: float = MAX_NUMBER) -> float | None:
    """Return a number > 0 and at most ``most``, otherwise None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= most else None


def _whole(text: str, low: int, high: int = 10**9) -> int | None:
    """Return an integer from ``low`` to ``high``, otherwise None."""
    return (
        int(text)
        if text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high
        else None
    )
