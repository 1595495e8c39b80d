"""Training objectives: each is one file of pure tensor functions and one row of a table (that of training on labels in
routing/training.py, those of training end to end in routing/objectives/table.py)."""
