//! In place of `image`, which `openai-harmony` depends on and never uses.
