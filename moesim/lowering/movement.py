"""Which bytes take which hop: an exchange as legs, each a matrix of bytes between devices.

The matrices are those of dispatch; combine sends the same copies back, every leg transposed and in
reverse order.

Shape legend: S senders = D receivers = devices, G domains.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesim.hardware.exchanges import Exchange
from moesim.lowering.traffic import Traffic

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leg:
    """One hop of an exchange.

    Attributes:
        name: Of its ops.
        copies_SD: ndarray of shape (S, D): copies from each device to each, the diagonal at home.
        crosses: Whether it leaves the domain (its relays stand at the far end), for hops that run
            side by side.
    """

    name: str
    copies_SD: Array
    crosses: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Movement:
    """The legs of an exchange, in the order of dispatch.

    Attributes:
        legs: One, or two.
        serial: Whether the second begins when the first has ended, or both run side by side.
        copies_S: ndarray of shape (S,): copies of each device's tokens that the kernel handles, own
            rank included.
        devices_per_domain: Consecutive devices of a domain.
    """

    legs: tuple[Leg, ...]
    serial: bool
    copies_S: Array
    devices_per_domain: int

    @cached_property
    def near_far_D(self) -> tuple[Array, Array, Array, Array]:
        """Copies that leave and enter each device inside its domain, and across: four ndarrays of
        shape (D,).
        """
        total = np.sum([leg.copies_SD for leg in self.legs], axis=0)
        count, devices_per_domain = len(total), self.devices_per_domain
        domain = np.arange(count) // devices_per_domain
        out, into = total.sum(axis=1), total.sum(axis=0)
        blocks = total.reshape(
            count // devices_per_domain, devices_per_domain, -1, devices_per_domain
        )
        own = blocks[domain[::devices_per_domain], :, domain[::devices_per_domain], :]
        stay = np.diag(total)
        near_out, near_in = own.sum(axis=2).ravel() - stay, own.sum(axis=1).ravel() - stay
        return near_out, near_in, out - near_out - stay, into - near_in - stay


def movement_of(exchange: Exchange, traffic: Traffic, devices_per_domain: int) -> Movement:
    """The legs of an exchange.

    Args:
        exchange: The exchange, whose pattern decides.
        traffic: Copies by device, choice and domain.
        devices_per_domain: Consecutive devices of a domain.
    """
    if callable(exchange.pattern):
        return exchange.pattern(traffic, devices_per_domain)
    copies = (traffic.choices_SD if exchange.every_choice else traffic.copies_SD).astype(np.float64)
    inside_one_domain = len(copies) == devices_per_domain
    # without a second domain there is nothing to hop over
    direct = inside_one_domain and exchange.hops_across
    return _PATTERNS["direct" if direct else exchange.pattern](traffic, copies, devices_per_domain)


def _direct(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    return Movement(
        legs=(Leg(name="", copies_SD=copies),),
        serial=False,
        copies_S=copies.sum(axis=1),
        devices_per_domain=devices_per_domain,
    )


def _all_gather(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    everywhere = np.repeat(
        np.asarray(traffic.num_tokens_S, dtype=np.float64)[:, None], len(copies), axis=1
    )
    return _direct(traffic, everywhere, devices_per_domain)


def _two_hop(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    """Across to the device of the own rail in every domain, one copy a token; thence to the devices
    that want it.
    """
    domain, rail, near = _places(len(copies), devices_per_domain)
    over = np.where(
        near | (rail[:, None] != rail), 0.0, traffic.domains_SG.astype(np.float64)[:, domain]
    )
    by_rail = copies.reshape(-1, devices_per_domain, len(copies))
    own = np.where(near, copies, 0.0)
    # what a relay has from senders of its rail in other domains: all of its rail's less its own
    forwarded = np.where(near, by_rail.sum(axis=0)[rail] - copies, 0.0)
    legs = (
        Leg(name="_rdma", copies_SD=over, crosses=True),
        Leg(name="_nvlink", copies_SD=own + forwarded),
    )
    return Movement(
        legs=legs, serial=False, copies_S=copies.sum(axis=1), devices_per_domain=devices_per_domain
    )


def _staged(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    """Gathered on the device of the destination's rail, then across, one after the other."""
    domain, rail, near = _places(len(copies), devices_per_domain)
    device = np.arange(len(copies))
    to_rail = np.zeros_like(copies)
    for r in range(devices_per_domain):
        across = np.where(near, 0.0, copies)[:, rail == r].sum(axis=1)
        to_rail[device, domain * devices_per_domain + r] = across
    gathered = to_rail + np.where(near, copies, 0.0)
    crossing = np.zeros_like(copies)
    for g in range(len(copies) // devices_per_domain):
        inside = domain == g
        sums = np.where(near, 0.0, copies)[inside].sum(axis=0)
        crossing[g * devices_per_domain + rail, device] = np.where(domain == g, 0.0, sums)
    return Movement(
        legs=(
            Leg(name="_near", copies_SD=gathered),
            Leg(name="_far", copies_SD=crossing, crosses=True),
        ),
        serial=True,
        copies_S=copies.sum(axis=1),
        devices_per_domain=devices_per_domain,
    )


def _places(num_devices: int, devices_per_domain: int) -> tuple[Array, Array, Array]:
    """Domain and rail of each device, shape (D,), and which pairs share a domain, shape (D, D)."""
    device = np.arange(num_devices)
    domain, rail = device // devices_per_domain, device % devices_per_domain
    return domain, rail, domain[:, None] == domain


_PATTERNS = {"direct": _direct, "all_gather": _all_gather, "two_hop": _two_hop, "staged": _staged}
