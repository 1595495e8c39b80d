"""What an export starts from and which paths it takes, by the source's config.json alone: no torch is imported."""

from __future__ import annotations

from data_models.path_notation import parse_path
from routing.common.errors import UserError
from routing.models.base_files import config_fields, locate_model
from routing.models.families import FAMILIES, base_config, layers_of
from train_models.router_kinds import kind_of

RECORD, MANIFEST = "export.json", "menu.json"  # of one path, and of a menu's


def source_fields(name: str, skip_action: str = "") -> dict:
    """Fields of the config.json of a base or a checkpoint, `model_type` and `num_hidden_layers` among them.

    Args:
        skip_action: what a checkpoint's config says of it is replaced by; empty: nothing is.

    Raises:
        UserError: if it is neither, or its family is not supported.
    """
    try:
        fields = config_fields(locate_model(name))
    except (OSError, ValueError):
        fields = {}
    family = str(fields.get("model_type", ""))
    if not family.startswith("routed_"):
        fields, _ = base_config(name)
        if skip_action:
            raise UserError(f"--skip_action {skip_action}: {name} is a base, which has no adapters; leave it out")
        return fields | {"num_hidden_layers": layers_of(name)}
    if family.removeprefix("routed_") not in FAMILIES:
        raise UserError(
            f"{name} is of type {family!r}, which is not supported. Supported families: {', '.join(FAMILIES)}. "
            "docs/add_a_family.md shows how to add one."
        )
    return fields


def path_of(name: str, fields: dict, text: str) -> list[int]:
    """The path that is asked for, or the fixed one of a checkpoint.

    Raises:
        UserError: if it cannot be read, no layer is left, or none is given and the checkpoint decides its own.
    """
    depth, router = fields["num_hidden_layers"], fields.get("router", "per_layer")
    if text:
        try:
            return parse_path(text, depth)
        except ValueError as error:
            raise UserError(f"--path: {error}") from error
    fixed = fields.get("fixed_route")
    if fixed is not None:
        return [layer for layer, count in enumerate(fixed) for _ in range(count)]
    if not fields["model_type"].startswith("routed_"):
        raise UserError(f"--path is missing: {name} is a base; say which layers to run, such as 0:20,24:30")
    if kind_of(fields).has_menu:
        raise UserError(f"{name} chooses among the paths of a menu; give --menu for all of them, or --path for one")
    if router == "none" or fields.get("is_static_routing"):
        return list(range(depth))
    raise UserError(
        f"{name} has a router ({router}) that decides for each "
        f"{kind_of(fields).decides_for}, and a stock model has one path; give --path, such as 0:20,24:30, or a "
        "checkpoint of train.py --objective static"
    )


def menu_of(name: str, fields: dict) -> list[list[int]]:
    """The paths of a menu router.

    Raises:
        UserError: if the source has none.
    """
    if not (fields["model_type"].startswith("routed_") and kind_of(fields).has_menu):
        raise UserError(f"--menu: {name} has no menu of paths; give a checkpoint of a menu router, or --path")
    return [[layer for layer, count in enumerate(route) for _ in range(count)] for route in fields["menu"]]
