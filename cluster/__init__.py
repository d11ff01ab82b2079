"""Application: the command line, the driver, and everything that uses Ray.

Importing this package imports neither torch nor ray.

Files:
    __main__.py      `python -m cluster`, the same as `shoal`
    errors.py        errors with which a command ends
    interruption.py  the exception by which Ctrl-C and SIGTERM end a command
"""

__version__ = "0.1.0"
