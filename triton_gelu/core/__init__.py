"""What every operator shares: it knows no operator and no formula."""
