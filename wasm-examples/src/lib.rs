//! Guest programs: examples for users and fixtures for tests, one file per program under `src/bin`.
//!
//! What a program computes lives here as plain functions, so that it is tested natively; its binary only reads and
//! writes.

pub mod logistic;
pub mod pi;
pub mod words;
