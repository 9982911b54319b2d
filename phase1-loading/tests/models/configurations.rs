//! Configurations of the same model that are written differently, and configurations that must be refused.

use crate::made::{GoldenParts, with_json};
use phase1_loading::write::MetadataValue::{self, Bools, F32, I32s, Text, U32};
use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig};
use serde_json::{Value, json};

fn golden() -> GoldenParts {
    GoldenParts::of("even", |_, _| ())
}

fn config_with(key: &str, value: MetadataValue) -> GptOssConfig {
    let mut made = golden();
    made.set(key, value);
    made.open().unwrap_or_else(|error| panic!("{key}: {error}")).config
}

fn refusal_with(key: &str, value: MetadataValue) -> String {
    let mut made = golden();
    made.set(key, value);
    made.refusal()
}

/// llama.cpp and other programs read some of these keys and write others. None may be ignored.
#[test]
fn metadata_of_unsupported_computation_is_refused() {
    let factor = 0.1 * 32f32.ln() + 1.0;
    let head_dim = 32u32;
    for (key, usual, other) in [
        ("rope.scaling.yarn_beta_fast", F32(32.0), F32(16.0)),
        ("rope.scaling.yarn_beta_slow", F32(1.0), F32(4.0)),
        ("rope.scaling.yarn_attn_factor", F32(factor), F32(1.0)),
        ("rope.scaling.yarn_ext_factor", F32(1.0), F32(0.0)),
        ("rope.scaling.attn_factor", F32(1.0), F32(2.0)),
        ("rope.freq_base_swa", F32(150_000.0), F32(10_000.0)),
        ("rope.dimension_count", U32(head_dim), U32(16)),
        ("expert_gating_func", U32(3), U32(2)),
        ("expert_weights_scale", F32(1.0), F32(2.5)),
        ("attention.scale", F32(1.0 / (head_dim as f32).sqrt()), F32(1.0)),
        ("final_logit_softcapping", F32(0.0), F32(30.0)),
        ("swiglu_limit", F32(7.0), F32(10.0)),
        ("swiglu_clamp_exp", F32(7.0), I32s(vec![7, 7, 7, 8])),
        ("attention.value_length", U32(head_dim), U32(64)),
    ] {
        let key = format!("gpt-oss.{key}");
        assert_eq!(config_with(&key, usual), golden().open().expect("opens").config, "{key}");
        let refused = refusal_with(&key, other);
        assert!(refused.starts_with(&format!("made.gguf: metadata `{key}`: expected ")), "{refused}");
    }
    let refused = refusal_with("gpt-oss.rope.scaling.yarn_beta_fast", F32(16.0));
    assert_eq!(refused, "made.gguf: metadata `gpt-oss.rope.scaling.yarn_beta_fast`: expected 32, found 16");
    let refused = refusal_with("gpt-oss.rope.scaling.yarn_beta_fast", Text("fast".into()));
    assert_eq!(refused, "made.gguf: metadata `gpt-oss.rope.scaling.yarn_beta_fast`: expected 32, found text");
}

#[test]
fn sliding_window_pattern_is_a_number_or_a_list() {
    use AttentionKind::{Full, Sliding};
    let key = "gpt-oss.attention.sliding_window_pattern";
    for (value, expected) in [
        (U32(2), [Sliding, Full, Sliding, Full]),
        (U32(3), [Sliding, Sliding, Full, Sliding]),
        (U32(4), [Sliding, Sliding, Sliding, Full]),
        (U32(1), [Full; 4]),
        (U32(0), [Sliding; 4]),
        (I32s(vec![0, 1, 1, 0]), [Full, Sliding, Sliding, Full]),
        (Bools(vec![true, true, false, false]), [Sliding, Sliding, Full, Full]),
    ] {
        assert_eq!(config_with(key, value).attention, expected);
    }
    for value in [I32s(vec![1, 0, 1]), I32s(vec![2, 0, 1, 0]), I32s(vec![-1, 0, 1, 0]), Text("even".into())] {
        assert!(refusal_with(key, value).contains(key));
    }
}

#[test]
fn numbers_are_read_in_every_metadata_type() {
    let expected = golden().open().expect("opens").config;
    assert_eq!(config_with("gpt-oss.rope.scaling.factor", U32(32)), expected);
    let kv_heads = expected.kv_heads as i32;
    assert_eq!(config_with("gpt-oss.attention.head_count_kv", I32s(vec![kv_heads; 4])), expected);
    let refused = refusal_with("gpt-oss.attention.head_count_kv", I32s(vec![kv_heads, 1, kv_heads, kv_heads]));
    assert!(refused.contains("`gpt-oss.attention.head_count_kv`") && refused.contains("an array"), "{refused}");
}

fn folder(change: impl FnOnce(&mut Value)) -> Result<GptOssConfig, String> {
    let files = with_json("hf", "config.json", change);
    Checkpoint::from_folder_bytes("folder", &files).map(|model| model.config).map_err(|error| error.to_string())
}

#[test]
fn config_of_unsupported_computation_is_refused() {
    let expected = folder(|_| ()).expect("opens");
    let factor = 0.1 * 32f64.ln() + 1.0;
    for (pointer, usual, other) in [
        ("/swiglu_limit", json!(7.0), json!(10.0)),
        ("/swiglu_alpha", json!(1.702), json!(1.0)),
        ("/partial_rotary_factor", json!(1), json!(0.5)),
        ("/hidden_act", json!("silu"), json!("gelu")),
        ("/attention_bias", json!(true), json!(false)),
        ("/tie_word_embeddings", json!(false), json!(true)),
        ("/rope_scaling/attention_factor", json!(factor), json!(1.0)),
        ("/rope_scaling/beta_slow", json!(1), json!(4.0)),
        ("/rope_scaling/mscale", Value::Null, json!(0.5)),
        ("/rope_scaling/mscale_all_dim", Value::Null, json!(1.0)),
        ("/rope_scaling/partial_rotary_factor", json!(1.0), json!(0.25)),
    ] {
        let (section, key) = pointer.rsplit_once('/').expect("a pointer");
        let set = |value: Value| folder(|config| config.pointer_mut(section).expect("there")[key] = value);
        assert_eq!(set(usual).as_ref(), Ok(&expected), "{pointer}");
        assert_eq!(set(Value::Null).as_ref(), Ok(&expected), "{pointer}");
        let refused = set(other).expect_err("refused");
        let name = pointer.trim_start_matches('/').replace('/', ".");
        assert!(refused.starts_with(&format!("folder: config.json: `{name}`: expected ")), "{refused}");
    }
}

/// OpenAI, transformers and others use different names for some sizes.
#[test]
fn alternative_names_of_sizes_are_read() {
    let expected = folder(|_| ()).expect("opens");
    let renamed = |from: &str, to: &str| {
        folder(|config| {
            let found = config.as_object_mut().expect("an object").remove(from).expect("there");
            config[to] = found;
        })
    };
    assert_eq!(renamed("num_local_experts", "num_experts").as_ref(), Ok(&expected));
    assert_eq!(renamed("num_experts_per_tok", "experts_per_token").as_ref(), Ok(&expected));
    let outside = folder(|config| {
        let scaling = config["rope_scaling"].as_object_mut().expect("an object");
        let found = scaling.remove("original_max_position_embeddings").expect("there");
        config["initial_context_length"] = found;
    });
    assert_eq!(outside.as_ref(), Ok(&expected));
    let both = |key: &str, value: Value| folder(|config| config[key] = value);
    for (key, same, twin) in [
        ("num_experts", expected.experts, "num_local_experts"),
        ("experts_per_token", expected.experts_per_token, "num_experts_per_tok"),
        ("initial_context_length", expected.rope.original_context, "rope_scaling.original_max_position_embeddings"),
    ] {
        assert_eq!(both(key, json!(same)).as_ref(), Ok(&expected));
        let refused = both(key, json!(same + 1)).expect_err("refused");
        let sentence = format!("`{key}`: expected the {same} of `{twin}`, found {}", same + 1);
        assert_eq!(refused, format!("folder: config.json: {sentence}"));
    }
}
