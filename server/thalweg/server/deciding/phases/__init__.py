"""The phases of a job: its parameters are initialized, then it takes its course of steps and evaluations."""
