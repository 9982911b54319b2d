# The beginning of every worker's program. The engine starts `python -c` with this file, that of the peer, which defines `Peer`, and
# serve.py, one after another.
import json
import os
import resource
import signal
import struct
import sys
import traceback

import numpy as np

# Ctrl-C is for the engine, which ends this process by closing its stdin.
signal.signal(signal.SIGINT, signal.SIG_IGN)


class Unsupported(Exception):
    """The peer cannot do that; nothing has changed."""


class CannotGoBack(Exception):
    """A cache has let go of positions that the next token would see; nothing has changed."""
