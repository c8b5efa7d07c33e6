"""The type checker under which the tests run mechmem; `tests/conftest.py` installs it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# Not random: by default beartype looks at a random item of a list, and so would move the caller's
# random state, which the tests watch, and would find a wrong item on some days only. An integer
# is taken where a float is asked for, as everywhere in Python (PEP 484).
checked = beartype(conf=BeartypeConf(is_random=False, is_pep484_tower=True))
