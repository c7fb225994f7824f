//! Nothing. `Cargo.toml` is what this crate is for: the features of what Cranelift is built from.
