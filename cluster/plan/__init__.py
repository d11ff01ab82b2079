"""`shoal plan`: a dry run, from a config or a workload to a plan, its picture and its figures. No torch, no ray.

Files:
    calibration.py  costs fitted to what runs measured
    command.py      `shoal plan`: plans, their files, what is printed
    drawing.py      the pieces of which it is drawn
    grids.py        a plan's figures as values and as tables of text
    picture.py      a plan as a picture: ranks, shards, seconds
    plan.html.j2    the page of a plan
    request.py      a config or a workload, and options, to loads and devices
    workload.py     settings of a workload: tables and devices without logs
"""
