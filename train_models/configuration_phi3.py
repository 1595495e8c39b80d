"""Configuration of the routed Phi-3 models."""

from transformers import Phi3Config

from .configuration_routing import RoutingFields


class RoutedPhi3Config(RoutingFields, Phi3Config):
    """`Phi3Config` with the fields of `RoutingFields`."""

    model_type = "routed_phi3"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedPhi3Config.register_for_auto_class()
