"""The page of a study's test questions: for any of them the route and the verdict of every method. One file.

Its script draws the table of the question that is picked, from data in the page itself; without it the page says where
the data lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from string import Template

from routing.report.look_words import MARKS
from routing.report.page import page
from routing.report.words import budget_words
from routing.study.methods import METHODS
from routing.study.results import Answers

STYLE = """
body { max-width: 90rem; }
.pick { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: .8rem 0; }
.pick label { display: flex; flex-direction: column; font-size: .85rem; color: #4a4a4a; max-width: 100%; }
.pick select, .pick input { font: inherit; padding: .25rem .4rem; min-height: 2.2rem; max-width: 100%; }
[hidden] { display: none; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .6rem .8rem; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
.key b { display: inline-block; min-width: 1.5rem; margin-right: .4rem; text-align: center; font-weight: 400; }
.scroll { position: relative; }
.scroll:focus-visible, select:focus-visible, input:focus-visible { outline: 3px solid #1b6ca8; outline-offset: 2px; }
#routes { border-collapse: separate; border-spacing: 1px; font-size: .87rem; }
#routes caption { text-align: left; color: #4a4a4a; padding-bottom: .3rem; }
#routes th, #routes td { padding: .1rem .3rem; border: 0; }
#routes td.layer { color: #000; }
#routes .layer { text-align: center; min-width: 1.15rem; padding: .1rem 0; font-size: .78rem; }
#routes th[scope=row] { text-align: left; position: sticky; left: 0; background: #fff; }
@media (max-width: 40rem) { body { padding: 1rem; } #routes th[scope=row] { white-space: normal; min-width: 8rem; } }
""" + "\n".join(f".{name} {{ background: rgb{mark.color}; }}" for name, mark in MARKS.items())
SCRIPT = """
"use strict";
(() => {
  const groups = JSON.parse(document.getElementById("data").textContent);
  const at = id => document.getElementById(id);
  const group = at("group"), search = at("search"), question = at("question"), told = at("told");
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const cell = (tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const marks = {0: "skip", 1: "run", 2: "repeat"};
  const sign = (own, layer) => {
    const count = own.route[layer];
    if (count % 1) return [Math.round(100 * count), "run"];
    const mark = count === 0 && own.adapter ? "adapter" : marks[count];
    return [groups.signs[mark], mark];
  };
  const words = own => {
    const layers = wanted => own.route.flatMap((count, layer) => wanted(count) ? [layer] : []).join(", ");
    const told = [["without layers", layers(count => count === 0)], ["some tokens without", layers(count => count % 1)],
      ["twice", layers(count => count === 2)]].filter(([, found]) => found).map(part => part.join(" "));
    return told.join("; ") || "every layer";
  };
  const draw = () => {
    const own = groups.parts[group.value], number = +question.value;
    const body = at("routes").tBodies[0], head = at("routes").tHead.rows[0];
    if (question.value === "") { at("found").hidden = true; return; }
    at("found").hidden = false;
    at("text").textContent = own.questions[number];
    head.replaceChildren();
    const depth = own.methods[0].distinct[0].length;
    for (const name of ["method", "layers left out", "verdict", "layers", ...Array(depth).keys()]) {
      const made = cell("th", name, typeof name === "number" ? "layer" : "");
      made.scope = "col";
      head.append(made);
    }
    body.replaceChildren();
    for (const method of own.methods) {
      const seen = { route: method.distinct[method.taken[number]], adapter: method.adapter };
      const row = body.insertRow(), first = cell("th", method.title);
      first.scope = "row";
      const hidden = cell("span", ", " + words(seen), "said");
      first.append(hidden);
      row.append(first, cell("td", method.budget), cell("td", method.right[number] === "1" ? "right" : "wrong"));
      const layers = seen.route.reduce((sum, count) => sum + count, 0);
      row.append(cell("td", layers % 1 ? layers.toFixed(1) : layers));
      for (let layer = 0; layer < depth; layer++) {
        const [text, mark] = sign(seen, layer), made = cell("td", text, "layer " + mark);
        made.setAttribute("aria-hidden", "true");
        row.append(made);
      }
    }
    const commands = own.methods.filter(one => one.checkpoint);
    at("commands").textContent = commands.map(one =>
      `# ${one.title}, ${one.budget}\\npython -m routing show ${one.checkpoint} --id ${own.ids[number]}` +
      (one.knob === null ? "" : ` --budget ${one.knob}`) + " --html look.html").join("\\n");
    history.replaceState(null, "", "#" + encodeURIComponent(own.name + "/" + own.ids[number]));
  };
  const list = wanted => {
    const own = groups.parts[group.value], needle = search.value.toLowerCase();
    const kept = own.questions.map((text, number) => [text, number])
      .filter(([text, number]) => (text + own.ids[number]).toLowerCase().includes(needle));
    question.replaceChildren(...kept.map(([text, number]) => option(number, text.replace(/\\s+/g, " ").slice(0, 90))));
    if (wanted !== undefined && kept.some(([, number]) => number === wanted)) question.value = wanted;
    told.textContent = kept.length + " of " + own.questions.length + " questions";
    draw();
  };
  groups.parts.forEach((own, number) => group.append(option(number, own.words)));
  group.addEventListener("change", () => list());
  search.addEventListener("input", () => list());
  question.addEventListener("change", draw);
  const asked = decodeURIComponent(location.hash.slice(1));
  const start = groups.parts.findIndex(own => asked.startsWith(own.name + "/"));
  if (start >= 0) group.value = start;
  const first = start < 0 ? 0 : groups.parts[start].ids.indexOf(asked.slice(groups.parts[start].name.length + 1));
  document.querySelector(".pick").hidden = false;
  list(Math.max(first, 0));
})();
"""
BODY = Template("""
<p>Each test question of the study with the route that each method took and whether its answer was right.
The tables of all questions together are in <a href="study.html">the page of the study</a>.</p>
<ul class="key" aria-label="Signs">$key<li><b class="run">63</b>of the tokens of the prompt that ran it, in %</li></ul>
<noscript><p>A script in this page draws the table of a question; without it, read the same routes and verdicts in
<code>MODEL/seed-SEED/answers-TASK/answers.json</code>.</p></noscript>
<form class="pick" hidden aria-label="Question to show" onsubmit="return false">
<label>Model, seed and task<select id="group"></select></label>
<label>Words in it<input id="search" type="search"></label>
<label>Question<select id="question"></select></label>
</form>
<p id="told" role="status" aria-live="polite"></p>
<section id="found" hidden aria-labelledby="asked">
<h2 id="asked">Question</h2>
<pre id="text" tabindex="0"></pre>
<div class="scroll" tabindex="0" role="region" aria-label="Routes and verdicts of all methods">
<table id="routes"><caption>A row for each method and budget; a column for each layer</caption>
<thead><tr></tr></thead><tbody></tbody></table>
</div>
<h2>Both answers, and what routers thought</h2>
<p>These commands show one router with the question: the answer beside the full model's, time, and, of a menu router,
what it expected of each path. <code>STUDY</code> is the folder of the study.</p>
<pre id="commands" tabindex="0"></pre>
</section>
<script type="application/json" id="data">$data</script>
<script>$script</script>
""")


def questions_page(answers: Sequence[Answers]) -> str:
    """The page as HTML.

    Args:
        answers: of models, seeds and tasks, in the order in which they are to be picked.
    """
    signs = {name: mark.sign for name, mark in MARKS.items()}
    data = json.dumps({"signs": signs, "parts": [_part(own) for own in answers]}, ensure_ascii=False)
    key = "".join(
        f'<li><b class="{name}">{MARKS[name].sign}</b>{escape(MARKS[name].words)}</li>'
        for name in ("run", "repeat", "skip", "adapter")
    )
    # Text of questions must not end the script.
    body = BODY.substitute(key=key, data=data.replace("<", "\\u003c"), script=SCRIPT)
    return page("Any question, along every route", body, STYLE)


def _part(own: Answers) -> dict:
    place = own.place
    return {
        "name": f"{place.model}/{place.seed}/{own.task}",
        "words": f"{place.model}, seed {place.seed}, {own.task}",
        "ids": own.test["ids"],
        "questions": own.test["questions"],
        "methods": [_method(own, one) for one in own.test["instances"]],
    }


def _method(own: Answers, one: dict) -> dict:
    method = METHODS[one["method"]]
    decided = one["route"] is None and one["weights"]
    knob = one["fields"].get(method.knob) if one["fields"] else None
    return {
        "title": method.title,
        "budget": budget_words(one["budget"]),
        "adapter": one["skip_action"] == "adapter",
        "right": "".join(map(str, map(int, one["right"]))),
        **one["routes"],
        "checkpoint": f"STUDY/{own.place.prefix}/{one['weights']}" if decided else "",
        "knob": knob,
    }
