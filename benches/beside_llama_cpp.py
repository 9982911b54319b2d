"""Compares the speeds of gptoss and llama.cpp with the same file on the same machine: runs alternate, medians are printed.

    pip install llama-cpp-python==0.3.36
    python benches/beside_llama_cpp.py 20b.gguf --gptoss target/release/gptoss

The machine must be idle. Both process random tokens on the CPU with `--threads` threads. llama.cpp uses flash attention and its f16 cache.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time

GENERATED = 32


class LlamaCpp:
    """llama.cpp through its C interface, which allows any batch and depth."""

    def __init__(self, model: str, threads: int, context: int, sequences: int):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        began = time.perf_counter()
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), parameters)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context * sequences, 512, 512
        options.n_seq_max, options.n_threads, options.n_threads_batch = sequences, threads, threads
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.load_seconds = time.perf_counter() - began

    def step(self, tokens: list[tuple[int, int, int]], logits: bool) -> float:
        """Computes (token, position, sequence) triples; with `logits`, also the logits of each sequence's last token. Returns the seconds."""
        batch, last = self.batch, {sequence: i for i, (_, _, sequence) in enumerate(tokens)}
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = logits and last[sequence] == i
        began = time.perf_counter()
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        if logits:
            self.api.llama_get_logits_ith(self.context, len(tokens) - 1)
        return time.perf_counter() - began

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self, count: int, start: int = 0, sequence: int = 0) -> float:
        tokens = [(random.randrange(self.vocab), start + i, sequence) for i in range(count)]
        pieces = [tokens[i : i + 512] for i in range(0, count, 512)]
        return sum(self.step(piece, piece is pieces[-1]) for piece in pieces)

    def decode(self, depth: int, sequences: int, count: int) -> float:
        steps = ([(random.randrange(self.vocab), depth + i, s) for s in range(sequences)] for i in range(count))
        return sum(self.step(step, True) for step in steps) / count


def llama_cpp(args: argparse.Namespace) -> dict[str, float]:
    engine = LlamaCpp(args.model, args.threads, max(args.depth) + 640, args.sequences)
    found = {"load seconds": engine.load_seconds}
    engine.prefill(64)
    engine.clear()
    for depth in args.depth:
        engine.prefill(max(depth, 1))
        engine.decode(max(depth, 1), 1, 2)
        found[f"decode at depth {depth}"] = 1 / engine.decode(max(depth, 1) + 2, 1, GENERATED)
        engine.clear()
    found["prefill 512"] = 512 / engine.prefill(512)
    engine.clear()
    for sequence in range(args.sequences):
        engine.prefill(1, sequence=sequence)
    engine.decode(1, args.sequences, 2)
    found[f"{args.sequences} sequences"] = args.sequences / engine.decode(3, args.sequences, GENERATED)
    return found


def gptoss(args: argparse.Namespace) -> dict[str, float]:
    found = {}

    def bench(*more: str) -> list[dict]:
        device = ["--device", "cpu", "--threads", str(args.threads)]
        command = [args.gptoss, "bench", args.model, *device, "--repeat", "1", "--json", *more]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]
        found.setdefault("load seconds", report["load_ms"] / 1e3)
        return report["results"]

    depths = ",".join(map(str, args.depth))
    for result in bench("--depth", depths, "--generate", str(GENERATED), "--prompt", "512"):
        if result["what"] == "decode":
            found[f"decode at depth {result['depth']}"] = result["tok_s"]
        elif result["depth"] == 0:
            found["prefill 512"] = result["tok_s"]
    many = bench("--depth", "0", "--batch", str(args.sequences), "--generate", str(GENERATED), "--prompt", "0")
    found[f"{args.sequences} sequences"] = many[0]["tok_s"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gptoss", default="target/release/gptoss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, nargs="*", default=[0, 4096])
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("gptoss", "llama.cpp"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "llama.cpp":
        print(json.dumps(llama_cpp(args)))
        return
    rounds: dict[str, list[dict[str, float]]] = {"gptoss": [], "llama.cpp": []}
    for _ in range(args.rounds):
        rounds["gptoss"].append(gptoss(args))
        # Runs in a separate process, so that its copy of the weights is freed before gptoss runs again.
        command = [sys.executable, __file__, args.model]
        command += ["--only", "llama.cpp", "--threads", str(args.threads), "--sequences", str(args.sequences), "--depth", *map(str, args.depth)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        rounds["llama.cpp"].append(json.loads(output.splitlines()[-1]))
    print(f"{'':24}{'gptoss':>10}{'llama.cpp':>12}{'ratio':>8}")
    for name in rounds["gptoss"][0]:
        ours, theirs = (statistics.median(each[name] for each in rounds[who]) for who in ("gptoss", "llama.cpp"))
        print(f"{name:24}{ours:>10.2f}{theirs:>12.2f}{ours / theirs:>8.2f}")
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
