"""The page for people: jobs, their curves and the cluster in a browser. A client of a server, which it may run beside."""
