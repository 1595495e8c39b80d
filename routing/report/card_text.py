"""What a model card says: metadata for the hub, how to load the checkpoint, results, training, limits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from routing.common.tables import markdown_table
from routing.evaluation.promise import promise_words
from routing.evaluation.task_names import CONFIGS
from routing.models.hub import is_repo_id
from routing.models.wheel_models import WHEEL_MODELS
from routing.report.card_end_to_end import COLUMNS as TEXT_COLUMNS
from routing.report.card_end_to_end import facts as end_to_end_facts
from routing.report.card_end_to_end import introduction as end_to_end_introduction
from routing.report.card_end_to_end import is_end_to_end, text_rows
from routing.report.card_query import facts as query_facts
from routing.report.card_query import introduction as query_introduction
from routing.report.card_query import is_query
from routing.report.card_value import facts as value_facts
from routing.report.card_value import introduction as value_introduction
from routing.report.card_value import is_value
from routing.report.words import (
    COLUMNS,
    LEVEL,
    NOTE,
    comparisons,
    interval,
    questions,
    rows,
    sentence,
    shares,
    signed,
    static_sentence,
    verdict,
)
from routing.scoring.prompting import trained_prompting

TAGS = ["dynamic-layer-routing", "layer-skipping", "dynamic-depth"]
UNKNOWN = "not recorded"
WIDE = 0.1  # An interval of accuracy that is wider than this is worth a word.


def hub_base(model: str) -> str | None:
    """The base model's name on the hub; None for a local folder, and for what the hub lacks as it is."""
    return None if model in WHEEL_MODELS or Path(model).exists() or not is_repo_id(model) else model


def base_name(model: str) -> str:
    """A base model for readers elsewhere: of a local folder its name alone."""
    return hub_base(model) or Path(model).name


def metadata(name: str, training: dict, results: list[dict]) -> ModelCardData:
    """What the hub reads: base model, tags, accuracies of the routed model."""
    base = hub_base(training["arguments"]["model_id"])
    return ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS + (["lm-evaluation-harness"] if results else []),
        model_name=name if results else None,
        eval_results=[_entry(result) for result in results] or None,
    )


def _entry(result: dict) -> EvalResult:
    task, shots = result["task"], result["num_fewshot"]
    return EvalResult(
        task_type="text-generation",
        task_name=task,
        dataset_type=task,
        dataset_name=task,
        dataset_args=None if shots is None else {"num_few_shot": shots},
        metric_type="accuracy",
        metric_name="accuracy, routing on the prompt alone",
        metric_value=round(result["routed"]["accuracy"], 4),
    )


def card_text(
    name: str,
    config: dict,
    training: dict,
    results: list[dict],
    repo_id: str | None,
    on_text: dict | None = None,
    promise: dict | None = None,
) -> str:
    """The card without its mark: metadata, then the text.

    Args:
        name: of the checkpoint.
        config: fields of config.json.
        training: what train.py wrote beside the weights.
        results: of evaluation.py; may be empty.
        on_text: of routing.commands.text_evaluation, for routers that were trained on text.
        promise: of routing.commands.calibrate --max_loss.
    """
    base, place = base_name(training["arguments"]["model_id"]), repo_id or "path/of/this/folder"
    reference = config.get("base_model")
    weights = (
        f"The folder holds the routers alone; loading takes the base model from `{base_name(reference)}`."
        if reference
        else "The folder holds base and routers."
    )
    about = _introduction(base, config, training)
    return f"""---
{metadata(name, training, results).to_yaml()}
---

# {name}: {base} with layer routing

{about}
{weights}

## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{place}", trust_remote_code=True)
output = model.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(output[0]), model.last_routes)
```

No package besides transformers (made with {config.get("transformers_version", UNKNOWN)}) and torch is needed.
`trust_remote_code=True` runs the Python files of this folder: subclasses of the transformers model that compute the
routers' decisions and execute each row's layers accordingly, with a KV cache to match. They start no processes, and
read, write and fetch only what `from_pretrained` and `push_to_hub` do. `is_static_routing=True` runs every layer once.

## Evaluation

{_evaluation(results, on_text)}

{_lm_eval(place, results, training)}
{_guarantee(promise)}
## Training

{_training(training, config)}

## Limits

{chr(10).join(f"- {limit}" for limit in limits(results, on_text is not None))}

## License

None is claimed here. The base model keeps its own.
"""


# Which kind of training it was (of config and training record), what it introduces the model by, and its facts; the
# first that fits counts.
KINDS = (
    (lambda config, training: is_end_to_end(training), end_to_end_introduction, end_to_end_facts),
    (lambda config, training: is_value(training), value_introduction, value_facts),
    (lambda config, training: is_query(config), query_introduction, query_facts),
)


def _introduction(base: str, config: dict, training: dict) -> str:
    for fits, introduction, _ in KINDS:
        if fits(config, training):
            return introduction(base, config, training)
    return f"""`{base}` ({config["num_hidden_layers"]} layers), its weights unchanged, with a small router at each
layer. For each input the routers decide once, from the prompt, which layers to skip, run once or run twice. They
learned from execution paths that a tree search found to answer correctly (Dr.LLM,
[arXiv 2510.12773](https://arxiv.org/abs/2510.12773))."""


def _guarantee(promise: dict | None) -> str:
    return f"\n## Guarantee\n\n{promise_words(promise)}\n" if promise else ""


def _evaluation(results: list[dict], on_text: dict | None) -> str:
    parts = []
    if on_text is not None:
        parts.append(
            f"**Loss on text**, {on_text['corpus']}, {on_text['part']} part, in nats a token. All methods but the base "
            "run the weights of this folder: as routed, at full depth, and as controls of equal depth. Measured "
            f"{on_text['date']} on {on_text['hardware']}; intervals are over rows of text.\n\n"
            + markdown_table(list(TEXT_COLUMNS), text_rows(on_text))
        )
    if not results:
        return "\n\n".join(parts) or "This checkpoint was not evaluated yet."
    for result in results:
        part = [
            f"**{result['task']}**, {questions(result)}. Routed: {shares(result)}.",
            markdown_table(list(COLUMNS), rows(result)),
        ]
        if compared := comparisons(result):
            said = [sentence(*pair) for pair in compared] + [static_sentence(result)]
            part.append("\n".join(f"- {text}" for text in said if text))
        parts.append("\n\n".join(part))
    first = results[0]
    setting = (
        f"Measured {first['date']} on {first['hardware']}, {first['dtype']}, lm-evaluation-harness "
        f"{first['versions']['lm_eval']}, with routing on the prompt alone. {NOTE} Intervals are Wilson's."
    )
    if any(result["controls"] for result in results):
        setting += (
            " Of the controls, a static path is one fixed route for all inputs, chosen on other questions or from the "
            "router's menu; a random one has the counts of the routed model's on other layers, input by input; drawn "
            "ones are the routed model's own, dealt out to other questions; the data set's path is what one who only "
            "knows the task would take; a shuffled router learned from the prompts of other questions."
        )
    return "\n\n".join([*parts, setting])


def _lm_eval(place: str, results: list[dict], training: dict) -> str:
    tasks = [result["task"] for result in results] or ["arc_easy"]
    include = " --include_path eval_configs" if any((CONFIGS / f"{task}.yaml").exists() for task in tasks) else ""
    shots, chat = (results[0][name] for name in ("num_fewshot", "apply_chat_template")) if results else (None, False)
    asked = (f" --num_fewshot {shots}" if shots is not None else "") + (" --apply_chat_template" if chat else "")
    model, prompting = f"pretrained={place},trust_remote_code=True", trained_prompting(training)
    if chat and prompting.arguments:
        given = {"pretrained": place, "trust_remote_code": True, "chat_template_args": prompting.arguments}
        model = shlex.quote(json.dumps(given, ensure_ascii=False))
    if chat and prompting.system_instruction:
        asked += f" --system_instruction {shlex.quote(prompting.system_instruction)}"
    where = " (`eval_configs` is a folder of the toolkit that made this model)" if include else ""
    return f"""Stock lm-evaluation-harness runs it too{where}:

```
lm_eval --model hf --model_args {model} --tasks {",".join(tasks)}{asked}{include}
```

Its requests hold prompt and scored continuation in one sequence, so for loglikelihood tasks routing then reads both,
and accuracies may differ from those of the toolkit's `evaluation.py`, where routing reads the prompt alone."""


def _training(training: dict, config: dict) -> str:
    arguments = training["arguments"]
    for fits, _, facts in KINDS:
        if fits(config, training):
            return markdown_table(["fact", "value"], (facts(training) | _made_with(training)).items())

    def joined(values: dict) -> str:
        return ", ".join(f"{name} {value}" for name, value in values.items()) or UNKNOWN

    weights = {name: f"{weight:.3f}" for name, weight in training.get("class_weights", {}).items()}
    examples = {
        "training": training.get("train_examples", UNKNOWN),
        "held out": training.get("held_out_examples", UNKNOWN),
    }
    names = ("objective", "class_weighting", "num_epochs", "learning_rate", "batch_size", "seed")
    routers = {name: config[name] for name in ("num_windows", "router_hidden_size") if name in config}
    found = {
        "questions from": ", ".join(training.get("datasets", ())) or UNKNOWN,
        "examples": joined(examples),
        "labels, one a layer of each example": joined(training.get("class_counts", {})),
        "class weights": joined(weights),
        "arguments": joined({name: arguments[name] for name in names if name in arguments}),
        "routers": joined(routers),
    } | _made_with(training)
    return markdown_table(["fact", "value"], [[name, value] for name, value in found.items()])


def _made_with(training: dict) -> dict[str, str]:
    return {
        "hardware": training.get("hardware") or UNKNOWN,
        "versions": ", ".join(f"{name} {value}" for name, value in training.get("versions", {}).items()) or UNKNOWN,
        "commit of the code": training.get("git_commit") or UNKNOWN,
    }


def limits(results: list[dict], on_text: bool = False) -> list[str]:
    """What the numbers do not show, or show against the model, in sentences."""
    found = [f"{result['task']}: {text}." for result in results for text in _limits_of(result)]
    if on_text:
        found.append("Loss on text says little about answers to questions.")
    if not results and not on_text:
        found.append("Nothing is known yet of how accurate or how fast it is, beside its base or beside controls.")
    return [*found, "Other tasks, prompts, languages and dtypes than those above were not measured."]


def _limits_of(result: dict) -> list[str]:
    routed, base, paired = result["routed"], result["base"], result["paired"]
    found = []
    if result["rerouted"] == 0:
        found.append("every input ran every layer once, so routing changed nothing")
    if not base:
        found.append("the base was not evaluated, so nothing is known of what routing costs or brings")
    else:
        measurable = f"{verdict(paired)} than the base ({signed(paired['difference'])})"
        equal = "no measurable difference in accuracy from the base, which does not prove that there is none"
        found.append(measurable if paired["p"] < LEVEL else equal)
        found.append(_time(routed["seconds"], base["seconds"]))
    for method, lesson in (
        ("random", "the routers are not shown to know which layers can go"),
        ("static", "deciding for each input is not shown to be of use"),
    ):
        names = {control["name"] for control in result["controls"] if control["method"] == method}
        unbeaten = [
            name for name, test in comparisons(result) if name in names and verdict(test) != "measurably more accurate"
        ]
        if unbeaten:
            found.append(f"not measurably more accurate than {'; '.join(unbeaten)}: {lesson}")
    if not result["controls"]:
        found.append("no control was evaluated, so a fixed path or random routes may do as well")
    if result["limit"] is not None:
        found.append("only questions from the start of the task were asked")
    low, high = routed["ci95"]
    if high - low > WIDE:
        found.append(f"with so few questions accuracy is known no better than {interval(routed)}")
    return found


def _time(routed: float, base: float) -> str:
    measured = f"{routed:.1f} seconds inside the model against {base:.1f} of the base, measured once"
    if routed >= base:
        return f"not faster: {measured}"
    return f"{1 - routed / base:.1%} less time: {measured}, so a few percent may be noise"
