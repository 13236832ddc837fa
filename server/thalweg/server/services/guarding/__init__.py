"""What every call passes: whose it is, what it may do, and how much of the server it may take."""
