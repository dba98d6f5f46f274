"""Write everything that starts a simulated design in one folder: command, expert map, README."""

from collections.abc import Sequence
from pathlib import Path

from moesim.errors import UnknownNameError, printable
from moesim.files.output import is_plain
from moesim.hardware.libraries import ENGINES
from moesim.placement.files import map_text, slot_map, write_text
from moesim.serving.launch import OPTIONS_FILE, Deployment, launch_lines, trtllm_options

_SCRIPT, _README = "launch.sh", "README.md"
#: engine -> file of the expert map
_MAPS = {"sglang": "expert_map.json", "vllm": "expert_map.json", "trtllm": "expert_map.yaml"}


def write_bundle(
    folder: Path,
    deployed: Deployment,
    engine: str,
    *,
    dense_layers: int = 0,
    model: str = "$MODEL",
    about: Sequence[str] = (),
) -> list[Path]:
    """Write the files that start a design in a serving engine.

    Args:
        folder: The folder, which is made if it does not exist.
        deployed: The design that was simulated.
        engine: ``sglang``, ``vllm`` or ``trtllm``.
        dense_layers: Number of layers before the first one with experts.
        model: Checkpoint to serve.
        about: Lines on what was simulated, for the README.

    Returns:
        The files: the command, the map, TensorRT-LLM's options, the README.

    Raises:
        UnknownNameError: There is no such engine.
        ConfigError: The engine does not have the layout, or a file cannot be written.
    """
    if engine not in ENGINES:
        raise UnknownNameError("serving engine", engine, ENGINES)
    map_file = _MAPS[engine]
    texts = {
        _SCRIPT: "\n".join(["#!/bin/sh", *launch_lines(deployed, engine, map_file, model)]),
        map_file: _map_text(deployed, engine, dense_layers),
    }
    if engine == "trtllm":
        texts[OPTIONS_FILE] = trtllm_options(deployed, map_file).rstrip()
    texts[_README] = _readme(deployed, engine, list(texts), about)
    paths = [write_text(folder / name, text) for name, text in texts.items()]
    if is_plain(paths[0]):
        paths[0].chmod(0o755)
    return paths


def _map_text(deployed: Deployment, engine: str, dense_layers: int) -> str:
    layers = [deployed.placement] * deployed.num_layers
    if engine != "trtllm":
        return map_text(layers, engine, num_dense_layers=dense_layers)
    slots = slot_map(deployed.placement)
    rows = [f"  {dense_layers + layer}: {slots}" for layer in range(len(layers))]
    return "\n".join(
        [
            f"num_slots: {len(slots)}",
            "initial_global_assignments:",
            *rows,
            "layer_updates_per_iter: 0",
        ]
    )


def _readme(deployed: Deployment, engine: str, files: list[str], about: Sequence[str]) -> str:
    what = {
        _SCRIPT: "starts the engine; on several nodes set HEAD (address of the first) and NODE "
        "(number of this one)",
        _MAPS[engine]: "the experts of all slots, the same plan for every layer",
        OPTIONS_FILE: "the engine's options, which the command names",
    }
    row = deployed.row
    return "\n".join(
        [
            f"# {deployed.candidate.label}",
            "",
            f"Simulated on {printable(deployed.cluster.name)} with moesim {row['version']} (basis "
            f"{row['profile_hash']}): {row['layer_time_us']:,.0f} us a MoE layer, 80 % interval "
            f"{row['layer_time_low_us']:,.0f} to {row['layer_time_high_us']:,.0f}, experts by "
            f"{row['kernels'] or 'the device'}.",
            "Nothing here was run: measure before you rely on it.",
            "",
            *(f"- `{name}`: {what[name]}" for name in files),
            "",
            "The map is as good as the load it was planned for resembles yours: "
            "`moesim placement export --trace FILE` plans one for each layer from recorded loads.",
            "",
            "```",
            *map(printable, about),
            "```",
        ]
    )


__all__ = ["write_bundle"]
