"""The claims of the README against the committed results, as docs/results/claims.md lists them. Needs no torch."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from routing.report.study_overview import overview
from routing.report.words import signed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results" / "claims.md").read_text(encoding="utf-8")


def result(name: str):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def rows(name: str, **wanted: str) -> list[dict]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def verdict_of(kind: str) -> str:
    """The cell of the README's table of routers."""
    line = next(line for line in README.splitlines() if line.startswith(f"| {kind} "))
    return line.split(" | ")[4]


def test_every_verdict_of_the_readme_is_traced():
    listed = [line for line in PAGE.splitlines() if line.startswith("| ") and "claim |" not in line]
    table = README.split("## Which router?")[1].split("\n\n")[1].splitlines()[2:]
    verdicts = [line.strip("| ").split(" | ")[4] for line in table]
    assert len(verdicts) == len(listed) - 1, "one row a verdict, and one for the demo"
    for verdict, line in zip(verdicts, listed[1:], strict=True):
        assert verdict.replace("docs/results/", "") in line.split(" | ")[0], verdict
    for line in listed:
        for name in re.findall(r"`([\w/]+\.(?:json|csv))`", line):
            assert (RESULTS / name).is_file(), name


def test_the_demo_of_the_readme():
    found = result("value/demo.json")
    assert f"> {found['sentence']}" in README
    lines = {"base": found["base"], "routed by value": found["routed"]}
    lines |= {control["name"]: control for control in found["controls"]}
    told = re.findall(
        r"^\| (.+?) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE
    )
    assert len(told) == 6
    for name, accuracy, low, high, layers, seconds in told:
        own = lines[name]
        assert [float(accuracy), float(low), float(high)] == pytest.approx([own["accuracy"], *own["ci95"]], abs=5e-4)
        assert float(layers) == pytest.approx(own["layers"], abs=0.05)
        assert float(seconds) == pytest.approx(own["seconds"], abs=0.05)


def test_menus_are_on_a_par_at_24_layers():
    assert verdict_of("`menu`").startswith("parity at 24 of 30 layers, one task, 1,600 labels; [not with 240]")
    (found,) = [one for one in result("value/procedural.json")["results"] if one["target_layers"] == 24.0]
    assert found["methods"]["routed"]["layers"] == pytest.approx(24, abs=0.15)
    assert found["minus"]["base"]["lower_bound"] > -0.02
    wanted = {"model": "smollm2", "task": "procedural", "method": "value", "budget": 0.2, "seed": "all"}
    (few,) = [row for row in result("study/study.json")["rows"] if wanted.items() <= row.items()]
    assert few["difference_ci95"][1] < 0


def test_menus_lose_least_in_the_study():
    said = verdict_of("`menu`")
    assert "it loses least, by its estimate, at 10 and 20 % fewer layers of two models" in said
    assert "above the static path that validation chose on one" in said
    rows = [row for row in result("study/study.json")["rows"] if (row["task"], row["seed"]) == ("all", "all")]
    for model, seeds in (("smollm2", 2), ("gemma3", 1)):
        assert {row["n"] for row in rows if row["model"] == model} == {507 * seeds}
        for budget in (0.1, 0.2):
            own = {row["method"]: row["difference"] for row in rows if (row["model"], row["budget"]) == (model, budget)}
            assert max(own, key=own.get) == "value"
            (value,) = [r for r in rows if (r["model"], r["method"], r["budget"]) == (model, "value", budget)]
            assert value["static_difference"] > 0 and (value["static_p_holm"] < 0.05) == (model == "gemma3")


def test_routers_of_layers_lose():
    assert "loses" in verdict_of("`per_layer`, by value") and "loses" in verdict_of("`per_layer` (Dr.LLM)")
    by_value = result("value/labels.json")["rows"]
    (full,) = [row for row in by_value if row["name"] == "full path"]
    routers = [row for row in by_value if row["bias"] is not None and row is not full]
    assert routers and all(row["accuracy"] < full["accuracy"] for row in routers)
    published = result("demo.json")
    assert published["paired"]["difference"] < 0 and published["paired"]["p"] < 0.01
    assert published["routed"]["accuracy"] < max(
        c["accuracy"] for c in published["controls"] if c["method"] == "static"
    )


def test_routers_trained_on_text():
    name = "token_routing_sweep/report.csv"
    (token,) = rows(name, router="prefix_token", method="own")
    (static,) = rows(name, objective="static", method="own")
    (random,) = rows(name, router="random_token", method="own")
    assert float(token["loss_high"]) < float(random["loss_low"]), "beats random"
    assert float(token["loss"]) < float(static["loss"]) < float(token["loss_high"]), "static is not shown beaten"
    (prefix,) = rows(name, router="prefix", method="own")
    assert prefix["seeds"] == "1" and float(token["loss_low"]) < float(prefix["loss"]) < float(token["loss_high"])
    (embedding,) = rows(name, router="embedding", method="own")
    assert embedding["seeds"] == "1" and float(embedding["loss"]) > float(static["loss"]) + 1


def test_query_routers_are_like_static_sets():
    found = result("query_pruning/comparison.json")
    by_name = {one["name"]: one for one in found["methods"] if one["skip_action"] == "adapter"}
    routers = [f"{router}, {count} pruned" for router in ("fbc", "dpo", "orpo") for count in (1, 2, 4, 6)]
    for name in routers:
        own, static = by_name[name], by_name[f"static, {name.split(', ')[1]}"]
        low, high = own["ci95"]
        assert low < static["score"] < high, name
    assert all(by_name[router]["pruned"] > 9 for router in ("fbc", "dpo", "orpo")), "by themselves they prune too much"


def test_the_router_of_hybrids_is_worse_than_its_static_pattern():
    (pair,) = rows("hybrid_sweep/paired.csv", first="dynamic", second="static")
    assert float(pair["low"]) > 0, "the loss is higher"


def test_the_tables_of_the_study():
    """Of each model the page has the table that `dlr study` writes of the committed rows."""
    page = (ROOT / "docs" / "results" / "study.md").read_text(encoding="utf-8")
    rows = [row for row in result("study/study.json")["rows"] if (row["task"], row["seed"]) == ("all", "all")]
    for model in dict.fromkeys(row["model"] for row in rows):
        assert overview([row for row in rows if row["model"] == model]) in page, model


def test_the_lines_of_the_study():
    """What the page tells of all tasks beside the plan's comparison, against benchmarks/study_lines.py."""
    page = (ROOT / "docs" / "results" / "study.md").read_text(encoding="utf-8")
    whole = [row for row in result("study/lines.json")["rows"] if (row["task"], row["seed"]) == ("all", "all")]
    rows = {(row["model"], row["budget"]): row for row in whole}
    for model in ("smollm2", "gemma3"):
        for budget in (0.1, 0.2):
            row = rows[model, budget]
            low, high = map(signed, row["ci95"])
            assert f"{signed(row['difference'])} ({low} to {high})" in page, (model, budget)
