"""What other packages need from this one, and what it changes in them."""
