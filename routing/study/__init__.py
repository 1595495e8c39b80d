"""The study: all methods on the same questions, model and clock, by a plan that is written before the first result."""
