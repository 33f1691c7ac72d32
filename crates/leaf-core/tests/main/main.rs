//! What leaf-core promises to the outside: messages that stay readable, schemas that match, a history that replays.

mod engine;
mod golden;
mod host;
mod model_host;
mod powers;
mod raw;
mod replay;
mod schema;
mod session;
mod strategies;
