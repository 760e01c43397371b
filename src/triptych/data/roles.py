"""The roles that photos of an item can take, and the words that say so. They are data of a task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Role:
    """A role that a photo can take.

    words: words of a file name, or of a folder, that say so. endings: last words or numbers of a name that
    say so if no other word does. over: of several roles in one name, those of the highest number count.
    """

    name: str
    words: frozenset[str] = frozenset()
    endings: frozenset[str] = frozenset()
    over: int = 0


@dataclass(frozen=True)
class PhotoRoles:
    """The roles that a task has for the photos of an item.

    products: roles of photos that show a garment alone, in reading order. person: role of a photo that shows
    a person. side, part: words for photos from the side, and of a part, which rank behind the others. some:
    an item may have any of the product roles, and none is guessed; otherwise it has all of them.
    """

    products: tuple[Role, ...]
    person: Role
    side: frozenset[str] = frozenset()
    part: frozenset[str] = frozenset()
    some: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The roles of product photos."""
        return tuple(role.name for role in self.products)

    @cached_property
    def words(self) -> frozenset[str]:
        """All words that a name is searched for, without endings."""
        return self.side.union(self.part, *(role.words for role in self.products))

    @property
    def folders(self) -> frozenset[str]:
        """Names of folders that sort the photos of one item by role."""
        return self.person.words.union(*(role.words for role in self.products))
