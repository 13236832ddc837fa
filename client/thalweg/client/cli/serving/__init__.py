"""Commands that run until they are stopped: the server, a shard, a fleet, the page."""
