//! `caxton model known`: lists the models whose names, prompts and licences are built in.

use crate::package::known_models;

/// Prints a table of the known models.
pub(super) fn print() -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = known_models()
        .iter()
        .map(|model| {
            vec![
                model.id.to_owned(),
                model.tier.name().to_owned(),
                model.dimensions.to_string(),
                model.f32_size.to_string(),
                model.int8_size.to_string(),
                model.license.unwrap_or("unknown").to_owned(),
                model.description.to_owned(),
            ]
        })
        .collect();
    let headings = ["MODEL", "TIER", "DIMENSIONS", "F32", "INT8", "LICENSE", "DESCRIPTION"];
    Ok(super::print_table(&headings, &rows)?)
}
