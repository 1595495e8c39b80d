"""Rows of a study from what stages left, what is written of them, and what is recommended."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_study import DEPTH, N, fake_plan, fake_study

from routing.commands import recommend
from routing.commands.work.recommend import chosen_settings
from routing.common.errors import UserError
from routing.common.files import write_json
from routing.report import study as report
from routing.report.study import COLUMNS, markdown, write_study
from routing.report.study_hypotheses import hypothesis_rows
from routing.report.study_overview import overview
from routing.study import comparing
from routing.study.results import all_answers, collect, made_by, rows_keys
from routing.study.stages import Place

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Folder, plan and rows of a study that was written; nothing may change them."""
    tmp_path, plan = tmp_path_factory.mktemp("study"), fake_plan()
    record = {"digest": "", "kind": "table", "seconds": 30.0, "command": ["data_generation.py", "--split=search"]}
    for seed in (0, 1):
        write_json(tmp_path / f".stages/m/seed-{seed}/table-sums/done.json", record)
        write_json(tmp_path / f".stages/m/seed-{seed}/value/done.json", record | {"command": ["train.py", "--x=1"]})
    fake_study(tmp_path, plan)
    found = collect(plan, Path("plan.yaml"), False, tmp_path)
    write_study(tmp_path, plan, found, {"date": "2026-01-01"}, all_answers(plan, Path("plan.yaml"), False, tmp_path))
    return tmp_path, plan, found


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals of few draws, where it is not they that are looked at."""
    monkeypatch.setattr(comparing, "DRAWS", 100)
    comparing._draws.cache_clear()
    yield
    comparing._draws.cache_clear()


def row_of(found, **wanted):
    rows = [row for row in found["rows"] if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 1, (wanted, len(rows))
    return rows[0]


def test_rows_by_hand(study):
    _, plan, found = study
    # Methods × (two tasks and both together) × (two seeds and both together).
    assert len(found["rows"]) == 5 * 3 * 3
    assert all(set(row) == set(rows_keys()) for row in found["rows"])
    value = row_of(found, method="value", task="all", seed="all")
    assert value["n"] == 2 * N and value["accuracy"] == 0.75 and value["budget"] == 0.2
    assert value["difference"] == 0 and value["p"] == 1.0 and value["difference_lower_bound"] == 0
    # The static path answers half of the questions rightly; value 0.25 more.
    assert value["static_accuracy"] == 0.5 and value["static_difference"] == 0.25
    assert value["headroom"] == pytest.approx(0.25 / 0.5)
    # The median of 0.8, 9 and 0.8 seconds.
    assert value["seconds"] == pytest.approx(0.8) and value["seconds_full"] == pytest.approx(1.0)
    assert value["training_seconds"] == 60.0 and value["added_parameters"] == 2
    token = row_of(found, method="dlr_token", task="sums", seed=0)
    assert token["accuracy"] == 0 and token["difference"] == -0.75 and token["p"] < 0.001
    oracle = row_of(found, method="oracle", task="all", seed="all")
    assert oracle["seconds"] is None and oracle["p_holm"] is None
    assert row_of(found, method="full", task="all", seed="all")["p"] is None


def test_seeds_with_questions_of_their_own_have_more_of_them(tmp_path, few_draws):
    plan = fake_plan(test_questions="by_seed")
    fake_study(tmp_path, plan)
    found = collect(plan, Path("plan.yaml"), False, tmp_path)
    for seed, count in ((0, 2 * N), ("all", 4 * N)):
        assert row_of(found, method="value", task="all", seed=seed)["n"] == count
    assert {one["n"] for one in found["hypotheses"]} == {4 * N}


def test_at_more_layers_the_static_path_is_mixed(tmp_path, few_draws):
    plan = fake_plan()
    fake_study(tmp_path, plan)
    for path in tmp_path.rglob("answers.json"):  # value now runs 9 layers: halfway between static, 8, and full, 10.
        answers = json.loads(path.read_text())
        next(one for one in answers["instances"] if one["method"] == "value")["layers"] = [9.0] * N
        write_json(path, answers)
    found = collect(plan, Path("plan.yaml"), False, tmp_path)
    assert row_of(found, method="value", task="all", seed="all")["static_accuracy"] == (0.75 + 0.5) / 2


def test_corrections_are_over_the_tests_of_the_plan(study):
    _, _, found = study
    own = [row for row in found["rows"] if row["p_holm"] is not None]
    assert {(row["task"], row["seed"]) for row in own} == {("all", "all")}
    assert {row["method"] for row in own} == {"static", "value", "dlr_token"}
    smallest = min(p for row in own for p in (row["p"], row["static_p"]))
    token = row_of(found, method="dlr_token", task="all", seed="all")
    assert token["p_holm"] == pytest.approx(6 * smallest), "three methods, two comparisons each"


def test_hypotheses_are_told(study):
    _, _, found = study
    near, far = found["hypotheses"]
    assert near["holds"] and near["p_holm"] < 0.001 and near["n"] == 2 * N and near["seeds"] == 2
    assert not far["holds"] and far["difference"] == 0.25


def test_models_of_a_claim_stand_together():
    def one(model: str, says: str, **own) -> dict:
        seen = {"difference": -0.01, "ci95": [-0.03, 0.01], "p_holm": 0.0004, "n": 40, "seeds": 2}
        return {"model": model, "says": says, "settled": True, "holds": False} | seen | own

    rows = hypothesis_rows([one("a", "x"), one("a", "y", holds=True), one("b", "x", settled=False), one("b", "y")])
    said = [row[:3] for row in rows]
    assert said[:2] == [["x", "a", "not shown"], ["x", "b", "open until all seeds are there"]]
    assert said[2:] == [["y", "a", "holds"], ["y", "b", "not shown"]]
    assert rows[0][3:] == ["−0.010 (−0.030 to +0.010)", "< 0.001", "40", "2"]


def test_what_is_not_there_yet_is_named(tmp_path, few_draws):
    plan = fake_plan()
    fake_study(tmp_path, plan, times=False)
    shutil.rmtree(tmp_path / "m/seed-1/answers-words")
    found = collect(plan, Path("plan.yaml"), False, tmp_path)
    assert found["missing"] == [
        "m, seed 0: seconds of sums, seconds of words",
        "m, seed 1: answers to words, seconds of sums",
    ]
    whole = row_of(found, method="value", task="all", seed="all")
    assert whole["n"] == 2 * N and whole["seconds"] is None, "of the seed that has all tasks"
    near = found["hypotheses"][0]
    assert near["p_holm"] < 0.05 and not near["holds"] and "open until all seeds are there" in markdown(found)
    assert "m, seed 1: answers to words" in markdown(found)
    own = [row for row in found["rows"] if (row["task"], row["seed"]) == ("words", "all")]
    assert overview(own) in markdown(found)
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(UserError, match="has no answers to test questions yet"):
        collect(plan, Path("plan.yaml"), False, tmp_path)


def test_the_overview_by_hand():
    def row(method: str, budget, difference: float, low: float, high: float, layers: float) -> dict:
        ends = {"difference": difference, "difference_ci95": [low, high], "layers": layers}
        return {"method": method, "title": method.upper(), "budget": budget} | ends

    rows = [
        row("full", "free", 0, 0, 0, 10),
        row("a", 0.2, -0.1, -0.2, 0.05, 8),
        row("a", "free", 0.01, 0, 0.02, 10),
        row("b", 0.1, 0, 0, 0, 9),
    ]
    assert overview(rows).splitlines() == [
        "| method | not set | 10% fewer | 20% fewer |",
        "| --- | --- | --- | --- |",
        "| A | +0.010 (+0.000 to +0.020), 10.0 | – | −0.100 (−0.200 to +0.050), 8.0 |",
        "| B | – | +0.000 (+0.000 to +0.000), 9.0 | – |",
    ]


def test_one_task_and_seed_is_all_there_is(tmp_path, few_draws):
    plan = fake_plan(tasks=("sums",), seeds=(0,), hypotheses=[])
    fake_study(tmp_path, plan)
    found = collect(plan, Path("plan.yaml"), False, tmp_path)
    assert {(row["task"], row["seed"]) for row in found["rows"]} == {("sums", 0), ("sums", "all")}
    assert row_of(found, method="value", seed="all")["p_holm"] is not None


def test_text_is_told_by_perplexity(tmp_path, few_draws):
    output, plan = tmp_path, fake_plan(tasks=("sums",), seeds=(0,), hypotheses=[])
    fake_study(output, plan)
    one = {"method": "full", "budget": "free", "losses": [10.0, 20.0], "predicted": [10, 10], "layers": 10.0}
    other = {"method": "dlr_token", "budget": 0.2, "losses": [12.0, 22.0], "predicted": [10, 10], "layers": 8.0}
    write_json(output / "m/seed-0/perplexity/perplexity.json", {"instances": [one, other]})
    found = collect(plan, Path("plan.yaml"), False, output)
    row = row_of(found, task="text", method="dlr_token", seed="all")
    assert row["perplexity"] == pytest.approx(2.718281828**1.7) and row["loss_difference"] == pytest.approx(0.2)
    assert row["accuracy"] is None and row["n"] == 2
    assert "## Text" in markdown(found)


def test_what_makes_a_method(study):
    output, plan, _ = study
    place = Place(plan, Path("plan.yaml"), False, output, "m", 0)
    names = made_by(place, {"method": "value", "weights": "value-grid1"})
    assert names == ["adapters", "menu-sums", "menu-words", "table-sums", "table-words", "value-grid1"]


class Reader(HTMLParser):
    """What stands on a page: texts by tag, rows of the table, names of form fields."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))


def test_files_of_a_study(study):
    output, plan, _ = study
    saved = json.loads((output / "study.json").read_text())
    wanted = ["model", "task", "method", "budget", "seed", "n", "accuracy", "layers", "seconds", "difference", "p"]
    assert all(name in row for row in saved["rows"] for name in wanted)
    assert saved["plan_sha256"] == plan.digest and saved["test_opened"] == {"date": "2026-01-01"}
    with (output / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(saved["rows"]) and rows[0]["accuracy"] == "0.75"
    text = (output / "study.md").read_text()
    assert "menu router by value" in text and "| not shown |" in text and f"| {COLUMNS[0]} |" in text
    for name in ("frontier-m-all.png", "routes-m-all.png", "frontier-m-sums.png"):
        assert (output / name).read_bytes()[:4] == b"\x89PNG"


def test_the_table_on_the_terminal(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "plot_frontier", lambda rows, path, title: path.touch())
    monkeypatch.setattr(report, "plot_run_shares", lambda rows, path, title: path.touch())
    write_study(tmp_path, study[1], study[2], None)
    shown = capsys.readouterr().out
    assert "m, all: 80 questions" in shown and "DLR by token" in shown and "not shown" in shown


def test_the_page_reads_without_its_script_and_by_ear(study):
    output, plan, found = study
    page, reader = (output / "study.html").read_text(), Reader()
    reader.feed(page)
    tested = len(found["hypotheses"])
    assert tested and reader.tags.count("tr") == 1 + tested + 1 + len(found["rows"]) and reader.tags.count("h1") == 1
    assert "http://" not in page and "https://" not in page, "it needs nothing beside it"
    rows = [own for tag, own in reader.attributes if tag == "tr" and own]
    assert all({"data-method", "data-task", "data-budget", "data-seed"} <= set(own) for own in rows)
    fields = [own["name"] for tag, own in reader.attributes if tag == "select"]
    assert fields == ["model", "task", "method", "budget", "seed"]
    assert ("form", "Rows to show") in [(tag, own.get("aria-label")) for tag, own in reader.attributes]
    form = next(own for tag, own in reader.attributes if tag == "form")
    assert "hidden" in form, "without the script there is nothing to filter with"
    # Claims first, then the table, then pictures, each with a heading; each picture says what it shows.
    assert re.findall(r'<h2 id="(\w+)"', page) == ["claims", "table", "pictures"]
    assert all(own["alt"] for tag, own in reader.attributes if tag == "img")
    assert all(own.get("scope") in ("col", "row") for tag, own in reader.attributes if tag == "th")


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; it runs the script of the page")
def test_the_page_in_a_browser(study, tmp_path):
    """Filtering and sorting, by a script in the page itself; the browser prints what became of it."""
    output = study[0]
    probe = """<script>
const pick = (name, value) => { const s = document.querySelector(`select[name=${name}]`); s.value = value;
  s.dispatchEvent(new Event("change")); };
const shown = () => [...document.querySelectorAll("#rows tbody tr")].filter(row => !row.hidden);
const at_first = shown().length;
pick("method", "menu router by value");
const filtered = shown().length, told = document.getElementById("told").textContent;
document.getElementById("reset").click();
const every = shown().length;
const button = [...document.querySelectorAll("thead button")].find(b => b.textContent === "accuracy");
button.click();
const first = shown()[0].cells[0].textContent;
button.click();
const last = shown()[0].cells[0].textContent;
const order = button.parentElement.getAttribute("aria-sort");
document.title = JSON.stringify([at_first, filtered, told, every, first, last, order]);
</script></body>"""
    (tmp_path / "probe.html").write_text((output / "study.html").read_text().replace("</body>", probe))
    at_first, *found = in_browser(tmp_path / "probe.html")
    assert at_first == 5, "all tasks and seeds together, one row a method"
    assert found == [1, "1 of 45 rows", 45, "DLR by token", "hindsight oracle (not a method)", "descending"]


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; it runs the script of the page")
def test_any_question_in_a_browser(study, tmp_path):
    """The page of the study links to it; a link opens a question, and routes are told by colour, sign and word."""
    output = study[0]
    assert 'href="questions.html"' in (output / "study.html").read_text()
    probe = """<script>
const rows = () => [...document.querySelectorAll("#routes tbody tr")];
const asked = document.getElementById("text").textContent, first = rows();
const value = first.find(row => row.cells[0].textContent.startsWith("menu router"));
const cells = [...value.cells].map(cell => cell.textContent), layers = [...value.cells].map(cell => cell.className);
const search = document.getElementById("search");
search.value = "39 +";
search.dispatchEvent(new Event("input"));
document.title = JSON.stringify([asked, first.length, cells, layers[5], document.getElementById("told").textContent,
  rows().find(row => row.cells[0].textContent.startsWith("DLR")).cells[5].textContent,
  document.getElementById("commands").textContent, location.hash]);
</script></body>"""
    (tmp_path / "probe.html").write_text((output / "questions.html").read_text().replace("</body>", probe))
    found = in_browser(tmp_path / "probe.html#m%2F1%2Fwords%2Fwords%2F7")
    asked, count, cells, layer, told, share, commands, link = found
    assert asked == "What is 7 + 1? </script>" and count == 5
    words = "menu router by value, without layers 1, 9"
    assert cells == [words, "20% fewer", "right", "8", "1", "a", *["1"] * (DEPTH - 3), "a"]
    assert layer == "layer adapter"
    assert told == f"1 of {N} questions" and share == "1", "the last question takes the full path"
    assert "python -m routing show STUDY/m/seed-1/value --id words/39 --budget 0.02 --html look.html" in commands
    assert link == "#m%2F1%2Fwords%2Fwords%2F39"


def in_browser(page) -> list:
    """What the script of a page made of its title."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(\[.*?\])</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-500:]
    return json.loads(unescape(title[1]))


def recommended(output, capsys, *words):
    recommend.main([str(output), *words])
    return capsys.readouterr().out


def test_the_cheapest_method_within_the_loss_is_recommended(study, capsys):
    output = study[0]
    told = recommended(output, capsys, "--max_loss", "0.01")
    assert told.startswith("Take menu router by value (20% fewer layers): accuracy 0.750, the full model 0.750")
    assert f"8.0 of {DEPTH} layers, 0.80 of its measured time" in told
    assert "python train.py --x=1" in told and "python data_generation.py --split=search" in told
    chosen = told.partition("Validation chose, for seed 0:")[2]
    assert (
        "  sums: OUTPUT/m/seed-0/value, cost 0.02" in chosen and "  words: OUTPUT/m/seed-0/value, cost 0.02" in chosen
    )
    of_one = recommended(output, capsys, "--max_loss", "0.01", "--task", "sums")
    assert "  sums: OUTPUT" in of_one and "words: OUTPUT" not in of_one
    static = {"model": "m", "method": "static", "budget": 0.2}
    assert chosen_settings(study[2]["settings"], static, "sums")[1:] == [
        f"  sums: OUTPUT/m/seed-0/adapters, path 0:{DEPTH}"
    ]
    # The oracle answers everything at fewer layers, and is no method.
    assert "oracle" not in recommended(output, capsys, "--max_loss", "0.9", "--by", "layers")


def test_what_runs_all_layers_saves_nothing_whatever_the_clock_says(study, tmp_path, capsys):
    same = [row | {"layers": float(DEPTH)} if row["method"] == "value" else row for row in study[2]["rows"]]
    write_json(tmp_path / "study.json", study[2] | {"rows": same})
    assert recommended(tmp_path, capsys, "--max_loss", "0.01").startswith("Take the full model")


def test_without_such_a_method_the_full_model_is_recommended(study, tmp_path, capsys):
    worse = {
        "rows": [row | {"difference_lower_bound": -0.03} for row in study[2]["rows"] if row["method"] != "dlr_token"]
    }
    write_json(tmp_path / "study.json", study[2] | worse)
    told = recommended(tmp_path, capsys, "--max_loss", "0.01")
    assert told.startswith("Take the full model") and "may lose up to 0.030" in told
    whole = {"rows": [row | {"layers": float(DEPTH)} if row["method"] == "value" else row for row in worse["rows"]]}
    write_json(tmp_path / "study.json", study[2] | whole)
    told = recommended(tmp_path, capsys, "--max_loss", "0.01")
    assert "The nearest is static path" in told, "what runs all layers is near and saves nothing"
    untimed = {"rows": [row | {"seconds": None} for row in worse["rows"]]}
    write_json(tmp_path / "study.json", study[2] | untimed)
    with pytest.raises(UserError, match="has not measured seconds of m on all yet; run it on, or give --by layers"):
        recommended(tmp_path, capsys, "--max_loss", "0.01")
    write_json(tmp_path / "study.json", study[2] | worse)
    assert recommended(tmp_path, capsys, "--max_loss", "0.03").startswith("Take menu router by value")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_loss", "1"], "--max_loss 1.0 must lie between 0 and 1"),
        (["--max_loss", "nan"], "--max_loss nan must lie between 0 and 1"),
        (["--max_loss", "0", "--task", "x"], "--task x: the study has"),
        (["--max_loss", "0", "--model", "x"], "--model x: the study has m"),
    ],
)
def test_what_cannot_be_recommended_is_refused(study, words, message):
    with pytest.raises(UserError, match=message):
        recommend.main([str(study[0]), *words])


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="give the folder that dlr study wrote"):
        recommend.main([str(tmp_path), "--max_loss", "0"])
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(UserError, match="holds no rows"):
        recommend.main([str(tmp_path), "--max_loss", "0"])
