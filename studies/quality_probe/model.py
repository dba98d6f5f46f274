"""Train tiny byte-level language models with MoE feed-forwards, for the study in this folder.

The MoE layer is `moesim_kernels.moe_layer` with its torch backend, given the routing of the torch
reference of each gate. Every tensor is drawn from a generator that its name and the seed determine,
so that models with different gates begin with the same weights; batches depend on the seed alone.

Shape suffixes as in `moesim_kernels`: T tokens, E experts, G groups, K experts a token uses, H
hidden size; B windows of a batch, L bytes of a window.
"""

import math
import sysconfig
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from moesim_kernels.ops.grouped_down import combine_reference, grouped_down_reference
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu_reference
from moesim_kernels.ops.layer import LayerWeights, gate_tokens_reference, moe_layer
from moesim_kernels.ops.plan import make_plan_reference
from moesim_kernels.ops.selection import (
    biased_top_k,
    hash_experts,
    local_two_level,
    noisy_top_k,
    serve,
    shared_gate,
    updated_bias,
)
from torch import Tensor, nn
from torch.nn import functional

from moesim.model import Gate, MoELayer, Precision

#: files of Python's standard library that have been there for decades; every eighth is held out
_NAMES = (
    "argparse ast bdb calendar cmd code codecs configparser copy csv datetime decimal difflib "
    "dis doctest email/message email/utils enum fileinput filecmp fractions ftplib functools "
    "getopt gettext glob gzip heapq http/client http/cookiejar http/server imaplib inspect "
    "json/decoder json/encoder locale logging/handlers mailbox mimetypes ntpath optparse os pdb "
    "pickle pickletools platform plistlib poplib posixpath pprint profile pstats random reprlib "
    "sched selectors shelve shlex shutil smtplib socket socketserver ssl statistics string "
    "subprocess tarfile tempfile textwrap threading timeit token tokenize trace traceback turtle "
    "typing unittest/case unittest/mock urllib/parse urllib/request uuid warnings wave weakref "
    "webbrowser zipapp"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Sizes of a run.

    Attributes:
        steps: Number of optimizer steps.
        hidden_size: Hidden size H.
        num_layers: Number of blocks of mixer and feed-forward.
        num_experts: Number of experts E.
        top_k: Number of experts K that a token uses.
        expert_width: Width of an expert; a dense model's feed-forward is top_k times as wide.
        taps: Number of bytes that a mixer looks at.
        window: Number of bytes that a window predicts.
        batch: Number of windows per step.
        held_out_batches: Number of held-out batches that the loss is measured on.
        learning_rate: Peak learning rate of AdamW: it warms up over a tenth of the steps, and then
            follows a cosine to a tenth of the peak.
        balance: Weight of the auxiliary loss (Switch, arXiv 2101.03961) of gates that use one.
        device: Device of torch that trains.
    """

    steps: int = 240
    hidden_size: int = 64
    num_layers: int = 2
    num_experts: int = 16
    top_k: int = 2
    expert_width: int = 64
    taps: int = 8
    window: int = 128
    batch: int = 12
    held_out_batches: int = 40
    learning_rate: float = 1e-2
    balance: float = 0.01
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How one model differs from flat top-k.

    Attributes:
        gate: Text of the gate; see `moesim.model.gate.Gate.parse`.
        dense: Whether one expert as wide as a token's experts together replaces the experts.
        dropout: Share of the hidden units of experts dropped in training (expert dropout, arXiv
            2101.03961).
        capacity_factor: Capacity of an expert over its mean load, in training and after; choices
            beyond it are dropped.
        learns_groups: Whether the coarse keys of two levels learn from the loss, as in arXiv
            1701.06538, where a group's share multiplies its experts'. Otherwise they learn from the
            balance of groups alone, since the kernel uses them only for selection.
        redraw: Number of another random draw of the router's keys, to see the effect of a change
            that changes nothing.
        missing: Share of the experts, drawn anew in each step of training, that no token may
            choose.
        temperature: Whether the router's logits are divided by a learned number, 1 at first.
        update_rate: Step of the bias that balances experts (arXiv 2408.15664), for gates with one.
    """

    gate: str = "flat"
    dense: bool = False
    dropout: float = 0.0
    capacity_factor: float | None = None
    learns_groups: bool = False
    redraw: int = 0
    missing: float = 0.0
    temperature: bool = False
    update_rate: float = 0.01


@cache
def text() -> tuple[Tensor, Tensor, str]:
    """Return bytes to train on, bytes held out, and a digest of both.

    The bytes are files of the running Python's standard library.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    there = [
        path.read_bytes() for name in _NAMES.split() if (path := folder / f"{name}.py").is_file()
    ]
    train, held = (
        b"".join(part) for part in ([t for i, t in enumerate(there) if i % 8], there[::8])
    )
    one, other = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in (train, held)
    )
    return one, other, sha256(train + held).hexdigest()[:12]


def unigram_entropy() -> float:
    """Return nats per byte of the held-out text, coded by the training text's byte frequencies."""
    train, held, _ = text()
    frequency = (torch.bincount(train, minlength=256) + 1.0) / (len(train) + 256)
    return float(-frequency[held].log().mean())


def windows(data: Tensor, probe: Probe, seed: int) -> Tensor:
    """Draw a batch of windows with the byte after each: shape (B, L + 1)."""
    generator = torch.Generator().manual_seed(seed)
    start_B = torch.randint(len(data) - probe.window - 1, (probe.batch,), generator=generator)
    return data[start_B[:, None] + torch.arange(probe.window + 1)]


class Moe(nn.Module):
    """The feed-forward of a block: gate, experts, balance."""

    def __init__(self, probe: Probe, variant: Variant, at: int, seed: int) -> None:
        super().__init__()
        self.probe, self.variant = probe, variant
        gate = Gate.parse(variant.gate)
        self.layer = MoELayer(
            hidden_size=probe.hidden_size,
            num_experts=1 if variant.dense else probe.num_experts,
            top_k=1 if variant.dense else probe.top_k,
            gate=gate if not variant.dense else Gate(),
            expert_intermediate_size=probe.expert_width * (probe.top_k if variant.dense else 1),
            precision=Precision(),
        )
        experts, hidden, width = self.layer.num_experts, probe.hidden_size, self.layer.shared_width

        def drawn(name: str, *shape: int) -> nn.Parameter:
            return nn.Parameter(normal(f"{at}.{name}", seed, *shape))

        self.fine_EH = drawn(f"fine{variant.redraw or ''}", experts, hidden)
        self.w_gate_up = drawn("gate_up", experts, 2 * width, hidden)
        self.w_down = drawn("down", experts, hidden, width)
        self.coarse_GH = (
            drawn("coarse", gate.num_expert_groups, hidden) if gate.kind == "two_level" else None
        )
        # as in arXiv 1701.06538: the noise begins at softplus(0) for every token
        self.noise_EH = (
            nn.Parameter(torch.zeros(experts, hidden)) if gate.selection == "noisy_top_k" else None
        )
        self.log_temperature = nn.Parameter(torch.zeros(())) if variant.temperature else None
        self.missing_E: Tensor | None = None
        self.chosen_TK = torch.zeros(0, 0)
        self.entropy = 0.0
        self.register_buffer("bias_E", torch.zeros(experts))
        self.register_buffer("counts_E", torch.zeros(experts, dtype=torch.long))
        self.noise = torch.Generator(probe.device).manual_seed(seed + at)
        self.balance_loss = torch.zeros(())

    def forward(self, x_TH: Tensor, words_T: Tensor) -> Tensor:
        """Map shape (T, H) to the same shape; keep the auxiliary loss and count the choices."""
        gate, top_k = self.layer.gate, self.layer.top_k
        if self.training and self.variant.missing:
            self.missing_E = self.drawn_missing(self.variant.missing)
        fine_EH = self.fine_EH
        if self.log_temperature is not None:
            fine_EH = fine_EH * torch.exp(-self.log_temperature)
        weights = LayerWeights(
            fine_EH=fine_EH,
            coarse_GH=self.coarse_GH,
            w_gate_up=self.w_gate_up,
            w_down=self.w_down,
        )
        weights_TK, ids_TK = self._route(x_TH, words_T, weights)
        ids_TK = ids_TK.to(torch.int32).contiguous()
        counts_E = torch.bincount(ids_TK.flatten(), minlength=self.layer.num_experts)
        self.balance_loss = self._unbalance(x_TH, ids_TK)
        self.chosen_TK = ids_TK
        with torch.no_grad():
            share_TE = (x_TH @ fine_EH.T).softmax(1)
            self.entropy = float(-(share_TE * share_TE.clamp_min(1e-9).log()).sum(1).mean())
        if self.training and gate.balancing == "bias":
            self.bias_E = updated_bias(self.bias_E, counts_E, step=self.variant.update_rate)
        if not self.training:
            self.counts_E += counts_E
        if self.variant.capacity_factor is not None:
            places = math.ceil(
                self.variant.capacity_factor * len(x_TH) * top_k / self.layer.num_experts
            )
            weights_TK = weights_TK * serve(ids_TK.long(), self.layer.num_experts, places)
        weights_TK = weights_TK.float().contiguous()
        if self.training and self.variant.dropout:
            plan = make_plan_reference(ids_TK, self.layer.num_experts, block_m=16)
            act_PI = grouped_swiglu_reference(x_TH, self.w_gate_up, plan)
            keep_PI = (
                torch.rand(act_PI.shape, generator=self.noise, device=x_TH.device)
                >= self.variant.dropout
            )
            act_PI = act_PI * keep_PI / (1.0 - self.variant.dropout)
            return combine_reference(grouped_down_reference(act_PI, self.w_down, plan), weights_TK)
        return moe_layer(
            x_TH, weights, self.layer, "torch", routing=(weights_TK, ids_TK), checked=False
        )

    def drawn_missing(self, share: float) -> Tensor:
        """Draw the experts that are missing: shape (E,), at least top_k stay."""
        experts = self.layer.num_experts
        gone = min(round(share * experts), experts - self.layer.top_k)
        order_E = torch.randperm(experts, generator=self.noise, device=self.fine_EH.device)
        missing_E = torch.zeros(experts, dtype=torch.bool, device=self.fine_EH.device)
        missing_E[order_E[:gone]] = True
        return missing_E

    def _route(self, x_TH: Tensor, words_T: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor]:
        gate, top_k = self.layer.gate, self.layer.top_k
        if gate.selection == "hash":
            ids_TK = hash_experts(words_T, self.layer.num_experts, top_k)
            return torch.full(ids_TK.shape, 1.0 / top_k), ids_TK
        if gate.selection == "noisy_top_k":
            noise_TE = functional.softplus(x_TH @ self.noise_EH.T) * float(self.training)
            return noisy_top_k(x_TH @ self.fine_EH.T, top_k, noise_TE, generator=self.noise)
        if gate.balancing == "bias":
            scores_TE = torch.sigmoid(x_TH @ self.fine_EH.T)
            if self.missing_E is not None:
                scores_TE = scores_TE.masked_fill(self.missing_E, -1e9)
            return biased_top_k(scores_TE, top_k, self.bias_E)
        if gate.share_tokens > 1:
            return shared_gate(x_TH, self.fine_EH, top_k, gate.share_tokens)
        if self.variant.learns_groups:
            return local_two_level(
                x_TH, self.coarse_GH, self.fine_EH, top_k, gate.num_limited_groups
            )
        return gate_tokens_reference(x_TH, gate, weights, top_k, missing_E=self.missing_E)

    def _unbalance(self, x_TH: Tensor, ids_TK: Tensor) -> Tensor:
        """Return E x the sum over experts of share of choices x mean score (arXiv 2101.03961).

        Gates with two levels add the same of their groups.
        """
        gate = self.layer.gate
        if self.variant.dense or gate.selection == "hash" or gate.balancing == "bias":
            return torch.zeros(())
        found = _switch_loss(x_TH @ self.fine_EH.T, ids_TK)
        if self.coarse_GH is not None:
            per_group = self.layer.num_experts // gate.num_expert_groups
            found = found + _switch_loss(x_TH @ self.coarse_GH.T, ids_TK // per_group)
        return self.probe.balance * found


def _switch_loss(logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    experts = logits_TE.shape[1]
    share_E = torch.bincount(ids_TK.flatten(), minlength=experts) / ids_TK.numel()
    return experts * (share_E * logits_TE.softmax(1).mean(0)).sum()


def normal(name: str, seed: int, *shape: int) -> Tensor:
    """Draw normal numbers of deviation 1 / sqrt(inputs), equal for equal name, seed and shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) * 1000 + seed)
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5


class LanguageModel(nn.Module):
    """An embedding, blocks of a causal mixer and an MoE feed-forward, each after a norm, and a tied
    output.

    The mixer is a gated causal convolution over the last bytes, channel by channel (as in Hyena,
    arXiv 2302.10866, with short filters): unlike attention, it gets beyond the statistics of byte
    pairs within seconds of training.
    """

    def __init__(self, probe: Probe, variant: Variant, seed: int) -> None:
        super().__init__()
        hidden, blocks = probe.hidden_size, range(probe.num_layers)
        self.words_VH = nn.Parameter(normal("words", seed, 256, hidden))
        self.into = nn.ParameterList(
            [normal(f"{i}.into", seed, 2 * hidden, hidden) for i in blocks]
        )
        self.taps = nn.ParameterList(
            [normal(f"{i}.taps", seed, 2 * hidden, 1, probe.taps) for i in blocks]
        )
        self.out = nn.ParameterList([normal(f"{i}.out", seed, hidden, hidden) for i in blocks])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(2 * probe.num_layers + 1)])
        self.moe = nn.ModuleList([Moe(probe, variant, i, seed) for i in blocks])

    def forward(self, words_BL: Tensor) -> Tensor:
        """Return the logits of the next byte, shape (B, L, 256)."""
        x_BLH = self.words_VH[words_BL]
        for i, moe in enumerate(self.moe):
            x_BLH = x_BLH + self._mixed(self.norms[2 * i](x_BLH), i)
            tokens_TH = self.norms[2 * i + 1](x_BLH).flatten(0, 1).contiguous()
            x_BLH = x_BLH + moe(tokens_TH, words_BL.flatten()).view_as(x_BLH)
        return self.norms[-1](x_BLH) @ self.words_VH.T

    def _mixed(self, x_BLH: Tensor, at: int) -> Tensor:
        taps = self.taps[at]
        wide_BCL = functional.pad((x_BLH @ self.into[at].T).transpose(1, 2), (taps.shape[2] - 1, 0))
        value_BHL, gate_BHL = functional.conv1d(wide_BCL, taps, groups=len(taps)).chunk(2, dim=1)
        return (value_BHL * functional.silu(gate_BHL)).transpose(1, 2) @ self.out[at].T


def _loss(model: LanguageModel, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def fit(
    probe: Probe,
    variant: Variant,
    seed: int,
    watch: Callable[[int, LanguageModel, Tensor], None] = lambda *_: None,
) -> tuple[LanguageModel, list[float], float]:
    """Train one model.

    Args:
        probe: Sizes of the run.
        variant: How the model differs from flat top-k.
        seed: Seed of weights, batches and noise.
        watch: Function to call before every step, with its number, the model and the batch.

    Returns:
        The model, its training losses, and the seconds.
    """
    training = text()[0]
    model = LanguageModel(probe, variant, seed).to(probe.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=probe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warm_up = max(probe.steps // 10, 1)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.1 + 0.45 * (
            1 + math.cos(math.pi * (step - warm_up) / max(probe.steps - warm_up, 1))
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    losses = []
    began = time.perf_counter()
    for step in range(probe.steps):
        batch = windows(training, probe, seed * 1_000_003 + step).to(probe.device)
        watch(step, model, batch)
        loss = _loss(model, batch)
        optimiser.zero_grad(set_to_none=True)
        (loss + sum(moe.balance_loss for moe in model.moe)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return model, losses, time.perf_counter() - began


def held_out_loss(model: LanguageModel, probe: Probe) -> float:
    """Return the loss on the held-out windows, the same ones for every seed and variant."""
    model.eval()
    held = text()[1]
    with torch.no_grad():
        found = [
            _loss(model, windows(held, probe, i).to(probe.device)).item()
            for i in range(probe.held_out_batches)
        ]
    return sum(found) / len(found)


def train(probe: Probe, variant: Variant, seed: int) -> dict[str, object]:
    """Train one model and measure it on the held-out text; for the arguments see `fit`.

    Returns:
        Held-out loss in nats per byte, first and last training loss, imbalance, milliseconds per
        step, and active parameters.
    """
    model, losses, seconds = fit(probe, variant, seed)
    loss = held_out_loss(model, probe)
    few = max(probe.steps // 20, 1)
    return {
        "loss": loss,
        "first_loss": losses[0],
        "last_loss": sum(losses[-few:]) / few,
        "load_imbalance": imbalance_of(model),
        "ms_per_step": 1e3 * seconds / probe.steps,
        "active_params": active_params(model),
    }


def imbalance_of(model: LanguageModel) -> float:
    """Return the load of the fullest expert over the mean, the mean over layers, of all that the
    model has seen since its training.
    """
    found = [float(moe.counts_E.max() / moe.counts_E.float().mean()) for moe in model.moe]
    return sum(found) / len(found)


def active_params(model: LanguageModel) -> int:
    """Count the parameters that one token uses, embeddings included."""
    experts = sum(moe.w_gate_up.numel() + moe.w_down.numel() for moe in model.moe)
    used = sum(
        (moe.w_gate_up.numel() + moe.w_down.numel()) * moe.layer.top_k // moe.layer.num_experts
        for moe in model.moe
    )
    return sum(p.numel() for p in model.parameters()) - experts + used
