"""`shoal doctor`: probes the machine and judges the result.

Files:
    checks.py    judges what the probe saw
    packages.py  packages that only training needs, and how to install them
    probe.py     looks at the machine
"""
