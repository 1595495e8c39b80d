"""The command lines of a study's stages, checked before the first one runs: wrong options are refused, all at once."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from routing.common.cli import read_arguments
from routing.common.errors import UserError, raise_all
from routing.labels.arguments import DataGenerationArguments
from routing.study.stages import Later, Stage
from routing.training.registry import OBJECTIVES


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse options that train.py and data_generation.py would refuse.

    Raises:
        UserError: with every problem, each once however many seeds and tasks have it.
    """
    found = []
    for stage in stages:
        script, *words = ("0:1" if isinstance(word, Later) else word for word in stage.words)
        if script == "-m":
            continue
        kind = DataGenerationArguments if script == "data_generation.py" else _objective(words)
        told = io.StringIO()
        name = stage.name.split("/", 2)[-1]
        try:
            with contextlib.redirect_stderr(told):
                own = read_arguments(kind, words)
        except UserError as error:
            found.append(f"stage {name}: {error}")
            continue
        except SystemExit:  # argparse has said why.
            found.append(f"stage {name}: {told.getvalue().strip().splitlines()[-1]}")
            continue
        found += [f"stage {name}: {problem}" for problem in own.problems()]
    raise_all(list(dict.fromkeys(found)))


def _objective(words: Sequence[str]) -> type:
    """The kind of arguments of a training."""
    name = next((word.partition("=")[2] for word in words if word.startswith("--objective=")), "supervised")
    return OBJECTIVES[name].arguments()
