"""Tables in text files: CSV in the dialects that programs write, and JSON lines."""
