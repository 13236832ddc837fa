"""The arrays of running jobs: parameters, gradients, optimizer state, copies."""
