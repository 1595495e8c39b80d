"""Configurations by name: which mechanism each block has, and who chooses where a block has both."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from routing.common.errors import UserError
from routing.common.user_files import read_yaml
from routing.training.language_model.parameters import parameter_counts
from train_models.configuration_gdn_hybrid import GdnHybridConfig

# Mechanisms of four blocks, repeated for deeper models.
PATTERNS = {
    "static": ("gdn", "gdn", "gdn", "softmax"),
    "dynamic": ("gdn", "routed", "routed", "softmax"),
    "all-gdn": ("gdn",),
    "all-softmax": ("softmax",),
    "random": ("gdn", "routed", "routed", "softmax"),
}
SUFFIXES = (".yaml", ".yml")


def pattern_of(name: str, layers: int) -> list[str]:
    return list(islice(cycle(PATTERNS[name]), layers))


def read_fields(path: Path) -> dict:
    """Config fields of a YAML file, {name: value}.

    Raises:
        UserError: for a file that cannot be read or is no such mapping.
    """
    fields = read_yaml(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold one `name: value` a line, such as `pattern: [gdn, routed, softmax]`.")
    return fields


def field_problems(name: str, fields: dict) -> list[str]:
    """What is wrong with config fields, as sentences."""
    known = {*GdnHybridConfig().to_dict(), "rope_theta"}
    found = [f"--config {name}: the model has no field {field!r}" for field in fields if field not in known]
    try:
        GdnHybridConfig(**fields)
    except ValueError as error:
        found.append(f"--config {name}: {error}")
    return found


def matched(fields: dict) -> GdnHybridConfig:
    """A configuration whose MLPs have the width at which the model has about as many parameters as the static one of
    these sizes: to within half a unit of that width.

    Raises:
        UserError: if no width is narrow enough.
    """

    def total(config: GdnHybridConfig) -> int:
        return parameter_counts(config)["total"]

    config = GdnHybridConfig(**fields)
    static = GdnHybridConfig(**(fields | {"pattern": pattern_of("static", len(config.pattern))}))
    a_unit = 3 * config.hidden_size * len(config.pattern)
    width = config.intermediate_size + round((total(static) - total(config)) / a_unit)
    if width < 1:
        raise UserError(
            f"--match_parameters: mixers of {'-'.join(config.pattern)} alone have more parameters than the static "
            "model; give a larger --intermediate_size."
        )
    return GdnHybridConfig(**(fields | {"intermediate_size": width}))
