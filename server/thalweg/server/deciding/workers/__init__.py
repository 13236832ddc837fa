"""What is known of the workers of a job: their tasks and speeds, their machines, their failures."""
