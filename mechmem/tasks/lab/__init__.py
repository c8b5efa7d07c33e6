"""Tasks whose models ship with the package."""
