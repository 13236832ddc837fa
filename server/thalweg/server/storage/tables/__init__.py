"""The database of a data folder: its tables, and its schema."""
