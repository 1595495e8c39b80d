"""How a model is prompted and its answers scored: one record, from labels over checkpoints to every later command.

Labels are made one way (their header says which), routers learn from these prompts, and whoever prompts the checkpoint
afterwards does it the same way unless something else is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from routing.models.templates import EMPTY, Filling, canonical_arguments


@dataclass(frozen=True)
class Prompting(Filling):
    """As in data_generation.py, and what fills the chat template.

    Args:
        scoring: auto, generate or a kind of loglikelihood.
        apply_chat_template: whether prompts are wrapped in the chat template.
        tools_in_template: whether the template lists the functions.
        max_new_tokens: of every generated answer, as asked for; None: as the data wants it.
        limits: new tokens of generated answers by data set, as pairs, where the data wanted more than the usual.
    """

    scoring: str = "auto"
    apply_chat_template: bool = False
    tools_in_template: bool = False
    max_new_tokens: int | None = None
    limits: tuple[tuple[str, int], ...] = ()

    def limit_of(self, dataset: str) -> int | None:
        """New tokens of an answer to a question of a data set; None: the usual."""
        return self.max_new_tokens or dict(self.limits).get(dataset)


DEFAULT = Prompting()
NAMES = tuple(field.name for field in fields(Prompting))
ALWAYS = ("scoring", "apply_chat_template", "tools_in_template")  # recorded even where they are the default


def prompting_in(arguments: dict) -> Prompting:
    """That of a record, or of the `arguments` of a run; those of older versions lack some."""
    found = {name: arguments[name] for name in NAMES if name in arguments}
    if "limits" in found:
        found["limits"] = tuple(sorted(dict(found["limits"]).items()))
    if "chat_template_args" in found:
        found["chat_template_args"] = canonical_arguments(found["chat_template_args"])
    return Prompting(**found)


def prompting_of(header: dict) -> Prompting:
    """That of a label folder: what was asked for, and what was settled when it was begun."""
    settled = {name: header[name] for name in SETTLED if name in header}
    return prompting_in(header["arguments"] | settled)


SETTLED = ("template_time", "limits")  # fields of a header, beside its arguments


def common_prompting(headers: Sequence[dict]) -> Prompting:
    """That of all label folders; where they differ, the default, and stderr is told.

    Limits of several folders go together: each data set has the largest of its own.
    """
    found = [prompting_of(header) for header in headers]
    limits: dict[str, int] = {}
    for dataset, limit in (pair for one in found for pair in one.limits):
        limits[dataset] = max(limit, limits.get(dataset, 0))
    found = [replace(one, limits=tuple(sorted(limits.items()))) for one in found]
    if len(set(found)) == 1:
        return found[0]
    kept = {}
    for name in NAMES:
        values = {getattr(one, name) for one in found}
        if len(values) == 1:
            kept[name] = values.pop()
        elif name == "template_time":
            kept[name] = max(values)  # Made on different days: the last one holds.
        elif values:
            told = ", ".join(sorted(map(str, values)))
            print(
                f"labels differ in {name} ({told}); later commands prompt with {getattr(DEFAULT, name)!r} unless "
                "told otherwise",
                file=sys.stderr,
            )
    return Prompting(**kept)


def trained_prompting(record: dict) -> Prompting:
    """That of a checkpoint, by its training.json; one of an older version does not say."""
    return prompting_in(record.get("prompting", {}))


def recorded(prompting: Prompting) -> dict:
    """As JSON; what is nobody's wish is left out, as older versions do not know it."""
    usual = asdict(DEFAULT)
    kept = {k: v for k, v in asdict(prompting).items() if k in ALWAYS or v != usual[k]}
    return kept | ({"limits": dict(prompting.limits)} if prompting.limits else {})


def asked(prompting: Prompting, arguments) -> Prompting:
    """That of a checkpoint, changed as flags ask.

    Args:
        arguments: with `apply_chat_template` and `no_chat_template`, and maybe `tools_in_template`.
    """
    if arguments.no_chat_template:
        return replace(prompting, apply_chat_template=False, tools_in_template=False, **asdict(EMPTY))
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
