"""Tiny bases, each with one habit of real ones: what the toolkit must work on, or refuse at the start.

    from zoo import ANIMALS, bring          # bring("bos_added") -> what --model takes

A base is made once a session, below one temporary folder; treat it as read-only, and copy it (`copy_of`) to change it.
A new animal is a function with `@animal(family, habit)`, which writes into a folder and may return another name.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

LAYERS = 4
CONTEXT = 512  # tokens
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
HALF = ["sliding_attention", "full_attention"] * (LAYERS // 2)
END_OF_TEXT, TURN, END_OF_TURN, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"
COMMITS = ("0123456789abcdef0123456789abcdef01234567", "76543210fedcba9876543210fedcba9876543210")
# How numbers are cut into tokens.
DIGITS = {"each": r"\p{N}", "threes": r"\p{N}{1,3}"}
TEXT = [
    "Question: Of which kind is item 100, the red or the blue one? Answer: the blue one.",
    "Question: What is 123 + 456 = 579, and 100 - 100? Answer: 0, 579.",
    "A. warm big round\nB. cold new small\nC. old dark fast\nReply with the letter of the right choice only.",
]


# Templates, in the language that tokenizers know (jinja).

MESSAGES = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = MESSAGES + ASSISTANT
TEMPLATES = {
    "thinking": MESSAGES
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    + "{% else %}<think>\n{% endif %}{% endif %}",
    "dated": "<|im_start|>system\nToday is {% if date_string is defined %}{{ date_string }}{% else %}"
    + "{{ strftime_now('%d %b %Y %H:%M:%S') }}{% endif %}.<|im_end|>\n"
    + CHATML,
    "no_system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML,
    "tools": "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML,
    "no_generation_prompt": MESSAGES,
    "bos": "{{ bos_token }}" + CHATML,
}


@cache
def _trained(digits: str) -> str:
    """A byte-level BPE tokenizer of some 330 tokens, as JSON; specials have the last ids, as Llama 3 and Qwen do it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(DIGITS[digits]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXT * 2, trainer)
    made.add_special_tokens([END_OF_TEXT, TURN, END_OF_TURN, BOS, EOS])
    return made.to_str()


def make_tokenizer(
    digits: str = "each", template: str | None = CHATML, first: bool = False, last: bool = False, **tokens
) -> PreTrainedTokenizerFast:
    """A tokenizer.

    Args:
        digits: how numbers are cut, a key of `DIGITS`.
        template: for chats.
        first: whether BOS is put in front of every text; `last`: EOS behind.
        tokens: special tokens by their names; None leaves one out.
    """
    made = Tokenizer.from_str(_trained(digits))
    names = {"bos_token": BOS, "eos_token": END_OF_TURN, "pad_token": END_OF_TEXT} | tokens
    names = {name: token for name, token in names.items() if token is not None}
    if first or last:
        ends = [names[name] for name, on in (("bos_token", first), ("eos_token", last)) if on]
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS if first else ''} $A {names['eos_token'] if last else ''}".strip(),
            special_tokens=[(token, made.token_to_id(token)) for token in ends],
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)


def make_model(tokenizer, family: str = "llama", seed: int = 0, **fields):
    """A random model in which every layer matters, and so does every bias and norm.

    Args:
        family: its model_type.
    """
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = SIZES | {"vocab_size": len(tokenizer), "tie_word_embeddings": True} | ids | fields
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0, 0.2) if name.endswith("norm.weight") else parameter.normal_(0.0, 0.3)
    return model


def save(folder: Path, family: str = "llama", tokenizer=None, generation: dict | None = None, **fields):
    """Write a base; returns its model and tokenizer.

    Args:
        generation: fields of generation_config.json besides those that the config tells.
        fields: of the config.
    """
    tokenizer = tokenizer or make_tokenizer()
    model = make_model(tokenizer, family, **fields)
    if generation:
        known = {name: value for name, value in model.generation_config.to_dict().items() if value is not None}
        model.generation_config = GenerationConfig(**(known | generation))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def edit_config(folder: Path, **fields) -> None:
    """Change fields of config.json, whatever the weights are."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=2))


def edit_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    """Change the tensors of model.safetensors by their names."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def put_into_hub(folder: Path, repository: str, commit: str = COMMITS[0], main: bool = True, leave_out=()) -> str:
    """Put a folder into the cache of the hub, as if it had been downloaded; returns its hub id.

    Args:
        main: whether this commit is what the branch main is at.
        leave_out: names of files that were not downloaded.
    """
    root = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / commit, ignore=lambda *_: leave_out, dirs_exist_ok=True)
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return repository


@dataclass(frozen=True)
class Animal:
    """A base of the zoo.

    Attributes:
        habit: in one line.
        write: writes it into an empty folder; returns what --model takes where that is not the folder.
        flags: arguments that bring the habit out, given to each stage that knows them.
        refused: words by which stage 1 refuses it at its start; "" where it works.
    """

    name: str
    family: str
    habit: str
    write: Callable[[Path], str | None]
    flags: tuple[str, ...] = ()
    refused: str = ""


ANIMALS: dict[str, Animal] = {}
CHAT = ("--apply_chat_template",)


def animal(family: str, habit: str, flags: tuple[str, ...] = (), refused: str = ""):
    def enter(write):
        ANIMALS[write.__name__] = Animal(write.__name__, family, habit, write, flags, refused)
        return write

    return enter


@cache
def cage() -> Path:
    """The folder of all animals of this session."""
    folder = Path(tempfile.mkdtemp(prefix="zoo_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def bring(name: str) -> str:
    """What --model takes for an animal, which is made when it is first asked for."""
    folder = cage() / name
    folder.mkdir()
    return ANIMALS[name].write(folder) or str(folder)


def copy_of(name: str, folder: Path) -> Path:
    """A copy of an animal that lies in a folder of its own, to be changed."""
    return Path(shutil.copytree(bring(name), folder))


# Families and shapes.


@animal("llama", "none: tied head, float32, one safetensors file")
def plain(folder):
    save(folder)


@animal("qwen2", "none but its family's: bias in q, k and v")
def plain_qwen2(folder):
    save(folder, "qwen2")


@animal("qwen3", "none but its family's: norms of q and k")
def plain_qwen3(folder):
    save(folder, "qwen3")


@animal("mistral", "none but its family's: a window in all layers")
def plain_mistral(folder):
    save(folder, "mistral", sliding_window=8)


@animal("smollm3", "none but its family's: layers without rotary embedding")
def plain_smollm3(folder):
    save(folder, "smollm3", no_rope_layers=[1, 0, 1, 0])


@animal("gemma3_text", "none but its family's: windows with positions of their own, scaled embedding, capped logits")
def plain_gemma3(folder):
    more = {"sliding_window": 8, "head_dim": 8, "layer_types": HALF, "final_logit_softcapping": 20.0}
    save(folder, "gemma3_text", query_pre_attn_scalar=16, **more)


@animal("granite", "none but its family's: multipliers of embedding, residual, attention and logits")
def plain_granite(folder):
    multipliers = {"residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0}
    save(folder, "granite", embedding_multiplier=3.0, **multipliers)


@animal("olmo2", "none but its family's: norms behind attention and MLP alone")
def plain_olmo2(folder):
    save(folder, "olmo2")


@animal("gemma2", "none but its family's: caps on attention and logits, windows on every other layer")
def plain_gemma2(folder):
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0}
    save(folder, "gemma2", sliding_window=8, head_dim=8, layer_types=HALF, query_pre_attn_scalar=16, **caps)


@animal("phi3", "none but its family's: fused maps, half of each head turned (Phi-4-mini)")
def plain_phi3(folder):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    save(folder, "phi3", rope_parameters=rope)


@animal("phi3", "longrope positions in a family that forgets the cache where they change")
def phi3_long(folder):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 2.5, 3.0, 4.0]}
    first = {"original_max_position_embeddings": CONTEXT // 2}
    save(folder, "phi3", rope_parameters=rope | factors | first, **first)


@animal("olmo3", "none but its family's: windows with positions of their own, norms behind")
def plain_olmo3(folder):
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": yarn}
    save(folder, "olmo3", sliding_window=8, layer_types=HALF, rope_parameters=rope)


@animal("qwen3_moe", "none but its family's: experts in all layers but one")
def plain_qwen3_moe(folder):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    save(folder, "qwen3_moe", mlp_only_layers=[1], **experts)


@animal("olmoe", "none but its family's: experts, clipped queries, keys and values")
def plain_olmoe(folder):
    save(folder, "olmoe", num_experts=4, num_experts_per_tok=2, clip_qkv=3.0)


@animal("llama", "a head of its own, not tied to the embedding")
def untied(folder):
    save(folder, tie_word_embeddings=False)


@animal("llama", "bias in attention and MLP")
def attention_bias(folder):
    save(folder, attention_bias=True, mlp_bias=True)


@animal("qwen2", "sliding windows on some layers")
def sliding_window(folder):
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    save(folder, "qwen2", use_sliding_window=True, sliding_window=8, layer_types=kinds)


@animal("qwen3", "an explicit head size, so that heads are wider than the hidden state together")
def head_size(folder):
    save(folder, "qwen3", head_dim=16)


@animal("qwen2", "more rows in the embedding than the tokenizer has tokens")
def padded_vocabulary(folder):
    tokenizer = make_tokenizer()
    save(folder, "qwen2", tokenizer, vocab_size=len(tokenizer) + 64)


# Positions.


@animal("llama", "llama3 positions")
def rope_llama3(folder):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    save(folder, rope_parameters=rope | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64})


@animal("qwen2", "yarn positions")
def rope_yarn(folder):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    save(folder, "qwen2", rope_parameters=rope)


@animal("llama", "dynamic positions, which change beyond the context")
def rope_dynamic(folder):
    save(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})


@animal("llama", "longrope positions, which change for all tokens where a text is longer than the first context")
def rope_long(folder):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 2.5, 3.0, 4.0]}
    save(folder, rope_parameters=rope | factors | {"original_max_position_embeddings": CONTEXT // 2})


@animal("qwen2", "a context of 96 tokens")
def short_context(folder):
    save(folder, "qwen2", max_position_embeddings=96)


# Tokenizers.


@animal("llama", "BOS in front of every text (Llama 3), numbers in threes")
def bos_added(folder):
    save(folder, tokenizer=make_tokenizer("threes", first=True))


@animal("llama", "EOS behind every text", refused="puts its end-of-text token")
def eos_added(folder):
    save(folder, tokenizer=make_tokenizer(last=True))


@animal("llama", "BOS added by the tokenizer and written by the template too", CHAT)
def bos_in_template(folder):
    save(folder, tokenizer=make_tokenizer("threes", TEMPLATES["bos"], first=True))


@animal("llama", "no pad token (Llama)")
def pad_missing(folder):
    save(folder, tokenizer=make_tokenizer(pad_token=None))


@animal("llama", "a pad token that was added, and for which the embedding has no row")
def pad_outside(folder):
    tokenizer = make_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    save(folder, tokenizer=tokenizer, vocab_size=rows, pad_token_id=None)


@animal("qwen2", "the pad token is EOS")
def pad_is_eos(folder):
    save(folder, "qwen2", make_tokenizer(pad_token=END_OF_TURN))


@animal("llama", "the pad token is the one of id 0, which texts have too")
def pad_is_zero(folder):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    save(folder, tokenizer=tokenizer)


@animal("llama", "several EOS ids in the generation config (Llama 3)")
def many_eos(folder):
    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT, EOS])
    save(folder, tokenizer=tokenizer, generation={"eos_token_id": ids})


@animal("qwen3", "the tokenizer's EOS is the end of turn, that of both configs the end of text")
def eos_disagrees(folder):
    tokenizer = make_tokenizer(eos_token=END_OF_TURN)
    save(folder, "qwen3", tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT))


@animal("qwen2", "the generation config samples and punishes repetition (Qwen 2.5)")
def samples(folder):
    wanted = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.3}
    save(folder, "qwen2", generation=wanted)


@animal("llama", "tokenizer.model alone, of SentencePiece", refused="sentencepiece")
def spm_alone(folder):
    save(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"x" * 100)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')


# Templates.


@animal("llama", "no chat template")
def no_template(folder):
    save(folder, tokenizer=make_tokenizer(template=None))


@animal("qwen3", "a template that thinks unless enable_thinking=false", CHAT)
def thinking_template(folder):
    save(folder, "qwen3", make_tokenizer(template=TEMPLATES["thinking"]))


@animal("llama", "a template that writes today's date (date_string), to the second", CHAT)
def dated_template(folder):
    save(folder, tokenizer=make_tokenizer(template=TEMPLATES["dated"]))


@animal("llama", "a template that refuses a system role (Gemma)", CHAT)
def no_system_template(folder):
    save(folder, tokenizer=make_tokenizer(template=TEMPLATES["no_system"]))


@animal("qwen2", "a template that lists tools", CHAT)
def tools_template(folder):
    save(folder, "qwen2", make_tokenizer(template=TEMPLATES["tools"]))


@animal("llama", "a template that ends without a generation prompt", CHAT)
def no_generation_prompt(folder):
    save(folder, tokenizer=make_tokenizer(template=TEMPLATES["no_generation_prompt"]))


# Weights and files.


@animal("llama", "overflows in float16", ("--dtype", "float16"), refused="float16")
def overflows(folder):
    save(folder)
    edit_weights(folder, lambda old: {n: t * 2e4 if "down_proj" in n else t for n, t in old.items()})


@animal("qwen2", "weights in bfloat16, norms in float32")
def mixed_dtypes(folder):
    save(folder, "qwen2")
    edit_weights(folder, lambda old: {n: t if "norm" in n else t.bfloat16() for n, t in old.items()})
    edit_config(folder, dtype="bfloat16")


@animal("llama", "config says bfloat16, weights are float32")
def lying_dtype(folder):
    save(folder)
    edit_config(folder, dtype="bfloat16")


@animal("llama", "weights in several safetensors files")
def sharded(folder):
    model, _ = save(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")


@animal("llama", "weights in pytorch_model.bin")
def torch_file(folder):
    model, _ = save(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@animal("llama", "names of all weights with a prefix (saved under torch.compile)", refused="weights")
def prefixed_weights(folder):
    save(folder)
    edit_weights(folder, lambda old: {f"_orig_mod.{name}": tensor for name, tensor in old.items()})


@animal("qwen3", "weights of a layer are missing", refused="weights")
def missing_weights(folder):
    save(folder, "qwen3")
    edit_weights(folder, lambda old: {name: tensor for name, tensor in old.items() if ".layers.3." not in name})


def _lora(folder: Path) -> None:
    """The files of a LoRA of `plain`, as peft writes them."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": bring("plain")}
    config |= {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    head = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (2, 32), "B": (32, 2)}
    torch.manual_seed(1)
    parts = {head.format(n, part): torch.randn(shapes[part]) * 0.3 for n in range(LAYERS) for part in shapes}
    save_file(parts, folder / "adapter_model.safetensors", {"format": "pt"})


@animal("llama", "a LoRA without its base", refused="LoRA")
def lora_folder(folder):
    make_tokenizer().save_pretrained(folder)
    _lora(folder)


@animal("llama", "a LoRA in the folder of a whole base", refused="LoRA")
def lora_beside_base(folder):
    save(folder)
    _lora(folder)


# Places.


@animal("llama", "a hub id in the offline cache, at the branch main")
def hub_id(folder):
    save(folder)
    return put_into_hub(folder, "zoo/hub-id")


@animal("llama", "a hub id of which the cache holds two commits, the older one without a branch")
def hub_two_commits(folder):
    save(folder)
    put_into_hub(folder, "zoo/two-commits", COMMITS[1], main=False)
    edit_weights(folder, lambda old: {n: t * 1.01 if "q_proj" in n else t for n, t in old.items()})
    return put_into_hub(folder, "zoo/two-commits")


@animal("llama", "a hub id of which the offline cache holds the config alone", refused="hf download zoo/config-alone")
def hub_config_alone(folder):
    save(folder)
    others = [path.name for path in folder.iterdir() if path.name != "config.json"]
    return put_into_hub(folder, "zoo/config-alone", leave_out=others)


@animal("llama", "a hub id that the offline cache does not hold", refused="hf download zoo/nowhere")
def hub_not_cached(folder):
    return "zoo/nowhere"


@animal("qwen2", "a folder with spaces and letters beyond ASCII in its name")
def odd_folder(folder):
    place = folder / "mein Basis-Modell – größe 1" / "日本"
    place.mkdir(parents=True)
    save(place, "qwen2")
    return str(place)
