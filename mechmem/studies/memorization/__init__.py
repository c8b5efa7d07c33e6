"""Two other meanings of memorization, beside the direction."""
