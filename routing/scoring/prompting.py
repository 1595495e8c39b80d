"""How a model is prompted and its answers scored: one record, from labels over checkpoints to every later command.

Labels are made one way (their header says which), routers learn from these prompts, and whoever prompts the checkpoint
afterwards does it the same way unless something else is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Prompting:
    """As in data_generation.py.

    Args:
        scoring: auto, generate or a kind of loglikelihood.
        apply_chat_template: whether prompts are wrapped in the chat template.
        tools_in_template: whether the template lists the functions.
    """

    scoring: str = "auto"
    apply_chat_template: bool = False
    tools_in_template: bool = False


DEFAULT = Prompting()
NAMES = tuple(field.name for field in fields(Prompting))


def prompting_in(arguments: dict) -> Prompting:
    """That of a label header's `arguments`, or of a run's; headers of older versions lack some."""
    return Prompting(**{name: arguments[name] for name in NAMES if name in arguments})


def common_prompting(headers: Sequence[dict]) -> Prompting:
    """That of all label folders; where they differ, the default, and stderr is told."""
    found = [prompting_in(header["arguments"]) for header in headers]
    if len(set(found)) == 1:
        return found[0]
    kept = {}
    for name in NAMES:
        values = {getattr(one, name) for one in found}
        if len(values) == 1:
            kept[name] = values.pop()
        elif values:
            told = ", ".join(map(str, sorted(values)))
            print(
                f"labels differ in {name} ({told}); later commands prompt with {getattr(DEFAULT, name)!r} unless "
                "told otherwise",
                file=sys.stderr,
            )
    return Prompting(**kept)


def trained_prompting(record: dict) -> Prompting:
    """That of a checkpoint, by its training.json; one of an older version does not say."""
    return Prompting(**record.get("prompting", {}))


def recorded(prompting: Prompting) -> dict:
    return asdict(prompting)


def asked(prompting: Prompting, arguments) -> Prompting:
    """That of a checkpoint, changed as flags ask.

    Args:
        arguments: with `apply_chat_template` and `no_chat_template`, and maybe `tools_in_template`.
    """
    if arguments.no_chat_template:
        return replace(prompting, apply_chat_template=False, tools_in_template=False)
    return replace(
        prompting,
        apply_chat_template=prompting.apply_chat_template or arguments.apply_chat_template,
        tools_in_template=prompting.tools_in_template or getattr(arguments, "tools_in_template", False),
    )


def flag_problems(arguments) -> list[str]:
    """What is wrong with flags that `asked` reads."""
    if arguments.no_chat_template and arguments.apply_chat_template:
        return ["--apply_chat_template and --no_chat_template exclude each other; leave one out"]
    return []


def add_flags(parser, tools: bool = False) -> None:
    """The flags that `asked` reads, for an argparse parser."""
    parser.add_argument(
        "--apply_chat_template", action="store_true", help="wrap prompts in the chat template; default: as trained"
    )
    parser.add_argument("--no_chat_template", action="store_true", help="plain prompts, however it was trained")
    if tools:
        parser.add_argument("--tools_in_template", action="store_true", help="let the template list the functions")
