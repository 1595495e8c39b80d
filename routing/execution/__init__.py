"""Evaluating many (example, path) pairs: packed tokens, shared prefixes of layers and of prompts."""
