"""Training runs: one room for each kind of router or part, on shared folders and Trainer arguments."""
