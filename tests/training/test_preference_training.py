"""Query routers trained as a person trains them, on a tiny model: what is learned, kept aside, saved and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import LLAMA, save_tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, set_seed

from routing.commands import train
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.common.files import sha256, write_json
from routing.labels.reading import FORMAT, HEADER, LABELS, read_labels
from routing.labels.records import example_of, label_line
from routing.models.checkpoint import save_checkpoint
from routing.models.families import load_base_config, load_tokenizer
from routing.models.query_encoder import encoder_tokenizer
from routing.scoring.requests import request_of
from routing.search.exploration import ExplorationSettings, dfs
from routing.search.results import Verdict, run_search
from routing.search.routes import pruned_layers
from routing.tasks.examples import Example, held_out, question_hash
from routing.tasks.prompts import left_pad
from routing.training.preferences import embeddings
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.preferences.data import best_sets, explored, load_queries, pair_sets
from routing.training.preferences.pairs import read_pairs
from routing.training.preferences.run import PAIRS, make_router, model_fields, run
from routing.training.preferences.training import (
    PreferenceLearner,
    PreferenceTrainer,
    alarms,
    measure,
    training_arguments,
)
from routing.training.routers.arguments import TrainArguments
from train_models.query_router import pruned_counts

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 6
# What may be pruned without harm, by what a question is about.
HARMLESS = {"sum": {1, 5}, "colour": {2, 3, 4}}
SETTINGS = (
    "--num_epochs=8", "--batch_size=64", "--learning_rate=1e-2", "--num_evaluations=4", "--pairs_per_example=24",
    "--router_hidden_size=16", "--eval_fraction=0.25",
)  # fmt: skip


def question(index: int) -> tuple[str, Example]:
    kind = list(HARMLESS)[index % 2]
    return kind, Example("quiz", f"About a {kind} {kind} {kind}: what is number {index}?", str(index), checker="number")


def write_explored(folder: Path, base: Path, tokenizer, count: int = 60, **made_with) -> Path:
    """Labels whose scores hang on the kind of question: 1 where nothing harmful is pruned, else less by each layer."""
    folder.mkdir()
    lines = []
    for index in range(count):
        kind, example = question(index)

        def score(route, kind=kind):
            value = 1 - 0.25 * len(set(pruned_layers(route)) - HARMLESS[kind])
            return Verdict(value == 1, score=value, output="7")

        searching = dfs(LAYERS, ExplorationSettings(), Random(index))
        lines.append(label_line(request_of(example, "generate", tokenizer), run_search(searching, score)))
    (folder / LABELS).write_text("".join(lines))
    arguments = {"apply_chat_template": False, "scoring": "auto"} | made_with
    write_json(folder / HEADER, {"format": FORMAT, "model": str(base), "num_layers": LAYERS, "arguments": arguments})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(folder / "base", LAYERS, **sizes)
    tokenizer = encoder_tokenizer("all-minilm-l6-v2")
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            initializer_range=0.3,
        )
    )  # fmt: skip
    encoder.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    write_explored(folder / "data", base, load_tokenizer(str(base)))
    return folder


def words(place: Path, name: str, *more: str) -> list[str]:
    places = [f"--output_dir={place}/checkpoints", f"--work_dir={place}/runs", f"--data={place}/data"]
    model = [f"--model_id={place}/base", f"--encoder={place}/encoder"]
    return [f"--run_name={name}", *model, *places, *SETTINGS, *more]


def trained(place: Path, name: str, *more: str) -> Path:
    run(parse(PreferenceArguments, words(place, name, *more)))
    return place / "checkpoints" / name


def evaluations(folder: Path) -> list[dict]:
    log = json.loads((folder / "training.json").read_text())["log"]
    return [entry for entry in log if "eval_loss" in entry]


@pytest.fixture(scope="module")
def orpo(place) -> Path:
    return trained(place, "orpo", "--objective=orpo")


def load(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def prompts_of(place: Path, tokenizer) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Kinds of all questions, and their prompts left-padded."""
    kinds, examples = zip(*(question(index) for index in range(60)), strict=True)
    prompts = [request_of(example, "generate", tokenizer).prompt_ids for example in examples]
    return list(kinds), *map(torch.tensor, left_pad(prompts, tokenizer.pad_token_id))


@pytest.mark.parametrize(
    ("objective", "top_k"),
    [
        ("fbc", "conditional"),
        ("dpo", "conditional"),
        pytest.param("orpo", "sinkhorn", marks=pytest.mark.slow),
        pytest.param("orpo", "gumbel", marks=pytest.mark.slow),
    ],
)
def test_every_objective_learns_which_layers_are_harmless(place, objective, top_k):
    """Held-out questions: the better set is likelier; and the checkpoint prunes layers, mostly none that harms."""
    more = ("--num_epochs=80",) if objective == "fbc" else ()  # There are few best sets, so few steps an epoch.
    folder = trained(place, f"{objective}-{top_k}", f"--objective={objective}", f"--top_k={top_k}", *more)
    found = evaluations(folder)
    assert found[-1]["eval_loss"] < found[0]["eval_loss"]
    assert objective == "fbc" or found[-1]["eval_pair_accuracy"] > 0.7
    model, tokenizer = load(folder)
    kinds, ids, mask = prompts_of(place, tokenizer)
    with torch.no_grad():
        model(ids, attention_mask=mask)
    pruned = [{layer for layer, count in enumerate(route) if not count} for route in model.last_routes.tolist()]
    right = [bool(layers) and layers <= HARMLESS[kind] for kind, layers in zip(kinds, pruned, strict=True)]
    assert sum(right) / len(right) > 0.8


def test_the_last_evaluation_is_what_the_checkpoint_does(place, orpo):
    """Predicted counts of held-out questions, from the log of the kept step and from the loaded model's own forward."""
    record = json.loads((orpo / "training.json").read_text())
    (kept,) = [entry for entry in evaluations(orpo) if entry["step"] == record["kept_step"]]
    assert kept["eval_loss"] == min(entry["eval_loss"] for entry in evaluations(orpo))
    model, tokenizer = load(orpo)
    _, ids, mask = prompts_of(place, tokenizer)
    with torch.no_grad():
        model(ids, attention_mask=mask)
    aside = [held_out(question_hash(question(index)[1]), 0.25) for index in range(60)]
    pruned = LAYERS - model.last_routes[aside].sum(1)
    assert pruned.double().mean().item() == pytest.approx(kept["eval_pruned_layers"])
    assert record["held_out_examples"] == sum(aside) and record["datasets"] == ["quiz"]


def test_the_router_reads_the_same_text_in_training_and_in_inference(place, orpo):
    """Text, embedding and scores, of prompts in a padded batch."""
    arguments = parse(PreferenceArguments, words(place, "other"))
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    queries = load_queries(arguments, config, tokenizer, place / "again.jsonl")
    model, own = load(orpo)
    router = model.model.routers
    _, ids, mask = prompts_of(place, own)
    assert router.texts(ids, mask.bool()) == queries.texts
    assert all(question(index)[1].question in text for index, text in enumerate(queries.texts))
    stored = load_file(place / "runs" / "orpo" / "embeddings.safetensors")["embeddings"]
    torch.testing.assert_close(router.embed_texts(queries.texts), stored, atol=1e-5, rtol=0)
    assert (place / "again.jsonl").read_bytes() == (place / "runs" / "orpo" / PAIRS).read_bytes()


def test_no_query_is_on_both_sides(place, orpo):
    arguments = parse(PreferenceArguments, words(place, "other"))
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    path = place / "sides.jsonl"
    queries = load_queries(arguments, config, tokenizer, path)
    made = [[pair_sets(queries, path, LAYERS, aside) for aside in (False, True)]]
    made += [[best_sets(queries, LAYERS, aside) for aside in (False, True)]]
    for both in made:
        sides = [{queries.ids[query] for query in sets.queries} for sets in both]
        assert sides[0] and sides[1] and not sides[0] & sides[1]
        for record in read_labels(place / "data"):
            aside = held_out(question_hash(example_of(record)), 0.25)
            assert record["id"] in sides[aside] and record["id"] not in sides[not aside]
    pairs, sets = list(read_pairs(path)), made[0][0]
    kept = [pair for pair in pairs if not queries.held_out[queries.ids.index(pair["id"])]]
    assert len(sets) == len(kept)
    batch = sets.__getitems__([5, 0])
    for row, at in enumerate((5, 0)):
        assert queries.ids[batch["queries"][row]] == kept[at]["id"]
        for who in ("winner", "loser"):
            assert batch[f"{who}s"][row].nonzero()[:, 0].tolist() == kept[at][f"{who}_pruned_layers"]


def test_the_base_and_a_frozen_encoder_are_saved_as_they_were(place, orpo):
    saved, base = load_file(orpo / "model.safetensors"), load_file(place / "base" / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in base.items())
    encoder = load_file(place / "encoder" / "model.safetensors")
    own = {name.removeprefix("model.routers.encoder."): tensor for name, tensor in saved.items() if ".encoder." in name}
    assert own and all(torch.equal(tensor, encoder[name]) for name, tensor in own.items())


def test_all_heads_are_trained_and_the_encoder_on_request(place):
    """Every parameter changes in one epoch, but for biases of keys, which softmax does not see."""
    more = ("--objective=dpo", "--train_encoder", "--num_epochs=1", "--encoder_learning_rate=1e-3")
    saved = load_file(trained(place, "encoder", *more) / "model.safetensors")
    arguments = parse(PreferenceArguments, words(place, "encoder", *more))
    set_seed(arguments.seed)
    before = make_router(arguments, model_fields(arguments), load_tokenizer(arguments.model_id)).state_dict()
    same = [name for name, tensor in before.items() if torch.equal(tensor, saved[f"model.routers.{name}"])]
    assert all("key.bias" in name for name in same)
    assert not (place / "runs" / "encoder" / "embeddings.safetensors").exists()


def test_heads_and_encoder_have_learning_rates_of_their_own(place, tmp_path):
    learner, pairs = learner_of(place, "--train_encoder", "--learning_rate=0.5", "--encoder_learning_rate=0.25")
    made = training_arguments(learner.arguments, tmp_path, len(pairs), 1)
    trainer = PreferenceTrainer(learner, made, train_dataset=pairs, sets=pairs, pairs=pairs)
    rates = {}
    for group in trainer.create_optimizer().param_groups:
        assert group["weight_decay"] == (0.01 if group["params"][0].ndim > 1 else 0)
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    for name, parameter in learner.named_parameters():
        assert rates[id(parameter)] == {"heads": 0.5, "encoder": 0.25}[name.split(".")[0]]


def test_embeddings_of_another_encoder_or_of_other_texts_are_made_anew(place, tmp_path, monkeypatch):
    arguments = parse(PreferenceArguments, words(place, "again"))
    router = make_router(arguments, model_fields(arguments), load_tokenizer(arguments.model_id))
    made, real = [], embeddings.embed_queries
    monkeypatch.setattr(embeddings, "embed_queries", lambda *given: made.append(1) or real(*given))

    def times(*texts: str) -> int:
        embeddings.cached_embeddings(tmp_path / "embeddings", router, list(texts), show=False)
        return len(made)

    assert (times("a", "b"), times("a", "b"), times("a", "c"), times("a", "c")) == (1, 1, 2, 2)
    with torch.no_grad():
        next(router.encoder.parameters()).add_(1.0)
    assert times("a", "c") == 3


def learner_of(place: Path, *more: str) -> tuple[PreferenceLearner, torch.Tensor]:
    arguments = parse(PreferenceArguments, words(place, "other", *more))
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    queries = load_queries(arguments, config, tokenizer, place / "learner.jsonl")
    torch.manual_seed(0)
    router = make_router(arguments, model_fields(arguments), tokenizer)
    stored = None if arguments.train_encoder else embeddings.embed_queries(router, queries.texts, show=False)
    learner = PreferenceLearner(router, queries.texts, stored, arguments)
    return learner, pair_sets(queries, place / "learner.jsonl", LAYERS, True)


def test_an_encoder_that_is_trained_gives_the_losses_of_a_frozen_one_at_first(place):
    (frozen, pairs), (whole, _) = learner_of(place), learner_of(place, "--train_encoder")
    batch = pairs.__getitems__(list(range(40)))
    assert frozen(**batch)["loss"].item() == pytest.approx(whole(**batch)["loss"].item(), abs=1e-5)
    names = {name.split(".")[0] for name, _ in whole.named_parameters()}
    assert names == {"heads", "encoder"} and {n.split(".")[0] for n in frozen.state_dict()} == {"heads"}
    measured = [measure(learner.eval(), pairs, pairs, 500) for learner in (frozen, whole)]
    assert measured[0] == pytest.approx(measured[1], abs=1e-5)


def test_measures_by_hand(place):
    """Loss and accuracy pair by pair; held-out pairs beyond the limit are left out evenly."""
    learner, pairs = learner_of(place)
    learner.eval()
    batch = pairs.__getitems__(list(range(len(pairs))))
    with torch.no_grad():
        scores = learner.heads(learner.embed(batch["queries"]))
        better, worse = (learner.log_policy(scores, batch[who]) for who in ("winners", "losers"))
        own = learner.heads(learner.embed(batch["queries"].unique()))
    found = measure(learner, pairs, pairs, len(pairs))
    assert found["pair_accuracy"] == pytest.approx((better > worse).double().mean().item())
    assert found["loss"] == pytest.approx(learner(**batch)["loss"].item(), rel=1e-5)
    assert found["pruned_layers"] == pytest.approx(pruned_counts(own).double().mean().item())
    assert found["preferred_layers"] == pytest.approx(batch["winners"].sum(1).double().mean().item())
    assert found["explored_layers"] == max(batch[who].sum(1).max().item() for who in ("winners", "losers"))
    few = measure(learner, pairs, pairs, 3)
    chosen = pairs.__getitems__([0, round((len(pairs) - 1) / 2), len(pairs) - 1])
    assert few["loss"] == pytest.approx(learner(**chosen)["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("pruned, message", ((0.0, "prunes nothing"), (3.0, ""), (3.2, "prunes 3.2 .* more than 3")))
def test_a_router_that_left_what_was_explored_raises_an_alarm(pruned, message):
    found = alarms({"eval_pruned_layers": pruned, "eval_explored_layers": 3})
    assert len(found) == bool(message) and all(re.search(message, text) for text in found)


def test_noise_is_for_training_alone(place):
    learner, pairs = learner_of(place, "--top_k=gumbel")
    batch = pairs.__getitems__(list(range(40)))
    noisy = [learner.train()(**batch)["loss"].item() for _ in range(2)]
    quiet = [learner.eval()(**batch)["loss"].item() for _ in range(2)]
    assert noisy[0] != noisy[1] and quiet[0] == quiet[1]
    assert measure(learner, pairs, pairs, 100) == measure(learner, pairs, pairs, 100)


@pytest.mark.slow
def test_embeddings_are_computed_once(place, orpo, monkeypatch):
    """They are kept for the run, and computed anew for other texts."""
    calls = []
    real = embeddings.embed_queries
    monkeypatch.setattr(embeddings, "embed_queries", lambda *words: calls.append(words[1]) or real(*words))
    trained(place, "orpo-again", "--objective=orpo", "--num_epochs=1")
    assert len(calls) == 1
    trained(place, "orpo-again", "--objective=dpo", "--num_epochs=1")
    assert len(calls) == 1
    trained(place, "orpo-again", "--objective=dpo", "--num_epochs=1", "--query_max_tokens=5")
    assert len(calls) == 2


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(place):
    """`kill -9` between two states, with noise in the loss; the resumed run ends like one that was not killed."""
    options = ("--objective=orpo", "--top_k=gumbel", "--seed=3", "--num_epochs=16", "--num_evaluations=8")
    whole = trained(place, "whole", *options)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words(place, "killed", *options)],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    states = place / "runs" / "killed" / "trainer"
    while not list(states.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "checkpoints" / "killed").exists()
    resumed = trained(place, "killed", *options, "--resume")
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    pairs = [(place / "runs" / name / PAIRS).read_bytes() for name in ("whole", "killed")]
    assert pairs[0] == pairs[1]


def test_adapters_go_into_the_checkpoint(place, tmp_path):
    """Those that the layer sets were explored with, and no others."""
    config = load_base_config(str(place / "base"))
    fields = {"router": "none", "skip_action": "adapter", "adapter_size": 8}
    routed = LLAMA.routed.from_pretrained(place / "base", **fields)
    adapters = {f"adapters.{name}": torch.randn_like(t) for name, t in routed.model.adapters.state_dict().items()}
    record = {"arguments": {"model_id": str(place / "base"), "objective": "adapters"}, "datasets": []}
    save_checkpoint(tmp_path / "adapted", str(place / "base"), adapters, fields, "reference", record)
    hashes = {path.name: sha256(path) for path in (tmp_path / "adapted").glob("*.safetensors")}
    tokenizer = load_tokenizer(str(place / "base"))
    data = write_explored(
        tmp_path / "data", place / "base", tokenizer, adapters=str(tmp_path / "adapted"), adapters_sha256=hashes
    )
    more = (f"--adapters={tmp_path}/adapted", f"--data={data}", "--num_epochs=1", "--save_base=reference")
    for kind in ("reference", "copy"):
        folder = trained(place, f"adapted-{kind}", *more[:-1], f"--save_base={kind}")
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        found = {f"adapters.{name}": tensor for name, tensor in model.model.adapters.state_dict().items()}
        assert found.keys() == adapters.keys() and all(torch.equal(found[n], t) for n, t in adapters.items())
        assert model.config.router == "query" and model.config.num_hidden_layers == config.num_hidden_layers
    with pytest.raises(UserError, match="was made with adapters .*--adapters is ''"):
        trained(place, "adapted", f"--data={data}")
    with pytest.raises(UserError, match="was made with adapters ''"):
        trained(place, "adapted", f"--adapters={tmp_path}/adapted")


def test_labels_without_scores_and_too_few_examples_are_refused(place, tmp_path):
    data = write_explored(tmp_path / "data", place / "base", load_tokenizer(str(place / "base")), count=2)
    with pytest.raises(UserError, match="are too few. Explore more examples"):
        trained(place, "few", f"--data={data}")
    records = [json.loads(line) for line in (data / LABELS).read_text().splitlines()]
    for tried in records[1]["tried"]:
        for name in ("score", "output", "pruned_layers"):
            del tried[name]
    (data / LABELS).write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match="its paths have no scores.*--search dfs or random"):
        trained(place, "scoreless", f"--data={data}")


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    wrong = [
        "--objective=orpo", "--beta=0", "--top_k_temperature=0", "--eval_fraction=1", "--batch_size=0",
        f"--data={tmp_path}/none", f"--encoder={tmp_path}/none", f"--adapters={tmp_path}/none", "--orpo_weight=-1",
    ]  # fmt: skip
    with pytest.raises(UserError) as error:
        parse(PreferenceArguments, wrong)
    for part in (
        "--run_name", "--beta 0.0", "--top_k_temperature 0.0", "--eval_fraction 1.0", "--batch_size 0",
        "--encoder", "--adapters: ", "--orpo_weight -1.0",
    ):  # fmt: skip
        assert part in str(error.value), part
    with pytest.raises(UserError, match="--data: .*holds no labels"):
        parse(PreferenceArguments, ["--run_name=x", f"--data={tmp_path}/none"])


def test_train_py_knows_the_objectives(place, monkeypatch):
    choices = next(f for f in TrainArguments.__dataclass_fields__.values() if f.name == "objective").metadata["choices"]
    assert {"fbc", "dpo", "orpo"} <= set(choices)
    monkeypatch.setattr(sys, "argv", ["train.py", "--objective", "fbc", *words(place, "script", "--num_epochs=1")])
    train.main()
    record = json.loads((place / "checkpoints" / "script" / "training.json").read_text())
    assert record["arguments"]["objective"] == "fbc" and record["train_best_sets"] > 0


def test_what_several_folders_tried_for_a_question_is_taken_together(place, tmp_path):
    tokenizer, base = load_tokenizer(str(place / "base")), place / "base"
    lines = {}
    for name, seed in (("one", 0), ("two", 1)):
        kind, example = question(0)

        def score(route, kind=kind):
            return Verdict(True, score=1 - 0.25 * len(set(pruned_layers(route)) - HARMLESS[kind]), output="7")

        found = run_search(dfs(LAYERS, ExplorationSettings(), Random(seed)), score)
        lines[name] = {tuple(pruned_layers(route)) for route in found.verdicts}
        (tmp_path / name).mkdir()
        (tmp_path / name / LABELS).write_text(label_line(request_of(example, "generate", tokenizer), found))
        header = {"format": FORMAT, "model": str(base), "num_layers": LAYERS}
        settings = {"apply_chat_template": False, "score": "accuracy"}
        write_json(tmp_path / name / HEADER, header | {"arguments": settings})
    assert lines["one"] != lines["two"]
    arguments = parse(PreferenceArguments, words(place, "none", f"--data={tmp_path}/one,{tmp_path}/two"))
    config = load_base_config(str(base))
    ((record, _, _),) = explored(arguments, config, tokenizer)
    sets = [tuple(entry["pruned_layers"]) for entry in record["tried"]]
    assert len(sets) == len(set(sets)) and set(sets) == lines["one"] | lines["two"]
    other = json.loads((tmp_path / "two" / HEADER).read_text())
    other["arguments"]["score"] = "partial_match"
    write_json(tmp_path / "two" / HEADER, other)
    with pytest.raises(UserError, match=r"different --score.*one with accuracy.*two with partial_match"):
        list(explored(arguments, config, tokenizer))


def test_a_run_goes_on_with_the_same_labels_alone(place, tmp_path):
    base = place / "base"
    write_explored(tmp_path / "data", base, load_tokenizer(str(base)), count=40)
    mine = [f"--data={tmp_path}/data", f"--work_dir={tmp_path}/runs", f"--output_dir={tmp_path}/checkpoints"]
    run(parse(PreferenceArguments, words(place, "again", *mine, "--num_epochs=1")))
    lines = (tmp_path / "data" / LABELS).read_text().splitlines(keepends=True)
    (tmp_path / "data" / LABELS).write_text("".join(lines[:30]))
    with pytest.raises(UserError, match="data that the run .* have changed since .* Leave --resume out"):
        run(parse(PreferenceArguments, words(place, "again", *mine, "--num_epochs=1", "--resume")))


def test_the_encoder_reads_no_more_than_it_can(place):
    for tokens in (2, 513):
        with pytest.raises(UserError, match=f"--query_max_tokens {tokens} must lie between 3 and 512"):
            parse(PreferenceArguments, words(place, "none", f"--query_max_tokens={tokens}"))
