"""The house in numbers: rooms, lines, loose files, longest chain of rooms, rooms that lean on one another, repeats.

    python benchmarks/house.py --json benchmarks/results/house/after.json
    python benchmarks/house.py --tree OTHER_CHECKOUT --json before.json

Read from the imports of routing/, train_models/ and data_models/; nothing is imported. A room is a package just below
routing/; a loose file is a module beside them that is neither __init__ nor __main__. Repeated are lines of runs of
WINDOW or more (blank lines, comments and imports left out) that stand in more than one place.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("routing", "train_models", "data_models")
WINDOW = 6


def modules_of(tree: Path) -> dict[str, Path]:
    """Dotted name of each module."""
    files = [path for folder in FOLDERS for path in sorted((tree / folder).rglob("*.py"))]
    return {".".join(p.relative_to(tree).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "routing" else parts[0]


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the house that a file imports, at its top or in a function."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in modules else base for a in node.names}
    return found & modules.keys()


def longest_chain(edges: dict[str, set[str]]) -> int:
    """Rooms on the longest chain of imports; one that leads back to itself is cut there."""
    known: dict[str, int] = {}

    def depth(room: str, path: tuple[str, ...] = ()) -> int:
        if room in path:
            return 0
        if room not in known:
            known[room] = 1 + max((depth(other, (*path, room)) for other in sorted(edges[room])), default=0)
        return known[room]

    return max(map(depth, sorted(edges)))


def repeated_lines(paths: list[Path]) -> int:
    """Lines that belong to a run of WINDOW lines which stands in more than one place."""
    places = defaultdict(list)
    for path in paths:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [(n, x) for n, x in enumerate(lines) if x and not x.startswith(("#", "from ", "import "))]
        for at in range(len(kept) - WINDOW + 1):
            part = kept[at : at + WINDOW]
            places[tuple(text for _, text in part)].append([(path, number) for number, _ in part])
    return len({line for found in places.values() if len(found) > 1 for one in found for line in one})


def measure(tree: Path) -> dict:
    modules = modules_of(tree)
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules.items()}
    rooms, edges = defaultdict(int), defaultdict(set)
    for module, path in modules.items():
        room = room_of(module)
        rooms[room] += lines[module]
        edges[room] |= {room_of(other) for other in imports_of(module, path, modules)} - {room}
    for room in list(edges):
        for other in edges[room]:
            edges.setdefault(other, set())
    loose = [m for m in rooms if m.startswith("routing.") and (tree / f"{m.replace('.', '/')}.py").exists()]
    packages = [room for room in rooms if room.startswith("routing.") and room not in loose]
    return {
        "rooms": {room: rooms[room] for room in sorted(packages)},
        "loose_files": sorted(set(loose) - {"routing.__main__"}),
        "lines": sum(lines.values()),
        "median_file": statistics.median(lines.values()),
        "longest_chain_of_rooms": longest_chain(edges),
        "rooms_that_lean_on_one_another": sorted({(a, b) for a in edges for b in edges[a] if a < b and a in edges[b]}),
        "repeated_lines": repeated_lines(list(modules.values())),
        "readme_lines": len((tree / "README.md").read_text(encoding="utf-8").splitlines()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to measure")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    found = measure(arguments.tree.resolve())
    for name, value in found.items():
        print(f"{name}: {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
