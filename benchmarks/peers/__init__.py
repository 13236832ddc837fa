"""Systems that Thalweg is compared with. They run in an environment of their own, and import nothing of Thalweg."""
