"""HTML pages: shared template, plots and parts of reports.

Files:
    page.html.j2     their template
    page.py          what the HTML pages share: look, rendering, plots
    report_parts.py  what it shares with that of ranking
"""
