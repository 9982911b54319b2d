//! Stub of `image`, which `openai-harmony` depends on but does not use.
