"""What machines see of a server or a shard: metrics, health, readiness."""
