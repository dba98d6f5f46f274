"""Addresses of servers as they may be printed: without passwords, wherever those stand."""

import re
from urllib.parse import unquote

#: a key of a query whose value is nobody's business
_SECRET = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)
_MASK = "***"


def without_password(address: str) -> str:
    """Return an address with its password masked, for printing.

    The address may lack its scheme, and its password may contain ``@``, ``/`` or ``?`` that should
    have been escaped: everything from the first colon to the last ``@`` is taken for it. Values of
    a query whose keys tell of a secret are masked, too.
    """
    for secret in sorted(secrets_of(address), key=len, reverse=True):
        for before in (":", "="):
            address = address.replace(f"{before}{secret}", f"{before}{_MASK}")
    return address


def secrets_of(address: str) -> set[str]:
    """Return the secrets in an address, as they are written there."""
    _, mark, rest = address.rpartition("://") if address.count("://") == 1 else ("", "", address)
    if not mark and "://" in address:
        _, _, rest = address.partition("://")
    found = set()
    before, _, query = rest.partition("?")
    user, at, _ = before.rpartition("@")
    if not at:  # the question mark may be part of the password
        user, at, _ = rest.rpartition("@")
    if at and ":" in user:
        found.add(user.partition(":")[2])
    for pair in re.split("[&;]", query):
        key, equals, value = pair.partition("=")
        if equals and _SECRET.search(unquote(key)):
            found.add(value)
    return found - {""}


def masked_text(text: str) -> str:
    """Return a text with the passwords of all addresses in it masked."""

    def masked(word: re.Match[str]) -> str:
        return without_password(word[0]) if "://" in word[0] else word[0]

    # word by word: an expression with "://" in it takes quadratic time on a long word
    return re.sub(r"\S+", masked, text)
