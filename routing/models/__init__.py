"""Base models: families, tokenizers, fetching, checkpoint folders, the hub."""
