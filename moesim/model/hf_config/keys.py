"""The keys of one configuration, read strictly, with a record of what was read."""

from collections.abc import Iterator
from typing import Any

from moesim.errors import ConfigError, require


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


class Keys:
    """The keys of one configuration.

    A key whose value is null counts as not stated. A value that a configuration class implies comes
    last. Several names of one thing may be stated together only if they agree.

    Attributes:
        where: What errors call the file.
        given: The stated keys, without nulls.
        implied: What the class implies where nothing is stated.
        lenient: Whether what contradicts or is not understood becomes a note instead of an error.
        notes: The assumptions that were made, in words.
        read: Names that were asked for.
        num_layers: Number of layers, once it is known; `at` needs it.
    """

    def __init__(
        self, where: str, given: dict[str, Any], implied: dict[str, Any], lenient: bool = False
    ) -> None:
        self.where = where
        self.given = {name: value for name, value in given.items() if value is not None}
        self.implied = implied
        self.lenient = lenient
        self.notes: list[str] = []
        self.read: set[str] = set()
        self.num_layers = 0
        self.num_extra = 0

    def has(self, *names: str) -> bool:
        """Return whether one of several names is stated or implied, and count them as read."""
        self.read.update(names)
        return any(name in self.given or name in self.implied for name in names)

    def states(self, *names: str) -> bool:
        """Return whether one of several names is stated in the file, and count them as read."""
        self.read.update(names)
        return any(name in self.given for name in names)

    def stated(self, *names: str) -> tuple[str, Any] | None:
        """Return the first of several names that is stated or implied, with its value.

        Raises:
            ConfigError: Two of them are stated and differ.
        """
        self.read.update(names)
        found = [(name, self.given[name]) for name in names if name in self.given]
        for name, value in found[1:]:
            if not _same(value, found[0][1]):
                self.differ(name, f"{found[0][1]!r}, that of {found[0][0]}", value)
        if found:
            return found[0]
        return next(((name, self.implied[name]) for name in names if name in self.implied), None)

    def differ(self, name: str, expected: str, got: Any) -> None:
        """Report that two keys contradict each other: an error, or if lenient a note.

        Raises:
            ConfigError: Always, unless lenient.
        """
        if not self.lenient:
            raise ConfigError(f"{self.where}: {name}: expected {expected}, got {got!r}")
        self.notes.append(f"{name}: expected {expected}, got {got!r}")

    def require(self, condition: bool, name: str, expected: str, got: Any) -> None:
        """Raise an error about a key of this file unless a condition holds.

        Raises:
            ConfigError: The condition does not hold.
        """
        require(condition, f"{self.where}: {name}", expected, got)

    def whole(self, *names: str, what: str, default: int | None = None, low: int = 1) -> int:
        """Return the integer under the first of several names that is stated or implied.

        Raises:
            ConfigError: There is none and no default, or it is no integer of at least ``low``.
        """
        found = self.stated(*names)
        if found is None:
            if default is None:
                also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
                raise ConfigError(
                    f"{self.where}: {names[0]}{also}: expected an integer, {what}, got nothing"
                )
            return default
        name, value = found
        if value is False and default is not None:  # how some files switch a number off
            return default
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        self.require(good, name, f"an integer >= {low}, {what}", value)
        return int(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return the truth value under the first of several names.

        Raises:
            ConfigError: It is neither true nor false.
        """
        found = self.stated(*names)
        if found is None:
            return default
        self.require(isinstance(found[1], bool), found[0], "true or false", found[1])
        return bool(found[1])

    def word(self, *names: str, default: str) -> str:
        """Return the text under the first of several names.

        Raises:
            ConfigError: It is no text.
        """
        found = self.stated(*names)
        if found is None:
            return default
        self.require(isinstance(found[1], str), found[0], "a word", found[1])
        return str(found[1])

    def list_of(self, name: str, kind: type | tuple[type, ...], what: str) -> list[Any] | None:
        """Return the list under a name; None if it is not stated or empty.

        Raises:
            ConfigError: It is no list of values of this type.
        """
        found = self.stated(name)
        if found is None or found[1] in ([], ""):
            return None
        value = found[1]
        good = isinstance(value, list) and all(isinstance(one, kind) for one in value)
        self.require(good, name, what, value)
        return list(value)

    def table(self, name: str) -> "Keys | None":
        """Return the keys of a table inside this one; None if it is not stated.

        Raises:
            ConfigError: It is no table.
        """
        found = self.stated(name)
        if found is None:
            return None
        self.require(isinstance(found[1], dict), name, "a table", found[1])
        return Keys(f"{self.where}: {name}", found[1], {}, self.lenient)

    def of_each_layer(self, name: str, kind: type | tuple[type, ...], what: str) -> list | None:
        """Return a list with one entry per layer; entries for layers that predict further tokens
        are left off.

        Raises:
            ConfigError: It has another number of entries.
        """
        values = self.list_of(name, kind, what)
        if values is None:
            return None
        wanted = (self.num_layers, self.num_layers + self.num_extra)
        self.require(
            len(values) in wanted,
            name,
            f"one entry for each of {self.num_layers} layers",
            f"{len(values)} entries",
        )
        return values[: self.num_layers]

    def at(self, layer: int) -> "Keys":
        """Return the keys as one layer sees them: a list with one entry per layer is its entry, and
        ``per_layer_config`` replaces what it states. What is read there counts as read here.
        """
        count = (self.num_layers, self.num_layers + self.num_extra)
        found = Keys(self.where, {}, self.implied, self.lenient)
        found.given = {
            name: value[layer] if isinstance(value, list) and len(value) in count else value
            for name, value in self.given.items()
        }
        found.given |= self._own(layer)
        found.read, found.notes = self.read, self.notes
        found.num_layers, found.num_extra = self.num_layers, self.num_extra
        return found

    def _own(self, layer: int) -> dict[str, Any]:
        """Return what ``per_layer_config`` states of a layer."""
        own = self.stated("per_layer_config")
        if own is None:
            return {}
        self.require(isinstance(own[1], dict), own[0], "a table of layers", own[1])
        numbered = {int(name): value for name, value in own[1].items() if name.isdigit()}
        return dict(numbered.get(layer, {}))

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Yield the stated keys that nothing asked for."""
        yield from ((name, value) for name, value in self.given.items() if name not in self.read)
