"""MXFP4 and Q8_0 for training (straight-through) and for the file, in GGUF's block layout. Blocks run along the last axis."""

import torch
from torch import Tensor

BLOCK = 32
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SIZES = {"MXFP4": 17, "Q8_0": 34}  # bytes per block


def straight_through(w: Tensor, rounded: Tensor) -> Tensor:
    """The values of `rounded`, with the gradient of `w`."""
    return rounded.detach() + (w - w.detach())


def blocks(w: Tensor) -> Tensor:
    return w.unflatten(-1, (-1, BLOCK))


def mxfp4_scales(w: Tensor) -> Tensor:
    """Scale bytes [..., blocks, 1]: in units of the scale, the largest magnitude is in [3.5, 7), so clamping to 6 takes less than 1.

    The exponent is read from the bits of a float, so that no logarithm can round across a power of two.
    """
    largest = blocks(w).abs().amax(-1, keepdim=True) * (8 / 7)
    return ((largest.view(torch.int32) >> 23) - 2).clamp(min=1)


def mxfp4(w: Tensor) -> Tensor:
    """The nearest value that MXFP4 can hold."""
    scale = (mxfp4_scales(w) << 23).view(torch.float32)
    scaled = blocks(w) / scale
    size = scaled.abs()
    fine = torch.round(size * 2) / 2
    middle = torch.round(size)
    coarse = torch.round(size / 2) * 2
    level = torch.where(size < 2, fine, torch.where(size < 4, middle, coarse)).clamp(max=6)
    return (torch.where(scaled < 0, -level, level) * scale).flatten(-2)


def q8_0_scales(w: Tensor) -> Tensor:
    """Scales [..., blocks, 1] that f16 can hold, rounded on the bits: a compiler may drop a cast to f16 and back."""
    bits = (blocks(w).abs().amax(-1, keepdim=True) / 127).view(torch.int32)
    rounded = ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    return rounded.clamp(min=2**-14)  # f16's smallest normal number


def q8_0_codes(w: Tensor) -> Tensor:
    return torch.round(blocks(w) / q8_0_scales(w)).clamp(-127, 127)


def q8_0(w: Tensor) -> Tensor:
    return (q8_0_codes(w) * q8_0_scales(w)).flatten(-2)


ROUND = {"MXFP4": mxfp4, "Q8_0": q8_0}


def pack_mxfp4(w: Tensor) -> Tensor:
    """Bytes [..., in / 32 * 17]: the scale, then byte j holds elements j and j + 16."""
    scales = mxfp4_scales(w)
    value = blocks(mxfp4(w)) / (scales << 23).view(torch.float32)
    levels = torch.tensor(LEVELS, device=w.device)
    codes = (torch.searchsorted(levels, value.abs().contiguous()) + 8 * (value < 0)).to(torch.uint8)
    return torch.cat([scales.to(torch.uint8), codes[..., :16] | codes[..., 16:] << 4], -1).flatten(-2)


def unpack_mxfp4(data: Tensor) -> Tensor:
    data = data.unflatten(-1, (-1, SIZES["MXFP4"]))
    scale = (data[..., :1].to(torch.int32) << 23).view(torch.float32)
    codes = torch.cat([data[..., 1:] & 15, data[..., 1:] >> 4], -1).long()
    levels = torch.tensor(LEVELS + tuple(-level for level in LEVELS), device=data.device)
    return (levels[codes] * scale).flatten(-2)


def pack_q8_0(w: Tensor) -> Tensor:
    """Bytes [..., in / 32 * 34]: the scale as f16, then 32 signed bytes."""
    scale = q8_0_scales(w).half().contiguous().view(torch.uint8)
    return torch.cat([scale, q8_0_codes(w).to(torch.int8).view(torch.uint8)], -1).flatten(-2)


def unpack_q8_0(data: Tensor) -> Tensor:
    data = data.unflatten(-1, (-1, SIZES["Q8_0"]))
    scale = data[..., :2].contiguous().view(torch.float16).float()
    return (data[..., 2:].contiguous().view(torch.int8).float() * scale).flatten(-2)


PACK = {"MXFP4": pack_mxfp4, "Q8_0": pack_q8_0}
UNPACK = {"MXFP4": unpack_mxfp4, "Q8_0": unpack_q8_0}
