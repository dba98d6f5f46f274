"""Write the command that starts a serving engine as a design was simulated.

Flags are those of SGLang 0.5 (its documentation: ``docs/advanced_features/server_arguments.md`` and
``expert_parallelism.md`` of sgl-project/sglang at commits 004813e1 and 020017c4), of vLLM 0.12
(docs.vllm.ai/en/v0.12.0: ``serving/expert_parallel_deployment``,
``serving/data_parallel_deployment``, ``design/dbo``; ``--moe-backend`` of later versions) and of
TensorRT-LLM 1.2 (its documentation: ``llm-api/reference``, ``MoeConfig`` and
``MoeLoadBalancerConfig``, and the deployment guide for DeepSeek-R1). Exchanges and kernel libraries
bring their own flags (`moesim.hardware.exchanges`, `moesim.hardware.libraries`). Simulated features
without a counterpart become comments above the command:

- SGLang's DeepEP needs ``ep_size = tp_size``; its backend ``none`` gathers (``all_gather`` here).
  Replicas that take turns become ``--ep-dispatch-algorithm dynamic``, which draws one; nearest
  replicas become ``static``.
- vLLM keeps experts whole, spread over all ranks (``--enable-expert-parallel``), or cuts each over
  all of them, with nothing in between. It loads no initial map (proposed in vllm-project/vllm pull
  request 49572) but plans one from the loads it sees.
- TensorRT-LLM reads its options from a file, which holds what others take as flags.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moesim.design.candidate import Candidate
from moesim.errors import ConfigError, printable, require
from moesim.hardware import Cluster
from moesim.hardware.libraries import KernelLibrary, known_library
from moesim.placement import Placement
from moesim.placement.spec import PlacementSpec

#: shell variables of a command over several nodes
_HEAD, _NODE = "$HEAD", "$NODE"
#: file of TensorRT-LLM's options, beside the command
OPTIONS_FILE = "config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """A simulated design, ready to be started.

    Attributes:
        candidate: The design.
        cluster: The hardware it runs on.
        placement: The slots of its experts, the same for every layer.
        row: Its row of results, with the columns of `moesim.simulation.result.Result.row`.
        num_layers: Number of layers with experts.
    """

    candidate: Candidate
    cluster: Cluster
    placement: Placement
    row: dict[str, Any]
    num_layers: int

    @property
    def library(self) -> KernelLibrary | None:
        """The kernel library that was simulated; None if devices run kernels of their own, or
        several kinds of device run different ones.
        """
        return known_library(str(self.row["kernels"]))


def launch_lines(
    deployed: Deployment, engine: str, map_file: str, model: str = "$MODEL"
) -> list[str]:
    """Return a shell command that starts an engine as simulated, below comments on what differs.

    Args:
        deployed: The design that was simulated.
        engine: ``sglang``, ``vllm`` or ``trtllm``.
        map_file: Path of its map.
        model: Checkpoint to serve.

    Raises:
        ConfigError: vLLM does not have the parallel layout.
    """
    notes = [
        f"# {deployed.candidate.label} on {deployed.cluster.name}",
        f"# simulated: {deployed.row['layer_time_us']:,.0f} us a MoE layer at "
        f"{deployed.row['num_tokens_per_device']:,} tokens per device, load "
        f"{deployed.row['routing']}",
    ]
    if not deployed.candidate.is_plain:
        notes.append("# experts compressed or in host memory as simulated: not by this command")
    require(model.isprintable(), "model", "a text without control characters", model)
    model = model if re.fullmatch(r"\$\w+", model) else shlex.quote(model)
    exchange = deployed.cluster.exchange(deployed.candidate.schedule)
    several = deployed.cluster.num_devices > 1
    # TensorRT-LLM selects exchanges by variables of the environment
    setting = _words(exchange.launch.get("trtllm", "")) if several else ""
    start, flags = {
        "sglang": (f"python3 -m sglang.launch_server --model-path {model}", _sglang),
        "vllm": (f"vllm serve {model}", _vllm),
        "trtllm": (f"{setting} trtllm-serve {model}".lstrip(), _trtllm),
    }[engine]
    words = [start]
    for flag in (*flags(deployed, map_file), *_format(deployed.candidate)):
        (notes if flag.startswith("#") else words).append(flag)
    # a line feed in a name would end the comment, and what follows would run
    return [*map(printable, notes), " \\\n  ".join(words)]


def _words(flags: str) -> str:
    """Return the flags that a file states as words of a shell, none of which is a command.

    Raises:
        ConfigError: A quote is not closed, or there are control characters.
    """
    require(flags.isprintable(), "launch", "flags on one line", flags)
    try:
        return shlex.join(shlex.split(flags))
    except ValueError as error:
        raise ConfigError(f"launch: expected flags of a shell, got {flags!r}: {error}") from None


def _kernels(deployed: Deployment, engine: str) -> Iterator[str]:
    """Yield the flags of the kernel library, or a comment if the engine does not launch it."""
    library, name = deployed.library, deployed.row["kernels"]
    exchange = deployed.cluster.exchange(deployed.candidate.schedule)
    known = deployed.cluster.num_devices > 1 and engine in exchange.launch
    if library is not None and engine in library.engines(exchange.name if known else None):
        yield _words(library.flags(engine, deployed.candidate.layer.precision.name))
    elif name:
        yield f"# kernels {name}: not of this engine, which chooses its own"


def _format(candidate: Candidate) -> Iterator[str]:
    name = candidate.layer.precision.name
    if name in ("fp8", "fp8_tensor"):
        yield f"# {name}: of a checkpoint quantised so; for one in bf16 add --quantization fp8"
    elif name not in ("bf16", "fp16"):
        yield f"# {name}: needs a checkpoint quantised so"


def _sglang(deployed: Deployment, map_file: str) -> Iterator[str]:
    candidate, devices, nodes = (
        deployed.candidate,
        deployed.cluster.num_devices,
        deployed.cluster.num_nodes,
    )
    spread, schedule = candidate.parallelism, candidate.schedule
    exchange = deployed.cluster.exchange(schedule)
    yield f"--tp-size {devices}"
    if devices > 1:
        yield f"--dp-size {devices} --enable-dp-attention --moe-dense-tp-size 1"
    if spread.ep > 1:
        yield f"--ep-size {spread.ep}"
    if nodes > 1:
        yield f"--nnodes {nodes} --node-rank {_NODE} --dist-init-addr {_HEAD}:5000"
    if devices > 1 and exchange.launch.get("sglang") and spread.tp == 1:
        yield _words(exchange.launch["sglang"])
    elif devices > 1 and exchange.launch.get("sglang") != "":
        yield (
            f"# exchange {exchange.name} at tp{spread.tp} has no backend here: the command "
            "gathers instead (simulate it by exchange all_gather)"
        )
    yield from _kernels(deployed, "sglang")
    if candidate.num_replicas:
        yield f"--ep-num-redundant-experts {candidate.num_replicas}"
    if _moved(candidate):
        how = "static" if PlacementSpec.parse(candidate.placement).nearest else "dynamic"
        yield f"--init-expert-location {shlex.quote(map_file)} --ep-dispatch-algorithm {how}"
    if schedule.num_micro_batches == 2:
        yield "--enable-two-batch-overlap"
    elif schedule.num_micro_batches > 2:
        yield (
            f"# {schedule.num_micro_batches} micro-batches: two are as many as overlap here; none "
            "without a flag"
        )


def _vllm(deployed: Deployment, map_file: str) -> Iterator[str]:
    candidate, devices, nodes = (
        deployed.candidate,
        deployed.cluster.num_devices,
        deployed.cluster.num_nodes,
    )
    spread, schedule = candidate.parallelism, candidate.schedule
    if spread.ep > 1 and spread.tp > 1:
        raise ConfigError(
            f"export: expected experts that are whole or cut over all {devices} devices, which is "
            f"what vLLM has, got ep{spread.ep}tp{spread.tp}: use --format sglang"
        )
    yield "--tensor-parallel-size 1"
    if devices > 1:
        yield f"--data-parallel-size {devices}"
    if nodes > 1:
        local = deployed.cluster.devices_per_domain
        yield (
            f"--data-parallel-size-local {local} --data-parallel-start-rank $(({_NODE} * {local})) "
            f"--data-parallel-address {_HEAD} --data-parallel-rpc-port 13345"
        )
        yield "# on every node but the first add --headless"
    exchange = deployed.cluster.exchange(schedule)
    if spread.ep > 1:
        yield "--enable-expert-parallel"
        if "vllm" in exchange.launch:
            yield _words(exchange.launch["vllm"])
        else:
            yield (
                f"# exchange {exchange.name} has no backend here: the command gathers instead "
                "(simulate it by exchange all_gather)"
            )
    yield from _kernels(deployed, "vllm")
    if _moved(candidate):
        config = json.dumps({"num_redundant_experts": candidate.num_replicas})
        yield f"--enable-eplb --eplb-config {shlex.quote(config)}"
        yield (
            "# the map is not loaded at the start: EPLB plans one like it from the loads it records"
        )
    deepep = "deepep" in exchange.launch.get("vllm", "")
    if schedule.num_micro_batches == 2 and spread.ep > 1 and deepep:
        yield "--enable-dbo"
    elif schedule.num_micro_batches > 1:
        yield (
            f"# {schedule.num_micro_batches} micro-batches: only two overlap here, and only with "
            "DeepEP"
        )


def _moved(candidate: Candidate) -> bool:
    """Return whether the placement differs from plain expert order."""
    return candidate.parallelism.ep > 1 and (
        candidate.num_replicas > 0 or candidate.placement != "contiguous"
    )


def _trtllm(deployed: Deployment, map_file: str) -> Iterator[str]:
    candidate, devices = deployed.candidate, deployed.cluster.num_devices
    yield f"--tp_size {devices} --ep_size {candidate.parallelism.ep}"
    exchange = deployed.cluster.exchange(candidate.schedule)
    if devices > 1 and "trtllm" not in exchange.launch:
        yield (
            f"# exchange {exchange.name} has no counterpart here: the engine gathers instead "
            "(simulate it by exchange all_gather)"
        )
    library = deployed.library
    if library is None or "trtllm" not in library.launch:
        yield f"# kernels {deployed.row['kernels']}: not of this engine, which chooses its own"
    if candidate.schedule.num_micro_batches > 1:
        yield f"# {candidate.schedule.num_micro_batches} micro-batches: none overlap here"
    yield f"--config {OPTIONS_FILE}"


def trtllm_options(deployed: Deployment, map_file: str) -> str:
    """Return the file of options that TensorRT-LLM reads, as YAML.

    Args:
        deployed: The design that was simulated.
        map_file: Path of the expert map, in TensorRT-LLM's layout.
    """
    candidate, devices = deployed.candidate, deployed.cluster.num_devices
    spread, library = candidate.parallelism, deployed.library
    lines = []
    if devices > 1:
        lines += ["enable_attention_dp: true", f"moe_tensor_parallel_size: {spread.tp}"]
    lines.append("moe_config:")
    precision = candidate.layer.precision.name
    if library is not None and "trtllm" in library.launch:
        lines.append(f"  {library.flags('trtllm', precision)}")
    else:
        lines.append("  backend: AUTO")
    if _moved(candidate):
        lines.append(f"  load_balancer: {map_file}")
    return "\n".join(lines) + "\n"


__all__ = ["OPTIONS_FILE", "Deployment", "launch_lines", "trtllm_options"]
