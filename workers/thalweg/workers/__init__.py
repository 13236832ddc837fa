"""Workers: the computation of tasks, the worker's loop and transport, and the Ray fleet that runs workers."""
