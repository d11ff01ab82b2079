"""Progress of a command.

Files:
    events.py  events that report the progress of a command
    view.py    relays what the driver reports to a listener
"""
