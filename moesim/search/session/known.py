"""Start a search from the published models that are points of its space."""

from dataclasses import replace
from typing import Any

from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.model import Gate
from moesim.model.gate_kinds import GATE_KINDS
from moesim.model.presets import load_preset, preset_names
from moesim.search.choices import parse_parallelism
from moesim.search.parameters import GROUPS
from moesim.search.problems import AnySpace
from moesim.search.space import Space


def known_points(space: AnySpace, cluster: Cluster) -> list[dict[str, Any]]:
    """Return published models as points, or parts of points, for ``enqueue`` of
    `moesim.search.run_study`.

    A model is included if its width of a token, its experts (routed, shared, their width), its
    top-k and its gate are choices of the space. The gate's score (softmax or sigmoid) moves no
    token and is taken from the space. The point names the first layout that uses all of the
    cluster's devices; the search chooses the remaining parameters.

    Args:
        space: The space to search.
        cluster: The hardware that the points run on.

    Returns:
        Nothing for a space of whole models or training runs, whose model is given.
    """
    points: list[dict[str, Any]] = []
    if not isinstance(space, Space):
        return points
    layouts = [text for text in space.parallelism if _uses(text, cluster)]
    for name in preset_names():
        layer = load_preset(name).layer
        gate, capacity = _gate_choices(space, layer.gate), layer.capacity_factor or 0.0
        sizes = layer.hidden_size, layer.num_shared_experts, layer.gated
        if (
            sizes != (space.hidden_size, space.num_shared_experts, True)
            or gate is None
            or not layouts
        ):
            continue
        if capacity not in space.capacity_factor:
            continue
        point = {
            "num_experts": layer.num_experts,
            "top_k": layer.top_k,
            "expert_intermediate_size": layer.expert_intermediate_size,
            "parallelism": layouts[0],
            **gate,
        }
        if "capacity_factor" in space.choices():
            point["capacity_factor"] = capacity
        try:
            space.check_point(point)
        except ConfigError:  # not a choice: the model is not a point of this space
            continue
        if point not in points:
            points.append(point)
    return points


def _uses(text: str, cluster: Cluster) -> bool:
    try:
        return parse_parallelism(text, cluster.num_devices).num_devices == cluster.num_devices
    except ConfigError:  # tp does not divide the devices
        return False


def _gate_choices(space: Space, gate: Gate) -> dict[str, Any] | None:
    """Return the choices that make a gate except for its score; None if there are none."""
    for text in space.gate:
        base, *options = text.split("+")
        grouped = base in GATE_KINDS and GATE_KINDS[base].grouped
        groups = (
            dict(zip(GROUPS, (gate.num_expert_groups, gate.num_limited_groups), strict=True))
            if grouped
            else {}
        )
        if any(value not in getattr(space, name) for name, value in groups.items()):
            continue
        written = "+".join([":".join([base, *map(str, groups.values())]), *options])
        if replace(Gate.parse(written), score=gate.score) == gate:
            return {"gate": text, **groups}
    return None


__all__ = ["known_points"]
