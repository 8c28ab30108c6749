"""The report: one page of HTML with what was found, tables, figures, and where all of it comes from."""
