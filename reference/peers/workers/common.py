# The beginning of every worker's program. The engine runs `python -c` with the concatenation of this file, the file of the peer, which
# defines `Peer`, and serve.py.
import json
import os
import resource
import signal
import struct
import sys
import traceback

# Ctrl-C is handled by the engine, which ends this process by closing its stdin.
signal.signal(signal.SIGINT, signal.SIG_IGN)


class Unsupported(Exception):
    """The peer does not support the request; its state is unchanged."""


class CannotGoBack(Exception):
    """The cache has dropped positions that the next token would attend to; the peer's state is unchanged."""
