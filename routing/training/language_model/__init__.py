"""Training of small hybrid language models from scratch: arguments, training, validation, alarms, checkpoint."""
