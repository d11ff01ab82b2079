"""Ray, and only here: the driver and its stages, the workers' launch, jobs, and the command line.

Importing this package imports neither torch nor ray.
"""

__version__ = "0.1.0"
