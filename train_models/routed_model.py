"""Models that choose their own path: once on the prompt and kept while decoding, or anew for each token."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple
from transformers.utils.hub import resolve_revision

from .checkpoint_card import CardOfCheckpoint
from .decisions import Prompt, along
from .global_routers import GlobalRouter
from .layer_adapters import LayerAdapter, make_adapters
from .layer_path import LayerPathForCausalLM, LayerPathModel, layer_plan, run_plan
from .menu_router import MenuRouter
from .offloading import hooks_of
from .query_router import QueryRouter
from .route_totals import RouteTotals
from .router_kinds import kind_of
from .routers import REPEAT, RouterLinear, prompt_mask
from .routers_by_kind import decider, make_routers

UNTRAINED = (
    "the routers of this model were never trained and decide at random. Load a checkpoint of train.py, or give routes= "
    "or is_static_routing=True."
)
LM_EVAL_PADDING_ID = 0  # lm-eval pads loglikelihood requests with this id, whatever the tokenizer says.
ROUTER_FILE = "routers.safetensors"
NO_ADAPTERS = (
    "skip_action='adapter': the checkpoint has no adapters. Leave the argument out, or train some with "
    "train.py --objective adapters."
)
# What says where a checkpoint is; the config's from_pretrained consumes these, the weights need them too.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


@dataclass
class RoutedCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` plus the routes [B, L] that were executed; None where each token has its own."""

    routes: torch.LongTensor | None = field(default=None)


class RouterWeights:
    """Mixin of decoder and language model: how the weights of routers are drawn and kept."""

    _keep_in_fp32_modules_strict = ["routers", "adapters"]
    # What quantizers leave alone, by the whole name.
    _keep_in_fp32_modules = ["routers", "model.routers", "adapters", "model.adapters"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, RouterLinear):
            module.reset_parameters()
        elif isinstance(module, GlobalRouter):
            module.reset_bias()  # Its linear maps were drawn before it.
        elif isinstance(module, MenuRouter):
            module.reset_statistics()  # Likewise.
        elif isinstance(module, LayerAdapter):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class RoutedModel(RouterWeights, LayerPathModel):
    """Mixin over a decoder: `routers` is one RouterBlock per layer, or one GlobalRouter, QueryRouter or MenuRouter
    for all, or nothing; `adapters` is one LayerAdapter per layer, or nothing.

    Attributes:
        last_routes: [B, L] counts in {0 skip, 1 run, 2 repeat} of the last prefill, on the CPU; None before. Of a
            router that decides for each token: the share of the row's tokens that ran each layer, since the prefill
            (of assisted decoding, drafts that were rejected count too), on the model's device.
        last_gates: [B, T, R] bool, of a router that decides for each token: who ran which layer in the last forward.
        totals: RouteTotals while counting is on (`count_layers`), else None.
    """

    def __init__(self, config):
        config.check_routing()
        super().__init__(config)
        self.routers = make_routers(config)
        self.adapters = make_adapters(config)
        self.untold = config.trained_num_windows is None  # A menu router says itself that it is untrained.
        self.untold = self.untold and kind_of(config).learned and not kind_of(config).has_menu
        self.last_routes: torch.Tensor | None = None
        self.last_gates: torch.BoolTensor | None = None
        self.totals: RouteTotals | None = None
        if config.skip_action == "identity":  # Maybe switched off when loading.
            self._keys_to_ignore_on_load_unexpected = [r"adapters\."]
        if config.trained_num_windows is None or config.base_model is not None:
            # A base has no routers, which is no reason to warn of missing weights.
            self._keys_to_ignore_on_load_missing = [r"routers\.", r"adapters\."]
        self.post_init()

    def _apply(self, fn, recurse=True):
        """As in torch; rotary frequencies stay float32: a model that is cast is then as one loaded in that dtype."""
        before = dict(self.rotary_emb.named_buffers())
        super()._apply(fn, recurse)
        for name, now in list(self.rotary_emb.named_buffers()):
            if now.dtype != before[name].dtype:
                self.rotary_emb.register_buffer(name, before[name].to(now.device), persistent=False)
        return self

    def init_routers(self) -> None:
        """Draw all routers anew, for training: Xavier weights, zero biases (by torch's generator). Encoders stay."""
        self.untold = False
        for router in self.routers if isinstance(self.routers, torch.nn.ModuleList) else [self.routers]:
            _draw(router)

    def init_adapters(self) -> None:
        """Draw all adapters anew; each is the identity then."""
        for adapter in self.adapters:
            _draw(adapter)

    @property
    def stand_ins(self):
        """The adapters, while `config.skip_action` says that they stand in for skipped layers."""
        return self.adapters if self.config.skip_action == "adapter" else ()

    def around(self, layer: int) -> AbstractContextManager:
        """What is done around each layer, whoever runs it: nothing, but where processes share its weights."""
        return nullcontext()

    def count_layers(self, on: bool = True) -> None:
        """Start new running totals (`totals`), or stop counting."""
        self.totals = RouteTotals() if on else None

    def padding_ids(self) -> tuple[int, ...]:
        """Tokens that are padding at the end of a row."""
        own = self.config.pad_token_id
        return (LM_EVAL_PADDING_ID, own) if isinstance(own, int) else (LM_EVAL_PADDING_ID,)

    def routing_mask(self, input_ids, attention_mask, hidden, prompt_lengths=None) -> torch.BoolTensor:
        """[B, T]: the tokens that the routers see."""
        shape = tuple(hidden.shape[:2])
        return prompt_mask(input_ids, attention_mask, shape, hidden.device, self.padding_ids(), prompt_lengths)

    def _checked_routes(self, routes, batch: int) -> list[list[int]]:
        routes = torch.as_tensor(routes)
        shape = (batch, self.config.num_hidden_layers)
        if routes.shape != shape or routes.dtype.is_floating_point or routes.dtype == torch.bool:
            raise ValueError(
                f"routes must be whole numbers of shape {shape}, got {routes.dtype} {tuple(routes.shape)}."
            )
        if bool(((routes < 0) | (routes > REPEAT)).any()):
            raise ValueError(
                f"routes must be 0 (skip), 1 (run) or 2 (repeat), got {sorted(set(routes.flatten().tolist()))}."
            )
        return routes.tolist()

    def forward(self, input_ids=None, attention_mask=None, routes=None, prompt_lengths=None, draw_gates=None, **kwargs):
        """The stock forward along each row's own route, or each token's.

        A forward with an empty cache, or none, decides the routes (or takes `routes`, or all ones with
        `config.is_static_routing`); later ones replay what the cache holds. A router that decides for each token does
        so in every forward. `output_hidden_states` gives the state entering each layer, skipped or not, then the
        normalised last one: L + 1 tensors [B, T, D].

        Args:
            routes: [B, L] counts to force.
            prompt_lengths: [B], how many real tokens of each row the routers may see; default all. A router that
                decides for each token sees that token alone.
            draw_gates: for training of a global router, maps its logits [B, R] or [B, T, R] to gates of that shape:
                True where a layer runs, or numbers g for g F(h) + (1 - g) h.

        Raises:
            ValueError: for routes or prompt lengths of wrong shape or value, or routes that contradict the cache.
        """

        def execute(hidden: torch.Tensor, runner, states: list | None) -> torch.Tensor:
            by_token, cache = kind_of(self.config).decides_for == "token", runner.cache
            goes_on = cache is not None and not cache.is_empty
            if goes_on and not (by_token and routes is None and cache.routes is None):
                return self._replay(hidden, runner, states, routes)
            forced = self._forced_routes(routes, hidden.shape[0])
            if forced is None:
                # A router that decides for each token sees that token alone.
                seen = self.routing_mask(input_ids, attention_mask, hidden, None if by_token else prompt_lengths)
                own = (attention_mask, runner.position_ids, self.padding_ids(), draw_gates)
                decision = self.decide(Prompt(input_ids, seen, *own))
            else:
                decision = along(forced)
            for layer in range(len(self.layers)):
                if states is not None:
                    states.append(hidden)
                with self.around(layer):
                    hidden = decision.run(runner, hidden, layer)
            decision.record(self, cache)
            return hidden

        return self.forward_along(execute, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def decide(self, prompt: Prompt):
        """The decision of the routers, see `decisions.py`."""
        if self.untold:
            self.untold = False
            warnings.warn(UNTRAINED, stacklevel=2)
        return decider(self.config)(self.routers, prompt, self.config)

    def _forced_routes(self, routes, batch: int) -> list[list[int]] | None:
        """Routes that no router decides: those given, else the config's; None where the router is to decide."""
        if routes is not None:
            return self._checked_routes(routes, batch)
        route = None if self.config.is_static_routing else self.config.fixed_route
        if route is None and (self.config.is_static_routing or kind_of(self.config).decides_for == "nothing"):
            route = [1] * len(self.layers)
        return None if route is None else [list(route)] * batch

    def _replay(self, hidden, runner, states, routes):
        if runner.cache.executed is not None:
            raise ValueError(
                "routes= contradicts the cache, in which each token has a route of its own. Start with a new cache."
            )
        if runner.cache.routes is None:
            raise ValueError(
                "the cache was filled by a model that was given its path, so it holds no routes. Leave "
                "past_key_values out."
            )
        if routes is not None and self._checked_routes(routes, hidden.shape[0]) != runner.cache.routes.tolist():
            raise ValueError(
                f"routes={torch.as_tensor(routes).tolist()} contradicts the cache, which was filled along "
                f"{runner.cache.routes.tolist()}. A route is fixed at prefill; start with a new cache."
            )
        cache = runner.cache
        if cache.plans is None:  # Once for all tokens that follow, until rows change places.
            cache.plans = [layer_plan(layer, counts) for layer, counts in enumerate(cache.routes.T.tolist())]
        for layer, plan in enumerate(cache.plans):
            if states is not None:
                states.append(hidden)
            hidden = run_plan(runner, hidden, layer, plan)
        return hidden

    def record_routes(self, routes: torch.LongTensor, cache) -> None:
        """Note that rows took routes [B, L], on the CPU."""
        self.last_routes, self.last_gates = routes, None
        if cache is not None:
            cache.routes = routes
        if self.totals is not None:
            self.totals.add(routes)

    def record_gates(self, gates: torch.BoolTensor, mask: torch.BoolTensor, cache) -> None:
        """Note which tokens ran which routable layers: gates [B, T, R], of tokens that count [B, T]."""
        self.last_gates, mask = gates, mask.to(gates.device)
        tokens = mask.sum(1, keepdim=True)
        ran = (gates & mask[..., None]).sum(1)
        executed = torch.cat([tokens.expand(-1, self.config.kept_layers), ran, tokens], 1)
        if self.totals is not None:
            self.totals.add_tokens(executed)
        if cache is not None:
            cache.executed = executed = executed if cache.executed is None else cache.executed + executed
        self.last_routes = executed[:, :-1] / executed[:, -1:].clamp(min=1)


@torch.no_grad()
def _draw(module: torch.nn.Module) -> None:
    """Initial weights, also where transformers marks those there are as loaded."""
    for parameter in module.parameters():
        parameter._is_hf_initialized = False
    module.reset_parameters()


class RoutedForCausalLM(CardOfCheckpoint, RouterWeights, LayerPathForCausalLM):
    """Mixin over a `...ForCausalLM` whose decoder is a RoutedModel."""

    @property
    def last_routes(self) -> torch.Tensor | None:
        """[B, L], of the last prefill, see `RoutedModel`."""
        return self.model.last_routes

    def init_routers(self) -> None:
        """Draw all routers anew, see `RoutedModel.init_routers`."""
        self.model.init_routers()

    def save_pretrained(self, save_directory, is_main_process=True, *args, **kwargs):
        """As in transformers; the tokenizers of a query router go along."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and isinstance(self.model.routers, QueryRouter):
            self.model.routers.save_tokenizers(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        if isinstance(self.model.routers, QueryRouter):  # save_pretrained has not come to them yet.
            self.model.routers.save_tokenizers(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        routes: torch.LongTensor | None = None,
        prompt_lengths: torch.LongTensor | None = None,
        draw_gates=None,
        **kwargs,
    ) -> RoutedCausalLMOutput:
        """Logits along each row's route; `routes`, `prompt_lengths` and `draw_gates` as in `RoutedModel.forward`."""
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            routes=routes,
            prompt_lengths=prompt_lengths,
            draw_gates=draw_gates,
            return_dict=True,
            **kwargs,
        )
        cache = output.past_key_values
        last = self.last_routes if self.model.last_gates is None else None
        return RoutedCausalLMOutput(**output, routes=last if cache is None else cache.routes)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        """Keep the route of the prefill where no cache keeps it; a cache knows better (beams reorder it)."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        cached = model_kwargs.get("past_key_values") is not None
        model_kwargs["routes"] = None if cached else outputs.routes
        return model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids, *args, inputs_embeds=None, prompt_lengths=None, is_first_iteration=False, **kwargs
    ):
        # transformers looks for inputs_embeds in this signature before it lets generate() take them.
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache = kwargs.get("past_key_values")
        if cache is not None and inputs.get("past_key_values") is None and cache.routes is not None:
            inputs["routes"] = cache.routes  # Phi-3 drops the cache where its positions change; the route stays.
        if prompt_lengths is not None and is_first_iteration:
            inputs["prompt_lengths"] = prompt_lengths
        return inputs

    def _get_candidate_generator(self, *, input_ids, model_kwargs, **kwargs):
        """The first forward of assisted decoding holds the prompt and a draft; routing must not see the draft."""
        generator = super()._get_candidate_generator(input_ids=input_ids, model_kwargs=model_kwargs, **kwargs)
        if model_kwargs.get("prompt_lengths") is None:
            prompt = self.model.routing_mask(input_ids, model_kwargs.get("attention_mask"), input_ids)
            model_kwargs["prompt_lengths"] = prompt.sum(1).clamp(min=1)
        return generator

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, output_loading_info=False, **kwargs):
        """Loads a routed checkpoint, a base of the family, or routers with a reference to their base.

        A base has no routers: they are drawn at random and wait for training.

        Raises:
            ValueError: for a checkpoint of trained routers that lacks some of them, a base of another family, or
                arguments that contradict the checkpoint.
        """
        place = pretrained_model_name_or_path
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if config is None:
            dtypes = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
            config, unused = cls.config_class.from_pretrained(place, return_unused_kwargs=True, **kwargs)
            kwargs = hub | unused | dtypes
        config.check_routing()
        card_place = None
        if config.trained_num_windows is not None:  # Of a base, the card would be wrong.
            where = {key: value for key, value in hub.items() if key != "token"}
            commit = resolve_revision(place, hub.get("revision"), token=hub.get("token"))
            where["revision"] = getattr(commit, "resolved", commit)
            card_place = Path(place).absolute() if Path(place).is_dir() else place, where
        routers = None
        if config.base_model is not None:
            own_place, routers = place, load_file(cached_file(place, ROUTER_FILE, **hub))
            if config.base_sha256 is not None:
                check_base_files(config.base_model, config.base_sha256)
            place, kwargs = config.base_model, kwargs | {"revision": config.base_revision or "main", "subfolder": ""}
        model, info = super().from_pretrained(place, *args, config=config, output_loading_info=True, **kwargs)
        model._card_place = card_place
        for part in (model.model.routers, model.model.adapters):
            keep_loaded(part)
        if lacking := [key for key in info["missing_keys"] if ".routers." not in key and ".adapters." not in key]:
            raise ValueError(lacking_weights(place, lacking))
        if routers is not None:
            load_small_parts(model.model, routers)
            place = own_place
            with suppress(OSError):  # Those of older versions have none: then it is the base's.
                model.generation_config = GenerationConfig.from_pretrained(place, **hub)
            # The model is complete now: what save_pretrained writes needs no base beside it.
            config = model.config  # transformers made a copy
            config.base_model = config.base_revision = config.base_sha256 = None
        elif config.trained_num_windows is not None:
            missing = sorted(key for key in info["missing_keys"] if ".routers." in key or ".adapters." in key)
            if missing and all(".adapters." in key for key in missing) and len(missing) == _count(model.model.adapters):
                raise ValueError(NO_ADAPTERS)
            if missing:
                raise ValueError(
                    f"{place} says that its routers are trained, but lacks {len(missing)} of their weights or of its "
                    f"adapters', {missing[0]} first. The checkpoint is damaged; make it again with train.py."
                )
        if model.config.router == "query" and model.config.trained_num_windows is not None:
            model.model.routers.load_tokenizers(place, **hub)
        return (model, info) if output_loading_info else model


@torch.no_grad()
def keep_loaded(part: torch.nn.Module) -> None:
    """Put what a device_map offloads of routers or adapters where it is computed, and leave it there.

    They are small, and their weights are read outside of the forward calls in which offloaded ones are there.
    """
    for module in part.modules():
        for hook in hooks_of(module):
            if not getattr(hook, "offload", False):
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.device.type == "meta":
                    try:
                        value = hook.weights_map[name]
                    except KeyError:  # Of a checkpoint without its base's weights; they are loaded next.
                        value = torch.zeros(parameter.shape, dtype=parameter.dtype)
                    own = torch.nn.Parameter(value.to(hook.execution_device), requires_grad=parameter.requires_grad)
                    setattr(module, name, own)
            hook.offload = False


def lacking_weights(place: str, keys: Collection[str]) -> str:
    """What is wrong with a model whose files lack weights, which transformers would draw at random."""
    return (
        f"the files of {place} lack {len(keys)} weights that the model needs, {min(keys)} first; they would be random "
        "numbers. Download or save the model again: with all its files, under transformers' own names (those of a "
        "model that was compiled begin with _orig_mod.)."
    )


def _count(module: torch.nn.Module) -> int:
    return len(module.state_dict())


def small_parts(model: RoutedModel) -> dict[str, torch.Tensor]:
    """Weights of routers by their names, and of adapters by `adapters.` and theirs: all but the base's."""
    adapters = {f"adapters.{name}": tensor for name, tensor in model.adapters.state_dict().items()}
    return model.routers.state_dict() | adapters


def load_small_parts(model: RoutedModel, parts: dict[str, torch.Tensor]) -> None:
    """Load what `small_parts` gave."""
    adapters = {name.removeprefix("adapters."): t for name, t in parts.items() if name.startswith("adapters.")}
    if model.config.skip_action == "adapter" and not adapters:
        raise ValueError(NO_ADAPTERS)
    if model.config.skip_action == "adapter":  # Otherwise they were switched off when loading.
        model.adapters.load_state_dict(adapters)
    model.untold = False
    model.routers.load_state_dict({name: t for name, t in parts.items() if not name.startswith("adapters.")})


def check_base_files(base: str, expected: dict[str, str]) -> None:
    """Refuse a base folder that is gone or was changed since the routers were trained.

    Raises:
        FileNotFoundError, ValueError: naming the file and the remedy.
    """
    for name, digest in expected.items():
        path = Path(base) / name
        if not path.is_file():
            raise FileNotFoundError(
                f"the checkpoint refers to the base model in {base}, but {path} is missing. Put the base back, or "
                "edit base_model in the checkpoint's config.json to where it is now."
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise ValueError(
                f"{path} is not the file that the routers were trained with (SHA-256 {found}, expected {digest}). "
                "Point base_model in the checkpoint's config.json to the right base, or train again."
            )
