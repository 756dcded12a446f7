"""Measuring, static analysis and pictures for `triton_gelu`; a tool of the repository, not part of the wheel."""
