"""One run of training end to end: model, text, training, checkpoint."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import BitsAndBytesConfig

from data_models.path_notation import parse_path
from routing.common.devices import DTYPES, is_first_process
from routing.common.errors import UserError, raise_all
from routing.common.files import write_json
from routing.models.bases import load_base
from routing.models.checkpoint import load_adapters, save_checkpoint
from routing.models.checkpoint_files import adapter_fields
from routing.models.families import load_base_config, load_tokenizer
from routing.models.placement import IN_MEMORY, Placement
from routing.search.routes import Route, to_route
from routing.tasks.corpora import passages
from routing.tasks.sequences import Sequences, make_sequences
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.lora import add_lora, lora_config, lora_state, merge_lora, shell_of, unknown_problems
from routing.training.end_to_end.sharding import Sharding, take_sharding
from routing.training.end_to_end.static import costs_of_layers, static_route
from routing.training.end_to_end.threshold import router_logits, threshold_bias
from routing.training.end_to_end.training import EndToEnd, train_end_to_end
from routing.training.end_to_end.validation import batches_of
from routing.training.skeleton import Run, Save, training_run
from train_models.routed_model import small_parts

RANKING_ROWS = 64  # of training text, by which a threshold is set
RANKING_TOKENS = 1024  # of training text, by which the layers of a static route are chosen; read once for each layer


def rows_of(arguments, part: str, tokenizer) -> Sequences:
    """Rows of a part of the corpus, for any stage that trains on text.

    Raises:
        UserError: if there is too little text for one.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {arguments.model_id!r} has no eos token to end a passage; set one.")
    work = Path(arguments.work_dir)
    texts = passages(arguments.corpus, part, getattr(arguments, f"{part}_passages"), beside=work)
    rows = make_sequences(texts, tokenizer, arguments.sequence_length, arguments.layout, arguments.prompt_tokens, work)
    if not len(rows):
        raise UserError(
            f"{len(texts)} {part} passages of {arguments.corpus!r} make no row of --sequence_length "
            f"{arguments.sequence_length}; give more passages or shorter rows."
        )
    return rows


def hash_of(*parts: Sequences) -> str:
    """SHA-256 of rows of text, by which a resumed run knows that they are the same."""
    digest = hashlib.sha256()
    for rows in parts:
        for tensor in rows:
            digest.update(tensor.numpy())
    return digest.hexdigest()


def load_trainable(
    arguments: EndToEndArguments, placement: Placement, sharding: Sharding | None = None, processes: int = 1
):
    """The routed model with a fresh router, its base frozen and maybe shared out, and its adapters or None."""
    config = load_base_config(arguments.model_id)
    fields = arguments.model_fields(config.num_hidden_layers) | adapter_fields(arguments.adapters)
    quantized = {}
    if arguments.load_in_4bit:
        quantized["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[arguments.dtype]
        )
        placement = Placement(placement.device, {"": placement.device})
    if arguments.trainable == "lora":  # Before weights are loaded.
        raise_all(unknown_problems(lora_config(arguments).target_modules, shell_of(config)))
    dtype = DTYPES[arguments.dtype]
    place = placement if sharding is None else IN_MEMORY
    model = load_base(arguments.model_id, dtype, config._commit_hash, place, **fields, **quantized)
    load_adapters(model, arguments.adapters)
    model.requires_grad_(False)
    model.model.init_routers()
    adapters = add_lora(model, lora_config(arguments)) if arguments.trainable == "lora" else None
    model.model.routers.requires_grad_(True)
    if sharding is not None:
        own, shared = sharding.share_out(model, placement.device, processes)
        if is_first_process():
            print(
                f"FSDP2, by accelerate's configuration: {processes} processes share the base out, this one holds "
                f"{own:,} of {shared:,} weights; router and LoRA are whole in each",
                file=sys.stderr,
            )
    return model, adapters, fields


def given_route(text: str, depth: int) -> Route:
    """The route of --path.

    Raises:
        UserError: if the model has no such layers, or they are not in order.
    """
    try:
        return to_route(parse_path(text, depth), depth)
    except ValueError as error:
        raise UserError(f"--path: {error}") from error


def choose_static(arguments: EndToEndArguments, model, rows: Sequences, work: Path, device) -> list[int]:
    """The fixed route of --objective static: the one that is given, or by training text; kept in a file."""
    path, depth = work / "static_route.json", model.config.num_hidden_layers
    if arguments.path:
        return list(given_route(arguments.path, depth))
    count = max(RANKING_TOKENS // arguments.sequence_length, 1)
    part = Sequences(rows.ids[:count], rows.lengths[:count])
    skipped = round(arguments.target_skip * (depth - arguments.kept_layers))
    if arguments.resume and path.exists():
        return json.loads(path.read_text())["route"]
    batches = batches_of(part, arguments.batch_size, arguments.prompt_tokens, device)
    costs = costs_of_layers(model, batches, arguments.kept_layers)
    (route,) = broadcast_object_list([static_route(costs, depth, skipped)])
    if is_first_process():
        write_json(path, {"route": route, "loss_without_layer": costs})
    return route


def run(arguments: EndToEndArguments) -> Path | None:
    """Train and write the checkpoint folder, with metrics.csv beside the weights."""
    base_config = load_base_config(arguments.model_id)
    if arguments.kept_layers >= base_config.num_hidden_layers:
        raise UserError(
            f"--kept_layers {arguments.kept_layers} leaves none of the model's {base_config.num_hidden_layers} layers "
            "to route; give less."
        )
    if arguments.path:
        given_route(arguments.path, base_config.num_hidden_layers)
    tokenizer = load_tokenizer(arguments.model_id)
    rows, held_out = (rows_of(arguments, part, tokenizer) for part in ("train", "validation"))
    return training_run(arguments, lambda: {"text": hash_of(rows, held_out)}, lambda own: train(own, rows, held_out))


def train(run: Run, rows: Sequences, held_out: Sequences) -> Save:
    arguments, processes = run.arguments, run.processes.num_processes
    sharding = take_sharding()
    model, adapters, fields = load_trainable(arguments, run.placement, sharding, processes)
    if arguments.objective == "static":
        fields["fixed_route"] = model.config.fixed_route = choose_static(arguments, model, rows, run.work, run.device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.say(
        f"{arguments.objective}, router {arguments.router}: {trained:,} trainable parameters; {len(rows)} "
        f"training and {len(held_out)} validation rows of {arguments.sequence_length} tokens"
    )
    batches = batches_of(held_out, arguments.batch_size, arguments.prompt_tokens, run.device)
    trainer = train_end_to_end(EndToEnd(model, adapters, arguments), rows, batches, run.work, processes)
    if arguments.calibrate_threshold:
        model.eval()
        ranking = batches_of(Sequences(*(part[:RANKING_ROWS] for part in rows)), arguments.batch_size,
                             arguments.prompt_tokens, run.device)  # fmt: skip
        fields["route_bias"] = threshold_bias(router_logits(model, ranking), arguments.target_skip)
    summary = run.summary(
        datasets=[],
        train_rows=len(rows),
        validation_rows=len(held_out),
        route_bias=fields.get("route_bias", 0.0),
        log=trainer.state.log_history,
    )
    routers = {name: tensor.detach().cpu() for name, tensor in small_parts(model.model).items()}
    merged = {}
    if adapters:
        # In the dtype of training: in a coarser one small changes would vanish, and it be another model.
        merged["dtype"] = DTYPES[arguments.dtype]
        merged["change"] = partial(merge_lora, config=lora_config(arguments), state=lora_state(adapters))
    return lambda folder: save_checkpoint(
        folder, arguments.model_id, routers, fields, arguments.save_base, summary, **merged
    )
