"""Dr.LLM: routers of layers, trained on labelled paths."""
