"""The old place of `Positions`, for code that is on its way."""

from mechmem.models.positions import Positions as Positions
from mechmem.models.positions import PositionSpec as PositionSpec
