"""Plans: what is wrong is told at once, before a model is loaded; once test questions were opened a plan stands."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import yaml

from routing.commands import study
from routing.common.errors import UserError
from routing.study.checking import check_stages
from routing.study.methods import METHODS
from routing.study.opening import Opening
from routing.study.plan import Plan, problems, read_plan
from routing.study.stages import Later, Place, all_stages, checkpoints

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "experiments" / "study.yaml"
TASK = {"dataset": "procedural", "adapters": 4, "table": 4, "searched": 2, "explored": 2, "validation": 3, "test": 5}
SMALL = {
    "models": {"m": {"model": "smollm2-135m-instruct"}},
    "tasks": {"sums": TASK},
    "seeds": [0],
    "budgets": [0.2],
    "methods": {"full": {}, "static": {}, "value": {}},
    "timing": {"questions": 1, "repeats": 1},
}


def changed(**parts) -> dict:
    return copy.deepcopy(SMALL) | parts


def test_the_plan_of_the_study_is_sound():
    for quick in (False, True):
        plan = read_plan(PLAN, quick)
        check_stages(all_stages(plan, PLAN, quick, Path("/nowhere"), list(plan.models), plan.seeds))
    whole = read_plan(PLAN)
    count = {name: own["test"] * len(own["dataset"].split(",")) for name, own in whole.tasks.items()}
    assert sum(count.values()) >= 1500 and min(count.values()) >= 400
    assert set(whole.methods) == set(METHODS), "a method of the table is in the plan, or is named as missing"
    assert len(whole.seeds) == 3 and whole.budgets == [0.1, 0.2, 0.3]


def test_a_sound_plan_has_no_problems():
    assert problems(changed()) == []


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"budget": [0.1]}, "'budget' is unknown; allowed are models, tasks"),
        ({"methods": {}}, "methods must be a mapping with at least one entry"),
        ({"models": {"m": {"model": "no/such/model"}}}, "models: m: "),
        ({"models": {"m": "x"}}, "models: m must say `model`"),
        ({"tasks": {"sums": TASK | {"dataset": "nosuch"}}}, "tasks: sums: 'nosuch' is unknown"),
        ({"tasks": {"sums": TASK | {"test": 0}}}, "tasks: sums: test must be a whole number of at least 1, got 0"),
        ({"tasks": {"sums": TASK | {"tests": 3}}}, "'tests' is unknown"),
        ({"tasks": {"all": TASK}}, "not be called all"),
        ({"seeds": [-1]}, "seeds: -1 must be a whole number of at least 0"),
        ({"test_questions": "apart"}, "test_questions must be shared or by_seed, got 'apart'"),
        ({"test_questions": "by_seed", "seeds": [0, 1, 2, 3, 4, 5]}, "tasks: sums: test 5 is fewer than the 6 seeds"),
        ({"budgets": [0.2, 1.0]}, "budgets: 1.0 must be a share"),
        ({"budgets": [0.2, 0.2]}, "budgets: [0.2, 0.2] names one twice"),
        ({"methods": {"full": {}, "static": {}, "valu": {}}}, "methods: 'valu' is unknown; there are full, lora"),
        ({"methods": {"static": {}}}, "`full` is missing"),
        ({"methods": {"full": {}, "value": {}}}, "no static path to compare with"),
        ({"methods": SMALL["methods"] | {"healed": {"lora_rank": [4, 8]}}}, "healed takes no grid"),
        ({"methods": SMALL["methods"] | {"dlr_token": {"lora_rank": [4, 8]}}}, "dlr_token takes no grid"),
        ({"methods": SMALL["methods"] | {"random": {"seed": 1}}}, "random trains nothing"),
        ({"methods": SMALL["methods"] | {"lora": {}}}, "text: passages must be a whole number of at least 1, got None"),
        ({"timing": {"questions": 0}}, "timing: repeats must be a whole number of at least 1, got None"),
        ({"options": {"search": {}}}, "options: 'search' is unknown; allowed are adapters, menu"),
        ({"models": {"m": {"model": "smollm2-135m-instruct", "adapter_size": 0}}}, "models: m: adapter_size must be"),
        ({"tests": {"task": "words"}}, "tests: task 'words' is none of sums, all"),
        ({"tests": {"against": ["base"]}}, "tests: against 'base' is none of full, static"),
        (
            {"hypotheses": [{"method": "value", "budget": 0.1, "task": "sums", "against": "full", "above": 0}]},
            "hypotheses: number 1: budget 0.1 is none of 0.2, free",
        ),
        (
            {"hypotheses": [{"method": "value", "budget": "free", "task": "sums", "against": "full", "above": 0}]},
            "value has no row at budget free",
        ),
        ({"hypotheses": [{"method": "value"}]}, "must say method, budget, task, against, and either above or below"),
        ({"tests": {"level": 2}}, "level 2 must lie between 0 and 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(parts, words):
    found = problems(changed(**parts))
    assert any(words in problem for problem in found), found


def test_all_problems_are_told_at_once(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(changed(seeds=[-1], budgets=[2])))
    with pytest.raises(UserError, match=r"(?s)seeds: -1.*budgets: 2"):
        read_plan(path)


def test_options_of_stages_are_checked_before_the_first_runs(tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    wrong = {"value": {"caution": -1}, "dr_llm": {"epochs": 3}}
    path.write_text(yaml.safe_dump(changed(methods=SMALL["methods"] | wrong)))
    monkeypatch.setattr(sys, "argv", ["study", str(path), "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"(?s)dr_llm: unknown arguments: --epochs=3.*value: --caution -1"):
        study.main()
    assert not (tmp_path / "out").exists()


def test_quick_is_laid_over_the_rest(tmp_path):
    path = tmp_path / "plan.yaml"
    quick = {"tasks": {"sums": {"test": 2}}, "methods": {"value": None}, "seeds": [7]}
    path.write_text(yaml.safe_dump(changed(quick=quick)))
    small, whole = read_plan(path, quick=True), read_plan(path)
    assert small.tasks["sums"] == TASK | {"test": 2} and small.seeds == [7] and "value" not in small.methods
    assert whole.tasks["sums"]["test"] == 5 and "value" in whole.methods and whole.digest != small.digest
    path.write_text(yaml.safe_dump(changed()))
    with pytest.raises(UserError, match="has no section `quick`"):
        read_plan(path, quick=True)


def test_a_grid_is_every_combination_and_has_a_checkpoint_each():
    plan = Plan(changed(methods={"full": {}, "static": {}, "value": {"caution": [0.0, 2.0], "folds": 5}}))
    assert plan.variants("value") == [{"caution": 0.0, "folds": 5}, {"caution": 2.0, "folds": 5}]
    place = Place(plan, PLAN, False, Path("out"), "m", 0)
    assert checkpoints(place, "value") == ["value-grid0", "value-grid1"]


def test_stages_wait_for_what_they_are_made_from():
    plan = read_plan(PLAN)
    stages = all_stages(plan, PLAN, False, Path("out"), ["smollm2"], [0])
    seen = set()
    for stage in stages:
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.name)
    by_name = {stage.name.split("/", 2)[2]: stage for stage in stages}
    healed = by_name["healed-6"]
    assert "smollm2/seed-0/paths" in healed.needs
    assert [word for word in healed.words if isinstance(word, Later)] == [
        Later(Path("out/smollm2/seed-0/paths/paths.json"), "6")
    ]
    test_stages = [at for at, stage in enumerate(stages) if stage.kind == "answers"]
    assert all(stages[at].needs[0].rsplit("/", 1)[1].startswith("chosen-") for at in test_stages)


def test_other_seeds_ask_other_questions_where_they_share_them_out():
    def depends(seeds: list, **parts) -> str:
        plan = Plan(changed(seeds=seeds, **parts))
        stages = all_stages(plan, PLAN, False, Path("/nowhere"), ["m"], [0])
        return next(stage.depends for stage in stages if stage.name == "m/seed-0/answers-sums")

    assert depends([0]) == depends([0, 1])
    assert depends([0], test_questions="by_seed") != depends([0, 1], test_questions="by_seed")


def test_stages_follow_from_the_methods_of_a_plan():
    plan = Plan(changed(methods={"full": {}, "static": {}}))
    names = [stage.name.rsplit("/", 1)[1] for stage in all_stages(plan, PLAN, False, Path("out"), ["m"], [0])]
    assert names == [
        "adapters",
        "menu-sums",
        "table-sums",
        "headroom-sums",
        "weighed-sums",
        "paths",
        "chosen-sums",
        "answers-sums",
        "times-sums",
    ]


def test_a_plan_that_was_changed_after_the_opening_is_refused(tmp_path):
    opening, plan = Opening(tmp_path), Plan(changed())
    opening.check(plan)
    assert opening.record() is None
    opening.open(plan)
    opening.open(plan)
    opening.check(Plan(dict(reversed(SMALL.items()))))  # The order of keys says nothing.
    with pytest.raises(
        UserError, match=r"the plan was changed \(budgets, seeds\) after test questions were opened.*--output"
    ):
        opening.check(Plan(changed(seeds=[0, 1], budgets=[0.1])))
    assert json.loads(opening.path.read_text())["plan"] == SMALL


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "other"], "--models other: the plan has m"),
        (["--seeds", "5"], "--seeds 5: the plan has 0"),
        (["--only", "m/paths"], "--only 'm/paths' must be MODEL/seed-SEED/NAME, such as m/seed-0/paths"),
    ],
)
def test_wrong_parts_of_a_plan_are_refused(tmp_path, monkeypatch, words, message):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(changed()))
    with pytest.raises(UserError, match=message):
        study.main([str(path), "--output", str(tmp_path / "out"), *words])
