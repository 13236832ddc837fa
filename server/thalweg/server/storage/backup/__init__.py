"""Backups of data folders: making one while a server runs, and restoring it."""
