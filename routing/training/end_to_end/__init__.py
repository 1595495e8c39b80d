"""Training of global routers end to end on text: arguments, adapters, training, validation, alarms, controls."""
