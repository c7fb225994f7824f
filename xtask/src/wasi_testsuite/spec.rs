//! What the suite's JSON says about a program: how to start it, and what it should do.

use anyhow::{Context, Result};
use serde_json::Value;
use smalti_tests::Finished;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Characters of output that a verdict quotes.
const QUOTED: usize = 200;

/// One program's file, or the defaults where it has none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// The directory that it sees as `/`, relative to its own place.
    pub(super) root: Option<String>,
    exit_code: i64,
    stdout: Option<String>,
    stderr: Option<String>,
}

impl Spec {
    /// Reads `foo.json` beside `foo.wasm`.
    pub(super) fn beside(wasm: &Path) -> Result<Self> {
        let path = wasm.with_extension("json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let value = serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))?;
                Ok(Self::parse(&value))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Both forms: everything in one object, or a list of operations, each with its part.
    fn parse(value: &Value) -> Self {
        let mut spec = Self::default();
        match value["operations"].as_array() {
            None => spec.add(value),
            Some(operations) => {
                for operation in operations {
                    match (operation["type"].as_str(), operation["id"].as_str()) {
                        (Some("read"), Some("stderr")) => spec.stderr = text(&operation["payload"]),
                        (Some("read"), _) => spec.stdout = text(&operation["payload"]),
                        _ => spec.add(operation),
                    }
                }
            }
        }
        spec
    }

    fn add(&mut self, value: &Value) {
        self.args.extend(value["args"].as_array().into_iter().flatten().filter_map(text));
        self.env.extend(value["env"].as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), text(v)?))));
        self.root = text(&value["root"]).or(self.root.take());
        self.exit_code = value["exit_code"].as_i64().unwrap_or(self.exit_code);
        self.stdout = text(&value["stdout"]).or(self.stdout.take());
        self.stderr = text(&value["stderr"]).or(self.stderr.take());
    }

    /// The root directory of the program at `wasm`.
    pub(super) fn root(&self, wasm: &Path) -> Option<PathBuf> {
        Some(wasm.parent()?.join(self.root.as_ref()?))
    }

    /// What is wrong, if anything. Output counts where the suite says what it should be.
    pub(super) fn judge(&self, done: &Finished) -> Result<(), String> {
        let quoted = |text: &str| text.chars().take(QUOTED).collect::<String>();
        if i64::from(done.code) != self.exit_code {
            return Err(format!("exit code {}, not {}: {:?}", done.code, self.exit_code, quoted(&done.stderr)));
        }
        for (name, due, found) in [("stdout", &self.stdout, &done.stdout), ("stderr", &self.stderr, &done.stderr)] {
            if due.as_ref().is_some_and(|due| due != found) {
                return Err(format!("{name} is {:?}, not {:?}", quoted(found), due.as_deref().map(quoted)));
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Spec {
        Spec::parse(&serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn both_forms_say_the_same() {
        let old = parse(r#"{"args": ["a"], "env": {"k": "v"}, "root": "fs", "exit_code": 3, "stdout": "hi"}"#);
        let new = parse(
            r#"{"operations": [{"type": "run", "args": ["a"], "env": {"k": "v"}, "root": "fs"},
                {"type": "read", "payload": "hi"}, {"type": "wait", "exit_code": 3}]}"#,
        );
        assert_eq!(old, new);
        assert_eq!(old.root(Path::new("/x/foo.wasm")), Some(PathBuf::from("/x/fs")));
    }

    #[test]
    fn exit_code_and_output_are_judged() {
        let done = |code, out: &str| Finished { code, stdout: out.into(), stderr: "noise".into() };
        let spec = parse(r#"{"exit_code": 3, "stdout": "hi"}"#);
        assert!(spec.judge(&done(3, "hi")).is_ok());
        assert!(spec.judge(&done(0, "hi")).is_err_and(|e| e.contains("exit code 0")));
        assert!(spec.judge(&done(3, "ho")).is_err_and(|e| e.contains("stdout")));
        assert!(parse("{}").judge(&done(0, "anything")).is_ok());
    }
}
