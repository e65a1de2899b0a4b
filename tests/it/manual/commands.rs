//! Generates the command line's part of the manual from the types that `--help` is generated from.

use clap::{Arg, ArgAction, Command};

use super::roff::{escape, item, prose, verbatim};

/// Beginning of the examples in the help of a command.
const EXAMPLES: &str = "Examples:\n";

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

/// Returns a copy of `command` without hidden commands and options, at any depth.
pub(super) fn without_hidden(command: &Command) -> Command {
    let subcommands: Vec<Command> = shown(command).map(without_hidden).collect();
    // In this build, clap accepts only static names.
    let name: &'static str = command.get_name().to_owned().leak();
    let mut copy = Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(command.get_version().is_none())
        .args(command.get_arguments().cloned())
        .subcommands(subcommands);
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    copy
}

/// Returns the values of `arg` in italics: `PATH`, `[TEXT]...`.
fn values(arg: &Arg) -> String {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let names = arg.get_value_names().unwrap_or_default();
    if !takes {
        return String::new();
    }
    names.iter().map(|name| format!(" \\fI{}\\fR", escape(name))).collect()
}

/// Adds the full stop that the last sentence of a help text lacks.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.ends_with(['.', ']', ':', '?']) { text.to_owned() } else { format!("{text}.") }
}

fn argument(arg: &Arg) -> String {
    let term = match arg.get_long() {
        Some(long) => format!("\\fB{}\\fR{}", escape(&format!("--{long}")), values(arg)),
        None => {
            format!("\\fI{}\\fR", escape(arg.get_value_names().unwrap_or_default()[0].as_str()))
        }
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = sentence(&help);
    let values: Vec<_> =
        arg.get_possible_values().into_iter().map(|value| value.get_name().to_owned()).collect();
    if !values.is_empty() && matches!(arg.get_action(), ArgAction::Set) {
        text.push_str(&format!(" One of {}.", values.join(", ")));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().filter_map(|it| it.to_str()).collect();
    if !defaults.is_empty() && matches!(arg.get_action(), ArgAction::Set) {
        text.push_str(&format!(" [default: {}]", defaults.join(" ")));
    }
    if let Some(name) = arg.get_env().and_then(|name| name.to_str()) {
        text.push_str(&format!(" [environment: {name}]"));
    }
    item(&term, &text)
}

/// Returns the options of the whole program.
pub(super) fn options(command: &Command) -> String {
    let options: String =
        command.get_arguments().filter(|arg| is_shown(arg)).map(argument).collect();
    options
        + &item(
            "\\fB\\-h\\fR, \\fB\\-\\-help\\fR",
            "Print help; after a command, print the help of that command.",
        )
        + &item("\\fB\\-V\\fR, \\fB\\-\\-version\\fR", "Print the version.")
}

/// Returns a synopsis without the global options: `caxton model install [OPTIONS] FILE`.
fn synopsis(path: &str, command: &Command) -> String {
    let mut text = format!("\\fB{}\\fR", escape(path));
    let (options, positionals): (Vec<&Arg>, Vec<&Arg>) = command
        .get_arguments()
        .filter(|arg| is_shown(arg) && !arg.is_global_set())
        .partition(|arg| arg.get_long().is_some());
    for arg in options {
        let option = format!("\\fB\\-\\-{}\\fR{}", escape(arg.get_long().unwrap()), values(arg));
        text.push_str(&if arg.is_required_set() {
            format!(" {option}")
        } else {
            format!(" [{option}]")
        });
    }
    for arg in positionals {
        let name = escape(arg.get_value_names().unwrap_or_default()[0].as_str());
        let more = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
        text.push_str(&match arg.is_required_set() {
            true => format!(" \\fI{name}\\fR{more}"),
            false => format!(" [\\fI{name}\\fR]{more}"),
        });
    }
    text
}

/// Returns every command without subcommands, with its path.
fn leaves(command: &Command) -> Vec<(String, &Command)> {
    let mut leaves = Vec::new();
    for sub in shown(command) {
        if shown(sub).next().is_none() {
            leaves.push((sub.get_name().to_owned(), sub));
        }
        for (path, leaf) in leaves_below(sub) {
            leaves.push((path, leaf));
        }
    }
    leaves
}

fn leaves_below(command: &Command) -> Vec<(String, &Command)> {
    let name = |path: String| format!("{} {path}", command.get_name());
    leaves(command).into_iter().map(|(path, leaf)| (name(path), leaf)).collect()
}

/// Returns every command with its arguments.
pub(super) fn subcommands(command: &Command) -> String {
    let mut text = String::new();
    for (path, leaf) in leaves(command) {
        text.push_str(&format!(".SS {}\n", synopsis(&path, leaf)));
        let about = leaf.get_long_about().or(leaf.get_about()).unwrap().to_string();
        for (index, paragraph) in about.split("\n\n").enumerate() {
            let break_ = if index == 0 { "" } else { ".PP\n" };
            text.push_str(&format!(
                "{break_}{}\n",
                prose(&sentence(&paragraph.replace('\n', " ")))
            ));
        }
        let own = leaf.get_arguments().filter(|arg| is_shown(arg) && !arg.is_global_set());
        text.extend(own.map(argument));
    }
    text
}

/// Returns the examples in the help of every command, in the order of the commands.
pub(super) fn example_lines(command: &Command) -> Vec<String> {
    let mut lines = Vec::new();
    for (_, leaf) in leaves(command) {
        let Some(help) = leaf.get_after_help().map(ToString::to_string) else { continue };
        let examples = help.strip_prefix(EXAMPLES).unwrap_or_else(|| panic!("no examples: {help}"));
        lines.extend(examples.lines().map(|line| line.trim_start().to_owned()));
    }
    lines
}

/// Returns the same examples as a block.
pub(super) fn examples(command: &Command) -> String {
    verbatim(example_lines(command).iter().map(String::as_str))
}
