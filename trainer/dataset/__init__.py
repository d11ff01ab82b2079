"""The sequence dataset: its format, its folder, and how events become histories."""
