//! Checks lists of sections, such as `tenants`: the permitted keys of each section, and every
//! problem with its position.
//!
//! Pure, as the table of keys is. For the merge, a list is one value: a later file replaces the
//! whole list.

use figment::value::{Dict, Value as Checked};

use super::super::Position;
use super::super::file::{Node, Value};
use super::ValueKind;

/// One key of a section in a list.
#[derive(Debug)]
pub(in crate::config) struct SectionField {
    pub(in crate::config) name: &'static str,
    /// Permitted values.
    pub(in crate::config) kind: ValueKind,
}

/// A problem in a list, for the operator.
#[derive(Debug)]
pub(in crate::config) enum SectionProblem<'a> {
    /// A wrong section, or a wrong key of one: the position, the dotted name as written, and the
    /// message.
    Section(Position, String, String),
    /// A value that its key does not permit, with the dotted name of the key.
    Value(&'static ValueKind, &'a Node, String),
}

/// Converts the sections of `value` to the form in which the settings store them. Returns `None`
/// when anything in them is wrong.
pub(in crate::config) fn check(fields: &'static [SectionField], value: &Value) -> Option<Checked> {
    let Value::List(items) = value else { return None };
    if !problems(fields, "", items).is_empty() {
        return None;
    }
    let section = |item: &Node| {
        let Value::Section(entries) = &item.value else { return None };
        let values = entries.iter().map(|(key, value)| {
            let field = field(fields, key)?;
            Some((field.name.to_owned(), field.kind.check(&value.value)?))
        });
        values.collect::<Option<Dict>>().map(Checked::from)
    };
    items.iter().map(section).collect::<Option<Vec<_>>>().map(Checked::from)
}

/// Returns the problems of the sections in `items`, in their order. The first field is required and
/// identifies a section.
pub(in crate::config) fn problems<'a>(
    fields: &'static [SectionField],
    list: &str,
    items: &'a [Node],
) -> Vec<SectionProblem<'a>> {
    let mut found = Vec::new();
    let mut seen: Vec<(&Value, Position)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let here = format!("{list}[{index}]");
        let Value::Section(entries) = &item.value else {
            let message = format!("expected a section of keys, found {}", item.value);
            found.push(SectionProblem::Section(item.position, here, message));
            continue;
        };
        keys(fields, &here, entries, &mut found);
        let Some(identity) = fields.first() else { continue };
        let name = entries.iter().find(|(key, _)| is(key, identity.name)).map(|(_, value)| value);
        match name {
            None => {
                let message = format!("the key \"{}\" is missing; add it", identity.name);
                found.push(SectionProblem::Section(item.position, here, message));
            }
            Some(name) => match seen.iter().find(|(other, _)| **other == name.value) {
                Some((_, first)) => {
                    let message = format!(
                        "line {} has a section of the same {name}; use another {name}",
                        first.line,
                        name = identity.name
                    );
                    found.push(SectionProblem::Section(name.position, here, message));
                }
                None => seen.push((&name.value, name.position)),
            },
        }
    }
    found
}

/// Adds the problems of the keys of one section, and of their values, to `found`.
fn keys<'a>(
    fields: &'static [SectionField],
    here: &str,
    entries: &'a [(Node, Node)],
    found: &mut Vec<SectionProblem<'a>>,
) {
    for (index, (key, value)) in entries.iter().enumerate() {
        let Some(field) = field(fields, key) else {
            let known: Vec<_> = fields.iter().map(|field| field.name).collect();
            let message = format!("unknown key {}; known keys: {}", key.value, known.join(", "));
            found.push(SectionProblem::Section(key.position, here.to_owned(), message));
            continue;
        };
        if entries[..index].iter().any(|(other, _)| other.value == key.value) {
            let message = format!("duplicate key \"{}\"; remove one", field.name);
            found.push(SectionProblem::Section(key.position, here.to_owned(), message));
        } else if field.kind.check(&value.value).is_none() {
            found.push(SectionProblem::Value(&field.kind, value, format!("{here}.{}", field.name)));
        }
    }
}

fn field(fields: &'static [SectionField], key: &Node) -> Option<&'static SectionField> {
    fields.iter().find(|field| is(key, field.name))
}

fn is(key: &Node, name: &str) -> bool {
    matches!(&key.value, Value::Text(text) if text == name)
}
