//! Reads `config.json`, and checks the errors for invalid values.

use std::collections::BTreeMap;

use crate::folders::{compare, configured, open};
use crate::made::files;
use bytes::Bytes;
use phase1_loading::{AttentionKind, Checkpoint, YarnRamp, convert};
use serde_json::{Value, json};

#[test]
fn yarn_ramp_is_read() {
    let with = |truncate| {
        let files = configured("hf", |config| config["rope_scaling"]["truncate"] = truncate);
        Checkpoint::from_folder_bytes("ramp", &files)
    };
    for (truncate, ramp) in
        [(json!(true), YarnRamp::Truncated), (json!(false), YarnRamp::Exact), (Value::Null, YarnRamp::Exact)]
    {
        assert_eq!(with(truncate).expect("opens").config.rope.ramp, ramp);
    }
    let error = with(json!("yes")).err().expect("refused").to_string();
    assert_eq!(error, "ramp: config.json: `rope_scaling.truncate`: expected a boolean, found `yes`");
    let (exact, truncated) = (with(json!(false)).expect("opens"), with(json!(true)).expect("opens"));
    assert_ne!(exact.fingerprint(), truncated.fingerprint());
    let differences = compare(&exact, &truncated).differences;
    assert!(differences.len() == 1 && differences[0].starts_with("rope: "), "{differences:?}");
}

#[test]
fn a_configuration_of_transformers_5_is_read() {
    let files = configured("hf", |config| {
        let mut parameters = config["rope_scaling"].take();
        parameters["rope_theta"] = config["rope_theta"].take();
        let object = config.as_object_mut().expect("an object");
        object.remove("rope_scaling");
        object.remove("rope_theta");
        object.insert("rope_parameters".into(), parameters);
    });
    let found = Checkpoint::from_folder_bytes("five", &files).expect("opens");
    assert_eq!(found.config, open("hf").config);
}

#[test]
fn layer_types_are_used() {
    let files = configured("hf", |config| {
        config["layer_types"] = json!(["full_attention", "full_attention", "sliding_attention"]);
    });
    let found = Checkpoint::from_folder_bytes("layers", &files).expect("opens");
    assert_eq!(found.config.attention, [AttentionKind::Full, AttentionKind::Full, AttentionKind::Sliding]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("layers.gguf");
    convert(&found, &path, None, &mut |_, _| ()).expect("converted");
    assert_eq!(Checkpoint::open(&path).expect("opens").config, found.config);
}

/// The error for an invalid field names the field, what was expected and what was found.
#[test]
fn fields_of_a_configuration_are_named_and_quoted() {
    let refusal = |files: &BTreeMap<String, Bytes>| {
        Checkpoint::from_folder_bytes("odd", files).err().expect("refused").to_string()
    };
    let set = |key: &str, value: Value| refusal(&configured("hf", |config| config[key] = value));
    let size = "an integer from 1 to 16777216";
    for (value, found) in [
        (Value::Null, "null"),
        (json!(true), "a boolean"),
        (json!([32]), "an array"),
        (json!({ "size": 32 }), "an object"),
        (json!(32.5), "32.5"),
        (json!(0), "0"),
        (json!("x".repeat(50)), &format!("`{}`", "x".repeat(40))),
    ] {
        assert_eq!(set("head_dim", value), format!("odd: config.json: `head_dim`: expected {size}, found {found}"));
    }
    for (value, found) in [(json!(-1.5), "-1.5"), (json!(0), "0"), (json!(1e300), "1e+300"), (json!("1"), "`1`")] {
        let expected = format!("odd: config.json: `rope_theta`: expected a positive finite number, found {found}");
        assert_eq!(set("rope_theta", value), expected);
    }
    assert_eq!(
        refusal(&configured("hf", |config| _ = config.as_object_mut().expect("an object").remove("hidden_size"))),
        format!("odd: config.json: `hidden_size`: expected {size}, found no such key")
    );
    let mut list = files("hf");
    list.insert("config.json".into(), Bytes::from_static(b"[\"gpt_oss\", 3]"));
    assert_eq!(refusal(&list), "odd: config.json: `model_type`: expected `gpt_oss`, found no such key");
    let whole = configured("hf", |config| (config["head_dim"], config["rope_theta"]) = (json!(32.0), json!(150_000)));
    assert_eq!(Checkpoint::from_folder_bytes("odd", &whole).expect("opens").config, open("hf").config);
}
