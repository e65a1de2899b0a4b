//! Keys of `caxton top` and their meanings. Pure.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Action of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Load,
    Unload,
    Pin,
    Help,
    /// Closes the help, or quits the program.
    Quit,
    /// Closes the help.
    Other,
}

/// Summary of the keys at the bottom of the screen.
pub(super) const SUMMARY: &str = "arrows select  l load  u unload  p pin  ? help  q quit";

/// Keys and their meanings on the help page.
pub(super) const HELP: &[(&str, &str)] = &[
    ("up, down, j, k", "select a model"),
    ("l", "load it; others may have to leave for it"),
    ("u", "let it finish what it has and leave memory"),
    ("p", "load it and keep it whatever happens, or no longer"),
    ("?, h", "this page; any key leaves it"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// Returns the action of an event, if it has one.
pub(super) fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press | KeyEventKind::Repeat,
        ..
    }) = event
    else {
        return None;
    };
    if modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(code, KeyCode::Char('c' | 'd')).then_some(Key::Quit);
    }
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
        KeyCode::Char('l') => Some(Key::Load),
        KeyCode::Char('u') => Some(Key::Unload),
        KeyCode::Char('p') => Some(Key::Pin),
        KeyCode::Char('?' | 'h') => Some(Key::Help),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        _ => Some(Key::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_map_to_commands() {
        let pressed = |code, modifiers| key(&Event::Key(KeyEvent::new(code, modifiers)));
        let (none, control) = (KeyModifiers::NONE, KeyModifiers::CONTROL);
        for (code, modifiers, expected) in [
            (KeyCode::Up, none, Some(Key::Up)),
            (KeyCode::Char('j'), none, Some(Key::Down)),
            (KeyCode::Char('l'), none, Some(Key::Load)),
            (KeyCode::Char('u'), none, Some(Key::Unload)),
            (KeyCode::Char('p'), none, Some(Key::Pin)),
            (KeyCode::Char('?'), KeyModifiers::SHIFT, Some(Key::Help)),
            (KeyCode::Esc, none, Some(Key::Quit)),
            (KeyCode::Char('c'), control, Some(Key::Quit)),
            // A control key of an editor must not unload a model.
            (KeyCode::Char('u'), control, None),
            (KeyCode::Char('x'), none, Some(Key::Other)),
        ] {
            assert_eq!(pressed(code, modifiers), expected, "{code:?} {modifiers:?}");
        }
        assert_eq!(key(&Event::Resize(80, 24)), None);
    }
}
