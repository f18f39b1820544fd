"""Pictures and the HTML page: ``write_report`` measures and draws it all."""
