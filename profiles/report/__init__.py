"""The report: everything a run found, in one HTML file that opens without a network.

write_report(path, Report(title, manifest, history, ...))

Python prepares plain data (one module per concern), the templates beside it hold the HTML, `report.css` the look.
"""

from secateur.profiles.report.content import Layer, Report, Sample
from secateur.profiles.report.write import write_report

__all__ = ["Layer", "Report", "Sample", "write_report"]
