//! Generates the parts of the manual that are documented only in the source itself.

use caxton::base::units::Bytes;
use caxton::package::{
    Classifier, DenseLayer, Manifest, Member, MultiVectorHead, SelfTest, SparseHead, UnpackLimits,
};
use serde::de::DeserializeOwned;

use super::roff::{escape, item, prose};
use super::{read, repository};

/// Declaration of a field or a variant.
struct Declared {
    name: String,
    /// Type of a field, or value of a variant.
    what: String,
    /// Documentation in one line.
    text: String,
    /// serde has a default for the field.
    is_optional: bool,
}

/// Returns the fields or variants of `item`, such as `struct Manifest`, in a file of `src`. Each
/// must be declared on lines of its own, as rustfmt formats it.
fn declared(path: &str, item: &str) -> Vec<Declared> {
    let source = read(path);
    let body = source
        .split_once(&format!("pub {item} {{\n"))
        .and_then(|(_, rest)| rest.split_once("\n}\n"))
        .unwrap_or_else(|| panic!("{path}: no {item}"))
        .0;
    let (mut found, mut text, mut is_optional) = (Vec::new(), Vec::new(), false);
    for line in body.lines().map(str::trim) {
        if let Some(documentation) = line.strip_prefix("///") {
            text.push(documentation.trim());
        } else if line.starts_with("#[") || line.starts_with("default") {
            is_optional |= line.contains("default");
        } else if let Some((name, what)) = line
            .strip_suffix(',')
            .and_then(|line| line.split_once(": ").or_else(|| line.split_once(" = ")))
        {
            // Skip the lines of an attribute that spans several lines.
            if name.starts_with("pub ") || name.starts_with(|first: char| first.is_uppercase()) {
                let text = std::mem::take(&mut text).join(" ");
                let name = name.trim_start_matches("pub ").to_owned();
                found.push(Declared { name, what: what.to_owned(), text, is_optional });
                is_optional = false;
            }
        }
    }
    found
}

/// Returns the JSON type of a Rust type.
fn json_type(rust: &str) -> String {
    if rust == "Vec<usize>" || rust == "Vec<u32>" {
        return "list of whole numbers".to_owned();
    }
    let inner = |name: &str| rust.strip_prefix(name)?.strip_suffix('>').map(json_type);
    if let Some(inner) = inner("Vec<") {
        return format!("list of {inner}");
    }
    if let Some(inner) = inner("Option<") {
        return inner;
    }
    match rust {
        "u32" | "u64" | "usize" => "whole number",
        "f32" => "numbers",
        "bool" => "true or false",
        "String" => "text",
        "ModelId" | "Version" | "MemberName" => "name",
        "Precision" => "f32, f16, int8 or int4-table",
        "Digest" => "64 hexadecimal digits",
        "BTreeMap<String, String>" => "object of texts",
        "DenseLayer" | "Member" => "objects",
        "Classifier" | "MultiVectorHead" | "SelfTest" | "SparseHead" => "object",
        "ScoreActivation" => "sigmoid or identity",
        other => panic!("{other} has no JSON type"),
    }
    .to_owned()
}

/// Returns the keys that serde accepts for `T`, from its error message about an unknown key.
fn serde_keys<T: DeserializeOwned>() -> Vec<String> {
    let error = serde_json::from_str::<T>(r#"{"?":0}"#).err().unwrap().to_string();
    let known = error.split_once("expected").unwrap().1;
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn object<T: DeserializeOwned>(name: &str) -> String {
    let fields = declared("src/package/manifest.rs", &format!("struct {name}"));
    let names: Vec<_> = fields.iter().map(|field| field.name.clone()).collect();
    assert_eq!(names, serde_keys::<T>(), "{name}");
    let field = |Declared { name, what, text, is_optional }: &Declared| {
        let optional = if *is_optional { ", may be missing" } else { "" };
        let term = format!("\\fB{}\\fR ({}{optional})", escape(name), escape(&json_type(what)));
        // Replace a link of the documentation by the only valid format number.
        item(&term, &text.replace("[`FORMAT`]", &format!("Always {}", caxton::package::FORMAT)))
    };
    fields.iter().map(field).collect()
}

/// Returns the keys of a manifest and of the objects in it.
pub(super) fn manifest() -> String {
    [
        ("The manifest", object::<Manifest>("Manifest")),
        ("Each of files", object::<Member>("Member")),
        ("Each of dense", object::<DenseLayer>("DenseLayer")),
        ("classifier", object::<Classifier>("Classifier")),
        ("sparse", object::<SparseHead>("SparseHead")),
        ("multi_vector", object::<MultiVectorHead>("MultiVectorHead")),
        ("self_test", object::<SelfTest>("SelfTest")),
    ]
    .map(|(title, keys)| format!(".SS {}\n{keys}", escape(title)))
    .concat()
}

/// Returns the limits of a package at the default of `packages.max_package_size`.
pub(super) fn limits() -> String {
    let UnpackLimits {
        max_compressed,
        max_total,
        max_file,
        max_ratio,
        max_manifest,
        max_members,
        time,
    } = UnpackLimits::for_size(caxton::config::Settings::default().packages.max_package_size);
    let size = |bytes| Bytes(bytes).to_string();
    let values = [
        size(max_compressed),
        size(max_total),
        size(max_file),
        max_ratio.to_string(),
        size(max_manifest),
        max_members.to_string(),
        humantime::format_duration(time).to_string(),
    ];
    let limits = declared("src/package/unpack_limits.rs", "struct UnpackLimits");
    assert_eq!(limits.len(), values.len());
    limits
        .iter()
        .zip(values)
        .map(|(limit, value)| item(&format!("\\fB{}\\fR", escape(&value)), &limit.text))
        .collect()
}

/// Returns the exit codes.
pub(super) fn exit_status() -> String {
    let codes = declared("src/base/exit.rs", "enum Exit");
    assert!(codes.len() > 5);
    codes.iter().map(|code| item(&format!("\\fB{}\\fR", code.what), &code.text)).collect()
}

/// Returns the records of the journal catalog in its order: the name from the comment above, the
/// MESSAGE_ID, the subject. The format is described in <https://systemd.io/CATALOG/>.
pub(super) fn journal() -> String {
    const CATALOG: &str = "packaging/journal/caxton.catalog";
    if !repository(CATALOG).exists() {
        return String::new();
    }
    let (mut page, mut name, mut id) = (String::new(), String::new(), String::new());
    for line in read(CATALOG).lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            comment.clone_into(&mut name);
        } else if let Some(new) = line.strip_prefix("-- ") {
            new.clone_into(&mut id);
        } else if let Some(subject) = line.strip_prefix("Subject: ") {
            let term = format!("\\fB{}\\fR  {id}", escape(&name));
            page.push_str(&item(&term, &format!("{}.", without_fields(subject))));
        }
    }
    assert!(page.contains(".TP"), "{CATALOG} has no event");
    page
}

/// Shortens the fields in a text of the catalog: `@CAXTON_MODEL@` becomes MODEL.
fn without_fields(text: &str) -> String {
    text.split('@').map(|part| part.strip_prefix("CAXTON_").unwrap_or(part)).collect()
}

#[test]
fn fields_and_variants_are_found_with_their_documentation() {
    let codes = declared("src/base/exit.rs", "enum Exit");
    let usage = codes.iter().find(|code| code.what == "64").unwrap();
    assert_eq!(
        (usage.name.as_str(), prose(&usage.text).as_str()),
        ("Usage", "The command line is wrong.")
    );
    let fields = declared("src/package/manifest.rs", "struct Manifest");
    let optional: Vec<_> =
        fields.iter().filter(|field| field.is_optional).map(|field| field.name.as_str()).collect();
    let expected = [
        "matryoshka_dimensions",
        "dense",
        "classifier",
        "sparse",
        "multi_vector",
        "prompts",
        "default_prompt",
        "languages",
        "source",
        "revision",
    ];
    assert_eq!(optional, expected);
}
