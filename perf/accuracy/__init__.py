"""How far results are from the truth: errors in ulp, the truth itself, and the fits of the polynomials."""
