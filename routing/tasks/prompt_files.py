"""Files of prompts without answers: a text file, one a line, or records of {"prompt": text}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from routing.common.errors import UserError
from routing.common.user_files import beginning_problems, records, text_lines

WANTED = 'each line must be {"prompt": text}'


def prompts_of(path: Path) -> Iterator[str]:
    """Prompts of a file, streamed.

    Raises:
        UserError: for a damaged line, with its number, and for a file without any.
    """
    found = False
    if path.suffix == ".txt":
        for _, line in text_lines(path):
            found = True
            yield line
    else:
        for place, record in records(path, WANTED):
            prompt = record.get("prompt") if isinstance(record, dict) else None
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"{place}: {WANTED}, got {str(record)[:80]!r}.")
            found = True
            yield prompt
    if not found:
        raise UserError(f"{path} holds no prompt.")


def prompt_file(path: Path) -> list[str]:
    """The different prompts of a file; raises as `prompts_of` does."""
    return list(dict.fromkeys(prompts_of(path)))


def is_prompt_file(name: str) -> bool:
    """Whether a name is a file of prompts and not one of questions with answers."""
    path = Path(name)
    if not path.is_file():
        return False
    if path.suffix == ".txt":
        return True
    _, first = next(records(path, WANTED), ("", {}))
    return isinstance(first, dict) and "prompt" in first and "question" not in first


def prompt_file_problems(name: str) -> list[str] | None:
    """What is wrong with the beginning of a file of prompts; None where a name is no such file."""
    try:
        if Path(name).suffix == ".parquet" or not is_prompt_file(name):
            return None
    except UserError as error:  # Its first line is neither.
        return [str(error).removesuffix(".")]
    return beginning_problems(Path(name), prompts_of(Path(name)))
