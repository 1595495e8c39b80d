"""Every family does all that the page of families says."""

from __future__ import annotations

import pytest
import torch
import transformers
from conftest import LATE
from families_table import PAGE, page
from features import FEATURES, Subject
from transformers.models.glm4.modeling_glm4 import Glm4DecoderLayer

from routing.models.families import FAMILIES
from train_models.decoder_parts import LayerParts


# The first families go through all other tests in every run.
@pytest.fixture(scope="module", params=LATE, ids=str)
def subject(request) -> Subject:
    with torch.no_grad():
        return Subject(request.param)


@pytest.mark.parametrize("feature", FEATURES)
@torch.no_grad()
def test_a_family_has_a_feature(subject, feature):
    FEATURES[feature](subject)


def test_a_layer_of_unknown_build_is_refused_by_its_name():
    config = transformers.Glm4Config(hidden_size=32, intermediate_size=48, num_attention_heads=4, head_dim=8)
    with pytest.raises(
        ValueError, match="a Glm4DecoderLayer cannot be taken apart.*post_mlp_layernorm.*add_a_family.md"
    ):
        LayerParts.of(Glm4DecoderLayer(config, 0))


def test_the_page_of_families_tells_of_each():
    passing = {name: dict.fromkeys(FEATURES, "yes") for name in FAMILIES}
    assert PAGE.read_text(encoding="utf-8") == page(passing)
    assert {family.config.model_type for family in LATE} | {"llama", "qwen2", "qwen3"} == set(FAMILIES)
