"""Application: the command line, the driver, and everything that uses Ray.

Importing this package imports neither torch nor ray.

Packages:
    cli          command line, one file per command group
    config       config of a command: files, overrides, the cluster
    data         Ray tasks that prepare a dataset or generate synthetic logs
    doctor       checks of this machine
    driver       stages of a run, in order, each recorded
    plan         dry run: table placement and cost without torch or Ray
    ray_cluster  Ray sessions, tokens, job submission, task pools
    study        many runs with different settings and seeds, compared
    workers      worker group, its jobs, and messages to and from the driver

Files:
    errors.py  errors by which a command ends
"""

__version__ = "0.2.0"
