"""Search for layer paths. Nothing here imports torch: a search asks for verdicts on routes and is told them."""
