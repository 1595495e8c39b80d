"""Training objectives: each is one file of pure tensor functions and one row of the table in routing/training.py."""
