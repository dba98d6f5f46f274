"""What is worth more for this model: twice the NVLink, twice the HBM, or twice the experts?

For a published model and a cluster, every number of the hardware and of the design is changed by itself: elasticities
d ln(throughput) / d ln(number) from +-10 %, the gain of twice as much, what that does to price and power by the
economics file, and, where the design changes, to the loss. To compare hardware with design, "equal loss" narrows the
experts until the loss is what it was.

Two workloads: ``prefill``, a fixed number of tokens per device, and ``decode``, as many sequences per device as their
KV cache leaves room for, which is what HBM capacity buys. Only the MoE layer is simulated: attention, which reads that
cache, is not, so that decode undervalues HBM bandwidth. Placement, exchange and micro-batches are the fastest for the
unchanged model, and stay so unless ``--replan``. Hardware nobody built counts as ``spec_sheet``; intervals, and groups
that they do not tell apart, are those of `moesim.elasticity`. A larger NVLink domain has no price in that file.

Writes what_if.csv (a row per change) and what_if.html.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import Candidate, Cluster, Parallelism, Precision, Workload, load_cluster, load_preset
from moesim.cli import run_command
from moesim.economics import load_economics
from moesim.elasticity import Outcome, elasticity, gain, loss_step, narrowed, outcome
from moesim.errors import ConfigError, MoesimError
from moesim.exchanges import exchange_named
from moesim.report import write_csv
from moesim.report.plots import write_html
from moesim.report.study_plots import gain_bars
from moesim.report.terminal import print_table, say
from moesim.schedule import Schedule
from moesim.search.objectives import priced
from moesim.simulation.memory import decode_workload
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "what_if_hardware"
#: preset, cluster, training tokens (as published: arXiv 2412.19437, arXiv 2505.09388)
SYSTEMS = (("deepseek-v3", "h100-rail-8x8", 14.8e12), ("qwen3-235b-a22b", "hgx-h100-8", 36e12))
PREFILL, SKEW = 4096, "zipf:0.8"
NUMBERS = ("hbm_gb_per_s", "hbm_gib", "num_sms", "bf16_tflops", "l2_mib", "nvlink_gb_per_s", "nic_gb_per_s")
EXCHANGES, STEP = ("nccl", "deepep_normal", "deepep_ll"), 1.1
COLUMNS = ("model", "cluster", "workload", "change", "kind", "rank", "group", "gain", "gain_low", "gain_high",
           "elasticity", "elasticity_low", "elasticity_high", "tokens_per_usd_gain", "tokens_per_joule_gain",
           "usd_per_hour_ratio", "watts_ratio", "loss_change", "loss_change_low", "loss_change_high", "note",
           "num_experts", "top_k", "expert_intermediate_size", "precision", "placement", "num_replicas", "exchange",
           "num_micro_batches", "num_tokens_per_device", "routing", "layer_time_us", "layer_time_low_us",
           "layer_time_high_us", "layer_tokens_per_s_per_device", "bottleneck", "load_imbalance", "peak_memory_gib",
           "cost_model", "evidence", "calibration", "engine", "seed", "version", "profile_hash")
SHOWN = {"change": "change", "group": "group", "gain": "gain", "range": "interval", "elasticity": "elasticity",
         "tokens_per_usd_gain": "per USD", "tokens_per_joule_gain": "per joule", "loss_change": "loss",
         "loss_range": "interval ", "bottleneck": "bottleneck", "calibration": "calibration"}
HBM, EQUAL_LOSS, NVLINK = "2x HBM bandwidth and GiB", "2x experts at equal loss", "2x nvlink_gb_per_s"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class System:
    """How changed designs are run."""

    cluster: Cluster
    context: int
    seed: int
    replan: bool

    def workload(self, candidate: Candidate, cluster: Cluster) -> Workload:
        """Tokens of a device: fixed, or the sequences whose KV cache fits."""
        if self.context:
            return decode_workload(candidate, cluster, self.context, routing=SKEW, seed=self.seed)
        return Workload(num_tokens_per_device=PREFILL, routing=SKEW, seed=self.seed)

    def run(self, candidate: Candidate, cluster: Cluster, *, spare: int = 1, plan: bool = False) -> Outcome:
        """Simulate a design with spare slots for replicas on each device; with the fastest plan where asked."""
        experts, devices = candidate.layer.num_experts, cluster.num_devices
        slots = max(experts // devices + spare, -(-experts // devices))
        spread = replace(candidate, parallelism=Parallelism(ep=devices), num_replicas=slots * devices - experts)
        work = self.workload(spread, cluster)
        if not (plan or self.replan):
            return outcome(spread, cluster, work)
        own, tried, reason = self.cluster.exchange().name, [], None
        exchanges = [own, *(name for name in EXCHANGES if name != own and exchange_named(name).runs_on(cluster))]
        for placement, dispatch, parts in product(("eplb", "eplb_hierarchical"), exchanges, (1, 2)):
            schedule = Schedule(exchange=dispatch, num_micro_batches=parts)
            try:
                tried.append(outcome(replace(spread, placement=placement, schedule=schedule), cluster, work))
            except MoesimError as error:  # a plan this cluster or number of tokens does not have
                reason = error
        if not tried:
            raise ConfigError(f"{candidate.label}: expected a plan for {cluster.name}, got none: {reason}")
        return max(tried, key=lambda o: o.result.tokens_per_s)


def hardware(cluster: Cluster) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, what makes the cluster with twice of it, and the key that may take any factor; empty where none may."""
    for key in NUMBERS:
        if key != "nic_gb_per_s" or cluster.nic_bytes_per_s:
            yield f"2x {key}", {key: "2x"}, key
    yield HBM, {"hbm_gb_per_s": "2x", "hbm_gib": "2x"}, ""
    nodes, per_node = cluster.num_nodes, cluster.devices_per_domain
    if nodes > 1:
        yield "2x devices per NVLink domain", {"num_nodes": nodes // 2, "devices_per_node": 2 * per_node}, ""
        yield "one NVLink domain", {"num_nodes": 1, "devices_per_node": nodes * per_node}, ""
    else:
        yield "2x devices, all in one domain", {"devices_per_node": 2 * per_node}, ""


def designs(base: Candidate) -> Iterator[tuple[str, Candidate, int]]:
    """Designs with something twice as large, or in another format; and how many slots a device has to spare."""
    layer, half = base.layer, base.layer.expert_intermediate_size // 2
    twice = {"2x experts": {"num_experts": 2 * layer.num_experts},
             "2x top-k, half width": {"top_k": 2 * layer.top_k, "expert_intermediate_size": half},
             "2x experts and top-k, half width": {"num_experts": 2 * layer.num_experts, "top_k": 2 * layer.top_k,
                                                  "expert_intermediate_size": half},
             "bf16": {"precision": Precision.named("bf16")}, "int4 weights": {"precision": Precision.named("int4")}}
    for name, fields in twice.items():
        yield name, replace(base, layer=replace(layer, **fields)), 1
    yield from ((f"{spare} replicas per device", base, spare) for spare in (0, 2))


def row_of(base: Outcome, after: Outcome, train_tokens: float, economics: str) -> dict[str, Any]:
    """Columns of one change."""
    model, columns = load_economics(economics), []
    for one in (base, after):
        result = one.result
        tokens = round(result.tokens_per_s * result.layer_time_s)
        columns.append(priced(model, one.cluster, result.layer_time_s, tokens, result.mean_utilisation)
                       | {"domain": one.cluster.devices_per_domain})
    was, now = columns

    def ratio(name: str, power: int = 1) -> float | None:
        return None if was[name] is None or now[name] is None else (now[name] / was[name]) ** power

    old, new = base.result.candidate, after.result.candidate
    row = after.result.row() | gain(base, after).row("gain")
    if old.layer != new.layer:
        row |= loss_step(old.layer, new.layer, old.dense_part, train_tokens).row("loss_change")
    row |= {"tokens_per_usd_gain": ratio("layer_usd_per_million_tokens", -1),
            "tokens_per_joule_gain": ratio("layer_joules_per_token", -1),
            "usd_per_hour_ratio": ratio("usd_per_hour"), "cost_model": now["cost_model"],
            "watts_ratio": ratio("watts_per_device")}
    if was["domain"] != now["domain"]:
        row |= {"tokens_per_usd_gain": None, "usd_per_hour_ratio": None, "note": "a larger NVLink domain has no price"}
    return row


def changes(system: System, base: Outcome, train_tokens: float, economics: str) -> Iterator[dict[str, Any]]:
    """A row per change; those without a result say why."""
    candidate, cluster = base.result.candidate, base.cluster

    def row(name: str, kind: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return {"change": name, "kind": kind} | make()
        except MoesimError as error:
            return {"change": name, "kind": kind, "note": str(error), "evidence": "simulated", "calibration": "none",
                    "engine": "flow", "version": VERSION}

    for name, twice, key in hardware(cluster):
        def both(twice=twice, key=key) -> dict[str, Any]:
            found = row_of(base, system.run(candidate, cluster.with_(**twice)), train_tokens, economics)
            if key:
                ends = (system.run(candidate, cluster.with_(**{key: f"{f:.6f}x"})) for f in (1 / STEP, STEP))
                found |= elasticity(*ends, STEP**2).row("elasticity")
            return found
        yield row(name, "hardware", both)
    for name, design, spare in designs(candidate):
        yield row(name, "design", lambda design=design, spare=spare: row_of(
            base, system.run(design, cluster, spare=spare), train_tokens, economics))
    larger = replace(candidate.layer, num_experts=2 * candidate.layer.num_experts)
    narrow = narrowed(candidate.layer, larger, candidate.dense_part, train_tokens)

    def equal() -> dict[str, Any]:
        if "mid" not in narrow:
            raise ConfigError("expected a narrower layer of the same loss, got none")
        found = {end: system.run(replace(candidate, layer=layer), cluster) for end, layer in narrow.items()}
        whole = row_of(base, found["mid"], train_tokens, economics)
        # where even the full width is not surely as good, the sure gain is none
        worst = gain(base, found["high"]).low if "high" in found else min(whole["gain_low"], 1.0)
        return whole | {"gain_low": min(worst, whole["gain_low"]),
                        "gain_high": max(gain(base, found["low"]).high, whole["gain_high"])}
    yield row(EQUAL_LOSS, "design", equal)


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by gain, largest first, in groups whose intervals overlap that of the first of them."""
    done = sorted((r for r in rows if r.get("gain")), key=lambda r: -r["gain"])
    group, leader = -1, None
    for rank, row in enumerate(done):
        if leader is None or row["gain_high"] < leader["gain_low"]:
            group, leader = group + 1, row
        row |= {"rank": rank, "group": group, "range": f"{row['gain_low']:.3f}-{row['gain_high']:.3f}"}
        if row.get("loss_change") is not None:
            row["loss_range"] = f"{row['loss_change_low']:+.4f} to {row['loss_change_high']:+.4f}"
    return done + [r for r in rows if not r.get("gain")]


def answer(rows: list[dict[str, Any]]) -> str:
    """Which of the three the title asks about is worth most, where intervals tell."""
    asked = [r for r in rows if r["change"] in (NVLINK, HBM, EQUAL_LOSS) and r.get("gain")]  # best first, as rows are
    best = [r["change"] for r in asked if r["gain_high"] >= asked[0]["gain_low"]]
    return (f"worth most: {best[0]}" if len(best) == 1 else f"not told apart: {', '.join(best)}") + " (" + ", ".join(
        f"{r['change']} x {r['gain']:.3f} [{r['range']}]" for r in asked) + ")"


@app.command()
def main(
    model: Annotated[str, typer.Option(help="One preset instead of both default systems.")] = "",
    cluster: Annotated[str, typer.Option(help="Where that preset runs.")] = "",
    precision: Annotated[str, typer.Option(help="Number formats of the unchanged model.")] = "fp8",
    train_tokens: Annotated[float, typer.Option(help="Training tokens of that preset.")] = 10e12,
    context: Annotated[int, typer.Option(help="Tokens of a decoded sequence.", min=1)] = 4096,
    replan: Annotated[bool, typer.Option("--replan", help="Plan anew after every change.")] = False,
    economics: Annotated[str, typer.Option(help="Cost and power model: a name or a file.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of the routing.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="One system, decode only.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Change every number of hardware and design by itself and rank what it is worth."""
    if bool(model) != bool(cluster):
        raise ConfigError(f"--model and --cluster: expected both or neither, got {model or cluster!r} alone")
    systems = ((model, cluster, train_tokens),) if model else SYSTEMS[1:] if quick else SYSTEMS
    table: list[dict[str, Any]] = []
    for name, where, budget in systems:
        preset, machine = load_preset(name, Precision.named(precision)), load_cluster(where)
        start = Candidate(layer=preset.layer, dense_part=preset.dense_part, placement="eplb")
        for kind, length in (("decode", context), ("prefill", 0)):
            if quick and kind == "prefill":
                break
            system = System(cluster=machine, context=length, seed=seed, replan=replan)
            rows = ranked(list(changes(system, base := system.run(start, machine, plan=True), budget, economics)))
            plan, tokens = base.result.candidate, base.result.workload.num_tokens_per_device
            print_table(f"{name} {precision} on {where}, {kind}, {tokens} tokens per device, {plan.placement}+"
                        f"{plan.num_replicas} {plan.schedule}: {base.result.tokens_per_s_per_device:,.0f} "
                        "tokens/s/device", rows, SHOWN)
            print(f"{answer(rows)}\n")
            common = {"model": name, "cluster": where, "workload": kind, "seed": seed}
            unchanged = row_of(base, base, budget, economics) | {"change": "none", "kind": "base"}
            table += [row | common for row in [unchanged, *rows]]
            for row in rows:
                if row.get("note") and not row.get("gain"):
                    say(f"{row['change']}: {row['note']}")
    write_csv(out / "what_if.csv", table, COLUMNS)
    write_html(out / "what_if.html", gain_bars([row for row in table if row.get("gain") and row["kind"] != "base"]))
    say(f"wrote {out}/what_if.csv and what_if.html")


if __name__ == "__main__":
    run_command(app)
