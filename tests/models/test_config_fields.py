"""What a config says of each layer."""

from __future__ import annotations

from transformers import LlamaConfig, MistralConfig, Qwen2Config

from routing.models.config_fields import attention_windows


def test_windows_of_layers():
    assert attention_windows(LlamaConfig(num_hidden_layers=2)) == [None, None]
    assert attention_windows(MistralConfig(num_hidden_layers=2, sliding_window=7)) == [7, 7]
    assert attention_windows(MistralConfig(num_hidden_layers=2, sliding_window=None)) == [None, None]
    mixed = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    assert attention_windows(Qwen2Config(**mixed)) == [None, None, 5]
    assert attention_windows(Qwen2Config(num_hidden_layers=2)) == [None, None]
