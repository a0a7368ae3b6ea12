"""The report: figures, sections, viewer."""
