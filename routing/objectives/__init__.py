"""Training objectives: each is one file of pure tensor functions and one row of a table (that of training on labels in
routing/training/routers/trainer.py, those of training end to end and on preferences in routing/objectives/table.py)."""
