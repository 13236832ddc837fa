"""The mathematics: models, losses, optimizers, schedules, data, differentiation. No gRPC, threads, jobs or Ray."""
