"""What passes some network devices, written to a file as it is; a program for tests, in the namespace of the devices.

    python capture.py FILE DEVICE...

It prints `ready` when it listens, and ends with its stdin. Frames that the system had no room for are an error.
"""

import select
import socket
import struct
import sys
from pathlib import Path
from typing import BinaryIO

_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 3, 263, 6, 33
_BUFFER_BYTES, _FRAME_BYTES = 512 << 20, 1 << 17


def _listening(device: str) -> socket.socket:
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    listening.bind((device, 0))
    listening.setblocking(False)
    return listening


def _take(listening: socket.socket, file: BinaryIO) -> None:
    while True:
        try:
            frame = listening.recv(_FRAME_BYTES)
        except BlockingIOError:
            return
        file.write(frame)


def main(path: str, *devices: str) -> None:
    """Captures until stdin ends."""
    sockets = [_listening(device) for device in devices]
    with Path(path).open("wb") as file:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            readable, _, _ = select.select([*sockets, sys.stdin], [], [])
            for each in sockets:
                _take(each, file)
            if sys.stdin in readable:
                break
    for each in sockets:
        _, lost = struct.unpack("II", each.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            sys.exit(f"{lost} frames were lost")


if __name__ == "__main__":
    main(*sys.argv[1:])
