//! The operator's tool: checks a configuration before Envoy sees it, explains what would become of a
//! request, and shows or forgets what Redis keeps under a key.

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

/// Checks, explains and looks after the idempotency filter for Envoy.
///
/// Exit code 0: done, or nothing is wrong. 1: refused, or not found. 2: it could not be tried (no such
/// file, Redis out of reach, arguments that make no sense).
#[derive(Parser)]
#[command(name = "idempotency", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Refuses what Envoy would refuse, in the same words.
    Check(check::Check),
    /// Says which rule protects a request, its key, and what would become of it.
    Explain(explain::Explain),
    /// Shows the record of a key.
    Show(records::Show),
    /// Deletes the record of a key: a duplicate that comes later runs.
    Forget(records::Forget),
    /// Prints the JSON Schema of the configuration.
    Schema,
}

/// Where a configuration is, and what its variables are.
#[derive(Args)]
struct Source {
    /// JSON or YAML: a plugin configuration, or a bootstrap or manifest that holds some; `-` is standard
    /// input.
    config: PathBuf,
    /// A variable that the configuration names (secret_env, password_env); else the process's own
    /// environment is asked.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variables::pair)]
    variables: Vec<(String, String)>,
    /// Take variables that are not set here for set and good, as an admission check without secrets must.
    #[arg(long)]
    assume_env: bool,
}

/// Why a command ends without having done its work.
#[derive(Debug)]
enum Failure {
    /// Somebody has to change something: exit code 1.
    Refused(String),
    /// It could not be tried: exit code 2.
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
