//! The keys of the configuration: their names, defaults and texts as the shipped file has them, which is tested against
//! the table of keys.

use super::read;
use super::roff::{escape, item, prose};

/// What a line of the shipped file is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Blank,
    Comment(&'l str),
    /// A key or a section, set or commented out, at a depth of two blanks each.
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
    // `# ` begins a comment, `#name:` a key that is not set.
    match (text.strip_prefix("# "), text.strip_prefix('#').unwrap_or(text)) {
        (Some(comment), _) => Line::Comment(comment),
        (None, "") => Line::Blank,
        (None, key) => {
            let (name, value) = key.split_once(':').unwrap();
            Line::Key { depth, name, value: value.trim(), is_set: !text.starts_with('#') }
        }
    }
}

/// The name that the manual shows in the place of one that the operator gives.
fn placeholder(path: &[&str]) -> Option<&'static str> {
    match path {
        ["models", _] => Some("<model>"),
        ["aliases", _] => Some("<alias>"),
        _ => None,
    }
}

/// Sections and keys with their defaults.
pub(super) fn keys() -> String {
    let file = read("etc/caxton/caxton.yaml");
    let mut path: Vec<&str> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut page = String::new();
    // What the file begins with is about the file, and stands in the page already.
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
                // What there is to say of it was said of its section.
                let text = if text.is_empty() { "\\&" } else { &text };
                let how = if is_set { "as shipped: " } else { "" };
                let term = format!("\\fB{dotted}\\fR ({how}\\fI{}\\fR)", escape(value));
                page.push_str(&format!(".TP\n{term}\n{text}\n"));
            }
        }
    }
    page
}

/// A comment as text; its lines that are set in become a list.
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
fn lines_are_comments_keys_and_sections() {
    let key = |depth, name, value, is_set| Line::Key { depth, name, value, is_set };
    assert_eq!(line("  # Its mode."), Line::Comment("Its mode."));
    assert_eq!(line("  #mode: \"0660\""), key(1, "mode", "\"0660\"", false));
    assert_eq!(line("socket:"), key(0, "socket", "", true));
    assert_eq!(line(""), Line::Blank);
    assert_eq!(line("#"), Line::Blank);
}

#[test]
fn every_key_of_the_shipped_file_is_in_the_page() {
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
