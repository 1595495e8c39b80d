"""Data set cards: a label folder becomes a data set of the HuggingFace hub, with its schema.

The card claims a license only if it is given one: the questions keep that of their source, which labels do not know.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import write_text
from routing.common.locks import only_run
from routing.common.tables import markdown_table
from routing.labels.reading import HEADER, LABELS, read_header, read_labels
from routing.models.hub import upload
from routing.search.routes import REPEAT, RUN, SKIP

CARD = "README.md"
MARK = "Written by `python -m routing labels card`; edits are lost when it runs again."
NUMBERS, PATHS = {"list": "int64"}, {"list": {"list": "int64"}}
# Name -> (type as the hub's cards write it, meaning). Stated rather than guessed from the data: a column that is
# empty in one label file would have another type there.
SCHEMA: dict[str, tuple[str | dict, str]] = {
    "id": ("string", "data set and hash of the question with its choices; the same in every run"),
    "dataset": ("string", "where the question comes from"),
    "prompt": ("string", "the whole prompt, chat template included; routes are decided from it alone"),
    "question": ("string", "the question with its passage, if any"),
    "answer": ("string", "the right answer; with choices, the text of the right one"),
    "choices": ({"list": "string"}, "texts of the choices; empty for open questions"),
    "accepted": ({"list": "string"}, "further right answers of an open question"),
    "gold": ("int64", "index of the right choice; null for open questions"),
    "checker": ("string", "how a generated answer is checked: letter, number, boxed, exact, regex, solution, calls"),
    "tools": ("string", "functions that may be called, as JSON; null where there are none"),
    "scoring": ("string", "generate (greedy answer and checker) or a comparison of the choices' loglikelihoods"),
    "base_correct": ("bool", "whether the full path, every layer once, answers right (and passes the re-test, if any)"),
    "correct": ("bool", "whether any tried path answers right; if not, `route` is the full path"),
    "route": (NUMBERS, "the label: for each layer 0 skip, 1 run, 2 repeat"),
    "path": (PATHS["list"], "the same as layer indices in order of execution"),
    "valid_paths": (PATHS, "all tried paths that answer right"),
    "tried": (
        {
            "list": [
                {"name": "path", "dtype": NUMBERS},
                {"name": "correct", "dtype": "bool"},
                {"name": "margin", "dtype": "float64"},
                {"name": "lucky", "dtype": "bool"},
                {"name": "pruned_layers", "dtype": NUMBERS},
                {"name": "score", "dtype": "float64"},
                {"name": "output", "dtype": "string"},
            ]
        },
        "each tried path with its verdict, the full path first; `margin`: loglikelihood of the right choice minus "
        "the best wrong one, nats per byte, where there are choices; `lucky`: right, but wrong once the question was "
        "put in another form, and therefore not `correct`; where pruned layer sets were explored, `pruned_layers`, the "
        "`score` of the answer and the answer itself, `output`",
    ),
    "evaluations": ("int64", "how many paths were tried"),
}


def feature(name: str, kind: str | dict | list) -> dict:
    """A feature in the form of a card's metadata: lists nest as {"list": type}, structs as a list of features."""
    if isinstance(kind, str):
        return {"name": name, "dtype": kind}
    inner = kind["list"]
    if isinstance(inner, list):
        inner = [feature(part["name"], part["dtype"]) for part in inner]
    return {"name": name, "list": inner}


def shown(kind: str | dict) -> str:
    """A type for a reader."""
    if isinstance(kind, str):
        return kind
    inner = kind["list"]
    if isinstance(inner, list):
        return "list of {" + ", ".join(f"{part['name']}: {shown(part['dtype'])}" for part in inner) + "}"
    return f"list of {shown(inner)}"


@dataclass
class DatasetCounts:
    """Counts over the examples of one data set; `layers` is the sum over labels with a right path."""

    examples: int = 0
    base_correct: int = 0
    correct: int = 0
    fixed: int = 0
    shortened: int = 0
    layers: int = 0


@dataclass
class LabelCounts:
    """What a label file holds.

    Attributes:
        datasets: counts by data set, in order.
        layers: for each layer the labels skip, run and repeat, of examples with a right path.
    """

    datasets: dict[str, DatasetCounts] = field(default_factory=dict)
    layers: list[Counter[int]] = field(default_factory=list)

    def total(self) -> DatasetCounts:
        parts = [vars(counts) for counts in self.datasets.values()]
        return DatasetCounts(**{name: sum(part[name] for part in parts) for name in parts[0]})


def count_labels(folder: Path) -> LabelCounts:
    """Counts of a label folder, streamed.

    Raises:
        UserError: for damaged labels, and for a field that the schema lacks: the data set would not load.
    """
    depth = read_header(folder)["num_layers"]
    result = LabelCounts(layers=[Counter() for _ in range(depth)])
    for record in read_labels(folder):
        unknown = record.keys() - SCHEMA.keys()
        if unknown:
            raise UserError(
                f"{folder / LABELS}, example {record['id']}: {sorted(unknown)} are no fields of a label, so the data "
                f"set would not load with its schema. Remove them; the fields are {', '.join(SCHEMA)}."
            )
        counts = result.datasets.setdefault(record["dataset"], DatasetCounts())
        counts.examples += 1
        counts.base_correct += record["base_correct"]
        if not record["correct"]:
            continue
        counts.correct += 1
        counts.fixed += not record["base_correct"]
        counts.shortened += record["base_correct"] and len(record["path"]) < depth
        counts.layers += len(record["path"])
        for layer, label in zip(result.layers, record["route"], strict=True):
            layer[label] += 1
    return result


def size_category(examples: int) -> str:
    """The hub's name for a number of examples."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
    return names[min(max(len(str(examples)) - 3, 0), len(names) - 1)]


def _dataset_row(name: str, counts: DatasetCounts) -> list:
    mean = f"{counts.layers / counts.correct:.2f}" if counts.correct else "none"
    without = counts.examples - counts.correct
    return [name, counts.examples, counts.base_correct, counts.shortened, counts.fixed, without, mean]


def card_text(header: dict, counts: LabelCounts, repo_id: str | None, license_id: str | None) -> str:
    """The card: metadata for the hub and for `datasets`, then the text."""
    total = counts.total()
    model = Path(header["model"]).name or header["model"]
    title = f"Layer paths of {model}"
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(
        pretty_name=title,
        license=license_id,
        task_categories=["question-answering", "text-generation"],
        annotations_creators=["machine-generated"],
        size_categories=[size_category(total.examples)],
        tags=["layer-routing", "layer-skipping", "dynamic-depth", "tree-search"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": LABELS}]}],
        dataset_info={"features": [feature(name, kind) for name, (kind, _) in SCHEMA.items()]},
    )
    rows = [_dataset_row(name, part) for name, part in counts.datasets.items()]
    if len(rows) > 1:
        rows.append(_dataset_row("all", total))
    layers = [[i, layer[SKIP], layer[RUN], layer[REPEAT]] for i, layer in enumerate(counts.layers)]
    layers.append(["all", *(sum(layer[label] for layer in counts.layers) for label in (SKIP, RUN, REPEAT))])
    head = ["data set", "examples", "right at full depth", "also with fewer layers", "fixed", "no right path", "layers"]
    return f"""---
{metadata.to_yaml()}
---

# {title}

For each question, the layers of {model} ({header["num_layers"]} layers) that a search found to answer it right: each
layer skipped, run once or run twice (Dr.LLM, [arXiv 2510.12773](https://arxiv.org/abs/2510.12773)). Routers are trained
on the field `route`.

```python
from datasets import load_dataset

labels = load_dataset("{repo_id or "path/of/this/folder"}", split="train")
```

To train routers, download the folder with `{HEADER}`: `python train.py --model_id M --data FOLDER --run_name NAME`.

## Counts

{markdown_table(head, rows)}

"layers" is the mean number of layers executed along the labelled path, of examples with a right path; "fixed" are wrong
answers at full depth for which some path is right. Examples without a right path are kept: without them, the accuracy
after the search would be 100 % by construction.

Labels by layer, of examples with a right path:

{markdown_table(["layer", "skip", "run", "repeat"], layers)}

## Fields

{markdown_table(["field", "type", "meaning"], [[f"`{n}`", shown(kind), text] for n, (kind, text) in SCHEMA.items()])}

What a record of `tried` does not say is null there.

## How they were made

{_origin(header)}

## What a label does not prove

A label was found with hindsight: of many tried paths, the shortest one is kept that happens to answer this question
right. It need not be right for the next question, nor for this one put in other words, and on questions that can be
guessed some of the paths are luck. So the share of fixed answers above is no accuracy of a routed model; that has to be
measured on questions that were not searched. Verdicts are of one model, prompt, decoding and checker, and hold for no
other.

## License

{license_id or "None is claimed here"}. The questions and answers keep the license of the data sets that they come from.

{MARK}
"""


def _origin(header: dict) -> str:
    """The header in words; the whole of it is in the header file."""
    lines = [f"- model: `{header['model']}`, revision {header.get('revision') or 'not recorded'}"]
    if "imported" in header:
        lines.append(
            f"- imported from files of the format {header['imported'].get('format')}: paths and verdicts were made "
            "elsewhere, with prompts, decoding and checks that may differ from the prompts and checkers given here"
        )
    versions = header.get("versions") or {}
    lines.append("- versions: " + (", ".join(f"{n} {v}" for n, v in versions.items()) or "not recorded"))
    lines.append(f"- commit of the code: {header.get('git_commit') or 'not recorded'}")
    arguments = json.dumps(header["arguments"], indent=2, ensure_ascii=False)
    return "\n".join(lines) + f"\n- arguments:\n\n```json\n{arguments}\n```"


def check_card(folder: Path) -> None:
    """Raise a UserError if the folder has a README.md that is not ours."""
    path = folder / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path} was not written by this command, so it is not replaced. Move it away, then try again.")


def write_card(folder: Path, repo_id: str | None = None, license_id: str | None = None) -> LabelCounts:
    """Write the card into a label folder; returns what was counted.

    Raises:
        UserError: for damaged labels, a README.md of somebody else, or where another process holds the folder.
    """
    header = read_header(folder)
    check_card(folder)
    with only_run(folder):
        counts = count_labels(folder)
        write_text(folder / CARD, card_text(header, counts, repo_id, license_id))
    return counts


def complete_card(folder: Path) -> None:
    """Give finished labels a card where there is none.

    By the types that it states `datasets.load_dataset(folder)` reads them, whatever their first megabytes leave empty.
    """
    if not (folder / CARD).exists():
        write_text(folder / CARD, card_text(read_header(folder), count_labels(folder), None, None))


def push(folder: Path, repo_id: str, public: bool) -> str:
    """Upload labels, header and card, and nothing else of the folder; returns the address.

    Args:
        folder: with a card.
        repo_id: OWNER/NAME of the data set, made if it is not there.
        public: whether everybody may read it.

    Raises:
        UserError: if the hub cannot be reached or refuses, or the data set is public and `public` is false.
    """
    return upload(folder, [LABELS, HEADER, CARD], repo_id, "dataset", public, "Layer-path labels")
