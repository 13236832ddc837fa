"""What is decided about jobs: pure functions of events, without I/O, clock or randomness."""
