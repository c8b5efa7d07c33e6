"""The house style, as figures use it; it lies on the ground, where no model is needed."""

from mechmem.style import (
    COLORS,
    GRAY,
    PALETTE,
    THEMES,
    color_of,
    faded,
    house_style,
    template,
)

__all__ = ["COLORS", "GRAY", "PALETTE", "THEMES", "color_of", "faded", "house_style", "template"]
