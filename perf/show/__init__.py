"""Rows made readable: tables, pictures, reports, comparisons, the README's figures, and the notebooks."""
