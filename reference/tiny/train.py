"""Trains gptoss-tiny from scratch, or from a checkpoint with --start, for a number of minutes or of steps.

Writes checkpoint.npz (the tensors of the GGUF), training.json (the settings, losses and scores) and, unless --samples is 0, wrong.json
(the wrong answers) to the output folder.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import heldout
import tokenizer
from data import CATEGORIES, ROW, Batch, Loader
from model import SHAPES, GptOss
from muon import Muon
from scoring import evaluate

WARMUP_STEPS = 100
BALANCE = 0.01  # weight of the loss that makes the experts' use even
ADAM_SHARE = 0.5  # fraction of the learning rate, for parameters that Muon does not train
SAMPLES = 100  # held-out items per suite, at the end
SAMPLE_SEED = 30_000  # different items than those of heldout.json


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.5, help="wall clock until the last step, start included")
    parser.add_argument("--steps", type=int, help="train for this many steps instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--rows", type=int, default=32, help=f"rows of {ROW} tokens per step")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--start", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="held-out items per suite to score at the end")
    return parser.parse_args()


def optimizers(model: GptOss, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding, the head, the routers and every vector."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and name.startswith("blk.") and parameter.dim() > 1 and "ffn_gate_inp" not in name:
            matrices.append(parameter)
        else:
            (tables if parameter.dim() > 1 and name.endswith("weight") else vectors).append(parameter)
    groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr * ADAM_SHARE, betas=(0.9, 0.95), fused=True)
    return [Muon(matrices, lr), adam]


def loss(model: GptOss, batch: Batch, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over trained tokens plus BALANCE times the balance loss; sums and counts by category; the balance loss."""
    columns = [torch.from_numpy(array).to(device, non_blocking=True).long() for array in vars(batch).values()]
    tokens, documents, trained, categories = columns
    logits, _, balance = model(tokens[:, :-1], documents[:, :-1], dtype=dtype)
    # The first token of a document is never trained, so no target crosses into the next one.
    weight = trained[:, 1:].flatten().float()
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none") * weight
    sums = torch.zeros(2, len(CATEGORIES), device=device)
    sums.index_add_(1, categories[:, 1:].flatten(), torch.stack([each.detach(), weight]))
    return each.sum() / weight.sum() + BALANCE * balance, sums, balance.detach()


def main() -> None:
    began = time.monotonic()
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    loader = Loader(args.seed, args.rows, args.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    model = GptOss(SHAPES[args.shape], len(tokenizer.vocabulary()["tokens"]))
    if args.start:
        model.load_state_dict(checkpoint.load(args.start)[0].state_dict())
    model.to(device).train()
    if device == "cuda":
        # All layers share one compiled block. If compilation fails, the block runs uncompiled.
        torch._dynamo.config.suppress_errors = True
        for block in model.blk:
            block.compile()
    both = optimizers(model, args.lr)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in both]

    step, tokens, seen, first = 0, 0, torch.zeros(2, len(CATEGORIES), device=device), None
    history = []
    for batch in loader:
        elapsed = time.monotonic() - began
        progress = step / args.steps if args.steps else elapsed / (60 * args.minutes)
        if progress >= 1:
            break
        # The warm-up counts steps, so that compilation does not shorten it; the decay follows `progress`.
        rate = min((step + 1) / WARMUP_STEPS, 1 - progress)
        for optimizer, peak in zip(both, peaks):
            for group, lr in zip(optimizer.param_groups, peak):
                group["lr"] = lr * rate
            optimizer.zero_grad()
        value, sums, balance = loss(model, batch, device, dtype)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
        step, seen = step + 1, seen + sums
        tokens += batch.tokens[:, 1:].size
        if step == 10:
            first = time.monotonic(), step
        if step % 100 == 0 or (step <= 10 and step % 5 == 0):
            means = (seen[0] / seen[1].clamp(min=1)).tolist()
            seen.zero_()
            pace = (step - first[1]) / (time.monotonic() - first[0]) if first and step > 10 else 0
            shown = "  ".join(f"{name} {mean:.4f}" for name, mean in zip(CATEGORIES, means))
            print(f"{elapsed:5.0f} s  step {step:5}  {pace:5.1f} /s  lr {rate:.3f}  norm {norm:.2f}  "
                  f"balance {balance:.3f}  {shown}", flush=True)
            history.append({"step": step, "seconds": round(elapsed, 1), "loss": dict(zip(CATEGORIES, means))})
            if not all(mean == mean for mean in means):
                raise FloatingPointError(f"the loss is not a number at step {step}")
    loader.close()
    trained_for = time.monotonic() - began

    model.eval()
    checkpoint.save(args.out / "checkpoint.npz", model, args.shape)
    facts = {
        "seed": args.seed, "steps": step, "tokens": tokens, "seconds": round(trained_for, 1), "lr": args.lr, "rows": args.rows,
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "losses": history,
    }
    (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{trained_for:.0f} s, {step} steps, {tokens / 1e6:.1f} M tokens", flush=True)

    if args.samples:
        reloaded = checkpoint.load(args.out / "checkpoint.npz")[0].to(device)
        facts["scores"], wrong = evaluate(reloaded, heldout.suites(SAMPLE_SEED, args.samples), device)
        for suite, score in facts["scores"].items():
            print(f"{suite:16}" + "".join(f"  {name} {value:.4g}" for name, value in score.items()))
        (args.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
        (args.out / "wrong.json").write_text(json.dumps(wrong, ensure_ascii=False, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s in total", flush=True)


if __name__ == "__main__":
    main()
