"""What other packages need from us, and what we change in them."""
