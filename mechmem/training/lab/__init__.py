"""The recipes of the models that ship."""
