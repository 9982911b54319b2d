"""A checkpoint holds the tensors of the GGUF as the file stores them, under the same names: packed bytes, or f32."""

from pathlib import Path

import numpy as np
import torch

import reference_path
from cases import Shape
from model import SHAPES, GptOss, Stored
from quantize import PACK, UNPACK


def kinds(model: GptOss) -> dict[str, str]:
    """The number format of every tensor; biases are F32."""
    stored = {f"{name}.weight": module.kind for name, module in model.named_modules() if isinstance(module, Stored)}
    return {name: stored.get(name, "F32") for name, _ in model.named_parameters()}


def save(path: Path, model: GptOss, shape_name: str) -> None:
    formats = kinds(model)
    with torch.no_grad():
        tensors = {
            name: PACK[formats[name]](w) if formats[name] in PACK else w for name, w in model.float().named_parameters()
        }
    np.savez(path, shape=np.array(shape_name), **{name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def load(path: Path) -> tuple[GptOss, dict[str, tuple[np.ndarray, str]]]:
    """The model, ready to run, and each tensor as the file stores it, with its number format."""
    with np.load(path) as archive:
        packed = {name: archive[name] for name in archive.files}
    shape: Shape = SHAPES[str(packed.pop("shape"))]
    model = GptOss(shape, len(packed["token_embd.weight"]))
    formats = kinds(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = torch.from_numpy(packed[name])
            parameter.copy_(UNPACK[formats[name]](tensor) if formats[name] in UNPACK else tensor)
    for module in model.modules():
        if isinstance(module, Stored):
            module.exact = True
    return model.eval(), {name: (tensor, formats[name]) for name, tensor in packed.items()}
