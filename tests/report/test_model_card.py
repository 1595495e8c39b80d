"""Model cards of checkpoint folders, and uploading them with a stand-in for the hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers.modeling_utils
import transformers.utils.hub
from conftest import LLAMA, routed_from, stock_model
from fake_evaluation import bare_result, evaluation_result, paired
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routing.commands import card as card_command
from routing.commands.card import main
from routing.common.errors import UserError
from routing.models.checkpoint_files import checkpoint_hash
from routing.models.default_model import DEFAULT_MODEL, default_model_folder
from routing.report.card import CARD, FRONTIER, RESULTS, TEXT_RESULTS, read_text_results, renew_card, write_model_card
from routing.report.card_text import limits

CONFIG = {
    "model_type": "routed_llama",
    "num_hidden_layers": 4,
    "num_windows": 8,
    "router_hidden_size": 16,
    "trained_num_windows": 8,
    "base_model": None,
    "transformers_version": "5.23.0",
}
TRAINING = {
    "arguments": {"model_id": "owner/base-1b", "num_epochs": 25, "seed": 7, "class_weighting": "effective"},
    "class_counts": {"skip": 31, "execute": 320, "repeat": 12},
    "class_weights": {"skip": 0.975, "execute": 0.084, "repeat": 1.940},
    "train_examples": 89,
    "held_out_examples": 45,
    "datasets": ["arithmetic", "asdiv"],
    "versions": {"torch": "2.13.0"},
    "git_commit": "0123abc",
    "hardware": "a machine, 2 cores",
}


def checkpoint(folder: Path, base: str = "owner/base-1b", **config) -> Path:
    """What a card is made from."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    training = TRAINING | {"arguments": TRAINING["arguments"] | {"model_id": base}}
    (folder / "training.json").write_text(json.dumps(training))
    return folder


def card_of(folder: Path, results: list[dict] | None = None) -> ModelCard:
    path = write_model_card(folder, results)
    assert path == folder / CARD
    return ModelCard.load(path)


def words(card: ModelCard) -> str:
    return " ".join(card.text.split())


def test_metadata_is_what_the_hub_reads(tmp_path):
    card = card_of(checkpoint(tmp_path / "run"), [evaluation_result("routed_piqa"), bare_result("arc_easy")])
    data = card.data
    assert data.base_model == "owner/base-1b"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"dynamic-layer-routing", "lm-evaluation-harness"} <= set(data.tags)
    assert data.model_name == "run"
    found = [(r.task_name, r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert found == [("routed_piqa", "routed_piqa", "accuracy", 0.375), ("arc_easy", "arc_easy", "accuracy", 1.0)]


def test_bases_that_the_hub_lacks_are_not_claimed(tmp_path):
    local = tmp_path / "my-base"
    local.mkdir()
    for i, base in enumerate((str(local), str(tmp_path / "gone"), DEFAULT_MODEL)):
        card = card_of(checkpoint(tmp_path / f"run{i}", base))
        assert card.data.base_model is None
        assert Path(base).name in card.text and str(tmp_path) not in card.text


def test_text(tmp_path):
    card = card_of(checkpoint(tmp_path / "run"), [evaluation_result("routed_piqa")])
    for cell in ("0.375", "0.137 – 0.694", "3.50", "12.7", "0.625", "0.250", "0.125", "static, 1 skipped", "−0.375"):
        assert f"| {cell} |" in card.text
    for part in (
        "`owner/base-1b` (4 layers)",
        "8 questions",
        "trust_remote_code=True",
        "2026-11-25",
        "a machine, 2 cores",
    ):
        assert part in words(card)
    for part in ("arithmetic, asdiv", "training 89, held out 45", "skip 31", "skip 0.975", "num_epochs 25", "seed 7"):
        assert part in words(card)
    command = (
        "lm_eval --model hf --model_args pretrained=path/of/this/folder,trust_remote_code=True --tasks routed_piqa"
    )
    assert f"{command} --include_path eval_configs\n" in card.text


def test_what_loads_asks_no_question(tmp_path):
    # transformers reads the config for the tokenizer too, and asks whether to run the folder's code.
    text = card_of(checkpoint(tmp_path / "run")).text
    calls = [line for line in text.splitlines() if ".from_pretrained(" in line and " = Auto" in line]
    assert len(calls) == 2 and all("trust_remote_code=True" in call for call in calls)


def test_the_command_asks_as_the_evaluation_did(tmp_path):
    result = bare_result("arc_easy") | {"num_fewshot": 5, "apply_chat_template": True}
    card = card_of(checkpoint(tmp_path / "run"), [result])
    assert "--tasks arc_easy --num_fewshot 5 --apply_chat_template\n" in card.text
    assert "Of the controls" not in card.text


def test_a_card_without_results_says_so(tmp_path):
    card = card_of(checkpoint(tmp_path / "run"))
    assert "This checkpoint was not evaluated yet." in card.text and "Nothing is known yet" in card.text
    assert card.data.eval_results is None and "lm-evaluation-harness" not in card.data.tags


def test_little_is_known_of_how_it_was_trained(tmp_path):
    folder = checkpoint(tmp_path / "run")
    (folder / "training.json").write_text(json.dumps({"arguments": {"model_id": "owner/base-1b"}}))
    assert "| questions from | not recorded |" in card_of(folder).text


def test_other_folders_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "run")
    (folder / "training.json").unlink()
    with pytest.raises(UserError, match="no training.json"):
        write_model_card(folder)
    with pytest.raises(UserError, match="config.json"):
        write_model_card(tmp_path / "none")
    assert not (folder / CARD).exists()


def limits_of(**changes) -> str:
    return "\n".join(limits([evaluation_result("t") | changes]))


def test_limits_are_told_from_the_numbers():
    """Base 5 of 8 right, routed 3, static 2, random 1; 12.7 seconds against 11.2."""
    text = limits_of()
    assert "t: no measurable difference in accuracy from the base" in text
    assert "t: not faster: 12.7 seconds inside the model against 11.2 of the base" in text
    assert "t: not measurably more accurate than static, 1 skipped: deciding for each input" in text
    assert "random" not in text  # p 0.03: better than these
    assert "known no better than 0.137 – 0.694" in text
    assert "less accurate than the base (−0.375)" in limits_of(paired=paired(0, 3, 0.01))
    assert "measurably more accurate than the base (+0.375)" in limits_of(paired=paired(3, 0, 0.01))


def test_limits_where_random_routes_do_as_well():
    result = evaluation_result("t")
    result["controls"][1]["paired_with_routed"] = paired(4, 0, 0.001)  # measurably better than the routers
    assert "not measurably more accurate than random, seed 0: the routers are not shown to know" in "\n".join(
        limits([result])
    )


def test_only_measured_time_is_claimed():
    faster = evaluation_result("t")["routed"] | {"seconds": 8.4}
    assert "25.0% less time: 8.4 seconds inside the model against 11.2" in limits_of(routed=faster)
    text = "\n".join(limits([bare_result("t") | {"limit": 1}]))
    assert "time" not in text and "fast" not in text
    for part in ("routing changed nothing", "base was not evaluated", "no control", "from the start of the task"):
        assert part in text


def test_a_card_is_replaced_until_it_is_edited(tmp_path, capsys):
    folder = checkpoint(tmp_path / "run")
    first = card_of(folder).text
    second = card_of(folder, [evaluation_result("t")]).text
    assert first != second and not capsys.readouterr().err
    edited = (folder / CARD).read_text(encoding="utf-8").replace("None is claimed here", "MIT")
    (folder / CARD).write_text(edited, encoding="utf-8")
    assert write_model_card(folder) is None
    assert (folder / CARD).read_text(encoding="utf-8") == edited
    assert f"{folder / CARD} was edited" in capsys.readouterr().err


def test_a_readme_from_elsewhere_stays(tmp_path, capsys):
    folder = checkpoint(tmp_path / "run")
    (folder / CARD).write_bytes(b"my notes \xff")
    assert write_model_card(folder, [evaluation_result("t")]) is None
    assert (folder / CARD).read_bytes() == b"my notes \xff"


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["model_card", *map(str, arguments)])
    main()


def test_command_takes_the_results_of_the_folder(tmp_path, monkeypatch, capsys):
    folder = checkpoint(tmp_path / "run")
    run(monkeypatch, folder)
    assert "not evaluated yet" in (folder / CARD).read_text(encoding="utf-8")
    (folder / RESULTS).write_text(
        json.dumps([evaluation_result("routed_piqa") | {"checkpoint_sha256": checkpoint_hash(folder)}])
    )
    run(monkeypatch, folder, "--repo_id", "me/routed")
    card = ModelCard.load(folder / CARD)
    assert 'from_pretrained("me/routed"' in card.text and card.data.model_name == "routed"
    assert str(folder / CARD) in capsys.readouterr().err


def test_results_of_what_a_checkpoint_was_before_are_refused(tmp_path, monkeypatch):
    """After a calibration, say: by card and push; the version of transformers does not count."""
    folder = checkpoint(tmp_path / "run")
    result = evaluation_result("routed_piqa") | {"checkpoint_sha256": checkpoint_hash(folder)}
    (folder / RESULTS).write_text(json.dumps([result]))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"transformers_version": "5.24.0"}))
    run(monkeypatch, folder)
    for change in ({"route_bias": 0.5}, {"num_windows": 9}):
        (folder / "config.json").write_text(json.dumps(CONFIG | change))
        for words in ((), ("--push", "--repo_id", "me/routed")):
            with pytest.raises(UserError, match="as it was before its config or weights changed"):
                run(monkeypatch, folder, *words)
    renew_card(folder)
    assert "not evaluated yet" in (folder / CARD).read_text()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    renew_card(folder)
    assert "routed_piqa" in (folder / CARD).read_text()
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="as it was before"):
        run(monkeypatch, folder)


def test_text_results_of_what_a_checkpoint_was_before_are_refused(tmp_path, monkeypatch, capsys):
    folder = checkpoint(tmp_path / "run")
    path = folder / TEXT_RESULTS
    path.write_text(json.dumps({"rows": [], "checkpoint_sha256": checkpoint_hash(folder)}))
    assert read_text_results(folder) == {"rows": [], "checkpoint_sha256": checkpoint_hash(folder)}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"route_bias": 0.5}))
    for words in ((), ("--push", "--repo_id", "me/routed")):
        with pytest.raises(UserError, match="text_evaluation.json is of this checkpoint as it was before"):
            run(monkeypatch, folder, *words)
    assert not (folder / CARD).exists()
    write_model_card(folder)
    assert "as it was before" in capsys.readouterr().err
    for content, said in (('{"rows": []}', "lacks 'checkpoint_sha256': an earlier version"), ("{", "is damaged")):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            run(monkeypatch, folder)


def test_a_frontier_of_what_a_checkpoint_was_before_is_not_published(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "run")
    (folder / FRONTIER).write_text(json.dumps({"points": [], "checkpoint_sha256": checkpoint_hash(folder)}))
    pushed = []
    monkeypatch.setattr(card_command, "upload", lambda *given: pushed.append(given) or "there")
    run(monkeypatch, folder, "--push", "--repo_id", "me/routed")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"route_bias": 0.5}))
    with pytest.raises(UserError, match="frontier.json is of this checkpoint as it was before.*dlr frontier"):
        run(monkeypatch, folder, "--push", "--repo_id", "me/routed")
    (folder / FRONTIER).write_text('{"points": []}')
    with pytest.raises(UserError, match="lacks 'checkpoint_sha256'"):
        run(monkeypatch, folder, "--push", "--repo_id", "me/routed")
    run(monkeypatch, folder)  # The card tells nothing of it.
    assert len(pushed) == 1


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ("[{", "is damaged"),
        ("3", "is damaged"),
        ('[{"task": "t", "base": {}}]', "lacks 'controls': an earlier version"),
    ],
)
def test_results_that_cannot_be_used(tmp_path, monkeypatch, results, said):
    folder = checkpoint(tmp_path / "run")
    (folder / RESULTS).write_text(results)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, folder)
    assert not (folder / CARD).exists()


class FakeHub:
    """Stands in for HfApi: keeps what is uploaded, by name, with the hub's own rule for patterns."""

    def __init__(self, private: bool = True, error: Exception | None = None):
        self.private, self.error = private, error
        self.created, self.files = [], {}

    def create_repo(self, repo_id, *, private=None, exist_ok=False, repo_type="model", token=None):
        if self.error:
            raise self.error
        self.created.append((repo_id, repo_type, private))
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, repo_id, *, repo_type):
        return self

    def upload_folder(self, *, repo_id, repo_type, folder_path, allow_patterns, commit_message):
        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            self.files[name] = (Path(folder_path) / name).read_bytes()

    def create_commit(self, repo_id, *, operations, **_):
        for operation in operations:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()


def test_push_of_a_folder(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "run")
    for name in ("model.safetensors", "modeling_llama.py", "tokenizer.json", "chat_template.jinja", "evaluation.html"):
        (folder / name).write_text(name)
    (folder / RESULTS).write_text(json.dumps([evaluation_result("t") | {"checkpoint_sha256": checkpoint_hash(folder)}]))
    for name in (".secret.json", "notes.md", "evaluation.parts/t.json", "__pycache__/code.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays")
    expected = {path.name for path in folder.iterdir() if path.is_file()} - {".secret.json", "notes.md"} | {CARD}
    for more, private in (((), True), (("--private",), True), (("--public",), False)):
        hub = FakeHub(private)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda hub=hub: hub)
        run(monkeypatch, folder, "--push", "--repo_id", "me/routed", *more)
        assert hub.created == [("me/routed", "model", private)]
        assert set(hub.files) == expected
        assert hub.files[CARD] == (folder / CARD).read_bytes()


def test_nothing_is_published_by_accident(tmp_path, monkeypatch):
    hub = FakeHub(private=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    with pytest.raises(UserError, match="me/routed is public already.*--public"):
        run(monkeypatch, checkpoint(tmp_path / "run"), "--push", "--repo_id", "me/routed")
    assert not hub.files


def test_wrong_arguments_are_told_at_once(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    folder = checkpoint(tmp_path / "run", base_model=str(base))
    with pytest.raises(UserError) as caught:
        run(monkeypatch, folder, "--push", "--repo_id", "no owner")
    assert "'no owner' must be OWNER/NAME" in str(caught.value) and f"its base in {base}" in str(caught.value)
    with pytest.raises(UserError, match="--push needs --repo_id"):
        run(monkeypatch, checkpoint(tmp_path / "other"), "--push")
    with pytest.raises(UserError, match="go with --push"):
        run(monkeypatch, tmp_path / "other", "--public")
    assert not (folder / CARD).exists()


def test_an_unreachable_hub(tmp_path, monkeypatch):
    """The real client, in the offline mode that all tests run in."""
    folder = checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match="the hub cannot be reached to upload 'me/routed'.*run the same command again"):
        run(monkeypatch, folder, "--push", "--repo_id", "me/routed")
    assert (folder / CARD).exists()


# push_to_hub of a loaded model


@pytest.fixture(params=["whole", "reference", "subfolder"])
def trained(request, tmp_path) -> tuple[Path, dict]:
    """A checkpoint with tokenizer and card, and the arguments that load it."""
    stock = stock_model(LLAMA)
    routed = routed_from(LLAMA, stock, router_seed=5, num_windows=4)
    routed.config.trained_num_windows = 4
    folder = tmp_path / "checkpoint" / ("inner" if request.param == "subfolder" else "")
    routed.save_pretrained(folder)
    if request.param == "reference":
        stock.save_pretrained(tmp_path / "base")
        (tmp_path / "base" / CARD).write_text("the card of the base")
        (folder / "model.safetensors").unlink()
        save_file(routed.model.routers.state_dict(), folder / "routers.safetensors")
        fields = json.loads((folder / "config.json").read_text()) | {"base_model": str(tmp_path / "base")}
        (folder / "config.json").write_text(json.dumps(fields))
    AutoTokenizer.from_pretrained(default_model_folder()).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(TRAINING))
    write_model_card(folder, [evaluation_result("routed_piqa")])
    return folder, {"subfolder": "inner"} if request.param == "subfolder" else {}


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    fake = FakeHub()
    for module in (transformers.utils.hub, transformers.modeling_utils):
        monkeypatch.setattr(module, "hf_api", lambda: fake)
    return fake


def loaded(folder: Path, arguments: dict):
    if arguments:  # transformers looks for the code in the root.
        return LLAMA.routed.from_pretrained(folder.parent, **arguments)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def test_push_to_hub_takes_the_card_along(trained, hub, tmp_path):
    folder, arguments = trained
    model = loaded(folder, arguments)
    card = (folder / CARD).read_bytes()
    model.push_to_hub("me/routed", private=True)
    assert hub.created == [("me/routed", "model", True)]
    code = {path.name for path in folder.glob("*.py")}
    assert {"routed_model.py", "routers.py", "modeling_llama.py", "layer_path.py"} <= code
    assert code | {"config.json", "generation_config.json", "model.safetensors", CARD} == set(hub.files)
    assert hub.files[CARD] == card
    # What was uploaded is a checkpoint: it loads, routes alike, and pushes its card again.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in hub.files.items():
        (copy / name).write_bytes(content)
    shutil.rmtree(tmp_path / "checkpoint")
    again, ids = loaded(copy, {}), torch.tensor([[3, 5, 8, 13, 21]])
    output, expected = again(ids), model(ids)
    assert torch.equal(output.routes, expected.routes) and torch.equal(output.logits, expected.logits)
    hub.files.clear()
    again.push_to_hub("me/other")
    assert hub.files[CARD] == card


def test_save_pretrained_takes_the_card_along(trained, hub, tmp_path):
    """Into the folder it came from, too, where transformers writes a card of its own first."""
    folder, arguments = trained
    model = loaded(folder, arguments)
    card = (folder / CARD).read_bytes()
    for target in (tmp_path / "elsewhere", folder):
        hub.files.clear()
        model.save_pretrained(target, push_to_hub=True, repo_id="me/routed")
        assert hub.files[CARD] == card == (target / CARD).read_bytes()
        assert "model.safetensors" in hub.files


def test_the_card_is_the_one_of_today(trained, hub):
    folder, arguments = trained
    model = loaded(folder, arguments)
    write_model_card(folder)
    model.push_to_hub("me/routed")
    assert hub.files[CARD] == (folder / CARD).read_bytes() and b"not evaluated yet" in hub.files[CARD]


def test_tags_that_are_asked_for_are_added(trained, hub):
    folder, arguments = trained
    loaded(folder, arguments).push_to_hub("me/routed", tags=["mine", "dynamic-depth"])
    pushed, own = ModelCard(hub.files[CARD].decode()), ModelCard.load(folder / CARD)
    assert pushed.data.tags == [*own.data.tags, "mine"]
    assert pushed.text == own.text and pushed.data.eval_results == own.data.eval_results


def test_without_a_card_pushing_is_as_in_transformers(trained, hub, tmp_path):
    folder, arguments = trained
    model = loaded(folder, arguments)
    (folder / CARD).unlink()
    model.push_to_hub("me/routed")
    assert b"automatically generated" in hub.files[CARD]
    gone = loaded(folder, arguments)
    shutil.rmtree(tmp_path / "checkpoint")
    gone.push_to_hub("me/routed")
    assert b"automatically generated" in hub.files[CARD]


def test_the_card_of_a_base_is_not_that_of_the_routed_model(hub, tmp_path):
    stock_model(LLAMA).save_pretrained(tmp_path)
    (tmp_path / CARD).write_text("the card of the base")
    LLAMA.routed.from_pretrained(tmp_path).push_to_hub("me/routed")
    assert b"card of the base" not in hub.files[CARD]


def test_saving_without_a_push_writes_no_card(trained, tmp_path):
    folder, arguments = trained
    loaded(folder, arguments).save_pretrained(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / CARD).exists()
