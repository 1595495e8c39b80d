"""Training of global routers end to end on text: arguments, LoRA, training, validation, alarms, controls."""
