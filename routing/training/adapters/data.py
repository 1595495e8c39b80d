"""What adapters are trained, healed and scored on: questions, and prompts without answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from routing.common.cli import as_dict
from routing.common.errors import UserError, raise_all
from routing.common.files import file_stamps, sha256
from routing.models.bases import weight_stamps
from routing.models.templates import filling_problems, tells_time
from routing.scoring.context import fitting
from routing.scoring.prompting import prompting_in
from routing.scoring.requests import Request, prompted
from routing.tasks import expand_names, load_examples
from routing.tasks.examples import held_out, held_out_key
from routing.tasks.limits import limits_of
from routing.tasks.problems import files_without_splits
from routing.tasks.prompt_files import is_prompt_file, prompt_file
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.heal_texts import prompt_request
from routing.training.adapters.states import FORMAT, states_key
from routing.training.routers.data import spread


def draw(arguments: AdapterArguments, names: str, split: str, count: int, tokenizer, config) -> list[Request]:
    """Questions of a split that fit into the model's context, ready for the model."""
    prompting = prompting_in(as_dict(arguments))
    raise_all(filling_problems(tokenizer, prompting, arguments.apply_chat_template, arguments.tools_in_template))
    if arguments.apply_chat_template and tells_time(tokenizer, prompting):
        raise UserError(
            "--apply_chat_template: the chat template tells the time, so that a run could not be resumed with the same "
            'prompts. Give a fixed one by --chat_template_args, such as \'{"date_string": "26 Jul 2024"}\', if the '
            "template knows it, or leave the flag out."
        )
    examples = load_examples(names, split, count, arguments.seed)
    limits = limits_of(names, tokenizer)
    prompting = replace(prompting, limits=tuple(limits.items()))
    return fitting((prompted(example, tokenizer, prompting) for example in examples), config)


def draw_prompts(arguments: AdapterArguments, tokenizer, config) -> list[Request]:
    """What is healed on: prompts of data sets and of files, those that fit into the model's context."""
    found = []
    for name in expand_names(arguments.heal_dataset or arguments.dataset):
        if is_prompt_file(name):
            prompts = prompt_file(Path(name))
            Random(arguments.seed).shuffle(prompts)
            limit = (Path(name).stem, arguments.heal_answer_tokens, tokenizer)
            found += fitting((prompt_request(prompt, *limit) for prompt in prompts[: arguments.heal_samples]), config)
        else:
            found += draw(arguments, name, arguments.heal_split, arguments.heal_samples, tokenizer, config)
    return found


@dataclass
class AdapterData:
    """What a run reads.

    Attributes:
        requests: training questions, some of whose states are held out.
        scored: questions by which the task score is measured; none that is trained on.
        prompts: from `draw_prompts`; none without healing.
        weights: of the model, their names, sizes and times.
        states_key, texts_key: what stored states and own answers depend on.
    """

    requests: list[Request]
    scored: list[Request]
    prompts: list[Request]
    weights: list
    states_key: str
    texts_key: str

    def made_from(self, arguments: AdapterArguments) -> dict:
        """What a run depends on besides its arguments."""
        if not arguments.heal_epochs:
            return {"states": self.states_key}
        menu = Path(arguments.heal_menu)
        paths = sha256(menu) if menu.is_file() else None
        if menu.is_dir():
            paths = file_stamps(menu, "*.header.json")
        return {"states": self.states_key, "texts": self.texts_key, "menu": paths}


def load_data(arguments: AdapterArguments, tokenizer, config) -> AdapterData:
    """Draw all that a run reads."""
    requests = draw(arguments, arguments.dataset, arguments.split, arguments.num_samples, tokenizer, config)
    if files_without_splits("dataset", arguments.dataset):
        aside = [r for r in requests if held_out(held_out_key(r.example), arguments.eval_fraction)]
        scored = spread(aside)[: arguments.score_samples]
    else:
        scored = draw(arguments, arguments.dataset, "validation", arguments.score_samples, tokenizer, config)
    prompts = draw_prompts(arguments, tokenizer, config) if arguments.heal_epochs else []
    weights = weight_stamps(arguments.model_id)
    shared = {"format": FORMAT, "model": arguments.model_id, "weights": weights, "dtype": arguments.dtype}
    states = states_key(
        requests, **shared, tokens=arguments.tokens_per_example, held_out=arguments.eval_fraction,
        stored=arguments.states_dtype, seed=arguments.seed,
    )  # fmt: skip
    texts = states_key(prompts, **shared, tokens=arguments.heal_answer_tokens)
    return AdapterData(requests, scored, prompts, weights, states, texts)
