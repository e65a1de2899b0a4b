//! Integration tests.

mod admin;
mod bench;
mod bundled;
mod bundled_directory;
mod command_line;
mod connections;
mod corruption;
mod crash;
mod daemon;
mod drop_directory;
mod embeddings;
mod fallback;
mod footprint;
mod golden;
mod memory;
mod model_command;
mod offline;
mod page_cache;
mod precision;
mod quarantine;
mod readme;
mod refusals;
mod status;
mod support;
mod tidy;
mod usage;
