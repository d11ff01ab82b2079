"""Application: the command line, the driver, and everything that uses Ray.

Importing this package imports neither torch nor ray.

Files:
    errors.py  errors by which a command ends
"""

__version__ = "0.2.0"
