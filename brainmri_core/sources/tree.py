"""The meaning of a data set's folders: which are classes, which are official splits, and which only wrap the rest.

Only names decide. They are compared by `foreign_names.compared`, so that case and blanks do not matter.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from brainmri_core.project.foreign_names import compared, shown_name

Origin = Literal["training", "testing", "validation", "none"]
Parts = tuple[str, ...]

SPLIT_WORDS: dict[Origin, tuple[str, ...]] = {
    "training": ("train", "training", "trainings", "trainset", "entrenamiento", "entrainement", "treino", "treinamento"),
    "testing": ("test", "testing", "tests", "testset", "prueba", "pruebas", "teste"),
    "validation": ("val", "valid", "validation", "validate", "validating", "dev", "validierung", "validierungs", "validacion", "validacao"),
}  # fmt: skip
"""Words that name a split folder, alone or together with `COMPANIONS` or numbers."""

COMPANIONS = (
    "set sets data dataset datasets image images img imgs picture pictures pic pics folder files file scans slices split "
    "samples mri new daten datensatz bild bilder"
)
_COMPANION = "|".join(COMPANIONS.split())
_PATTERNS: dict[Origin, re.Pattern[str]] = {
    origin: re.compile(
        rf"(?:(?:{_COMPANION}|\d+)[\W_]*)*(?:{'|'.join(words)})(?:[\W_]*(?:{_COMPANION}|\d+%?))*[\W_]*"
    )
    for origin, words in SPLIT_WORDS.items()
}
_WHOLE_SHARE = 0.01


def split_of(folder: str) -> Origin | None:
    """Return the official split that a folder's name means, or None."""
    plain = "".join(
        char for char in unicodedata.normalize("NFD", compared(folder)) if not unicodedata.combining(char)
    )
    return next((origin for origin, pattern in _PATTERNS.items() if pattern.fullmatch(plain)), None)


@dataclass(frozen=True)
class Placed:
    """An image of a tree: its path as found, its class folder and its official split."""

    path: str
    label: str
    origin: Origin


@dataclass(frozen=True)
class Tree:
    """Class folders that belong together.

    Attributes
    ----------
    name : str
        Its name for ``fetch.subset``: its folder, ``.`` for the top folder.
    root : str
        Folder below which all its images lie, above its class and split folders; empty for the top.
    images : tuple of Placed
        Its images, in the given order.
    """

    name: str
    root: str
    images: tuple[Placed, ...]

    def __str__(self) -> str:
        labels = Counter(image.label for image in self.images)
        named = ", ".join(f"{shown_name(label)} {count}" for label, count in sorted(labels.items())[:6])
        return f"{shown_name(self.name)!r} ({len(self.images)} images: {named}{', ...' if len(labels) > 6 else ''})"


class _Names:
    """The folders of a set of images: which of them branch, and which are classes or splits."""

    def __init__(self, paths: Sequence[str], is_class: Callable[[str], bool]) -> None:
        self.parts: dict[str, Parts] = {path: tuple(path.split("/")[:-1]) for path in paths}
        self._children: dict[Parts, set[str]] = defaultdict(set)
        self._holds_images = set(self.parts.values())
        for parts in self._holds_images:
            for depth, name in enumerate(parts):
                self._children[parts[:depth]].add(name)
        names = {name for children in self._children.values() for name in children}
        self.classes = {name for name in names if is_class(name)}
        self.splits = {name: origin for name in names - self.classes if (origin := split_of(name))}

    def wraps(self, parts: Parts, depth: int) -> bool:
        """Say whether a folder has no siblings, neither folders nor images, so that its name carries no information."""
        above = parts[:depth]
        return len(self._children[above]) == 1 and above not in self._holds_images

    def telling(self, parts: Parts) -> list[int]:
        """Return the depths of the folders that carry information and are not splits."""
        return [
            depth
            for depth, name in enumerate(parts)
            if name not in self.splits and not self.wraps(parts, depth)
        ]

    def class_depth(self, parts: Parts) -> int | None:
        """Return the depth of the outermost folder that names a known class and does not wrap."""
        known = [depth for depth, name in enumerate(parts) if name in self.classes]
        return next((depth for depth in known if not self.wraps(parts, depth)), known[-1] if known else None)

    def split_depth(self, parts: Parts, at: int) -> int | None:
        """Return the depth of an image's split folder: the nearest above its class folder at depth `at`, else below."""
        found = [depth for depth, name in enumerate(parts) if name in self.splits]
        above = [depth for depth in found if depth < at]
        return above[-1] if above else next((depth for depth in found if depth > at), None)

    def place(self, path: str, at: int) -> tuple[Placed, Parts]:
        """Return an image with its class folder at depth `at`, and the folder that its tree begins in."""
        parts = self.parts[path]
        split = self.split_depth(parts, at)
        origin: Origin = "none" if split is None else self.splits[parts[split]]
        begins = at if split is None else min(at, split)
        return Placed(path, parts[at], origin), parts[:begins]


def read_trees(paths: Sequence[str], is_class: Callable[[str], bool]) -> list[Tree]:
    """Find the trees of class folders that images lie in.

    A folder is a class folder if `is_class` says so; if no folder is, the outermost folders that branch are the classes. A
    folder beside class folders is one more class, which the split refuses by name. Unknown folders elsewhere are a tree of
    their own if there are several of them, or if they hold more than 1% of the images.

    Parameters
    ----------
    paths : sequence of str
        Images, POSIX, relative to the top.
    is_class : callable
        Says whether the name of a folder is that of a class.

    Returns
    -------
    list of Tree
        Nearest to the top first. An image that is in no tree lies in no class folder.
    """
    names = _Names(paths, is_class)
    groups = _known_trees(names) if names.classes else _unknown_trees(names)
    found = []
    for key, members in groups.items():
        found += [(key, part, number) for number, part in enumerate(_by_split(members))]
    roots = [_common(begin for _, begin in members) for _, members, _ in found]
    trees = []
    for (key, members, number), root in zip(found, roots, strict=True):
        name = (root if roots.count(root) == 1 else "/".join(key) or root) or "."
        name = f"{name} outside of its split folders" if number else name
        trees.append(Tree(name, root, tuple(image for image, _ in members)))
    return sorted(trees, key=lambda tree: (tree.root.count("/") + bool(tree.root), tree.name))


_Members = list[tuple[Placed, Parts]]


def _known_trees(names: _Names) -> dict[Parts, _Members]:
    groups: dict[Parts, _Members] = defaultdict(list)
    others = []
    for path, parts in names.parts.items():
        at = names.class_depth(parts)
        if at is None:
            others.append(path)
            continue
        key = tuple(parts[depth] for depth in names.telling(parts) if depth < at)
        groups[key].append(names.place(path, at))
    known = sorted(groups, key=len, reverse=True)
    foreign: dict[Parts, _Members] = defaultdict(list)
    for path in others:
        parts = names.parts[path]
        telling = names.telling(parts)
        beside = next(
            (key for key in known if tuple(parts[depth] for depth in telling)[: len(key)] == key), None
        )
        if beside is not None and len(telling) <= len(beside):
            continue
        if beside is not None and len(telling) == len(beside) + 1:
            groups[beside].append(names.place(path, telling[-1]))
        elif len(telling) == 1:
            flat = parts[: telling[0] + 1]
            foreign[(flat[-1],)].append((names.place(path, telling[0])[0], flat))
        elif telling:
            at = telling[min(len(beside or ()) + 1, len(telling) - 1)]
            foreign[tuple(parts[depth] for depth in telling if depth < at)].append(names.place(path, at))
    for key, members in foreign.items():
        if len({image.label for image, _ in members}) > 1 or len(members) > _WHOLE_SHARE * len(names.parts):
            groups[key] += members
    return groups


def _unknown_trees(names: _Names) -> dict[Parts, _Members]:
    """Take the outermost folders as classes; where several of them hold the same subfolders (raw, augmented), also those."""
    telling = {path: names.telling(parts) for path, parts in names.parts.items()}
    outermost = {names.parts[path][depths[0]] for path, depths in telling.items() if depths}
    for path, depths in telling.items():  # a split folder may hold one class only
        if not depths:
            telling[path] = [d for d, name in enumerate(names.parts[path]) if name in outermost][:1]
    below: dict[str, set[str]] = defaultdict(set)
    for path, depths in telling.items():
        if len(depths) > 1:
            below[names.parts[path][depths[0]]].add(names.parts[path][depths[1]])
    shared = Counter(name for inner in below.values() for name in inner)
    repeated = {outer for outer, inner in below.items() if sum(shared[name] > 1 for name in inner) > 1}
    groups: dict[Parts, _Members] = defaultdict(list)
    for path, depths in telling.items():
        if not depths:
            continue
        outer = names.parts[path][depths[0]]
        groups[()].append(names.place(path, depths[0]))
        if outer in repeated and len(depths) > 1:
            groups[(outer,)].append(names.place(path, depths[1]))
    return groups


def _by_split(members: _Members) -> list[_Members]:
    """Separate images in split folders from others where classes have both: the two may be the same images."""
    split = [item for item in members if item[0].origin != "none"]
    plain = [item for item in members if item[0].origin == "none"]
    both = {compared(image.label) for image, _ in split} & {compared(image.label) for image, _ in plain}
    return [split, plain] if both else [members]


def _common(folders: Iterable[Parts]) -> str:
    """Return the innermost folder that all folders lie in."""
    shared: Parts | None = None
    for parts in folders:
        if shared is None:
            shared = parts
        while shared != parts[: len(shared)]:
            shared = shared[:-1]
    return "/".join(shared or ())
