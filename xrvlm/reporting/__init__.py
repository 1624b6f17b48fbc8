"""What a report is made of. `xrvlm.report` puts it together."""
