"""`python -m cluster.cli`: the command line where the `shoal` script is not installed, as in a job on a cluster."""

from cluster.cli.app import main

main()
