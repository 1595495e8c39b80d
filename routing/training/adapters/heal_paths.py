"""The paths that healing follows: those of a menu, and random ones; drawn anew for each batch. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from routing.common.errors import UserError
from routing.labels.reading import HEADER
from routing.search.menu import FromFile, Nested, joined, nested_routes, parse_spec, read_routes
from routing.search.routes import REPEAT, RUN, SKIP, Route, full_route, pruned_layers

WANTED = "give influence:2,4,6 (layers of least block influence to leave out), a JSON file or labels of --search menu"


@dataclass(frozen=True)
class HealPaths:
    """What a batch may follow.

    Args:
        menu: routes that skip something.
        layers: what random paths may skip.
        random_share: of the batches, those that follow a random path.
    """

    menu: tuple[Route, ...]
    layers: tuple[int, ...]
    random_share: float

    def draw(self, rng: Random) -> Route:
        """A path of the menu, each as likely; or the full path without a random set of layers, of which each size up to
        the menu's deepest is as likely."""
        if rng.random() >= self.random_share:
            return rng.choice(self.menu)
        deepest = min(max(route.count(SKIP) for route in self.menu), len(self.layers))
        left_out = set(rng.sample(self.layers, rng.randint(1, deepest)))
        return tuple(SKIP if layer in left_out else RUN for layer in range(len(self.menu[0])))


def heal_paths(routes: Sequence[Route], random_share: float, random_layers: str, kept: int = 0) -> HealPaths:
    """Of a menu; paths that skip nothing have no adapters and are left out.

    Args:
        random_layers: menu (random paths skip layers that some path of the menu skips) or all from `kept` on.

    Raises:
        UserError: if nothing is left.
    """
    menu = tuple(route for route in routes if SKIP in route)
    if not menu:
        raise UserError(
            f"--heal_menu: none of its {len(routes)} paths skips a layer, so there is nothing to heal; {WANTED}."
        )
    skipped = sorted({layer for route in menu for layer in pruned_layers(route)})
    return HealPaths(menu, tuple(skipped if random_layers == "menu" else range(kept, len(menu[0]))), random_share)


def menu_problems(spec: str) -> list[str]:
    """What is wrong with --heal_menu, whatever the model."""
    if Path(spec).is_dir():
        return [] if (Path(spec) / HEADER).is_file() else [f"--heal_menu {spec}: the folder holds no labels; {WANTED}"]
    try:
        sources = parse_spec(spec)
    except ValueError as error:
        return [f"--heal_menu {error}"]
    return [
        f"--heal_menu {spec!r}: it may be of block influence or of a file; for another one make labels with it and "
        "give their folder"
        for source in sources
        if not (isinstance(source, FromFile) or (isinstance(source, Nested) and source.order == "influence"))
    ][:1]


def menu_routes(spec: str, depth: int, influence: Callable[[], Sequence[int]], kept: int = 0) -> tuple[Route, ...]:
    """Routes of --heal_menu, the full one first.

    Args:
        depth: layers of the model.
        influence: gives the layers in the order of their block influence, least first; asked where it is needed.
        kept: first layers that a menu of influence does not skip.

    Raises:
        UserError: if a file holds something else, or paths of another model, or too many layers are left out.
    """
    sources = [FromFile(Path(spec) / HEADER)] if Path(spec).is_dir() else parse_spec(spec)
    routes: list[Route] = []
    for source in sources:
        if isinstance(source, Nested):
            if max(source.skips) > depth - max(kept, 1):
                raise UserError(
                    f"--heal_menu {spec}: the model has {depth} layers, of which --heal_kept {kept}, and one at least, "
                    "must run; leave fewer out."
                )
            routes += nested_routes([layer for layer in influence() if layer >= kept], source.skips, depth)
            continue
        try:
            routes += read_routes(source.path, depth)
        except ValueError as error:
            raise UserError(f"--heal_menu {error}; {WANTED}.") from error
    return joined(depth, routes)


def path_name(route: Route) -> str:
    """How a path is called in logs and tables: by what it leaves out and repeats."""
    if route == full_route(len(route)):
        return "full"
    repeated = [layer for layer, count in enumerate(route) if count == REPEAT]
    parts = [f"without {','.join(map(str, pruned_layers(route)))}"] if SKIP in route else []
    return " ".join(parts + ([f"twice {','.join(map(str, repeated))}"] if repeated else []))
