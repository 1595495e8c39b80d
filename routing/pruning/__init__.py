"""Query-level pruning from end to end: routers beside baselines at equal numbers of pruned layers, and real speed."""
