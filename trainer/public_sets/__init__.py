"""Public data sets, as their publishers offer them for download, turned into event logs. Nothing is downloaded here."""
