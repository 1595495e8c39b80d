"""Chat templates: filling one, what can be wrong with what fills it, and the day that it is filled on.

A template may be given arguments (`enable_thinking`, `date_string`) and a system message. One that asks for the time
would give another prompt every day: `dated` puts one moment in its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import TemplateError, meta, nodes

from routing.common.errors import UserError

CLOCK = "strftime_now"  # the function by which a template asks for the time
# What transformers hands to every template, or has a parameter of that name for.
TAKEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
TAKEN |= {"tokenize", "conversation", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
DATED = "{#- The time is fixed to when these prompts were first written. -#}"
THOUGHT = 256  # new tokens, below which a thought hardly comes to its end


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What fills a chat template beside the message.

    Args:
        chat_template_args: arguments of the template, a JSON object as text; "" for none.
        system_instruction: text of a system message; "" for none.
        template_time: the moment that a template is told which asks for the time, as in ISO 8601; "" for now.
    """

    chat_template_args: str = ""
    system_instruction: str = ""
    template_time: str = ""

    @property
    def arguments(self) -> dict:
        return json.loads(self.chat_template_args) if self.chat_template_args else {}


EMPTY = Filling()


def json_problems(text: str) -> list[str]:
    """What is wrong with --chat_template_args, whatever the template is."""
    option = f"--chat_template_args {text!r}"
    remedy = """give a JSON object, such as '{"enable_thinking": false}'"""
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        return [f"{option} is no JSON ({error}); {remedy}"]
    if not isinstance(found, dict):
        return [f"{option} is a JSON {type(found).__name__} and no object; {remedy}"]
    return []


def canonical_arguments(text: str) -> str:
    """Arguments as JSON in one form, so that equal ones are equal texts; what is no JSON stays as it is."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return text
    return json.dumps(found, sort_keys=True, ensure_ascii=False) if found else ""


def template_text(tokenizer, tools: bool = False) -> str:
    """The template that a chat is written by: some tokenizers have one more for tools."""
    return tokenizer.get_chat_template(None, [{}] if tools else None)


def _parsed(template: str):
    # transformers' own environment: its templates have blocks that plain jinja2 does not know.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment.parse(template)


def filling_problems(tokenizer, filling: Filling, apply_chat_template: bool, tools: bool = False) -> list[str]:
    """What is wrong with prompts in the chat form, as sentences; found by writing one."""
    if not apply_chat_template:
        return []
    if not tokenizer.chat_template:
        return ["--apply_chat_template: the tokenizer has no chat template; leave the flag out"]
    template = template_text(tokenizer, tools)
    try:
        named = meta.find_undeclared_variables(_parsed(template)) - TAKEN - {CLOCK}
    except TemplateError as error:
        return [f"--apply_chat_template: the chat template of the tokenizer cannot be read ({error}); mend it"]
    found = []
    arguments = filling.arguments
    if taken := sorted(arguments.keys() & (TAKEN | {CLOCK})):
        found.append(f"--chat_template_args {', '.join(taken)}: the toolkit itself fills this in; leave it out")
    if foreign := sorted(arguments.keys() - named - TAKEN - {CLOCK}):
        known = sorted(name for name in named if not name.endswith("_token"))
        found.append(
            f"--chat_template_args {', '.join(foreign)}: the chat template of the tokenizer names no such argument, so "
            f"it would do nothing; those that it names: {', '.join(known) or 'none'}"
        )
    if found:
        return found
    try:
        written = _written(tokenizer, _messages("?", filling), arguments)
    except (TemplateError, TypeError, ValueError) as error:
        told = ""
        if filling.system_instruction:
            try:
                _written(tokenizer, _messages("?"), arguments)
                told = "--system_instruction: the chat template of the tokenizer refuses a system message "
                told += f"({error}); leave it out, or put its text into the questions"
            except (TemplateError, TypeError, ValueError):
                pass
        return [told or f"--apply_chat_template: the chat template of the tokenizer cannot be filled ({error})"]
    if filling.system_instruction.strip() not in written:
        return ["--system_instruction: the chat template of the tokenizer leaves the system message out; leave it out"]
    return []


def plain_problems(filling: Filling, apply_chat_template: bool) -> list[str]:
    """What needs a template and is given without."""
    found = json_problems(filling.chat_template_args)
    given = [name for name in ("chat_template_args", "system_instruction") if getattr(filling, name)]
    if given and not apply_chat_template:
        found.append(f"{' and '.join(f'--{name}' for name in given)} need --apply_chat_template; give both or none")
    return found


def _messages(text: str, filling: Filling = EMPTY) -> list[dict]:
    system = [{"role": "system", "content": filling.system_instruction}] if filling.system_instruction else []
    return [*system, {"role": "user", "content": text}]


def _written(tokenizer, messages: list[dict], arguments: dict, tools: list[dict] | None = None) -> str:
    options = {"tokenize": False, "add_generation_prompt": True}
    return tokenizer.apply_chat_template(messages, tools=tools, **options, **arguments)


def fill(tokenizer, text: str, filling: Filling = EMPTY, tools: list[dict] | None = None) -> str:
    """A message of the user in the tokenizer's template, up to where the answer begins."""
    fix_time(tokenizer, filling.template_time)
    return _written(tokenizer, _messages(text, filling), filling.arguments, tools)


def tells_time(tokenizer, filling: Filling = EMPTY) -> bool:
    """Whether a template asks for the time when it is filled."""
    if not tokenizer.chat_template or not _formats(_parsed(template_text(tokenizer))):
        return False
    twice = [_filled_at(tokenizer, filling, moment) for moment in ("2001-02-03T04:05:06", "2012-11-10T19:18:17")]
    return twice[0] != twice[1]


def _filled_at(tokenizer, filling: Filling, moment: str) -> str:
    template = dated(template_text(tokenizer), moment)
    return _written(tokenizer, _messages("?", filling), {"chat_template": template} | filling.arguments)


def now() -> str:
    """The time to the second, as ISO 8601."""
    return datetime.now().isoformat(timespec="seconds")


def _formats(tree) -> list[str]:
    """The forms in which a template asks for the time.

    Raises:
        UserError: if it computes one.
    """
    asked = [c for c in tree.find_all(nodes.Call) if isinstance(c.node, nodes.Name) and c.node.name == CLOCK]
    if any(len(call.args) != 1 or not isinstance(call.args[0], nodes.Const) for call in asked):
        raise UserError(
            f"the chat template of the tokenizer computes the form in which it asks {CLOCK} for the time, so its "
            "prompts would differ from day to day and the toolkit cannot fix them; write the date into the template."
        )
    return list(dict.fromkeys(call.args[0].value for call in asked))


def dated(template: str, moment: str) -> str:
    """A template that is told one moment (ISO 8601) whenever it asks for the time; others stay as they are."""
    if template.startswith(DATED):
        return template
    forms = _formats(_parsed(template))
    if not forms or not moment:
        return template
    # A plain %} would take a newline away with which the template may begin.
    told = json.dumps({form: datetime.fromisoformat(moment).strftime(form) for form in forms}, ensure_ascii=False)
    return f"{DATED}{{%- macro {CLOCK}(form) -%}}{{{{ {told}[form] }}}}{{%- endmacro +%}}{template}"


def fix_time(tokenizer, moment: str) -> None:
    """Let the tokenizer's templates tell one moment from now on, also where it is saved; "" changes nothing."""
    if not moment:
        return
    own = tokenizer.chat_template
    if isinstance(own, dict):
        tokenizer.chat_template = {name: dated(template, moment) for name, template in own.items()}
    elif own:
        tokenizer.chat_template = dated(own, moment)


def end_of_turn(tokenizer) -> int | None:
    """The special token that the template puts behind an answer; None where it puts none, or there is no template."""
    if not tokenizer.chat_template:
        return None
    answer = "xyzzy"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        written = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    except (TemplateError, TypeError, ValueError):
        return None
    behind = written.rpartition(answer)[2].lstrip()
    ids = tokenizer.encode(behind, add_special_tokens=False) if behind else []
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def special_ids(tokenizer) -> set[int]:
    """Ids of the tokens that are no text."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def thinks(tokenizer, prompt: str) -> bool:
    """Whether a prompt in the chat form lets the model think before it answers."""
    template = template_text(tokenizer)
    if "</think>" not in template and "enable_thinking" not in template:
        return False
    return prompt.rfind("</think>") <= prompt.rfind("<think>")


def thought_warning(tokenizer, prompts: Sequence[tuple[str, int]]) -> str | None:
    """What to tell of prompts whose thought cannot fit; None where all is well.

    Args:
        prompts: text in the chat form and limit of new tokens of each.
    """
    short = [limit for prompt, limit in prompts if limit < THOUGHT and thinks(tokenizer, prompt)]
    if not short:
        return None
    return (
        f"warning: the chat template lets the model think before it answers, and an answer may have {max(short)} new "
        "tokens, in which no thought comes to its end: nearly all answers will count as wrong. Give "
        """--chat_template_args '{"enable_thinking": false}' if the template knows it, or a larger --max_new_tokens"""
    )
