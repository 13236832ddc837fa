"""The contract in Python: its rules and errors, slabs, the tree, and channels.

All packages may import this one. It imports nothing of Thalweg but the generated stubs in `thalweg.v1`.
"""
