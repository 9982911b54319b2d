# A worker without a model: its logits are made up, and it behaves as given by BEHAVIOUR, which the test defines before this file.
import json
import os
import struct
import sys
import time


def read():
    head = sys.stdin.buffer.read(4)
    return json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None


def send(header, payload=b"", announced=None):
    text = json.dumps({**header, "bytes": len(payload) if announced is None else announced}).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(text)) + text + payload)
    sys.stdout.buffer.flush()


def row(position, token):
    """Logits that depend on the token and on its position."""
    return [float((7 * column + position + token) % 11) for column in range(VOCAB)]


def computed(items):
    """The reply of a correct worker to a step."""
    tokens, values = [], []
    for item in items:
        start = lengths.get(item["sequence"], 0)
        rows = [row(start + index, token) for index, token in enumerate(item["tokens"])]
        lengths[item["sequence"]] = start + len(rows)
        if item["want"] == "greedy":
            tokens.append(rows[-1].index(max(rows[-1])))
        elif item["want"] != "nothing":
            values += sum(rows if item["want"] == "all" else rows[-1:], [])
    return {"tokens": tokens}, struct.pack(f"<{len(values)}f", *values)


def step(items):
    header, payload = computed(items)
    if BEHAVIOUR == "dies":
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(7)
    elif BEHAVIOUR == "hangs":
        time.sleep(3600)
    elif BEHAVIOUR == "hangs within a reply":
        sys.stdout.buffer.write(b"\x20\x00")
        sys.stdout.buffer.flush()
        time.sleep(3600)
    elif BEHAVIOUR == "prints":
        print("Traceback (most recent call last):", flush=True)
        time.sleep(3600)
    elif BEHAVIOUR == "closes its stdout":
        os.close(1)
        time.sleep(3600)
    elif BEHAVIOUR == "announces too much":
        send(header, b"", 1 << 40)
    elif BEHAVIOUR == "sends too little":
        send(header, payload[4:])
    elif BEHAVIOUR == "breaks off":
        send(header, payload[4:], len(payload))
        os._exit(0)
    elif BEHAVIOUR == "fails":
        send({"kind": "failed", "error": "MemoryError: no room"})
    elif BEHAVIOUR == "draws nonsense":
        send({"tokens": [VOCAB]})
    elif BEHAVIOUR == "draws too much":
        send({"tokens": [1, 2]})
    elif BEHAVIOUR == "forgets the tokens":
        send({})
    elif BEHAVIOUR == "sees NaN":
        send({"tokens": [None]})
    elif BEHAVIOUR == "answers twice":
        send(header, payload)
        send(header, payload)
    else:
        send(header, payload)


load = read()
VOCAB, lengths = load["config"]["vocab_size"], {}
hello = {"device": "cpu", "dtype": "float32", "versions": {"fake": "1"}, "vocab": VOCAB, "layers": load["config"]["num_hidden_layers"]}
if BEHAVIOUR == "dies while it loads":
    sys.exit("no such package")
elif BEHAVIOUR == "refuses the model":
    send({"kind": "unsupported", "error": "no such model"})
elif BEHAVIOUR == "loads another model":
    send({**hello, "layers": 99})
elif BEHAVIOUR == "says nothing of itself":
    send({})
else:
    send(hello)
while request := read():
    if request["op"] == "step":
        step(request["items"])
    elif request["op"] in ("fork", "truncate") and BEHAVIOUR == "cannot go back":
        send({"kind": "cannot_go_back", "error": "the window has moved"})
    else:
        if request["op"] == "fork":
            lengths[request["to"]] = request["length"]
        elif request["op"] == "truncate":
            lengths[request["sequence"]] = request["length"]
        elif request["op"] == "release":
            lengths.pop(request["sequence"], None)
        send({"peak_resident_bytes": 5, "peak_device_bytes": None})
