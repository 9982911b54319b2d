"""Computes logits with the same weights in transformers' GptOss, with eager attention in f32."""

import numpy as np
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from cases import Shape


def build(shape: Shape, weights: dict[str, np.ndarray], truncate: bool) -> GptOssForCausalLM:
    config = GptOssConfig(
        num_hidden_layers=shape.layers,
        num_local_experts=shape.experts,
        vocab_size=len(weights["output.weight"]),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        head_dim=shape.head_dim,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        sliding_window=shape.window,
        rms_norm_eps=shape.rms_eps,
        num_experts_per_tok=shape.experts_per_token,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": shape.rope_theta,
            "factor": shape.yarn_factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": truncate,
            "original_max_position_embeddings": shape.original_context,
        },
        layer_types=["sliding_attention" if sliding else "full_attention" for sliding in shape.sliding],
        attn_implementation="eager",
        experts_implementation="eager",
    )
    state = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for layer in range(shape.layers):
        source = {name.removeprefix(f"blk.{layer}."): w for name, w in weights.items() if name.startswith(f"blk.{layer}.")}
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
            for kind in ("weight", "bias"):
                source[f"self_attn.{theirs}_proj.{kind}"] = source[f"attn_{ours}.{kind}"]
        # Gate and up are the even and odd columns of one matrix, and matrices are [in, out].
        pair = [np.stack([source[f"ffn_gate_exps.{kind}"], source[f"ffn_up_exps.{kind}"]], axis=2) for kind in ("weight", "bias")]
        experts = shape.experts
        target = {name: w for name, w in source.items() if name.startswith("self_attn.")} | {
            "self_attn.sinks": source["attn_sinks.weight"],
            "input_layernorm.weight": source["attn_norm.weight"],
            "post_attention_layernorm.weight": source["post_attention_norm.weight"],
            "mlp.router.weight": source["ffn_gate_inp.weight"],
            "mlp.router.bias": source["ffn_gate_inp.bias"],
            "mlp.experts.gate_up_proj": pair[0].reshape(experts, -1, shape.hidden).swapaxes(1, 2),
            "mlp.experts.gate_up_proj_bias": pair[1].reshape(experts, -1),
            "mlp.experts.down_proj": source["ffn_down_exps.weight"].swapaxes(1, 2),
            "mlp.experts.down_proj_bias": source["ffn_down_exps.bias"],
        }
        state |= {f"model.layers.{layer}.{name}": w for name, w in target.items()}
    model = GptOssForCausalLM(config).float().eval()
    model.load_state_dict({name: torch.from_numpy(np.array(w, np.float32)) for name, w in state.items()}, strict=True)
    return model


def logits(shape: Shape, weights: dict[str, np.ndarray], tokens: list[int], truncate: bool) -> np.ndarray:
    """Logits [tokens, vocab]."""
    with torch.no_grad():
        return build(shape, weights, truncate)(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
