//! Model files and session files: GGUF files, folders of safetensors, sessions; how they are read, and which are refused.

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
