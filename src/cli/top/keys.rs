//! Keys of `caxton top` and their meanings. Pure.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Action of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyAction {
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
    ("l", "load the model; others may be evicted for it"),
    ("u", "unload the model after its current requests"),
    ("p", "load and pin the model, or unpin it"),
    ("?, h", "show this page; any key closes it"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// Returns the action of an event, if it has one.
pub(super) fn key(event: &Event) -> Option<KeyAction> {
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
        return matches!(code, KeyCode::Char('c' | 'd')).then_some(KeyAction::Quit);
    }
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(KeyAction::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(KeyAction::Down),
        KeyCode::Char('l') => Some(KeyAction::Load),
        KeyCode::Char('u') => Some(KeyAction::Unload),
        KeyCode::Char('p') => Some(KeyAction::Pin),
        KeyCode::Char('?' | 'h') => Some(KeyAction::Help),
        KeyCode::Char('q') | KeyCode::Esc => Some(KeyAction::Quit),
        _ => Some(KeyAction::Other),
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
            (KeyCode::Up, none, Some(KeyAction::Up)),
            (KeyCode::Char('j'), none, Some(KeyAction::Down)),
            (KeyCode::Char('l'), none, Some(KeyAction::Load)),
            (KeyCode::Char('u'), none, Some(KeyAction::Unload)),
            (KeyCode::Char('p'), none, Some(KeyAction::Pin)),
            (KeyCode::Char('?'), KeyModifiers::SHIFT, Some(KeyAction::Help)),
            (KeyCode::Esc, none, Some(KeyAction::Quit)),
            (KeyCode::Char('c'), control, Some(KeyAction::Quit)),
            // A control key of an editor must not unload a model.
            (KeyCode::Char('u'), control, None),
            (KeyCode::Char('x'), none, Some(KeyAction::Other)),
        ] {
            assert_eq!(pressed(code, modifiers), expected, "{code:?} {modifiers:?}");
        }
        assert_eq!(key(&Event::Resize(80, 24)), None);
    }
}
