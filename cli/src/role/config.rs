//! `--config FILE` and `--print-config` for any role: the file's values become the defaults of its flags.
//!
//! So flags and environment variables win over the file, and the file over the built-in defaults, for every flag alike and
//! without a second description of them.

use crate::failure::{Failure, Result, io_text};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Verbs that have a configuration file.
const ROLES: [&str; 3] = ["master", "scheduler", "agent"];
/// Flags that are not configuration.
const NOT_CONFIGURATION: [&str; 5] = ["config", "print_config", "stop_when_stdin_closes", "help", "version"];
/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A configuration file for one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    role: String,
    /// Values by the id of their flag.
    values: Vec<(String, Vec<String>)>,
}

/// The configuration file that the arguments name, read and checked against the role's flags.
pub(crate) fn of_arguments(command: &Command, args: &[OsString]) -> Result<Option<ConfigFile>> {
    let Some(role) = args.get(1).and_then(|a| a.to_str()).filter(|a| ROLES.contains(a)) else { return Ok(None) };
    let Some(path) = path_of(&args[2..]) else { return Ok(None) };
    let text = read(&path).map_err(|why| Failure::new(format!("reading the configuration {}: {why}", path.display())))?;
    let role_command = command.find_subcommand(role).ok_or_else(|| Failure::new(format!("no role {role}")))?;
    let values = values(role_command, &text).map_err(|why| Failure::new(format!("the configuration {}: {why}", path.display())))?;
    Ok(Some(ConfigFile { path, role: role.to_owned(), values }))
}

/// `--config FILE` or `--config=FILE`.
fn path_of(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|a| a.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

fn read(path: &Path) -> std::result::Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| io_text(&e))?.len();
    if length > MAX_FILE {
        return Err(format!("it has {length} bytes, more than {MAX_FILE}"));
    }
    std::fs::read_to_string(path).map_err(|e| io_text(&e))
}

/// The values of a TOML text, by flag.
fn values(role: &Command, text: &str) -> std::result::Result<Vec<(String, Vec<String>)>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    table.into_iter().map(|(key, value)| Ok((flag(role, &key)?, texts(&key, value)?))).collect()
}

/// The id of the flag with this name, written with dashes or underscores.
fn flag(role: &Command, key: &str) -> std::result::Result<String, String> {
    let name = key.replace('_', "-");
    let names = || {
        let names = role.get_arguments().filter(|a| is_configuration(a)).filter_map(clap::Arg::get_long);
        names.collect::<Vec<_>>().join(", ")
    };
    role.get_arguments()
        .find(|a| is_configuration(a) && a.get_long() == Some(&name))
        .map(|a| a.get_id().to_string())
        .ok_or_else(|| format!("`{key}` is not known; there are: {}", names()))
}

fn is_configuration(arg: &clap::Arg) -> bool {
    arg.get_long().is_some() && !NOT_CONFIGURATION.contains(&arg.get_id().as_str())
}

/// A value as flags are written: lists repeat the flag, tables are `name=value;name=value`.
fn texts(key: &str, value: toml::Value) -> std::result::Result<Vec<String>, String> {
    match value {
        toml::Value::Array(values) => values.into_iter().map(|v| scalar(key, v)).collect(),
        toml::Value::Table(table) => {
            let pairs = table.into_iter().map(|(name, v)| Ok(format!("{name}={}", scalar(key, v)?)));
            Ok(vec![pairs.collect::<std::result::Result<Vec<_>, String>>()?.join(";")])
        }
        other => Ok(vec![scalar(key, other)?]),
    }
}

fn scalar(key: &str, value: toml::Value) -> std::result::Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(n) => Ok(n.to_string()),
        toml::Value::Float(n) => Ok(n.to_string()),
        toml::Value::Boolean(b) => Ok(b.to_string()),
        _ => Err(format!("`{key}` must be a text, a number, true, false, or a list of these")),
    }
}

impl ConfigFile {
    /// Makes the file's values the defaults of the role's flags.
    pub(crate) fn apply(&self, command: Command) -> Command {
        command.mut_subcommand(&self.role, |role| {
            self.values.iter().fold(role, |role, (id, texts)| {
                // Clap wants defaults that live as long as the program; there is one file per program.
                let texts: Vec<&'static str> = texts.iter().map(|t| &*Box::leak(t.clone().into_boxed_str())).collect();
                role.mut_arg(id, |arg| arg.required(false).default_values(texts))
            })
        })
    }
}

/// Whether `--print-config` was given to a role.
pub(crate) fn wants_print(matches: &ArgMatches) -> bool {
    matches.subcommand().is_some_and(|(verb, m)| ROLES.contains(&verb) && m.get_flag("print_config"))
}

/// Prints what is in force, as a configuration file with the source of each value behind it.
pub(crate) fn print(command: &Command, matches: &ArgMatches, file: Option<&ConfigFile>) -> Result<()> {
    crate::output::write(describe(command, matches, file).as_bytes())
}

fn describe(command: &Command, matches: &ArgMatches, file: Option<&ConfigFile>) -> String {
    let mut text = String::new();
    let Some((verb, matches)) = matches.subcommand() else { return text };
    let Some(role) = command.find_subcommand(verb) else { return text };
    // By name: clap puts flags that the file changed last.
    let flags: BTreeMap<_, _> = role.get_arguments().filter(|a| is_configuration(a)).filter_map(|a| Some((a.get_long()?, a))).collect();
    for (name, arg) in flags {
        let id = arg.get_id().as_str();
        let values: Vec<_> = matches.get_raw(id).into_iter().flatten().map(|v| v.to_string_lossy().into_owned()).collect();
        let source = source(arg, matches.value_source(id), file);
        // Writing to a String cannot fail.
        let _ = if arg.is_hide_env_values_set() && !values.is_empty() {
            writeln!(text, "# {name} is set and not shown: {source}")
        } else if values.is_empty() {
            writeln!(text, "# {name} is not set")
        } else {
            writeln!(text, "{name} = {} # {source}", toml_value(&values))
        };
    }
    text
}

fn toml_value(values: &[String]) -> String {
    let one = |text: &String| match text.as_str() {
        "true" | "false" => text.clone(),
        _ => toml::Value::String(text.clone()).to_string(),
    };
    match values {
        [single] => one(single),
        several => format!("[{}]", several.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

fn source(arg: &clap::Arg, source: Option<ValueSource>, file: Option<&ConfigFile>) -> String {
    match (source, file) {
        (Some(ValueSource::CommandLine), _) => "flag".into(),
        (Some(ValueSource::EnvVariable), _) => format!("environment ${}", arg.get_env().unwrap_or_default().to_string_lossy()),
        (_, Some(file)) if file.values.iter().any(|(id, _)| arg.get_id() == id.as_str()) => format!("file {}", file.path.display()),
        _ => "default".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    fn command() -> Command {
        Command::new("smalti").subcommand(
            Command::new("master")
                .arg(Arg::new("listen").long("listen").default_value("127.0.0.1:5050").env("SMALTI_TEST_UNSET_LISTEN"))
                .arg(Arg::new("data_dir").long("data-dir").required(true))
                .arg(Arg::new("allow").long("allow").action(ArgAction::Append))
                .arg(Arg::new("attributes").long("attributes"))
                .arg(Arg::new("secret").long("secret").env("SMALTI_TEST_UNSET_SECRET").hide_env_values(true))
                .arg(Arg::new("insecure").long("insecure").action(ArgAction::SetTrue))
                .arg(Arg::new("config").long("config"))
                .arg(Arg::new("print_config").long("print-config").action(ArgAction::SetTrue)),
        )
    }

    /// What `--print-config` says about a file with this text and these flags.
    fn printed(text: &str, flags: &[&str]) -> std::result::Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        std::fs::write(&path, text).unwrap();
        let mut args: Vec<OsString> = ["smalti", "master", "--print-config", "--config"].map(Into::into).into();
        args.push(path.clone().into());
        args.extend(flags.iter().map(Into::into));
        let command = command();
        let file = of_arguments(&command, &args).map_err(|f| f.to_string())?.unwrap();
        let command = file.apply(command);
        let matches = command.clone().try_get_matches_from(args).map_err(|e| e.to_string())?;
        assert!(wants_print(&matches));
        Ok(describe(&command, &matches, Some(&file)).replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "data_dir = \"/x\"\ninsecure = true\nallow = [\"a\", 1]\nlisten = \"127.0.0.1:1\"\nattributes = { zone = \"eu\", n = 2 }\nsecret = \"s\"\n";
        assert_eq!(
            printed(text, &["--listen", "127.0.0.1:2"]).unwrap(),
            "allow = [\"a\", \"1\"] # file FILE\n\
             attributes = \"n=2;zone=eu\" # file FILE\n\
             data-dir = \"/x\" # file FILE\n\
             insecure = true # file FILE\n\
             listen = \"127.0.0.1:2\" # flag\n\
             # secret is set and not shown: file FILE\n"
        );
    }

    #[test]
    fn what_the_file_leaves_out_is_the_default() {
        let text = printed("data-dir = \"/x\"", &[]).unwrap();
        assert!(text.contains("listen = \"127.0.0.1:5050\" # default\n"), "{text}");
        assert!(text.contains("# allow is not set\n") && text.contains("insecure = false # default\n"), "{text}");
    }

    #[test]
    fn mistakes_in_the_file_name_the_key() {
        let error = printed("lisen = 1", &[]).unwrap_err();
        assert!(error.contains("`lisen` is not known; there are: listen, data-dir"), "{error}");
        assert!(printed("config = \"x\"", &[]).unwrap_err().contains("`config` is not known"));
        assert!(printed("listen = [[1]]", &[]).unwrap_err().contains("`listen` must be"));
        assert!(printed("listen = ", &[]).is_err());
    }

    #[test]
    fn only_roles_have_a_file_and_one_that_is_not_there_is_an_error() {
        let of = |args: &[&str]| of_arguments(&command(), &args.iter().map(Into::into).collect::<Vec<_>>());
        assert_eq!(of(&["smalti", "run", "--config", "/none"]).unwrap(), None);
        assert_eq!(of(&["smalti", "master"]).unwrap(), None);
        assert!(of(&["smalti", "master", "--config=/none"]).unwrap_err().to_string().contains("/none: no such file or directory"));
    }
}
