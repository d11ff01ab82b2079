"""`shoal plan`: a dry run, from a config or a workload to a plan, its picture and its figures. Imports neither torch nor ray.

Packages:
    simulation  `shoal plan --simulate`: predictions for several numbers of workers

Files:
    calibration.py      cost constants fitted to measurements of runs
    command.py          `shoal plan`: plans, writes the files, prints the results
    drawing.py          SVG elements of the picture
    grids.html.j2       the tables of pages
    grids.py            the figures of a plan as values and as text tables
    picture.py          a plan as a picture: ranks, shards, seconds
    plan.html.j2        the page of a plan
    request.py          from a config or a workload, and options, to loads and devices
    simulation.html.j2  the page of a simulation
    workload.py         settings of a workload: tables and devices without logs
"""
