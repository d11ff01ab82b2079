"""`shoal doctor`: probes the machine and judges the result.

Files:
    checks.py  judges the results of the probe, with remedies
    probe.py   probes the machine
"""
