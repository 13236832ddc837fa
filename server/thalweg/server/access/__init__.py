"""Who may do what: principals, their roles, and the table of what each role may do. No I/O, no gRPC, no jobs."""
