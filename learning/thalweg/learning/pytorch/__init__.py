"""The model kind `torch`: a PyTorch module of the user's. Imported only where a job has one."""
