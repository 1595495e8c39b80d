"""Query routers beside baselines: the methods, their answers, statistics, speed, and the one command for all."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from conftest import save_tiny_base
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from routing.commands import adapters as adapters_command
from routing.commands import compare_pruning as comparison
from routing.commands import prune as pipeline
from routing.commands.work import compare_pruning as compare_pruning_work
from routing.commands.work import generate as generate_work
from routing.common import keyed
from routing.common.cli import as_dict, read_arguments
from routing.common.errors import UserError
from routing.evaluation.pruning_methods import (
    Method,
    fixed_method,
    leave_out,
    random_methods,
    router_methods,
)
from routing.labels.arguments import DataGenerationArguments
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.config_fields import config_with
from routing.models.families import load_tokenizer, routed_class
from routing.models.query_encoder import encoder_fields, encoder_tokenizer, load_encoder
from routing.report import pruning_pictures as pictures
from routing.scoring.along import verdicts_along
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import request_of
from routing.search.influence import influence_order
from routing.search.results import Verdict
from routing.tasks import load_examples
from routing.training.adapters.arguments import AdapterArguments
from routing.training.preferences.arguments import PreferenceArguments
from train_models.routed_model import small_parts

LAYERS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny base, a checkpoint of adapters and one of a query router with the same adapters."""
    folder = tmp_path_factory.mktemp("pruning")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(folder / "base", LAYERS, **sizes)
    inner = encoder_tokenizer("all-minilm-l6-v2")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(inner), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "encoder")
    inner.save_pretrained(folder / "encoder")
    encoder, adapters = str(folder / "encoder"), {"skip_action": "adapter", "adapter_size": 4}
    fields = {"router": "query", "query_encoder": encoder_fields(encoder)} | adapters
    model = routed_class("llama").from_pretrained(base, **fields)
    load_encoder(model, encoder, load_tokenizer(str(base)))
    with torch.no_grad():
        for parameter in [*model.model.routers.heads.parameters(), *model.model.adapters.parameters()]:
            parameter.normal_(0.0, 0.3)
        model.model.routers.heads.ratio_out.weight.mul_(0.1)
    info = {"arguments": {"model_id": str(base), "objective": "orpo"}, "datasets": ["arithmetic"]}
    parts = small_parts(model.model)
    save_checkpoint(folder / "orpo", str(base), parts, fields, "copy", info, encoder=encoder)
    own = {name: tensor for name, tensor in parts.items() if name.startswith("adapters.")}
    save_checkpoint(folder / "adapters", str(base), own, {"router": "none"} | adapters, "copy", info)
    return folder


@pytest.fixture(scope="module")
def requests(place):
    tokenizer = load_tokenizer(str(place / "base"))
    return [request_of(e, "auto", tokenizer) for e in load_examples("arithmetic", "test", 40, seed=0)]


def words(place, output, *more: str) -> list[str]:
    return [
        f"--adapters={place}/adapters", f"--checkpoints={place}/orpo", "--num_samples=36", "--control_samples=4",
        "--counts=1,2", "--seeds=2", "--speed_prompts=2", "--speed_tokens=2", "--repeats=1", f"--output={output}",
        *more,
    ]  # fmt: skip


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["comparison", *arguments])
    comparison.main()


# Methods.


def test_layers_by_mean_influence():
    assert influence_order([[0.3, 0.1, 0.2, 0.9], [0.1, 0.1, 0.4, 0.1]]) == [1, 0, 2, 3]
    assert leave_out(4, [1, 3]) == (1, 0, 1, 0)


def test_random_layers_are_as_many_as_asked_for_each_query():
    first, second = random_methods(8, [0, 3, 8, 2] * 5, "like x", "adapter", 2)
    assert [route.count(0) for route in first.routes] == [0, 3, 8, 2] * 5 == [r.count(0) for r in second.routes]
    assert first.routes != second.routes and len(set(first.routes[1::4])) > 1
    assert (
        random_methods(8, [3] * 9, "3 pruned", "adapter", 1)[0].routes
        == random_methods(8, [3] * 9, "3 pruned", "identity", 1)[0].routes
    )  # Adapters and none are compared at the same layers.


@torch.no_grad()
def test_a_router_prunes_in_the_table_what_its_model_prunes(place, requests):
    model, tokenizer = load_checkpoint(place / "orpo", torch.float32, torch.device("cpu"))
    own, fixed = router_methods("orpo", model, tokenizer, requests, [3])
    routes = []
    for request in requests:
        model(torch.tensor([request.prompt_ids]))
        routes += [tuple(route) for route in model.last_routes.tolist()]
    assert own.routes == routes and len(set(routes)) > 1
    with config_with(model, pruned_layers=3):
        model(torch.tensor([requests[0].prompt_ids]))
    assert fixed.routes[0] == tuple(model.last_routes[0].tolist()) and fixed.pruned == 3


def test_answers_are_those_of_the_plain_evaluator_and_kept(place, requests, tmp_path, monkeypatch):
    model, tokenizer = load_checkpoint(place / "adapters", torch.float32, torch.device("cpu"))
    lines = [[(1, 0, 1, 1)] * 40, [(0, 1, 1, 0)] * 40, [(1, 1, 1, 1)] * 40]
    found = {}
    for action in ("adapter", "identity"):
        found[action] = verdicts_along(model, tokenizer, requests, lines, action, 16, "accuracy", tmp_path, "a")
        with config_with(model, skip_action=action):
            plain = Evaluator(model, tokenizer, 1, score="accuracy")
            for line, verdicts in zip(lines, found[action], strict=True):
                expected = plain.verdicts(requests, line)
                assert [v.output for v in verdicts] == [v.output for v in expected]
                assert [v.score for v in verdicts] == [v.score for v in expected]
    assert [v.output for v in found["adapter"][0]] != [v.output for v in found["identity"][0]]
    assert model.config.skip_action == "adapter"

    def never(*args):
        raise AssertionError("it was computed already")

    with monkeypatch.context() as patch:
        patch.setattr(PathEvaluator, "verdicts", never)
        again = verdicts_along(model, tokenizer, requests, lines, "adapter", 16, "accuracy", tmp_path, "a")
        assert again == found["adapter"]
        with pytest.raises(AssertionError, match="computed already"):
            verdicts_along(model, tokenizer, requests, lines, "adapter", 16, "accuracy", tmp_path, "other weights")
    new, asked, real = [(1, 1, 0, 1)] * 40, [], PathEvaluator.verdicts

    def counted(self, requests, routes):
        asked.extend(routes)
        return real(self, requests, routes)

    monkeypatch.setattr(PathEvaluator, "verdicts", counted)
    more = verdicts_along(model, tokenizer, requests, [*lines, new], "adapter", 16, "accuracy", tmp_path, "a")
    assert more[:3] == found["adapter"] and asked == new, "a further method costs its own answers alone"


# Statistics.


def verdicts(*scores: float) -> list[Verdict]:
    return [Verdict(score == 1, score=score, output="") for score in scores]


def test_intervals_and_paired_differences_by_hand():
    assert compare_pruning_work.score_interval([1.0] * 5 + [0.0] * 5) == pytest.approx([0.2366, 0.7634], abs=1e-4)
    low, high = compare_pruning_work.score_interval([-5.0, 10.0] * 50)
    assert -0.5 < low < 2.5 < high < 5.5
    found = compare_pruning_work.paired_scores(verdicts(1, 0, 0.5, 1), verdicts(0, 1, 1, 1))
    assert found["score_difference"] == pytest.approx(0.125)
    assert (found["gained"], found["lost"]) == (2, 1)
    assert found["score_ci95"][0] < 0.125 < found["score_ci95"][1]


def test_methods_are_held_against_the_same_layers_without_adapters():
    routes = [(1, 0), (0, 1)]
    methods = [
        Method("unpruned", "unpruned", "identity", [(1, 1)] * 2),
        Method("orpo", "router", "adapter", routes),
        Method("orpo, bare", "bare", "identity", routes),
        fixed_method("static", (0, 1), "adapter", 2),
    ]
    rows = compare_pruning_work.summaries(methods, [verdicts(1, 1), verdicts(1, 0), verdicts(0, 0), verdicts(0, 1)])
    assert rows[1]["against_no_adapters"]["gained"] == 1 and rows[1]["against_no_adapters"]["lost"] == 0
    assert "against_no_adapters" not in rows[3] and rows[3]["pruned"] == 1
    assert rows[1]["against_unpruned"]["lost"] == 1 and rows[1]["distinct_routes"] == 2
    (test,) = compare_pruning_work.router_tests(methods, [verdicts(1, 1), verdicts(1, 0), [], verdicts(0, 1)], ["orpo"])
    assert test["control"] == "static, 1 pruned" and (test["gained"], test["lost"]) == (1, 1)


# The commands.


@pytest.fixture(scope="module")
def compared(place):
    output = place / "comparison"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, *words(place, output))
    return output


def test_the_comparison_has_all_methods_and_measured_speed(compared, place, requests):
    result = json.loads((compared / "comparison.json").read_text())
    rows = {(row["name"], row["skip_action"]): row for row in result["methods"]}
    assert result["n"] == 36
    for family in ("static", "influence"):
        for size in (1, 2):
            for action in ("adapter", "identity"):
                assert rows[f"{family}, {size} pruned", action]["pruned"] == size
    assert rows["orpo", "adapter"]["distinct_routes"] > 1 and "orpo, 2 pruned" in {name for name, _ in rows}
    random = rows["random like orpo, seed 0", "adapter"]
    assert random["pruned"] == rows["orpo", "adapter"]["pruned"]
    assert all("against_no_adapters" in rows[name, "adapter"] for name in ("orpo", "static, 1 pruned"))
    stock = AutoModelForCausalLM.from_pretrained(place / "base")
    assert stock.config.num_hidden_layers == LAYERS == result["depth"]
    assert result["generate_agrees"] == [{"name": "orpo", "questions": 16, "same_routes": 16, "same_answers": 16}]
    assert result["speed"]["orpo"][0]["decision_share"] > 0 and result["speed"]["unpruned"][0]["speedup"] > 0
    assert (compared / "comparison.png").stat().st_size > 10_000
    # Baselines are timed as the router is.
    assert {"static, 1 pruned, adapter", "influence, 2 pruned, adapter", "random 2 pruned, seed 0, adapter"} < set(
        result["speed"]
    )
    table = (compared / "comparison.md").read_text()
    assert "Only 36 questions" in table  # Published comparisons rested on 20 to 33.
    assert "| orpo | adapters |" in table and "random 2 pruned, 2 seeds" in table


def test_a_rerun_computes_no_answer_anew(compared, place, tmp_path, monkeypatch):
    before = json.loads((compared / "comparison.json").read_text())

    def never(*args):
        raise AssertionError("it was computed already")

    with monkeypatch.context() as patch:
        patch.setattr(PathEvaluator, "verdicts", never)
        patch.setattr(compare_pruning_work, "measure", never)
        patch.setattr(compare_pruning_work, "static_routes", never)
        run(patch, *words(place, compared))
    after = json.loads((compared / "comparison.json").read_text())
    assert after["methods"] == before["methods"] and after["speed"] == before["speed"]
    shutil.copytree(compared, tmp_path / "again")
    for name in ("static_routes", "measure"):  # By other code all is answered and timed anew.
        with monkeypatch.context() as patch:
            patch.setattr(keyed, "code_hash", lambda: "another")
            patch.setattr(compare_pruning_work, name, never)
            with pytest.raises(AssertionError, match="computed already"):
                run(patch, *words(place, tmp_path / "again"))


def test_few_questions_are_warned_of_and_many_are_not():
    assert "Give --num_samples 200 or more" in pictures.few_questions({"n": 199})
    assert pictures.few_questions({"n": 200}) == ""


def test_the_comparison_needs_neither_routers_nor_numbers(place, tmp_path, monkeypatch):
    run(monkeypatch, *words(place, tmp_path, "--checkpoints=", "--counts=", "--num_samples=3"))
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["name"] for row in result["methods"]] == ["unpruned"] and list(result["speed"]) == ["unpruned"]


def test_wrong_arguments_are_named_at_once(place, monkeypatch, tmp_path):
    wrong = ["--counts=0,9", "--data=nothing", "--seeds=0", f"--checkpoints={place}/adapters", "--tools_in_template"]
    with pytest.raises(UserError) as caught:
        comparison.parse_arguments(words(place, tmp_path, *wrong))
    for named in ("--counts 0, 9", "'nothing'", "--seeds 0", "no query router", "--tools_in_template needs"):
        assert named in str(caught.value)
    with pytest.raises(UserError, match=r"--adapters: .*cannot be read"):
        comparison.parse_arguments(words(place, tmp_path, f"--adapters={tmp_path}/none"))


def test_adapters_are_measured_on_any_split(place, tmp_path):
    asked = [str(place / "adapters"), "--num_samples=5", f"--output={tmp_path}"]
    adapters_command.main(asked)
    result = json.loads((tmp_path / "layers.json").read_text())
    assert result["n"] == 5 and len(result["layers"]) == LAYERS and result["arguments"]["split"] == "test"
    with pytest.raises(UserError, match=r"(?s)--num_samples 0.*orpo-none"):
        adapters_command.main([str(place / "orpo-none"), "--num_samples=0", f"--output={tmp_path}"])


def test_the_pipeline_runs_commands_that_a_user_could_type(tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(pipeline, "run_stage", lambda step, title, *words: stages.append(words))
    monkeypatch.setattr("sys.argv", ["pipeline", f"--output={tmp_path}", "--dfs_samples=7"])
    pipeline.main()
    adapters, dfs, random, *routers, compared = stages
    assert adapters[0] == "train.py" and read_arguments(AdapterArguments, list(adapters[1:])).problems() == []
    for words, search in ((dfs, "dfs"), (random, "random")):
        found = read_arguments(DataGenerationArguments, list(words[1:]))
        assert words[0] == "data_generation.py" and found.problems() == [] and found.search == search
        assert generate_work.NOT_IN_HEADER and found.adapters == str(tmp_path / "checkpoints" / "adapters")
    found = [read_arguments(PreferenceArguments, list(words[1:])) for words in routers]
    assert [own.objective for own in found] == ["fbc", "dpo", "orpo"] and not any(own.problems() for own in found)
    assert all(len(own.data_folders()) == 2 for own in found)
    assert compared[:3] == ("-m", "routing", "compare_pruning")
    # What is finished is not trained again; what was killed goes on.
    for search in ("dfs", "random"):
        (tmp_path / "explored" / search).mkdir(parents=True)
        (tmp_path / "explored" / search / "labels.jsonl").write_text("")
    for name, kind, words in (("adapters", AdapterArguments, adapters), ("fbc", PreferenceArguments, routers[0])):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        record = {"arguments": as_dict(read_arguments(kind, list(words[1:])))}
        (folder / "training.json").write_text(json.dumps(record))
    os.utime(tmp_path / "checkpoints" / "adapters" / "training.json", (1, 1))
    for name, time in (("dpo", None), ("orpo", (2, 2))):  # The state of one is older than the labels.
        state = tmp_path / "runs" / name / "trainer" / "checkpoint-5" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
        os.utime(state, time)
    stages.clear()
    pipeline.main()
    named = {words[words.index("--run_name") + 1]: words for words in stages if words[0] == "train.py"}
    assert list(named) == ["dpo", "orpo"] and "--resume" in named["dpo"] and "--resume" not in named["orpo"]
    monkeypatch.setattr("sys.argv", ["pipeline", f"--output={tmp_path}", "--adapter_epochs=7"])
    with pytest.raises(UserError, match=r"--num_epochs was 60, now 7. Give another --output"):
        pipeline.main()


def test_routers_of_other_adapters_are_refused(place, tmp_path):
    model, _ = load_checkpoint(place / "adapters", torch.float32, torch.device("cpu"))
    with torch.no_grad():
        model.model.adapters[0].up.bias.add_(1)
    info = {"arguments": {"model_id": str(place / "base"), "objective": "adapters"}, "datasets": []}
    fields = {"router": "none", "skip_action": "adapter", "adapter_size": 4}
    save_checkpoint(tmp_path / "others", str(place / "base"), small_parts(model.model), fields, "copy", info)
    with pytest.raises(UserError, match=r"orpo has other adapters than --adapters .*others"):
        comparison.parse_arguments(words(place, tmp_path, f"--adapters={tmp_path}/others"))


def test_graded_scores_have_a_test_of_their_own():
    first, second = verdicts(*[0.0, 0.5] * 20), verdicts(*[0.25, 0.75] * 20)
    found = compare_pruning_work.paired_scores(first, second)
    assert found["score_difference"] == 0.25 and found["p"] < 0.001 and (found["gained"], found["lost"]) == (0, 0)
    assert compare_pruning_work.paired_scores(first, first)["p"] == 1
