"""What the contract means in Python: its rules and errors, slabs and trees, and the channels that carry it.

Everyone may import this package; it imports nothing of Thalweg but the generated stubs in `thalweg.v1`. The other packages import
it before anything else, because it prepares gRPC, which reads its settings when it is first imported.
"""

import os

# Ray's processes are forked from the process that starts it. With its support for forks gRPC would let each fork wait for its own
# threads, and Ray, which waits for its processes, gives up on some of them. None of the forked processes uses gRPC's state.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Without gRPC's pool of threads for events the thread that waits for a message polls the sockets itself: a message wakes fewer
# threads, comes sooner, and takes two thirds of the CPU time.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# gRPC's own lines on stderr say nothing that the errors it raises do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
