"""`[changeover]`: which product runs first, and who else may call for another one."""

from station.messages import Name
from station.section import Section


class ChangeoverSettings(Section):
    """`[changeover]`"""

    start: Name | None = None
    """Product that runs at the first start; default: the first table. Later starts go on with the one that ran last."""
