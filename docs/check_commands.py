"""Check the shell commands of README.md and docs/: does each command exist, and does it know the options given to it?

    python docs/check_commands.py

Reads the lines of ```bash, ```sh and plain ``` blocks that start with make, python, dlr, lm_eval or accelerate. Runs no
model: each command that is given options is asked once for its --help, and each --option of a line must stand in that.
Prints problems; exit status 1 if there are some.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STARTS = ("make", "python", "python3", "dlr", "lm_eval", "accelerate")
BLOCK = re.compile(r"^```(?:bash|sh)?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
OTHER_BLOCK = re.compile(r"^```(?!bash\b|sh\b)\w.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
SUBCOMMANDS = ("labels",)  # Commands whose options depend on the word behind them.


def commands(text: str) -> list[list[str]]:
    """The words of each command of a page; comments and variables of the environment are left out."""
    found = []
    for block in BLOCK.findall(OTHER_BLOCK.sub("", text)):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # An open quotation mark: no command.
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and Path(words[0]).name in STARTS:
                found.append([Path(words[0]).name, *words[1:]])
    return found


@cache
def known_options(*command: str) -> frozenset[str] | None:
    """The options in a command's help; None if it has no help."""
    run = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    return frozenset(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", run.stdout)) if run.returncode == 0 else None


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--") and " " not in word]


def value_of(name: str, words: list[str]) -> str | None:
    """The value of an option in a line."""
    for word, following in zip(words, [*words[1:], ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def unknown(command: tuple[str, ...], words: list[str]) -> list[str]:
    """What is wrong with the options of a line, by the help of its command."""
    asked = [option for option in options(words) if option != "--help"]
    if not asked:  # Not every command has a help: some would start at once.
        return []
    known = known_options(*command)
    shown = " ".join(Path(word).name if word == sys.executable else word for word in command)
    if known is None:
        return [f"{shown} --help fails"]
    return [f"{shown} has no option {option}" for option in asked if option not in known]


def routing_problems(words: list[str]) -> list[str]:
    """Of `dlr COMMAND …` and `python -m routing COMMAND …`."""
    sys.path.insert(0, str(ROOT))
    from routing.__main__ import COMMANDS

    if not words or words[0] in ("-h", "--help"):
        return []
    name, *rest = words
    if name not in COMMANDS:
        return [f"dlr has no command {name}"]
    deeper = rest[:1] if name in SUBCOMMANDS and rest and not rest[0].startswith("-") else []
    return unknown((sys.executable, "-m", "routing", name, *deeper, *objective(name, rest)), rest)


def objective(name: str, words: list[str]) -> list[str]:
    """What the help of a training depends on."""
    if name not in ("train", "train.py"):
        return []
    return ["--objective", value_of("--objective", words) or "supervised"]


def python_problems(words: list[str]) -> list[str]:
    if words[:2] == ["-m", "routing"]:
        return routing_problems(words[2:])
    if words[:1] == ["-m"]:
        return unknown((sys.executable, "-m", words[1]), words[2:])
    if not words or not (ROOT / words[0]).is_file():
        return [f"there is no file {words[0] if words else ''}"]
    return unknown((sys.executable, words[0], *objective(words[0], words)), words[1:])


def problems(words: list[str]) -> list[str]:
    """What is wrong with one command."""
    name, *rest = words
    if name == "make":
        targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return [f"make has no target {word}" for word in rest if "=" not in word and word not in targets]
    if name == "dlr":
        return routing_problems(rest)
    if name == "lm_eval":
        return unknown((sys.executable, "-m", "lm_eval", "run"), rest)
    if name == "accelerate":
        script = next((at for at, word in enumerate(rest) if word == "-m" or word.endswith(".py")), len(rest))
        launcher = (sys.executable, "-m", "accelerate.commands.accelerate_cli", rest[0])
        return unknown(launcher, rest[1:script]) + python_problems(rest[script:])
    return python_problems(rest)


def main() -> None:
    found = []
    for path in PAGES:
        for words in commands(path.read_text(encoding="utf-8")) if path.exists() else []:
            found += [f"{path.relative_to(ROOT)}: {' '.join(words)}\n    {problem}" for problem in problems(words)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
