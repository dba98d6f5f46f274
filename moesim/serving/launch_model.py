"""Write the commands that start serving engines as a whole model was simulated.

Flags beside those of `moesim.serving.launch`: SGLang 0.5 (its documentation:
``docs/advanced_features/server_arguments.md`` and ``pd_disaggregation.md``), where ``--tp-size``
counts the devices of all attention ranks; vLLM 0.12 (docs.vllm.ai/en/v0.12.0:
``configuration/engine_args``, ``features/nixl_connector_usage``); TensorRT-LLM 1.2 (its
documentation: ``llm-api/reference``, ``KvCacheConfig`` and ``CacheTransceiverConfig``). Load
balancers plan placements from the loads that they see, so that no map is written. What an engine
has no flag for becomes a comment above the command.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesim.design.served import ServedModel
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.serving.launch import OPTIONS_FILE
from moesim.serving.pools import ServingKnobs
from moesim.simulation.steps.simulate import stage_of, with_exchange

Role = Literal["prefill", "decode"]
#: moves the cache of vLLM's prompts between servers
_NIXL = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Equal servers that are to be started.

    Attributes:
        served: The design.
        cluster: The hardware.
        copies: Number of them.
        knobs: What is not left to the engine.
        role: The pool that they are of; None if they compute prompts and decode.
    """

    served: ServedModel
    cluster: Cluster
    copies: int
    knobs: ServingKnobs
    role: Role | None = None

    @property
    def exchange(self) -> str | None:
        """The flags that select the exchange; None if the engine has none, or no token travels."""
        if not self.served.layout.exchanges_tokens:
            return None
        stage = stage_of(self.cluster, self.served.layout.devices_per_stage)
        named = with_exchange(self.served, stage, decodes=self.role != "prefill")
        return stage.exchange(named.schedule).launch.get(self.served.engine)

    @property
    def nodes(self) -> int:
        """The number of nodes of a copy."""
        return max(self.served.layout.num_devices // self.cluster.devices_per_domain, 1)


def server_lines(server: Server, model: str = "$MODEL") -> list[str]:
    """Return a shell command that starts one of some servers, below comments on what differs.

    Args:
        server: The servers.
        model: Checkpoint to serve.

    Raises:
        ConfigError: The engine does not have the layout.
    """
    served, layout = server.served, server.served.layout
    notes = [
        f"# {server.role or 'server'}: {server.copies} x {layout}, start "
        + ("it" if server.copies == 1 else "each on devices of its own")
    ]
    model = model if model.startswith("$") else shlex.quote(model)
    start, flags = {
        "sglang": (f"python3 -m sglang.launch_server --model-path {model}", _sglang),
        "vllm": (f"vllm serve {model}", _vllm),
        "trtllm": (f"trtllm-serve {model}", _trtllm),
    }[served.engine]
    words = [start]
    found = [*flags(server), *_notes(server)]
    if served.engine == "trtllm" and server.exchange:
        # its exchanges are selected by variables of the environment
        words = [f"{server.exchange} {start}"]
    for flag in found:
        (notes if flag.startswith("#") else words).append(flag)
    return [*notes, " \\\n  ".join(words)]


def _notes(server: Server) -> Iterator[str]:
    served = server.served
    yield f"# experts {served.precision.name}, others {served.dense_format}: of the checkpoint"
    if server.knobs.acceptance:
        yield (
            f"# {len(server.knobs.acceptance)} drafted tokens: add the flags of the checkpoint's "
            "draft layers"
        )
    if served.layout.exchanges_tokens and server.exchange is None:
        yield "# the exchange has no backend here: the command gathers instead"
    if served.schedule.num_micro_batches > 1 and served.engine == "trtllm":
        yield f"# {served.schedule.num_micro_batches} micro-batches: none overlap here"


def _sglang(server: Server) -> Iterator[str]:
    served, layout = server.served, server.served.layout
    yield f"--tp-size {layout.tp * layout.dp}"
    if layout.dp > 1:
        yield f"--dp-size {layout.dp} --enable-dp-attention"
    if layout.ep > 1:
        yield f"--ep-size {layout.ep}"
    if layout.pp > 1:
        yield f"--pp-size {layout.pp}"
    if server.nodes > 1:
        yield f"--nnodes {server.nodes} --node-rank $NODE --dist-init-addr $HEAD:5000"
    if server.exchange:
        yield server.exchange
    if layout.ep > 1 and served.num_replicas:
        yield f"--ep-num-redundant-experts {served.num_replicas}"
    if layout.ep > 1 and served.placement != "contiguous":
        yield "--enable-eplb"
    if served.schedule.num_micro_batches == 2:
        yield "--enable-two-batch-overlap"
    if served.kv_format == "fp8":
        yield "--kv-cache-dtype fp8_e4m3"
    if server.knobs.chunk:
        yield f"--chunked-prefill-size {server.knobs.chunk}"
    if server.role:
        yield f"--disaggregation-mode {server.role} --disaggregation-transfer-backend nixl"


def _vllm(server: Server) -> Iterator[str]:
    served, layout = server.served, server.served.layout
    yield f"--tensor-parallel-size {layout.tp}"
    if layout.dp > 1:
        yield f"--data-parallel-size {layout.dp}"
    if layout.pp > 1:
        yield f"--pipeline-parallel-size {layout.pp}"
    if server.nodes > 1:
        if layout.pp > 1 or layout.tp > server.cluster.devices_per_domain:
            yield "# over several nodes: start it in a Ray cluster of them"
        else:
            local = server.cluster.devices_per_domain // layout.tp
            yield (
                f"--data-parallel-size-local {local} --data-parallel-start-rank $((NODE * {local}))"
                " --data-parallel-address $HEAD --data-parallel-rpc-port 13345"
            )
            yield "# on every node but the first add --headless"
    if layout.ep > 1:
        yield "--enable-expert-parallel"
        if server.exchange:
            yield server.exchange
        if served.placement != "contiguous":
            config = json.dumps({"num_redundant_experts": served.num_replicas})
            yield f"--enable-eplb --eplb-config {shlex.quote(config)}"
    if served.schedule.num_micro_batches == 2:
        deepep = "deepep" in (server.exchange or "")
        yield "--enable-dbo" if deepep else "# two micro-batches overlap here only with DeepEP"
    if served.kv_format == "fp8":
        yield "--kv-cache-dtype fp8"
    if server.knobs.chunk:
        yield f"--max-num-batched-tokens {server.knobs.chunk}"
    if server.role:
        yield f"--kv-transfer-config {shlex.quote(_NIXL)}"


def _trtllm(server: Server) -> Iterator[str]:
    layout = server.served.layout
    yield f"--tp_size {layout.tp * layout.dp} --ep_size {layout.ep}"
    if layout.pp > 1:
        yield f"--pp_size {layout.pp}"
    if layout.dp > 1 and layout.tp > 1:
        yield (
            f"# attention ranks of {layout.tp} devices: here they are of one device each, or of all"
        )
    if server.knobs.chunk:
        yield f"--max_num_tokens {server.knobs.chunk}"
    if server.served.placement != "contiguous" and layout.ep > 1:
        yield (
            f"# {server.served.num_replicas} redundant experts: moe_config.load_balancer names a "
            "file with a plan (moesim placement export)"
        )
    yield f"--config {options_file(server)}"


def options_file(server: Server) -> str:
    """Return the name of TensorRT-LLM's file of options."""
    return f"{server.role}_{OPTIONS_FILE}" if server.role else OPTIONS_FILE


def options_text(server: Server) -> str:
    """Return TensorRT-LLM's file of options, as YAML.

    Raises:
        ConfigError: The servers are of another engine, which takes flags only.
    """
    if server.served.engine != "trtllm":
        raise ConfigError(f"engine: expected trtllm, which has options, got {server.served.engine}")
    lines = [f"enable_attention_dp: {str(server.served.layout.dp > 1).lower()}"]
    if server.served.layout.moe_tp > 1:
        lines.append(f"moe_tensor_parallel_size: {server.served.layout.moe_tp}")
    if server.served.kv_format == "fp8":
        lines += ["kv_cache_config:", "  dtype: fp8"]
    if server.role:
        lines += ["cache_transceiver_config:", "  backend: DEFAULT"]
    return "\n".join(lines)


def router_lines(engine: str) -> list[str]:
    """Return what sends requests to a pool that computes prompts and one that decodes.

    Args:
        engine: ``sglang``, ``vllm`` or ``trtllm``.
    """
    if engine == "sglang":
        return [
            "# router: repeat --prefill and --decode for each copy",
            "python3 -m sglang_router.launch_router --pd-disaggregation \\\n"
            "  --prefill http://$PREFILL --decode http://$DECODE",
        ]
    if engine == "trtllm":
        return [
            "# router: disagg.yaml lists the addresses of context_servers and generation_servers",
            "trtllm-serve disaggregated -c disagg.yaml",
        ]
    return ["# router: a proxy that sends a prompt to one pool and its answer to the other"]


__all__ = ["Role", "Server", "options_file", "options_text", "router_lines", "server_lines"]
