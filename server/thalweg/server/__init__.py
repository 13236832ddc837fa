"""The parameter server: parameters, optimizers, synchrony, jobs, storage and the gRPC services. Knows no model and no Ray."""
