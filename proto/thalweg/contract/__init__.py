"""What the contract means in Python: its rules and errors, slabs and trees, and the channels that carry it.

Everyone may import this package; it imports nothing of Thalweg but the generated stubs in `thalweg.v1`.
"""
