//! Checks that the files of the source do not depend on each other in a cycle.
//!
//! A file uses another when it names an item that the other defines. A name that a module imports or
//! exports again belongs to the file that defines it. A module and the modules below it count as
//! one, so a file may use its parent. Code under `#[cfg(test)]` and the arguments of macros are not
//! read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// Path of a module below the crate, for example `["engine", "simd"]`.
type Module = Vec<String>;

/// Names of one file.
#[derive(Debug, Default)]
struct Names {
    /// Items that the file defines.
    defined: BTreeSet<String>,
    /// Imported names, with their paths.
    imported: BTreeMap<String, Vec<String>>,
    /// Modules whose names are all imported.
    globs: Vec<Vec<String>>,
    /// Every path that the file names.
    paths: BTreeSet<Vec<String>>,
}

fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl Names {
    fn read(text: &str) -> Self {
        let mut names = Self::default();
        names.visit_file(&syn::parse_file(text).unwrap());
        names
    }

    /// Records the imports of `tree`, whose path begins with `prefix`.
    fn import(&mut self, tree: &UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => {
                self.import_as(prefix.last().unwrap().clone(), prefix.to_vec());
            }
            UseTree::Name(name) => self.import_as(name.ident.to_string(), with(&name.ident)),
            UseTree::Rename(name) => self.import_as(name.rename.to_string(), with(&name.ident)),
            UseTree::Glob(_) => self.globs.push(prefix.to_vec()),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, prefix);
                }
            }
        }
    }

    fn import_as(&mut self, name: String, path: Vec<String>) {
        self.paths.insert(path.clone());
        self.imported.insert(name, path);
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, None),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Use(item) => (&item.attrs, None),
            _ => return,
        };
        if is_test_only(attributes) {
            return;
        }
        self.defined.extend(name.map(ToString::to_string));
        match item {
            Item::Use(item) => self.import(&item.tree, &[]),
            item => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test_only(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// Files of a crate by their modules.
#[derive(Debug)]
struct Files(BTreeMap<Module, Names>);

impl Files {
    fn read(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| (module(path), Names::read(text))).collect())
    }

    /// Returns the module whose file defines the item at `path`, as seen from `from`; `None` for an
    /// item of another crate. `depth` limits the number of imports that are followed.
    fn definer(&self, from: &[String], path: &[String], depth: usize) -> Option<Module> {
        let depth = depth.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.descend(&[], rest, depth),
            "self" => self.descend(from, rest, depth),
            // In an inline module, `super` is the file itself. Only tests have inline modules.
            "super" => self.descend(from.split_last()?.1, rest, depth),
            _ => self.descend(from, path, depth),
        }
    }

    fn descend(&self, module: &[String], path: &[String], depth: usize) -> Option<Module> {
        let Some((name, rest)) = path.split_first() else { return Some(module.to_vec()) };
        if name == "super" {
            return self.descend(module.split_last()?.1, rest, depth);
        }
        let child = [module, std::slice::from_ref(name)].concat();
        if self.0.contains_key(&child) {
            return self.descend(&child, rest, depth);
        }
        let names = self.0.get(module)?;
        if names.defined.contains(name) {
            return Some(module.to_vec());
        }
        if let Some(path) = names.imported.get(name) {
            return self.definer(module, &[path, rest].concat(), depth);
        }
        let depth = depth.checked_sub(1)?;
        names.globs.iter().find_map(|glob| self.definer(module, &[glob, path].concat(), depth))
    }

    /// Returns the modules that each module uses, without its ancestors and descendants.
    fn uses(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let used_by = |(module, names): (&Module, &Names)| {
            let found = names.paths.iter().filter_map(|path| self.definer(module, path, 16));
            found.filter(|used| !used.starts_with(module) && !module.starts_with(used)).collect()
        };
        self.0.iter().map(|entry| (entry.0, used_by(entry))).collect()
    }

    /// Returns the uses, as `a uses b`, that are part of a cycle of files.
    fn cycles(&self) -> BTreeSet<String> {
        let uses = self.uses();
        let reached = |start: &Module| {
            let mut found = BTreeSet::new();
            let mut next = vec![start];
            while let Some(module) = next.pop() {
                next.extend(uses[module].iter().filter(|used| found.insert((*used).clone())));
            }
            found
        };
        let reached: BTreeMap<&Module, BTreeSet<Module>> =
            uses.keys().map(|module| (*module, reached(module))).collect();
        let mut cycles = BTreeSet::new();
        for (module, used) in &uses {
            let back = used.iter().filter(|used| reached[used].contains(*module));
            cycles
                .extend(back.map(|used| format!("{} uses {}", module.join("::"), used.join("::"))));
        }
        cycles
    }
}

/// Returns the module of a file that has the path `path` below `src`.
fn module(path: &str) -> Module {
    let path = path.trim_end_matches(".rs").trim_end_matches("mod").trim_end_matches('/');
    path.split('/').filter(|name| !name.is_empty() && *name != "lib").map(str::to_owned).collect()
}

fn source() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for child in fs::read_dir(directory).unwrap() {
            let path = child.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn files_do_not_depend_on_each_other_in_a_cycle() {
    let source = source();
    let source: Vec<(&str, &str)> = source.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let files = Files::read(&source);
    let edges: usize = files.uses().values().map(BTreeSet::len).sum();
    assert!(edges > 500, "only {edges} uses were found");
    let cycles = files.cycles();
    assert!(cycles.is_empty(), "{cycles:#?}");
}

#[test]
fn cycle_is_found_through_exports() {
    let lib = ("lib.rs", "pub mod a; mod d;");
    let a = ("a/mod.rs", "mod b; mod c; pub use b::B; pub use c::C;");
    let b = ("a/b.rs", "use super::C; pub struct B(C);");
    let c = ("a/c.rs", "use crate::a::*; pub struct C; fn f(_: B) {}");
    let d = ("d.rs", "use crate::a::B; fn f(_: B) {}");
    let cycles = Files::read(&[lib, a, b, c, d]).cycles();
    let expected = ["a::b uses a::c", "a::c uses a::b"].map(str::to_owned);
    assert_eq!(cycles, BTreeSet::from(expected));
}

#[test]
fn uses_of_parents_and_in_tests_are_not_cycles() {
    let lib = ("lib.rs", "mod a;");
    let a = ("a/mod.rs", "mod b; mod c; use b::B; struct A(B);");
    let b = ("a/b.rs", "use super::A; struct B; fn f(_: A, _: super::c::C) {}");
    let c = ("a/c.rs", "struct C; #[cfg(test)] mod tests { use super::super::b::B; }");
    assert!(Files::read(&[lib, a, b, c]).cycles().is_empty());
}
