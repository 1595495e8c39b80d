"""Where a model goes, as arguments: one device, or by a device map several, the processor's memory and the disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from routing.common.cli import option
from routing.common.devices import device_problems, has_gpu
from routing.common.files import unwritable
from routing.common.sharding import sharding_problems

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
SIZE = re.compile(r"\d+(\.\d+)?([KMGT]i?B)")
PLACE = re.compile(r"cpu|disk|cuda:\d+|\d+")
MAP_HELP = (
    "for a base larger than a device: auto (all GPUs, then memory, then the disk), balanced, balanced_low_0, "
    "sequential, or a JSON file {part of the model: cuda:0, cpu or disk}; default: all on --device"
)
MEMORY_HELP = "with --device_map: what may be filled, comma-separated, such as 0=20GiB,1=20GiB,cpu=60GiB; default all"
FOLDER_HELP = (
    "with --device_map: folder for weights on disk, where those of the base's own files cannot be read in place"
)


def device_map_option():
    return option("", MAP_HELP)


def max_memory_option():
    return option("", MEMORY_HELP)


def offload_folder_option():
    return option("", FOLDER_HELP)


def add_place_arguments(parser) -> None:
    """The same options, and --device, for a parser of argparse."""
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    for name, text in (("device_map", MAP_HELP), ("max_memory", MEMORY_HELP), ("offload_folder", FOLDER_HELP)):
        parser.add_argument(f"--{name}", default="", help=text)


def place_problems(arguments) -> list[str]:
    """What is wrong with device, device_map, max_memory and offload_folder."""
    found, given = device_problems(arguments.device), arguments.device_map
    found += sharding_problems(getattr(arguments, "takes_fsdp", False))
    if not given:
        return found + [
            f"--{name} {value} says how a --device_map is filled; give --device_map auto, or leave it out"
            for name in ("max_memory", "offload_folder")
            if (value := getattr(arguments, name))
        ]
    if arguments.device != "auto":
        found.append(f"--device {arguments.device} and --device_map {given} both say where the model goes; give one")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        found.append(
            f"--device_map {given}: each of the {processes} processes would fill the same devices; start one process, "
            "which uses them all"
        )
    found += _map_problems(given) + _memory_problems(arguments.max_memory)
    if arguments.offload_folder:
        found += unwritable("--offload_folder", Path(arguments.offload_folder))
    return found


def no_map(arguments, why: str) -> list[str]:
    """The problem of a device map where there is none to be."""
    return [f"--device_map {arguments.device_map}: {why}"] if arguments.device_map else []


def _map_problems(given: str) -> list[str]:
    if given in AUTOMATIC:
        return []
    wanted = f'give {", ".join(AUTOMATIC)}, or a JSON file such as {{"model.layers.0": "cpu", ...}}'
    try:
        places = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"--device_map {given!r} is none of the automatic ones and cannot be read as JSON ({error}); {wanted}"]
    if not isinstance(places, dict) or not places:
        return [f"--device_map {given} holds no object of parts and places; {wanted}"]
    wrong = [f"{part}: {place}" for part, place in places.items() if not PLACE.fullmatch(str(place))]
    if wrong:
        return [f"--device_map {given}: {', '.join(wrong[:3])}: a place is cpu, disk, or a GPU such as cuda:0"]
    gpus = [place for place in places.values() if place not in ("cpu", "disk")]
    return [f"--device_map {given} names {gpus[0]}: this machine has no usable GPU"] if gpus and not has_gpu() else []


def _memory_problems(given: str) -> list[str]:
    wrong = []
    for part in filter(None, given.split(",")):
        place, _, size = part.partition("=")
        if not re.fullmatch(r"cpu|\d+", place.strip()) or not SIZE.fullmatch(size.strip()):
            wrong.append(part)
    if wrong:
        return [f"--max_memory {', '.join(wrong)}: give a GPU's number or cpu, and a size, such as 0=20GiB,cpu=60GiB"]
    return []


def map_of(given: str) -> str | dict[str, str | int]:
    """A checked --device_map as from_pretrained takes it; routers and adapters that a file leaves out go where the
    embedding is."""
    if given in AUTOMATIC:
        return given
    places = json.loads(Path(given).read_text(encoding="utf-8"))

    def covers(part: str) -> list[str]:
        return [own for own in places if not own or part == own or part.startswith(f"{own}.")]

    first = max(covers("model.embed_tokens"), key=len, default=None)
    if first is not None:
        places |= {part: places[first] for part in ("model.routers", "model.adapters") if not covers(part)}
    return places


def memory_of(given: str) -> dict[int | str, str] | None:
    """A checked --max_memory as from_pretrained takes it; None for none."""
    pairs = (part.partition("=") for part in given.split(",") if part)
    return {int(p) if (p := place.strip()).isdigit() else p: size.strip() for place, _, size in pairs} or None
