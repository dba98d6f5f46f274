"""Say which copies take which hop: an exchange as legs, each a matrix of copies between devices, or
a product of what each sends and the share of each.

The copies are those of dispatch. Combine sends the same copies back: every leg is transposed, and
the legs run in reverse order.

Shape legend: S senders = D receivers = devices, G domains.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from moesim.hardware.exchanges import Exchange
from moesim.lowering.expected import ExpectedTraffic
from moesim.lowering.products import Product, Reach
from moesim.lowering.traffic import AnyTraffic, Traffic

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leg:
    """One hop of an exchange.

    Attributes:
        name: Suffix of its ops' names.
        copies_SD: ndarray of shape (S, D): copies from each device to each; the diagonal is not
            sent. A `Product` where the traffic is one.
        crosses: Whether it leaves the domain; where hops run side by side, its relays are at the
            far end.
    """

    name: str
    copies_SD: Array | Product
    crosses: bool = False

    @property
    def matrix_SD(self) -> Array:
        """The copies as a matrix, whatever they are stored as: ndarray of shape (S, D)."""
        return self.copies_SD.dense() if isinstance(self.copies_SD, Product) else self.copies_SD

    def sent_by(self, members_S: Array | None) -> Array | Product:
        """Return the copies of some senders, given as a mask of shape (S,); None for all."""
        if members_S is None:
            return self.copies_SD
        if isinstance(self.copies_SD, Product):
            return self.copies_SD.only(members_S)
        return np.where(members_S[:, None], self.copies_SD, 0.0)

    @property
    def returned(self) -> Array | Product:
        """The copies on their way back."""
        return (
            self.copies_SD.transposed if isinstance(self.copies_SD, Product) else self.copies_SD.T
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Movement:
    """The legs of an exchange, in the order of dispatch.

    Attributes:
        legs: The one or two legs.
        serial: Whether the second leg begins when the first has ended; otherwise both run side by
            side.
        copies_S: ndarray of shape (S,): copies of each device's tokens that the kernel handles, its
            own rank included.
        devices_per_domain: Consecutive devices of a domain.
    """

    legs: tuple[Leg, ...]
    serial: bool
    copies_S: Array
    devices_per_domain: int

    @cached_property
    def near_far_D(self) -> tuple[Array, Array, Array, Array]:
        """Copies that leave and enter each device inside its domain, and that leave and enter it
        across domains: four ndarrays of shape (D,).
        """
        if isinstance(self.legs[0].copies_SD, Product):
            parts = [
                leg.copies_SD.near_far_D()
                for leg in self.legs
                if isinstance(leg.copies_SD, Product)
            ]
            out, into, far_out, far_in = (
                np.sum(column, axis=0) for column in zip(*parts, strict=True)
            )
            return out, into, far_out, far_in
        total = np.sum([leg.matrix_SD for leg in self.legs], axis=0)
        count, devices_per_domain = len(total), self.devices_per_domain
        domain = np.arange(count) // devices_per_domain
        out, into = total.sum(axis=1), total.sum(axis=0)
        # the block of the matrix inside each domain, device by device
        blocks = total.reshape(
            count // devices_per_domain, devices_per_domain, -1, devices_per_domain
        )
        own = blocks[domain[::devices_per_domain], :, domain[::devices_per_domain], :]
        stay = np.diag(total)
        near_out, near_in = own.sum(axis=2).ravel() - stay, own.sum(axis=1).ravel() - stay
        return near_out, near_in, out - near_out - stay, into - near_in - stay


@lru_cache(maxsize=8)
def movement_of(exchange: Exchange, traffic: AnyTraffic, devices_per_domain: int) -> Movement:
    """Return the legs of an exchange. The last few are kept: formats, widths and kernels of a
    design change what copies cost, not where they go.

    Args:
        exchange: The exchange; its pattern decides.
        traffic: Copies by device, by choice and by domain.
        devices_per_domain: Consecutive devices of a domain.
    """
    if isinstance(traffic, ExpectedTraffic):
        return _expected(exchange, traffic, devices_per_domain)
    if callable(exchange.pattern):
        return exchange.pattern(traffic, devices_per_domain)
    # a kernel either sends one copy for each choice, or one for each device of a token
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
    # every device gets every token, whether it needs the token or not
    everywhere = np.repeat(
        np.asarray(traffic.num_tokens_S, dtype=np.float64)[:, None], len(copies), axis=1
    )
    return _direct(traffic, everywhere, devices_per_domain)


def _two_hop(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    """Send each token once to the device of its own rail in every domain that wants it, and from
    there to the devices that want it.
    """
    domain, rail, near = _places(len(copies), devices_per_domain)
    over = np.where(
        near | (rail[:, None] != rail), 0.0, traffic.domains_SG.astype(np.float64)[:, domain]
    )
    # (domain, rail, receiver): summed over domains, the copies of all senders of a rail
    by_rail = copies.reshape(-1, devices_per_domain, len(copies))
    own = np.where(near, copies, 0.0)
    # a relay forwards what all senders of its rail send to its domain, less what it sends itself
    forwarded = np.where(near, by_rail.sum(axis=0)[rail] - copies, 0.0)
    legs = (
        Leg(name="_rdma", copies_SD=over, crosses=True),
        Leg(name="_nvlink", copies_SD=own + forwarded),
    )
    return Movement(
        legs=legs, serial=False, copies_S=copies.sum(axis=1), devices_per_domain=devices_per_domain
    )


def _staged(traffic: Traffic, copies: Array, devices_per_domain: int) -> Movement:
    """Gather copies on the device of the destination's rail, then send them across, one after the
    other.
    """
    domain, rail, near = _places(len(copies), devices_per_domain)
    device = np.arange(len(copies))
    to_rail = np.zeros_like(copies)
    for r in range(devices_per_domain):
        # what this device sends to rail r of other domains meets on rail r of its own domain
        across = np.where(near, 0.0, copies)[:, rail == r].sum(axis=1)
        to_rail[device, domain * devices_per_domain + r] = across
    gathered = to_rail + np.where(near, copies, 0.0)
    crossing = np.zeros_like(copies)
    for g in range(len(copies) // devices_per_domain):
        inside = domain == g
        # everything that domain g sends to a device leaves from the device of its rail in g
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


def _expected(exchange: Exchange, traffic: ExpectedTraffic, devices_per_domain: int) -> Movement:
    """Return the legs of traffic that is a product; the sums are those of the matrices above."""
    tokens_S = np.asarray(traffic.num_tokens_S, dtype=np.float64)
    share_D = traffic.choices_D if exchange.every_choice else traffic.copies_D
    count = len(share_D)
    domain, rail = np.divmod(np.arange(count), devices_per_domain)
    direct = count == devices_per_domain and exchange.hops_across
    pattern = "direct" if direct else exchange.pattern
    copies_S = tokens_S * share_D.sum()

    def leg(name: str, sent_S: Array, share_D: Array, reach: Reach, crosses: bool = False) -> Leg:
        product = Product(
            sent_S=sent_S, share_D=share_D, reach=reach, devices_per_domain=devices_per_domain
        )
        return Leg(name=name, copies_SD=product, crosses=crosses)

    legs: tuple[Leg, ...]
    if pattern == "two_hop":
        by_rail = np.bincount(rail, tokens_S)[rail]
        legs = (
            leg("_rdma", tokens_S, traffic.domains_G[domain] * traffic.relayed_D, "rail", True),
            # a relay forwards what all senders of its rail send, itself included
            leg("_nvlink", by_rail * traffic.relayed_D, share_D, "domain"),
        )
    elif pattern == "staged":
        legs = (
            leg("_near", tokens_S, np.bincount(rail, share_D)[rail] * traffic.gathered_D, "domain"),
            leg(
                "_far",
                np.bincount(domain, tokens_S)[domain] * traffic.gathered_D,
                share_D,
                "rail",
                True,
            ),
        )
    else:
        if pattern == "all_gather":
            share_D, copies_S = np.ones(count), tokens_S * count
        legs = (leg("", tokens_S, share_D, "all"),)
    return Movement(
        legs=legs,
        serial=pattern == "staged",
        copies_S=copies_S,
        devices_per_domain=devices_per_domain,
    )


def _places(num_devices: int, devices_per_domain: int) -> tuple[Array, Array, Array]:
    """Return the domain and rail of each device, shape (D,), and which pairs share a domain, shape
    (D, D).
    """
    device = np.arange(num_devices)
    domain, rail = device // devices_per_domain, device % devices_per_domain
    return domain, rail, domain[:, None] == domain


_PATTERNS = {"direct": _direct, "all_gather": _all_gather, "two_hop": _two_hop, "staged": _staged}
