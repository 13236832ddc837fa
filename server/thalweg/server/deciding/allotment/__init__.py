"""Which jobs may have workers, and which fleets start them."""
