"""Measure what missing experts, balancing and the router's temperature do to tiny MoE models.

Trains the models of `run.py` with variants that differ in what makes a mixture robust, each with
the same seeds, weights and batches as flat top-k, and reports for every figure its mean over seeds
with a 90 % interval of Student's t:

- ``loss``: held-out loss less that of flat top-k with the same seed, in nats per byte.
- ``missing``: the same, of what a model loses, if a share of its experts is missing afterwards and
  tokens take the next best. Variants trained with missing experts, or with dropped hidden units of
  experts (expert dropout, arXiv 2101.03961), are beside those trained without.
- ``imbalance``: load of the fullest expert over the mean, on held-out text.
- ``mapping``: information on a byte's class (letter, digit, space, sign) in its first expert, as a
  share of the class's entropy, by layer.
- ``router_entropy``: mean entropy of the router's softmax over that of an even choice, by step.
- ``noise_scale``: simple noise scale in windows, tr(S) / |G|^2, from the gradients of half and of
  whole batches (McCandlish et al. 2018, arXiv 1812.06162, appendix A), by step, from squares that
  are means over seeds; empty where noise hides the gradient.

``--size 100`` makes models about 100 times larger, on a GPU if torch finds one. Figures of tiny
models do not transfer and do not enter the table of `moesim.quality.deltas`.

Writes robustness.csv.
"""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from model import (
    LanguageModel,
    Probe,
    Variant,
    fit,
    held_out_loss,
    imbalance_of,
    text,
    windows,
)
from torch.nn import functional

from moesim.cli.script import Out, Quick, run_script
from moesim.errors import ConfigError
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.version import VERSION

OUT = Path(__file__).parents[1] / "out" / "quality_probe"
FLAT = "flat"
VARIANTS = {
    FLAT: Variant(),
    "null": Variant(redraw=1),
    "missing_1/8": Variant(missing=0.125),
    "missing_1/4": Variant(missing=0.25),
    "dropout_0.4": Variant(dropout=0.4),
    "temperature": Variant(temperature=True),
    "bias_0.001": Variant(gate="flat+sigmoid+bias", update_rate=0.001),
    "bias_0.01": Variant(gate="flat+sigmoid+bias", update_rate=0.01),
    "bias_0.1": Variant(gate="flat+sigmoid+bias", update_rate=0.1),
}
SHARES = (0.125, 0.25, 0.5)
#: steps at which entropy and noise are looked at
LOOKS = 8
_SHARE = 0.90
_CLASSES = ("letter", "digit", "space", "sign")


def classes_of(words_T: torch.Tensor) -> torch.Tensor:
    """Return the class of every byte, an index of letter, digit, space and sign."""
    table = torch.tensor(
        [
            0
            if chr(b).isalpha() or b >= 128
            else 1
            if 48 <= b < 58
            else 2
            if b in (9, 10, 32)
            else 3
            for b in range(256)
        ]
    )
    return table.to(words_T.device)[words_T]


def mapping(model: LanguageModel, probe: Probe) -> list[float]:
    """Return, layer by layer, the share of the entropy of a byte's class that its first expert
    tells.
    """
    held = text()[1]
    joint = [np.zeros((len(_CLASSES), probe.num_experts)) for _ in model.moe]
    with torch.no_grad():
        for i in range(probe.held_out_batches):
            batch = windows(held, probe, i).to(probe.device)
            model(batch[:, :-1])
            kinds = classes_of(batch[:, :-1].flatten()).cpu().numpy()
            for at, moe in enumerate(model.moe):
                np.add.at(joint[at], (kinds, moe.chosen_TK[:, 0].cpu().numpy()), 1.0)
    return [_information(one / one.sum()) for one in joint]


def _information(joint_CE: np.ndarray) -> float:
    of_C, of_E = joint_CE.sum(1), joint_CE.sum(0)
    both = joint_CE > 0
    told = (joint_CE[both] * np.log(joint_CE[both] / np.outer(of_C, of_E)[both])).sum()
    return float(told / -(of_C[of_C > 0] * np.log(of_C[of_C > 0])).sum())


def gradient_squares(model: LanguageModel, batch: torch.Tensor) -> tuple[float, float]:
    """Return |gradient|^2 of half a batch, the mean of both halves, and of the whole."""
    halves = []
    for part in batch.chunk(2):
        model.zero_grad(set_to_none=True)
        functional.cross_entropy(
            model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()
        ).backward()
        halves.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    one, other = halves
    mean = (one + other) / 2
    return float((one @ one + other @ other) / 2), float(mean @ mean)


class Watch:
    """What is looked at in training: router entropy, and squares of gradients."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.every = max(probe.steps // LOOKS, 1)
        self.entropy: dict[int, float] = {}
        self.squares: dict[int, tuple[float, float]] = {}

    def __call__(self, step: int, model: LanguageModel, batch: torch.Tensor) -> None:
        """Look at a model before a step, at some of the steps."""
        if step % self.every:
            return
        # a model that is looked at must train as one that is not: noise and biases stay as they are
        kept = [(moe.noise.get_state(), moe.bias_E.clone()) for moe in model.moe]
        self.squares[step] = gradient_squares(model, batch)
        most = float(np.log(self.probe.num_experts))
        self.entropy[step] = float(np.mean([moe.entropy for moe in model.moe])) / most
        for moe, (noise, bias_E) in zip(model.moe, kept, strict=True):
            moe.noise.set_state(noise)
            moe.bias_E = bias_E


def measured(probe: Probe, name: str, seed: int) -> dict[tuple[str, str], Any]:
    """Train one model, and return (figure, at) -> value."""
    watch = Watch(probe)
    model, _, seconds = fit(probe, VARIANTS[name], seed, watch)
    for moe in model.moe:
        moe.missing_E = None
    found: dict[tuple[str, str], Any] = {("loss", ""): held_out_loss(model, probe)}
    found["imbalance", ""] = imbalance_of(model)
    for at, told in enumerate(mapping(model, probe)):
        found["mapping", f"layer {at}"] = told
    for share in SHARES:
        for at, moe in enumerate(model.moe):
            # the same experts are missing from every variant of a seed
            moe.noise.manual_seed(1000 * seed + at)
            moe.missing_E = moe.drawn_missing(share)
        found["missing", f"{share:g}"] = held_out_loss(model, probe) - found["loss", ""]
    for step, value in watch.entropy.items():
        found["router_entropy", f"step {step}"] = value
    for step, squares in watch.squares.items():
        found["noise_scale", f"step {step}"] = squares
    say(f"seed {seed} {name}: {found['loss', '']:.4f} nats per byte, {seconds:.0f} s")
    return found


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean of values with the t interval of the mean."""
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(t.ppf((1 + _SHARE) / 2, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def noise_scale(squares: list[tuple[float, float]], batch: int) -> float | None:
    """Return the simple noise scale in windows from |gradient|^2 of half and whole batches; None
    where noise leaves no gradient to see.
    """
    half, whole = np.mean(squares, axis=0)
    signal = (batch * whole - batch / 2 * half) / (batch / 2)
    spread = (half - whole) / (2 / batch - 1 / batch)
    return float(spread / signal) if signal > 0 else None


def summary(
    found: dict[str, list[dict[tuple[str, str], Any]]], probe: Probe
) -> list[dict[str, Any]]:
    """Return a row for every figure of every variant; losses are differences to flat top-k."""
    rows = []
    for name, runs in found.items():
        for figure, at in runs[0]:
            values = [run[figure, at] for run in runs]
            low: float | None
            high: float | None
            if figure == "noise_scale":
                mean, low, high = noise_scale(values, probe.batch), None, None
            else:
                if figure == "loss":
                    base = (run[figure, at] for run in found[FLAT])
                    values = [v - b for v, b in zip(values, base, strict=True)]
                mean, low, high = interval(values)
            rows.append(
                {
                    "variant": name,
                    "figure": figure,
                    "at": at,
                    "mean": mean,
                    "low": low,
                    "high": high,
                }
            )
    return rows


def sized(size: int, steps: int) -> Probe:
    """Return the sizes of a run, of about so many times the parameters.

    Raises:
        ConfigError: The size is below 1.
    """
    if size < 1:
        raise ConfigError(f"--size: expected at least 1, got {size}")
    wider = max(round(size**0.5), 1)
    return replace(
        Probe(steps=steps),
        hidden_size=64 * wider,
        expert_width=64 * wider,
        learning_rate=1e-2 / wider,
        device="cuda" if size > 1 and torch.cuda.is_available() else "cpu",
    )


def main(
    out: Out = OUT,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0; at least 2.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a model.", min=8)] = 240,
    size: Annotated[int, typer.Option(help="About how many times more parameters.")] = 1,
    processor: Annotated[str, typer.Option(help="Name of the processor, for the rows.")] = "",
    quick: Quick = False,
) -> None:
    """Train tiny MoE language models and report how robust they are."""
    if seeds < 2:
        raise ConfigError(f"--seeds: expected at least 2, since one tells no spread, got {seeds}")
    writable_folder(out)
    torch.set_num_threads(1)
    probe, names = sized(size, steps), list(VARIANTS)
    if quick:
        probe = replace(probe, steps=16, hidden_size=32, held_out_batches=2, batch=4, window=64)
        seeds, names = 2, [FLAT, "missing_1/4", "temperature", "bias_0.01"]
    found: dict[str, list[dict[tuple[str, str], Any]]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            found[name].append(measured(probe, name, seed))
    common = {
        "seeds": seeds,
        "steps": probe.steps,
        "hidden_size": probe.hidden_size,
        "num_experts": probe.num_experts,
        "top_k": probe.top_k,
        "text_digest": text()[2],
        "processor": processor or platform.processor() or platform.machine(),
        "evidence": "measured",
        "version": VERSION,
    }
    rows = summary(found, probe)
    write_csv(out / "robustness.csv", [row | common for row in rows])
    told = [row for row in rows if row["figure"] in ("loss", "missing", "imbalance")]
    print_table(f"{seeds} seeds, means with 90 % intervals, nats per byte", told, list(told[0]))
    print("tiny models do not transfer: nothing of it enters the table")
    say(f"wrote {out}/robustness.csv")


if __name__ == "__main__":
    run_script(main)
