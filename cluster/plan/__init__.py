"""`shoal plan`: a dry run, from a config or a workload to a plan, its picture and its figures. Imports neither torch nor ray.

Files:
    calibration.py  cost constants fitted to measurements of runs
    command.py      `shoal plan`: plans, writes the files, prints the results
    drawing.py      SVG elements of the picture
    grids.py        the figures of a plan as values and as text tables
    picture.py      a plan as a picture: ranks, shards, seconds
    plan.html.j2    the page of a plan
    simulation/     `shoal plan --simulate`: predictions for several numbers of workers
    request.py      from a config or a workload, and options, to loads and devices
    workload.py     settings of a workload: tables and devices without logs
"""
