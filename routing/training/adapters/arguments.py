"""Arguments of `train.py --objective adapters`."""

from __future__ import annotations

from dataclasses import dataclass

from routing.common.cli import below, checkpoint_problems, not_positive, option, outside
from routing.common.devices import DTYPES
from routing.models.default_model import DEFAULT_MODEL
from routing.models.problems import model_problems
from routing.models.wheel_models import ANY_BASE
from routing.tasks import expand_names, unknown_names
from routing.tasks.examples import SPLITS
from routing.tasks.problems import template_problems
from routing.tasks.prompt_files import prompt_file_problems
from routing.tasks.prompts import SCORINGS
from routing.training.adapters.heal_paths import menu_problems
from routing.training.run_arguments import RunArguments

LOSSES = ("mse", "relative")
STARTS = ("random", "least_squares")


@dataclass
class AdapterArguments(RunArguments):
    """Train an adapter for each layer on states of right answers and write a checkpoint that has them in the place of
    skipped layers. Run it again with --resume to continue. (`train.py --help` without --objective shows the arguments
    of training on labels.)"""

    model_id: str = option(DEFAULT_MODEL, f"base model: {ANY_BASE}")
    objective: str = option("adapters", "training objective", ("adapters",))
    dataset: str = option("arithmetic", "comma-separated data sets: names, groups, paths of JSONL files")
    split: str = option("search", "split of the questions", SPLITS)
    num_samples: int = option(5000, "questions of each data set, at most; used are those answered rightly")
    scoring: str = option("auto", "how questions are answered, as in data_generation.py", SCORINGS)
    apply_chat_template: bool = option(False, "wrap prompts in the chat template")
    chat_template_args: str = option("", "as in data_generation.py: arguments of the chat template, a JSON object")
    system_instruction: str = option("", "as in data_generation.py: text of a system message")
    tools_in_template: bool = option(False, "as in data_generation.py: let the chat template list the functions")
    tokens_per_example: int = option(64, "tokens of a prompt and its answer whose states are kept, drawn at random")
    adapter_size: int = option(64, "bottleneck of the adapters")
    start: str = option(
        "random",
        "what training starts from: random (the identity, as published) or least_squares (each layer's best linear map "
        "within the bottleneck, in closed form; --num_epochs 0 keeps it as it is)",
        STARTS,
    )
    loss: str = option(
        "mse",
        "mse: mean squared error, as published; relative: each token's error divided by how far the layer moves it, so "
        "that the few tokens of huge states do not decide alone",
        LOSSES,
    )
    learning_rate: float = option(1e-4, "learning rate of Adam")
    lr_schedule: str = option("constant", "constant, or cosine: falling to 0", ("constant", "cosine"))
    num_epochs: int = option(10, "epochs over the stored states; 0: none")
    batch_size: int = option(256, "tokens a step and process")
    heal_epochs: int = option(
        0, "epochs of healing afterwards: the full model's own answers, distilled into the adapters along whole paths"
    )
    heal_menu: str = option(
        "influence:2,4,6,9,12",
        "paths that healing follows: influence:2,4,6 (nested, without so many layers of least block influence), a JSON "
        "file of paths, or a folder of labels of data_generation.py --search menu",
    )
    heal_kept: int = option(0, "first layers that neither a menu of block influence nor a random path of healing skips")
    heal_random_share: float = option(0.5, "share of the batches that follow a random path, 0 to 1")
    heal_random_layers: str = option(
        "menu", "what random paths may skip: layers that a path of the menu skips, or all", ("menu", "all")
    )
    heal_learning_rate: float = option(
        1e-5,
        "peak learning rate of AdamW in healing, cosine decay; small, since a few tokens have huge states, which every "
        "other token attends to",
    )
    heal_batch_size: int = option(16, "prompts a step and process in healing, all along one path")
    heal_dataset: str = option(
        "",
        'data sets whose prompts are healed on, or files of prompts (.txt: one a line; .jsonl: {"prompt": text}); '
        "right answers are not needed; default --dataset",
    )
    heal_split: str = option("search", "split of the prompts that are healed on", SPLITS)
    heal_samples: int = option(5000, "prompts of each data set that are healed on, at most")
    heal_answer_tokens: int = option(32, "tokens of the model's own answer behind a prompt of a file, at most")
    eval_fraction: float = option(0.1, "share of the questions whose states are held out, by question hash")
    num_evaluations: int = option(5, "held-out evaluations, spread evenly over training")
    score_samples: int = option(
        64,
        "validation questions of each data set (of a file, held-out ones of it) by which the task score with each "
        "layer replaced alone is measured",
    )
    model_batch_size: int = option(32, "questions, or paths, that the model computes together")
    states_dtype: str = option("float32", "dtype of the states on disk", tuple(DTYPES))
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the base weights; reference: adapters and the base's name",
        ("copy", "reference"),
    )
    dtype: str = option("float32", "dtype of the model", tuple(DTYPES))

    def problems(self) -> list[str]:
        found = self.run_problems() + unknown_names(self.dataset)
        found += below(self, num_samples=1, tokens_per_example=1, adapter_size=1, num_epochs=0, batch_size=1)
        found += below(self, num_evaluations=1, score_samples=1, model_batch_size=1)
        found += below(self, heal_epochs=0, heal_kept=0, heal_batch_size=1, heal_samples=1, heal_answer_tokens=1)
        found += outside(self, eval_fraction=(0, 1), heal_random_share=(0, 1))
        if not self.num_epochs and not self.heal_epochs and self.start == "random":
            found.append(
                "--num_epochs 0 leaves random adapters; give --start least_squares, --heal_epochs or more of it"
            )
        if self.heal_epochs:
            found += menu_problems(self.heal_menu)
            for name in expand_names(self.heal_dataset):
                if (own := prompt_file_problems(name)) is None:
                    own = [text.replace("--dataset", "--heal_dataset", 1) for text in unknown_names(name)]
                found += own
        if self.eval_fraction in (0, 1):
            found.append(f"--eval_fraction {self.eval_fraction} must lie between 0 and 1, neither of them")
        return found + not_positive(self, "learning_rate", "heal_learning_rate") + template_problems(self)

    def outside_problems(self) -> list[str]:
        return model_problems(self.model_id) + checkpoint_problems(self.output_dir, self.run_name)
