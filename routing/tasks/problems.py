"""What is wrong with arguments that name questions and prompts."""

from __future__ import annotations

from pathlib import Path

from routing.models.templates import Filling, plain_problems
from routing.tasks import expand_names


def files_without_splits(option: str, names: str) -> list[str]:
    """Names of data sets that are files of the user's own, as sentences."""
    return [
        f"--{option} {name!r} is a file of your own, which has no validation and test questions; give the name of a "
        "data set"
        for name in expand_names(names)
        if Path(name).is_file()
    ]


def template_problems(arguments) -> list[str]:
    """What is wrong with the options of the chat template, whatever it is."""
    given = {name: getattr(arguments, name, "") for name in ("chat_template_args", "system_instruction")}
    filling = Filling(**given)
    found = plain_problems(filling, arguments.apply_chat_template)
    if arguments.tools_in_template and not arguments.apply_chat_template:
        found.append("--tools_in_template needs --apply_chat_template, whose template lists the functions; give both")
    return found
