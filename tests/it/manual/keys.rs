//! Generates the configuration keys with their defaults and texts from the shipped file. Another
//! test compares that file with the table of keys.

use super::read;
use super::roff::{escape, item, prose};

/// Line of the shipped file.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Blank,
    Comment(&'l str),
    /// Key or section, set or commented out. Each level of depth is indented by two blanks.
    Key {
        depth: usize,
        name: &'l str,
        value: &'l str,
        is_set: bool,
    },
}

fn line(line: &str) -> Line<'_> {
    let text = line.trim_start();
    let depth = (line.len() - text.len()) / 2;
    // `# ` begins a comment, and `#name:` is a key that is not set.
    match (text.strip_prefix("# "), text.strip_prefix('#').unwrap_or(text)) {
        (Some(comment), _) => Line::Comment(comment),
        (None, "") => Line::Blank,
        (None, key) => {
            let (name, value) = key.split_once(':').unwrap();
            Line::Key { depth, name, value: value.trim(), is_set: !text.starts_with('#') }
        }
    }
}

/// Returns the placeholder for a name that the operator chooses.
fn placeholder(path: &[&str]) -> Option<&'static str> {
    match path {
        ["models", _] => Some("<model>"),
        ["aliases", _] => Some("<alias>"),
        _ => None,
    }
}

/// Returns the sections and keys with their defaults.
pub(super) fn keys() -> String {
    let file = read("etc/caxton/caxton.yaml");
    let mut path: Vec<&str> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut page = String::new();
    // Skip the comment at the head of the file: it describes the file, and the page has its own
    // introduction.
    let lines = file.lines().map(line).skip_while(|line| !matches!(line, Line::Key { .. }));
    for line in lines {
        let (depth, name, value, is_set) = match line {
            Line::Blank => continue,
            Line::Comment(text) => {
                comment.push(text);
                continue;
            }
            Line::Key { depth, name, value, is_set } => (depth, name, value, is_set),
        };
        path.truncate(depth);
        path.push(name);
        if let Some(placeholder) = placeholder(&path) {
            path[depth] = placeholder;
        }
        let text = text(&std::mem::take(&mut comment));
        let dotted = escape(&path.join("."));
        if depth == 0 {
            page.push_str(&format!(".SS {dotted}\n"));
        }
        match (value, is_set) {
            ("", _) if text.is_empty() => {}
            ("", _) if depth == 0 => page.push_str(&format!("{text}\n")),
            ("", _) => page.push_str(&format!(".PP\n\\fB{dotted}\\fR: {text}\n")),
            (value, is_set) => {
                // A key without a comment is described by its section.
                let text = if text.is_empty() { "\\&" } else { &text };
                let how = if is_set { "as shipped: " } else { "" };
                let term = format!("\\fB{dotted}\\fR ({how}\\fI{}\\fR)", escape(value));
                page.push_str(&format!(".TP\n{term}\n{text}\n"));
            }
        }
    }
    page
}

/// Converts a comment to text. Indented lines become a list.
fn text(comment: &[&str]) -> String {
    let mut text = String::new();
    let mut running: Vec<&str> = Vec::new();
    let mut in_list = false;
    for line in comment {
        match line.strip_prefix("  ").and_then(|line| line.split_once(": ")) {
            Some((names, what)) => {
                if !running.is_empty() {
                    text.push_str(&(prose(&running.join(" ")) + "\n"));
                    running.clear();
                }
                if !in_list {
                    text.push_str(".RS\n");
                    in_list = true;
                }
                text.push_str(&item(&format!("\\fB{}\\fR", escape(names)), what));
            }
            None => running.push(line),
        }
    }
    if in_list {
        text.push_str(".RE\n.PP\n");
    }
    (text + &prose(&running.join(" "))).trim_end().to_owned()
}

#[test]
fn lines_are_parsed_by_kind() {
    let key = |depth, name, value, is_set| Line::Key { depth, name, value, is_set };
    assert_eq!(line("  # Its mode."), Line::Comment("Its mode."));
    assert_eq!(line("  #mode: \"0660\""), key(1, "mode", "\"0660\"", false));
    assert_eq!(line("socket:"), key(0, "socket", "", true));
    assert_eq!(line(""), Line::Blank);
    assert_eq!(line("#"), Line::Blank);
}

#[test]
fn page_has_every_key_of_shipped_file() {
    let page = keys();
    for name in ["socket.path", "memory.pressure.reload_cooldown", "models.<model>.pinned"] {
        assert!(page.contains(&format!("\\fB{}\\fR (", escape(name))), "{name}");
    }
    let file = read("etc/caxton/caxton.yaml");
    let values = file
        .lines()
        .map(line)
        .filter(|line| matches!(line, Line::Key { value, .. } if !value.is_empty()));
    assert_eq!(
        page.matches(" (\\fI").count() + page.matches(" (as shipped").count(),
        values.count()
    );
}
