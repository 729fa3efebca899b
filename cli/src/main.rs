//! The operator's tool: checks a configuration before Envoy loads it, explains what would happen to a
//! request, and shows or deletes records in Redis.

mod check;
mod dry_run;
mod explain;
mod extract;
mod output;
mod records;
mod request;
mod server;
mod variables;

use clap::{Args, Parser, Subcommand};
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Checks configurations of the idempotency filter for Envoy, explains requests, and manages records in
/// Redis.
///
/// Exit code 0: done, or nothing is wrong. 1: refused, or not found. 2: the command could not run (no such
/// file, Redis cannot be reached, invalid arguments).
#[derive(Parser)]
#[command(name = "idempotency", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Refuses a configuration that Envoy would refuse, in the same words.
    Check(check::Check),
    /// Shows which rule protects a request, its key, and what would happen to it.
    Explain(explain::Explain),
    /// Shows the record of a key.
    Show(records::Show),
    /// Deletes the record of a key: a later duplicate runs.
    Forget(records::Forget),
    /// Prints the JSON Schema of the configuration.
    Schema,
}

/// Where a configuration is, and the values of its variables.
#[derive(Args)]
struct Source {
    /// JSON or YAML: a plugin configuration, or a bootstrap or manifest that holds some; `-` is standard
    /// input.
    config: PathBuf,
    /// A variable that the configuration names (secret_env, password_env). Other variables are read from the
    /// tool's own environment.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variables::pair)]
    variables: Vec<(String, String)>,
    /// Treat variables that are not set here as set and valid, for an admission check without secrets.
    #[arg(long)]
    assume_env: bool,
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The input must change: exit code 1.
    Refused(String),
    /// The command could not run: exit code 2.
    Untried(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::Untried(why)) = self;
        f.write_str(why)
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(check) => check.run(),
        Command::Explain(explain) => explain.run(),
        Command::Show(show) => show.run(),
        Command::Forget(forget) => forget.run(),
        Command::Schema => {
            output::print_line(envoy_idempotency::config::render_schema().trim_end());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Refused(_) => ExitCode::from(1),
                Failure::Untried(_) => ExitCode::from(2),
            }
        }
    }
}
