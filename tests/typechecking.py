"""The run-time type checker of the test session."""

from beartype import BeartypeConf, FrozenDict, beartype
from pydantic import JsonValue

checked = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as PEP 484 and pyright have it
        hint_overrides=FrozenDict({JsonValue: object}),  # a recursive alias, which beartype cannot follow
    )
)
