"""Carries out what is decided about the lives of jobs: how runs begin, recover and end."""
