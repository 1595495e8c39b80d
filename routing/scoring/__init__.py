"""Right or wrong: requests, verdicts of the plain evaluator, and of many (example, path) pairs at once."""
