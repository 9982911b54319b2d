# The end of every worker's program, after common.py and the peer's file, which defines the class `Peer`. Answers requests from stdin, one
# at a time, until stdin ends. The first request is the argument of `Peer`; each later one names an operation in `op`.
#
# A request is a u32 length (little-endian) and that many bytes of JSON. A reply has the same form, followed by as many bytes of f32
# (little-endian) as the field `bytes` of its JSON says.

# After the peer's packages: if NumPy was loaded first, llama.cpp with CUDA crashed while it loaded a model.
import numpy as np


def answer(peer, request):
    """The reply to one request: a dictionary, and arrays of f32."""
    operation = request["op"]
    if operation == "step":
        return peer.step(request["items"])
    if operation == "fork":
        peer.fork(request["from"], request["to"], request["length"])
    elif operation == "truncate":
        peer.truncate(request["sequence"], request["length"])
    elif operation == "release":
        peer.release(request["sequence"])
    elif operation == "stats":
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"peak_resident_bytes": peak, **peer.stats()}, []
    else:
        raise Unsupported(f"unknown operation {operation!r}")
    return {}, []


def reply_to(peer, request):
    try:
        return answer(peer, request)
    except CannotGoBack:
        return {"kind": "cannot_go_back", "error": "the cache no longer has the positions needed to shorten the sequence that far"}, []
    except Unsupported as error:
        return {"kind": "unsupported", "error": str(error)}, []
    except Exception as error:
        traceback.print_exc()
        return {"kind": "failed", "error": f"{type(error).__name__}: {error}"}, []


def serve():
    # Libraries may print to stdout: redirect that to stderr, so that only replies go to the real stdout.
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    peer = None
    while len(head := requests.read(4)) == 4:
        request = json.loads(requests.read(struct.unpack("<I", head)[0]))
        if peer is None:
            try:
                peer = Peer(request)
                header, arrays = peer.hello, []
            except Exception as error:
                kind = "unsupported" if isinstance(error, Unsupported) else "failed"
                traceback.print_exc()
                header, arrays = {"kind": kind, "error": f"{type(error).__name__}: {error}"}, []
        else:
            header, arrays = reply_to(peer, request)
        payload = [np.ascontiguousarray(array, dtype="<f4").reshape(-1).view(np.uint8).data for array in arrays]
        text = json.dumps({**header, "bytes": sum(map(len, payload))}).encode()
        replies.write(struct.pack("<I", len(text)) + text)
        for part in payload:
            replies.write(part)
        replies.flush()


serve()
