"""Question sets (arXiv 2503.23084 and your own): reading them, asking them, labeling them."""
