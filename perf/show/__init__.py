"""Rows made readable: tables, pictures, reports, comparisons, the documents' figures, and the notebooks."""
