"""Plain text as training data: corpora by name, cut into sequences of tokens."""
