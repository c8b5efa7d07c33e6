"""The engine: positions, batches, hooks, and running the model over them."""
