"""The gRPC services: thin translations between messages and the jobs that they are about."""
