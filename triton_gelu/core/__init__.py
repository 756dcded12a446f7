"""What all operators share; it imports no operator and no formula."""
