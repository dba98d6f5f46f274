"""Hold the options of a router in addition to top-k, and draw its noise and its missing experts.

The rules are those of `moesim_kernels.ops.router`.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a router in addition to top-k.

    Attributes:
        bias_E: Bias added to the scores by which experts are chosen, float32 of shape (E,),
            contiguous; None for no bias.
        noise_std: Standard deviation of the noise added to logits, 0 for none.
        seed: Seed of the noise.
        temperature: Number by which logits are divided.
        counts_E: Histogram, int32 of shape (E,), contiguous: the number of tokens that chose each
            expert is added to it.
        missing_E: Experts that are missing, bool of shape (E,), contiguous (see
            `missing_experts`); None if all are there.
        checked: Whether NaN logits are refused; on a GPU this check waits for the device.
        watch: Memory where the first token with a logit or bias that is not finite is noted
            (`moesim_kernels.ops.watch`), which waits for nothing; None for no watch.

    Raises:
        ValueError: A number is outside its range.
    """

    bias_E: torch.Tensor | None = None
    noise_std: float = 0.0
    seed: int = 0
    temperature: float = 1.0
    counts_E: torch.Tensor | None = None
    missing_E: torch.Tensor | None = None
    checked: bool = True
    watch: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std: expected a number >= 0, got {self.noise_std}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number > 0, got {self.temperature}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected an integer from 0 to 2**31 - 1, got {self.seed}")

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors among the options, None for those that are not given."""
        return self.bias_E, self.counts_E, self.missing_E

    def check_shapes(self, num_experts: int) -> None:
        """Refuse tensors that do not fit this number of experts.

        Raises:
            ValueError: A shape or format does not fit.
        """
        for name, dtype in (
            ("bias_E", torch.float32),
            ("counts_E", torch.int32),
            ("missing_E", torch.bool),
        ):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != (num_experts,) or tensor.dtype != dtype):
                raise ValueError(
                    f"{name}: expected {dtype} of shape ({num_experts},), got "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                )

    def check(self, logits_TE: torch.Tensor) -> None:
        """Refuse tensors that do not fit the logits, and NaN among the logits.

        Raises:
            ValueError: A shape or format does not fit, or a logit is NaN.
        """
        self.check_shapes(logits_TE.shape[1])
        # The reductions below read a result from the device, which is the wait.
        if self.checked and bool(logits_TE.isnan().any()):
            raise ValueError("logits_TE: expected numbers, got NaN")
        if self.checked and self.bias_E is not None and not bool(self.bias_E.isfinite().all()):
            raise ValueError("bias_E: expected finite numbers, got NaN or infinity")

    def logits(self, logits_TE: torch.Tensor) -> torch.Tensor:
        """Return the logits over the temperature, with noise, computed in torch."""
        logits_TE = logits_TE * (torch.ones((), device=logits_TE.device) / self.temperature)
        return (
            logits_TE + noise(*logits_TE.shape, self.seed, logits_TE.device) * self.noise_std
            if self.noise_std
            else logits_TE
        )


PLAIN = Options()
#: for logits of a gate whose caller decides which checks it needs
UNCHECKED = Options(checked=False)


def noise(
    num_tokens: int, num_experts: int, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return noise of deviation 1 for every logit, by the rules of this module: float32 of shape
    (T, E).
    """
    mask = 2**32 - 1

    def hashed(h: torch.Tensor) -> torch.Tensor:
        h = (h ^ (h >> 16)) * 0x85EBCA6B & mask
        h = (h ^ (h >> 13)) * 0xC2B2AE35 & mask
        return h ^ (h >> 16)

    t_T1 = torch.arange(num_tokens, device=device)[:, None]
    expert_E = torch.arange(num_experts, device=device) * 0x9E3779B9 & mask
    # The numbers are int64 here, so each product is masked to 32 bits.
    state_TE = hashed(hashed((t_T1 + hashed(torch.tensor(seed, device=device))) & mask) ^ expert_E)
    words = [hashed((state_TE + (i * 0x2545F491 + 1)) & mask) for i in range(6)]
    total_TE = sum((word & 0xFFFF) + (word >> 16) for word in words)
    return (total_TE - 6 * 65535).float() * (1.0 / 65536)


def missing_experts(
    num_experts: int, rate: float, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw experts to leave out of a step of training (expert dropout), without a wait.

    Args:
        num_experts: Number of experts E.
        rate: Share of the experts that are missing, from 0 up to but not including 1.
        seed: Seed of the draw, from 0 to 2**31 - 1; the same seed gives the same experts
            everywhere.
        device: Device of the result.

    Returns:
        bool of shape (E,), True for floor(rate x E) experts.

    Raises:
        ValueError: The rate is outside its range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected a number from 0 up to 1, got {rate}")
    # The experts with the lowest hashes; noise is a hash of seed, token and expert.
    order_E = noise(1, num_experts, seed, device)[0].sort(stable=True).indices
    missing_E = torch.zeros(num_experts, dtype=torch.bool, device=device)
    missing_E[order_E[: int(rate * num_experts)]] = True
    return missing_E
