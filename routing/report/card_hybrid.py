"""The model card of a hybrid language model of train.py --objective lm: what it is, losses, training, limits."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from routing.common.tables import markdown_table

TAGS = ["dynamic-layer-routing", "gated-deltanet", "hybrid-attention"]
KINDS = {
    "gdn": "linear attention (Gated DeltaNet)",
    "softmax": "softmax attention",
    "routed": "either, chosen for each token",
}


def hybrid_card(name: str, config: dict, training: dict, repo_id: str | None) -> str:
    """The card without its mark: metadata, then the text.

    Args:
        name: of the checkpoint.
        config: fields of config.json.
        training: what train.py wrote beside the weights.
    """
    place = repo_id or "path/of/this/folder"
    metadata = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=TAGS)
    blocks = "\n".join(f"{number}. {KINDS[kind]}" for number, kind in enumerate(config["pattern"]))
    drawn = config["router"] == "random" and "routed" in config["pattern"]
    chosen = " The choices are drawn at random (a control, nothing was learned)." if drawn else ""
    return f"""---
{metadata.to_yaml()}
---

# {name}: a small hybrid language model

Trained from scratch. Its blocks, numbered from 0:

{blocks}

A token's choices depend on its state behind block 0 alone and are made without noise; each mechanism is computed for
the tokens that need it.{chosen}

## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{place}", trust_remote_code=True)
output = model.generate(**tokenizer("The railway was opened in", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(output[0]))
```

`trust_remote_code=True` runs the Python files of this folder. lm-evaluation-harness runs it too:

```
lm_eval --model hf --model_args pretrained={place},trust_remote_code=True --tasks arc_easy
```

## Losses and training

{markdown_table(["fact", "value"], [[fact, value] for fact, value in _facts(config, training).items()])}

## Limits

- A small model that saw little text: it continues sentences, and answers no questions.
- A loss of one run says little about its configuration; compare several seeds.
- Other languages, dtypes and longer texts than those it was trained on were not measured.
{_alarms(training)}
## License

None is claimed here.
"""


def _alarms(training: dict) -> str:
    return "".join(f"- At the kept step: {text}.\n" for text in training["warnings"])


def _facts(config: dict, training: dict) -> dict[str, str]:
    arguments, test = training["arguments"], training["test"]
    names = (
        "config", "sequence_length", "layout", "balance_weight", "temperature", "temperature_end", "weight_decay",
        "warmup_steps", "batch_size", "gradient_accumulation", "bf16", "seed",
    )  # fmt: skip
    sizes = training["parameters"]
    found = {
        "parameters": f"{sizes['total']:,}, of them {sizes['embeddings']:,} of the embeddings",
        "sizes": f"width {config['hidden_size']}, {config['num_attention_heads']} heads of {config['head_dim']}, MLP "
        f"{config['intermediate_size']}",
        "text": f"{arguments['corpus']}, {training['train_rows']} rows of {arguments['sequence_length']} tokens",
        "validation loss": f"{training['validation_loss']:.4f} nats a token, of the language model alone, at step "
        f"{training['kept_step']}, which it chose",
        "test loss": f"{test['loss']:.4f} nats a token, perplexity {test['perplexity']:.2f}",
    }
    if test["softmax_shares"]:
        shares = (f"block {block} {share:.1%}" for block, share in test["softmax_shares"].items())
        found["tokens that take softmax, test text"] = ", ".join(shares)
    return found | {
        "learning rate": f"{training['learning_rate']:g}",
        "arguments": ", ".join(f"{name} {arguments[name]}" for name in names),
        "hardware": training["hardware"],
        "versions": ", ".join(f"{name} {value}" for name, value in training["versions"].items()),
        "commit of the code": training["git_commit"] or "not recorded",
    }
