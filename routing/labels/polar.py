"""The files of PoLar, which searches layer paths too (arXiv 2606.06574), and of its replications.

    {root}/{model}/dart-math-diff-{1..5}/merged_mcts_samples.json
    {"samples": [{"question": …, "gt_ans": …, "initial_score": 0.0,
                  "final_valid_transitions": [[layer, …], …], "final_invalid_transitions": [[layer, …], …]}]}

Here they are found and read; `polar_export` and `polar_import` make them from labels, and labels from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from routing.common.errors import UserError
from routing.common.json_stream import JsonStream

SAMPLES = "merged_mcts_samples.json"
LEVEL_FOLDER, LEVEL_DATASET = re.compile("dart-math-diff-([1-5])"), re.compile("dart-([1-5])")


def _sample_values(stream: JsonStream) -> Iterator:
    """The three shapes that PoLar reads: {"samples": [...]}, a list of samples, an object of samples by name."""
    first = stream.peek()
    if first == "[":
        yield from stream.items()
    elif first == "{":
        named, listed = [], False
        for name in stream.names():
            if name == "samples":
                listed = True
                yield from stream.items()
            else:
                named.append(stream.value())
        if not listed:
            yield from named
    else:
        raise ValueError("it holds no list of samples")
    if stream.peek():
        raise ValueError("something follows its end")


def read_samples(path: Path) -> Iterator[tuple[int, dict]]:
    """Samples of a file with their index from 0, streamed.

    Raises:
        UserError: for a file that is no JSON or holds no samples, with the index of the first sample that is not there.
    """
    index = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for value in _sample_values(JsonStream(file)):
                if not isinstance(value, dict):
                    raise ValueError(f"it is a {type(value).__name__}, no object")
                yield index, value
                index += 1
    except (ValueError, RecursionError) as error:  # No UTF-8 is a ValueError too.
        raise UserError(
            f"{path} is damaged at samples[{index}]: {error}. Get the file again, or remove it to import the others."
        ) from error


def find_files(path: Path, model: str) -> list[Path]:
    """Sample files below a root, a model folder or a level's folder, or the file itself.

    Raises:
        UserError: if there is none, or they belong to several models and none is named like `model`.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Give a {SAMPLES}, or a folder that holds some.")
    groups: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob(SAMPLES)):
        groups.setdefault(_level_folder(file).parent, []).append(file)
    if not groups:
        raise UserError(f"{path} holds no {SAMPLES}. PoLar keeps them as MODEL/dart-math-diff-1/{SAMPLES}.")
    if len(groups) == 1:
        return next(iter(groups.values()))
    named = [files for folder, files in groups.items() if folder.name == Path(model).name]
    if len(named) != 1:
        found = ", ".join(str(folder.relative_to(path)) for folder in groups)
        raise UserError(f"{path} holds paths of several models ({found}). Give the folder of one of them.")
    return named[0]


def _level_folder(file: Path) -> Path:
    """The folder that says which data set a file is of: dart-math-diff-N, however deep below it, or its own."""
    for folder in file.parents:
        if LEVEL_FOLDER.fullmatch(folder.name):
            return folder
    return file.parent


def dataset_of(file: Path) -> str:
    """dart-N for a file below dart-math-diff-N; else the name of its folder, or its own if it is named otherwise."""
    name = _level_folder(file.resolve()).name
    level = LEVEL_FOLDER.fullmatch(name)
    if level:
        return f"dart-{level[1]}"
    return name if file.name == SAMPLES else file.stem
