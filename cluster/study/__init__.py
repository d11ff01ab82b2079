"""`shoal study`: many runs that differ in settings and seeds, side by side. Importing it loads neither torch nor ray."""
