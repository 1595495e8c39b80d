"""How paths and routes of a study are chosen, on small numbers by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from routing.common.errors import UserError
from routing.study import choosing
from routing.study.answering import hindsight
from routing.study.asking import part_of, share_equal, thresholded
from routing.study.choosing import COSTS, CUTS, best, cuts, remembered


def test_cuts_leave_out_consecutive_layers_and_keep_the_ends():
    found = cuts(10, 3)
    assert found[0] == (1, 0, 0, 0, 1, 1, 1, 1, 1, 1) and found[-1] == (1, 1, 1, 1, 1, 1, 0, 0, 0, 1)
    assert len(set(found)) == len(found) == CUTS
    assert all(route.count(0) == 3 and route[0] == route[-1] == 1 for route in found)
    assert all("0, 0, 0" in str(route) for route in found)


def test_the_best_path_has_at_most_so_many_layers():
    paths = [
        {"route": [1, 1, 1, 1], "rewards": [1, 1, 1]},
        {"route": [1, 1, 0, 1], "rewards": [1, 0, 1]},
        {"route": [1, 0, 0, 1], "rewards": [1, 1, 0]},
        {"route": [0, 1, 0, 0], "rewards": [0, 0, 0]},
    ]
    assert best(paths, 4) is paths[0]
    assert best(paths, 3) is paths[2], "as good with fewer layers"
    assert best(paths, 1) is paths[3]


def test_each_seed_has_an_equal_part_of_the_test_questions():
    asked = [SimpleNamespace(example=SimpleNamespace(dataset=name, id=at)) for name in "ab" for at in range(7)]
    parts = [part_of(asked, number, 3) for number in range(3)]
    told = [[(one.example.dataset, one.example.id) for one in part] for part in parts]
    assert told[0] == [("a", 0), ("a", 3), ("b", 0), ("b", 3)] and told[2] == [("a", 2), ("a", 5), ("b", 2), ("b", 5)]
    assert len(set(sum(told, []))) == 12
    assert part_of(asked, 0, 1) == asked


def test_no_setting_is_tried_twice():
    tried = []
    decide = remembered(lambda fields: tried.append(fields) or [(1, 0)])
    assert decide({"route_bias": 1.0}) == decide({"route_bias": 1.0}) == [(1, 0)] and tried == [{"route_bias": 1.0}]
    decide({"route_bias": 2.0})
    assert len(tried) == 2


def test_costs_rise():
    assert list(COSTS) == sorted(set(COSTS)) and COSTS[0] == 0


def test_hindsight_takes_the_shortest_right_path_or_the_full_one():
    menu = [(1, 1, 1), (1, 0, 1), (1, 0, 0)]
    along = [[True, False, False, True], [True, True, False, True], [False, False, False, True]]
    routes, right = hindsight(menu, along)
    assert routes == [menu[1], menu[1], menu[0], menu[2]] and right == [True, True, False, True]


def test_a_table_that_says_nothing_has_no_headroom_and_says_why(tmp_path, monkeypatch):
    place = SimpleNamespace(folder=tmp_path)

    def refuse(table):
        raise UserError("all rewards of the table are the same")

    monkeypatch.setattr(choosing, "read_table", lambda folders: folders)
    monkeypatch.setattr(choosing, "measure", refuse)
    choosing.find_headroom(place, "sums")
    found = json.loads((tmp_path / "headroom-sums" / "headroom.json").read_text())
    assert found == {"gains": [], "problem": "all rewards of the table are the same"}


def test_thresholds_give_counts_of_inputs_and_shares_of_tokens():
    logits = torch.tensor([[-1.0, 2.0, 0.5]])
    config = SimpleNamespace(kept_layers=2, route_bias=0.0, router="prefix", sink_tokens=0)
    assert thresholded(logits, config, {}) == (1, 1, 0, 1, 1)
    assert thresholded(logits, config, {"route_bias": -1.0}) == (1, 1, 0, 1, 0)
    config.router, config.sink_tokens = "prefix_token", 1
    both = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, -1.0], [1.0, -1.0]])
    assert thresholded(both, config, {}) == (1.0, 1.0, 0.75, 0.25), "the first token runs all"


def test_equal_weights_are_held_once():
    base, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    with torch.no_grad():
        other.weight.copy_(base.weight)
        other.bias.fill_(7.0)
    share_equal(other, base)
    assert other.weight.data_ptr() == base.weight.data_ptr()
    assert other.bias.data_ptr() != base.bias.data_ptr() and (other.bias == 7).all()
