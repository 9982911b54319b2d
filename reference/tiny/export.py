"""Exports a checkpoint as a GGUF file and as a folder for mlx-lm, both with the same weights."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

import checkpoint
import reference_path
import tokenizer
from cases import Shape
from harmony import CONTROL
from model import LONGEST
from models import Packed, write_architecture
from quantize import SIZES, UNPACK

# Engines render conversations themselves; this template is the minimum for generic clients.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}{% if message.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def write_gguf(path: Path, shape: Shape, tensors: dict[str, Packed]) -> None:
    writer = GGUFWriter(path, "gpt-oss")
    writer.add_name("gptoss-tiny")
    writer.add_description("A small GPT-OSS trained from nothing on the grammars in reference/tiny")
    write_architecture(writer, shape, LONGEST)

    vocabulary = tokenizer.vocabulary()
    normal = len(vocabulary["tokens"]) - len(CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_token_types([TokenType.NORMAL] * normal + [TokenType.CONTROL] * len(CONTROL))
    writer.add_bos_token_id(tokenizer.token_id("<|startoftext|>"))
    writer.add_eos_token_id(tokenizer.token_id("<|return|>"))
    writer.add_pad_token_id(tokenizer.token_id("<|endoftext|>"))
    writer.add_chat_template(CHAT_TEMPLATE)

    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_mlx(folder: Path, shape: Shape, tensors: dict[str, Packed]) -> None:
    """Experts stay MXFP4; all other tensors are decoded exactly to f32."""
    # Imported here, because only this function needs safetensors and MLX.
    from safetensors.numpy import save_file

    from mlx_dump import mlx_name, repack

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer.vocabulary()
    weights = {}
    for name, tensor in tensors.items():
        kind = tensor.qtype.name
        if kind == "MXFP4":
            stem = mlx_name(name).removesuffix(".weight")
            words, scales = repack(tensor)
            weights[f"{stem}.weight"], weights[f"{stem}.scales"] = np.array(words), np.array(scales)
        elif kind in SIZES:
            weights[mlx_name(name)] = UNPACK[kind](torch.from_numpy(tensor.data)).numpy()
        else:
            weights[mlx_name(name)] = tensor.data
    save_file(weights, folder / "model.safetensors", {"format": "mlx"})
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": shape.layers,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "vocab_size": len(vocabulary["tokens"]),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "attention_bias": True,
        "sliding_window": shape.window,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in shape.sliding],
        "rms_norm_eps": shape.rms_eps,
        "swiglu_limit": 7.0,
        "rope_theta": shape.rope_theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": shape.yarn_factor,
            "original_max_position_embeddings": shape.original_context,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_id("<|startoftext|>"),
        "eos_token_id": [tokenizer.token_id(name) for name in ("<|return|>", "<|call|>")],
        "pad_token_id": tokenizer.token_id("<|endoftext|>"),
        "quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer.load().save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>", "eos_token": "<|return|>",
             "pad_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--mlx", type=Path, help="a folder for mlx-lm")
    args = parser.parse_args()
    model, stored = checkpoint.load(args.checkpoint)
    tensors = {name: Packed(data, GGMLQuantizationType[kind]) for name, (data, kind) in stored.items()}
    write_gguf(args.gguf, model.shape, tensors)
    if args.mlx:
        write_mlx(args.mlx, model.shape, tensors)
    print(f"{args.gguf}: {args.gguf.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
