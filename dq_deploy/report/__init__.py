"""Pictures and the HTML page: `write_report(path, ReportData(...))`."""
