"""A menu: the same few paths for every question. Its SPEC as text, and the search that asks for all of them.

A SPEC names sources of paths, joined by `+`; the full path is always in the menu and comes first, and a path that
several sources give is there once. A source is one of
- `influence:0,2,4`: nested paths without the 0, 2 and 4 layers of least block influence;
- `divergence:0,2,4`: nested paths, where the layer that is dropped next is the one without which the model stays
  nearest to its own answers (KL divergence), with adapters where there are some;
- `divergence-each:2,4`: the same with an order of its own for each data set, so as many paths as data sets for each
  number;
- `greedy:0,2,4`: nested paths, where the layer that is dropped next is the one without which the reward on validation
  questions is highest;
- `labels:FOLDER[,FOLDER...]:K`: K paths that a search found, chosen by how many questions they serve beside the one
  that they were found on;
- `path:0:20,24:30`: one path, as half-open ranges of layers;
- a JSON file: a list of paths (layer indices in order, each at most twice, or ranges as text), or an object with
  `routes` (lists with the count of each layer), such as the header of the labels of a menu.

`routing.labels.menus` makes the routes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from data_models.path_notation import parse_path
from routing.common.user_files import read_json
from routing.search.results import SearchResult, Verdict
from routing.search.routes import REPEAT, RUN, SKIP, Route, full_route, to_route


@dataclass(frozen=True)
class Nested:
    """Nested paths: `order` is one of KINDS, `skips` the numbers of layers that are left out."""

    order: str
    skips: tuple[int, ...]


@dataclass(frozen=True)
class Pooled:
    """`count` paths that searches found, whose labels are in `folders`."""

    folders: tuple[Path, ...]
    count: int


@dataclass(frozen=True)
class FromFile:
    """Paths of a JSON file."""

    path: Path


@dataclass(frozen=True)
class Given:
    """One path, as `data_models.path_notation` reads it."""

    text: str


Source = Nested | Pooled | FromFile | Given
KINDS = ("divergence", "divergence-each", "influence", "greedy")
ALLOWED = (
    "divergence:0,2,4, divergence-each:2,4, influence:0,2,4, greedy:0,2,4, labels:FOLDER:8, path:0:20,24:30 or the "
    "path of a .json file"
)


def parse_spec(spec: str) -> list[Source]:
    """The sources of a SPEC; nothing is read from disk.

    Raises:
        ValueError: says which part is wrong, and what is allowed.
    """
    return [_parse_source(part.strip(), spec) for part in spec.split("+")]


def _parse_source(part: str, spec: str) -> Source:
    kind, colon, rest = part.partition(":")
    if not part:
        raise ValueError(f"{spec!r} has an empty part; give {ALLOWED}, several of them joined by +")
    if kind in KINDS and colon:
        try:
            skips = tuple(int(number) for number in rest.split(","))
        except ValueError:
            skips = ()
        if not skips or min(skips) < 0:
            raise ValueError(f"{part!r} must list numbers of layers to leave out, such as {kind}:0,2,4")
        return Nested(kind, skips)
    if kind == "labels" and colon:
        names, _, count = rest.rpartition(":")
        folders = tuple(Path(name.strip()) for name in names.split(",") if name.strip())
        if not folders or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"{part!r} must name folders of labels and a number of paths, such as labels:data/mcts:8")
        return Pooled(folders, int(count))
    if kind == "path" and colon:
        parse_path(rest)
        return Given(rest)
    if part.endswith(".json"):
        return FromFile(Path(part))
    raise ValueError(f"{part!r} is unknown; give {ALLOWED}")


def spec_problems(spec: str, depth: int, kept: int) -> list[str]:
    """What is wrong with the SPEC of a menu for a model of `depth` layers of which the first `kept` are never cut."""
    if not 0 <= kept < depth:
        return [f"--menu_kept {kept} must lie between 0 and {depth - 1}, as the model has {depth} layers"]
    try:
        sources = parse_spec(spec)
    except ValueError as error:
        return [f"--menu {error}"]
    found = []
    most = depth - max(kept, 1)
    for source in sources:
        if isinstance(source, Nested) and max(source.skips) > most:
            found.append(
                f"--menu {source.order}: {max(source.skips)} layers cannot be left out; with {kept} of {depth} kept, "
                f"0..{most} can"
            )
        if isinstance(source, FromFile | Given):
            try:
                given_routes(source, depth)
            except ValueError as error:
                found.append(f"--menu {error}")
    return found


def given_routes(source: FromFile | Given, depth: int) -> list[Route]:
    """Routes of a source that no model and no labels are needed for.

    Raises:
        ValueError: says what is wrong with them.
    """
    return read_routes(source.path, depth) if isinstance(source, FromFile) else [_checked(source.text, depth, False)]


def read_routes(path: Path, depth: int) -> list[Route]:
    """Routes of a JSON file.

    Raises:
        ValueError: says what is wrong with the file, and what it must hold.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); give a JSON file of paths") from error
    if isinstance(content, dict) and isinstance(content.get("menu"), dict):
        content = content["menu"]
    counts = content.get("routes") if isinstance(content, dict) else None
    listed = counts if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f'{path} must hold a list of paths, or an object with "routes"; it holds {type(content).__name__}'
        )
    try:
        return [_checked(entry, depth, counts is not None) for entry in listed]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(entry, depth: int, is_route: bool) -> Route:
    if isinstance(entry, str) and not is_route:
        return to_route(parse_path(entry, depth), depth)
    if not isinstance(entry, list) or not all(type(number) is int for number in entry):
        raise ValueError(f"{entry!r} must be a list of whole numbers")
    if not is_route:
        try:
            route = to_route(entry, depth)
        except ValueError as error:
            raise ValueError(f'{error}; counts of layers go into an object, {{"routes": [...]}}') from error
    else:
        route = tuple(entry)
        if len(route) != depth or set(route) - {SKIP, RUN, REPEAT}:
            raise ValueError(f"the route {entry} must be {depth} counts, each 0, 1 or 2")
    if not any(route):
        raise ValueError("a path without any layer answers nothing; leave it out")
    return route


def nested_routes(order: Sequence[int], skips: Iterable[int], depth: int) -> list[Route]:
    """For each number k the route without the first k layers of an order."""
    return [tuple(SKIP if layer in order[:k] else RUN for layer in range(depth)) for k in skips]


def joined(depth: int, routes: Iterable[Route]) -> tuple[Route, ...]:
    """A menu: the full path, then the others in their order, each once."""
    return tuple(dict.fromkeys([full_route(depth), *routes]))


@dataclass(frozen=True)
class MenuSettings:
    """Settings of `along_menu`: the routes of the menu, the full one first."""

    routes: tuple[Route, ...]


def along_menu(
    depth: int, settings: MenuSettings, rng: Random, prior: Sequence[float] | None = None
) -> Generator[Route, Verdict, SearchResult]:
    """Ask for the verdict of every route of a menu, in its order; as `routing.search.mcts.search` is called.

    Args:
        depth: L; not used, nor are rng and prior: nothing is left to chance.
        settings: the menu.
    """
    verdicts = {}
    for route in settings.routes:
        verdicts[route] = yield route
    return SearchResult(verdicts)
