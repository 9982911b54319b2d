"""GPT-OSS in PyTorch, trainable: the complete architecture. Modules have the names of the GGUF's tensors.

Matrices pass through the file's number formats in every forward pass, so the exported model is the trained one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference_path
from cases import Shape, alternating
from numpy_model import inverse_frequencies, mscale
from quantize import ROUND, straight_through

TINY = Shape(
    hidden=256, intermediate=192, query_heads=8, kv_heads=2, head_dim=64,
    experts=8, experts_per_token=4, window=128, sliding=alternating(6),
)
# A small configuration for smoke tests on a CPU.
MINIATURE = Shape(
    hidden=64, intermediate=64, query_heads=2, kv_heads=1, head_dim=64,
    experts=8, experts_per_token=4, window=128, sliding=alternating(2),
)
SHAPES = {"tiny": TINY, "miniature": MINIATURE}
LONGEST = 4096  # positions that the rotation table holds
LIMIT = 7.0  # of the clamped SwiGLU
# Initial value of sinks: exp(5) = 148 is about the sum of exp(score) over a window of 128 keys with score 0, so that a head without a
# relevant key outputs little.
SINK = 5.0

Cache = list[tuple[Tensor, Tensor]]


class Stored(nn.Module):
    """A tensor of the file and its bias. `kind` is the number format of the weight."""

    def __init__(self, kind: str, *shape: int, std: float = 0.0, mean: float = 0.0, bias: bool = False):
        super().__init__()
        self.kind = kind
        self.exact = kind == "F32"  # the weight needs no rounding
        self.weight = nn.Parameter(torch.randn(shape) * std + mean)
        self.bias = nn.Parameter(torch.zeros(shape[:-1])) if bias else None

    def value(self) -> Tensor:
        """The weight with the rounding of the file."""
        return self.weight if self.exact else straight_through(self.weight, ROUND[self.kind](self.weight))

    def linear(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.value().to(dtype), bias)


def rms_norm(x: Tensor, norm: Stored, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, tokens, heads, D] in f32, cos and sin [tokens, D / 2] with mscale in them."""
    first, second = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        hidden, width, experts = shape.hidden, shape.intermediate, shape.experts
        queries, keys = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        unit, into = hidden**-0.5, (2 * shape.layers) ** -0.5
        self.attn_norm = Stored("F32", hidden, mean=1)
        self.attn_q = Stored("Q8_0", queries, hidden, std=unit, bias=True)
        self.attn_k = Stored("Q8_0", keys, hidden, std=unit, bias=True)
        self.attn_v = Stored("Q8_0", keys, hidden, std=unit, bias=True)
        self.attn_output = Stored("Q8_0", hidden, queries, std=queries**-0.5 * into, bias=True)
        self.attn_sinks = Stored("F32", shape.query_heads, mean=SINK)
        self.post_attention_norm = Stored("F32", hidden, mean=1)
        self.ffn_gate_inp = Stored("F32", experts, hidden, std=unit, bias=True)
        self.ffn_gate_exps = Stored("MXFP4", experts, width, hidden, std=unit, bias=True)
        self.ffn_up_exps = Stored("MXFP4", experts, width, hidden, std=unit, bias=True)
        self.ffn_down_exps = Stored("MXFP4", experts, hidden, width, std=width**-0.5 * into, bias=True)

    def attend(
        self, x: Tensor, visible: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [batch, tokens, hidden], visible [batch, tokens, keys]. Also returns the keys and values, past ones first."""
        shape = self.shape
        batch, tokens, _ = x.shape
        q, k, v = (m.linear(x, dtype).unflatten(-1, (-1, shape.head_dim)) for m in (self.attn_q, self.attn_k, self.attn_v))
        # For D = 64, 1 / sqrt(D) is a power of two, so the scores can be scaled at any point without rounding.
        q = (rotate(q, cos, sin) * shape.head_dim**-0.5).to(dtype)
        k = rotate(k, cos, sin).to(dtype)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        # Query heads that share a KV head are adjacent, so that one product computes all of them.
        q = q.transpose(1, 2).reshape(batch, shape.kv_heads, -1, shape.head_dim)
        scores = (q @ k.transpose(-1, -2)).view(batch, shape.query_heads, tokens, -1).float()
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
        sink = self.attn_sinks.weight[:, None, None]
        peak = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
        weights = torch.exp(scores - peak)
        weights = weights / (weights.sum(-1, keepdim=True) + torch.exp(sink - peak))
        mixed = weights.to(dtype).view(batch, shape.kv_heads, -1, k.shape[2]) @ v
        mixed = mixed.view(batch, shape.query_heads, tokens, -1).transpose(1, 2).flatten(2)
        return self.attn_output.linear(mixed, dtype), (k, v)

    def mix(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The experts' sum for x [batch, tokens, hidden], and the loss that balances their use (1 when even).

        All experts run for every token, with weight 0 for those not chosen: three large products are faster than many small ones.
        """
        shape = self.shape
        logits = self.ffn_gate_inp.linear(x, torch.float32)
        best, chosen = logits.topk(shape.experts_per_token)
        share = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))

        def project(m: Stored) -> Tensor:
            flat = F.linear(x.to(dtype), m.value().flatten(0, 1).to(dtype), m.bias.flatten().to(dtype))
            return flat.unflatten(-1, (shape.experts, -1)).float()

        gate, up = project(self.ffn_gate_exps), project(self.ffn_up_exps)
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
        act = (up + 1) * gate * torch.sigmoid(1.702 * gate) * share[..., None]
        down = self.ffn_down_exps.value().transpose(1, 2).flatten(0, 1)
        out = act.flatten(-2).to(dtype) @ down.to(dtype) + (share @ self.ffn_down_exps.bias).to(dtype)

        used = (share > 0).float().flatten(0, -2).mean(0) / shape.experts_per_token
        balance = shape.experts * (used * logits.softmax(-1).flatten(0, -2).mean(0)).sum()
        return out, balance

    def forward(
        self, x: Tensor, visible: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        attended, kept = self.attend(rms_norm(x, self.attn_norm, self.shape.rms_eps), visible, cos, sin, past, dtype)
        x = x + attended
        mixed, balance = self.mix(rms_norm(x, self.post_attention_norm, self.shape.rms_eps), dtype)
        return x + mixed, kept, balance


class GptOss(nn.Module):
    def __init__(self, shape: Shape, vocab: int):
        super().__init__()
        self.shape = shape
        self.token_embd = Stored("Q8_0", vocab, shape.hidden, std=1.0)
        self.blk = nn.ModuleList(Block(shape) for _ in shape.sliding)
        self.output_norm = Stored("F32", shape.hidden, mean=1)
        self.output = Stored("Q8_0", vocab, shape.hidden, std=0.5 * shape.hidden**-0.5)
        inverse = torch.tensor(inverse_frequencies(shape, truncate=False), dtype=torch.float32)
        angle = torch.arange(LONGEST, dtype=torch.float32)[:, None] * inverse
        self.register_buffer("cos", angle.cos() * mscale(shape), persistent=False)
        self.register_buffer("sin", angle.sin() * mscale(shape), persistent=False)

    def forward(
        self, tokens: Tensor, documents: Tensor, past: Cache | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Cache, Tensor]:
        """Logits [batch, tokens, vocab] in f32, the keys and values of every layer, and the mean balance loss.

        `documents` [batch, past and new tokens] numbers the documents packed into a row; attention never leaves one.
        Positions count from the start of the row, not of the document: attention depends only on differences of positions.
        """
        keys, new = documents.shape[1], tokens.shape[1]
        queries = torch.arange(keys - new, keys, device=tokens.device)[:, None]
        distance = queries - torch.arange(keys, device=tokens.device)
        full = (documents[:, keys - new :, None] == documents[:, None, :]) & (distance >= 0)
        near = full & (distance < self.shape.window)
        cos, sin = self.cos[keys - new : keys], self.sin[keys - new : keys]

        x = F.embedding(tokens, self.token_embd.value())
        cache, balance = [], x.new_zeros(())
        for index, (block, sliding) in enumerate(zip(self.blk, self.shape.sliding)):
            # Blocks are compiled only for training; in decoding, shapes change at every step.
            run = block if self.training else block.forward
            x, kept, uneven = run(x, near if sliding else full, cos, sin, past and past[index], dtype)
            cache.append(kept)
            balance = balance + uneven / self.shape.layers
        x = rms_norm(x, self.output_norm, self.shape.rms_eps)
        return self.output.linear(x, dtype).float(), cache, balance
