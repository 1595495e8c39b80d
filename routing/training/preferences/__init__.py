"""Query routers trained on explored layer sets: which of two is better for a query, or which is best."""
