"""`shoal doctor`: probes the machine and judges the result.

Files:
    checks.py    judges the results of the probe, with remedies
    packages.py  packages that only training needs, and how to install them
    probe.py     probes the machine
"""
