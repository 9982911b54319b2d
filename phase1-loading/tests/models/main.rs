//! Models as programs write them: GGUF files, folders of safetensors and session files, what is read from them and what is refused.

mod configurations;
mod conversion;
mod dialects;
mod folder_configurations;
mod folder_layouts;
mod folder_lies;
mod folders;
mod made;
mod sessions;
mod split;
mod stand_ins;
mod vocabularies;
