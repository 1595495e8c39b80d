"""Many prompts through a routed model: `generate_grouped`, and `stream_grouped` for answers as they are finished."""

from routing.inference.grouped import Generated, generate_grouped, stream_grouped

__all__ = ["Generated", "generate_grouped", "stream_grouped"]
