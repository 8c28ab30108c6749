"""Things by what they have in common."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def grouped(some: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return things by a key of theirs; groups, and things within them, in the order in which they come."""
    groups: dict[Key, list[Item]] = {}
    for one in some:
        groups.setdefault(key(one), []).append(one)
    return groups
