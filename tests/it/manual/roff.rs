//! Converts text to roff, by the rules of man(7) and groff_char(7).

/// Escapes `text` for a paragraph, so that no character is read as a request, an escape or a dash.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    if text.starts_with(['.', '\'']) {
        escaped.push_str("\\&");
    }
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            character if character.is_ascii() => escaped.push(character),
            character => escaped.push_str(&format!("\\[u{:04X}]", u32::from(character))),
        }
    }
    escaped
}

/// Escapes `text` as [`escape`] does, with the parts between backquotes in bold.
pub(super) fn prose(text: &str) -> String {
    let parts: Vec<_> = text.split('`').enumerate().collect();
    let last = parts.len() - 1;
    let parts = parts.into_iter().map(|(index, part)| match index % 2 {
        1 if index < last => format!("\\fB{}\\fR", escape(part)),
        _ => escape(part),
    });
    // `escape` protects the beginning of each part, although only the beginning of the line needs
    // it.
    parts.collect::<String>()
}

/// Returns one item of a list from a term, which is already roff, and its text.
pub(super) fn item(term: &str, text: &str) -> String {
    let text = if text.is_empty() { "\\&".to_owned() } else { prose(text) };
    format!(".TP\n{term}\n{text}\n")
}

/// Returns `lines` unchanged as an indented block in a monospaced font.
pub(super) fn verbatim<'t>(lines: impl IntoIterator<Item = &'t str>) -> String {
    let lines: String = lines.into_iter().map(|line| escape(line) + "\n").collect();
    format!(".PP\n.RS 4\n.nf\n{lines}.fi\n.RE\n")
}

#[test]
fn text_is_escaped_for_roff() {
    assert_eq!(escape(".SH it's\\n --x"), "\\&.SH it\\(aqs\\en \\-\\-x");
    assert_eq!(escape("10\u{2076}…"), "10\\[u2076]\\[u2026]");
    assert_eq!(prose("say `caxton --x` or `half"), "say \\fBcaxton \\-\\-x\\fR or half");
    assert_eq!(item("x", ""), ".TP\nx\n\\&\n");
}
