"""`shoal doctor`: probes the machine and judges the result.

Files:
    checks.py  and judges what it saw
    probe.py   `shoal doctor`: looks at the machine
"""
