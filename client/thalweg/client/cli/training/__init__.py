"""`thalweg train`: its options, its course, its end."""
