//! Nothing. `Cargo.toml` is what this crate is for: the features of dependencies that several programs share.
