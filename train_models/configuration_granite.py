"""Configuration of the routed Granite models."""

from transformers import GraniteConfig

from .configuration_routing import RoutingFields


class RoutedGraniteConfig(RoutingFields, GraniteConfig):
    """`GraniteConfig` with the fields of `RoutingFields`."""

    model_type = "routed_granite"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedGraniteConfig.register_for_auto_class()
