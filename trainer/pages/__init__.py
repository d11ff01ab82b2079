"""HTML pages: shared template, plots and parts of reports.

Files:
    page.html.j2     template of all pages: look on screens, in the dark and on paper
    page.py          rendering, and plots as inline SVG
    parts.html.j2    macros for tiles, tables, plots and settings
    report_parts.py  counts and curves of the reports of both tasks
    text.py          figures, times and settings as text
"""
