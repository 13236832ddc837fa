"""Workers on a Ray cluster: the fleet, and the process that drives Ray."""
