"""The error of this package that a user can mend."""


class PlacementError(ValueError):
    """A table cannot be placed as asked. The message names the table, the reason and the setting to change."""
