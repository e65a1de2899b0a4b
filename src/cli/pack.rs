//! `caxton model pack`, and the packing step of an installation from a directory.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::OutputFile;
use super::{print_error, progress, terminal};
use crate::config::Settings;
use crate::engine::{self, EngineOptions};
use crate::models::residency::load::{load, options, self_test_vector};
use crate::package::{
    BoxError, Manifest, ModelId, PackRequest, PackResult, PackageContents, Precision, Version,
    WeightsOrigin, pack,
};

/// Identity and properties of the package to make.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Id of the model [default: the name of the directory, or of the GGUF file].
    #[arg(long, value_name = "ID")]
    model_id: Option<ModelId>,
    /// Known model in the directory, if its id differs from the model id. It gives licence,
    /// languages and prompts, and without modules.json the pooling and the normalization.
    #[arg(long, value_name = "ID")]
    original: Option<String>,
    /// Version of the package [default: 1].
    #[arg(long, value_name = "VERSION")]
    model_version: Option<Version>,
    /// Format of the stored weights [default: the format in the directory; f16 for a GGUF file with
    /// matrices in 16 bits or fewer, except bf16].
    #[arg(long, value_enum)]
    precision: Option<PrecisionArgument>,
    /// SPDX expression of the model's licence [default: the licence of the known model].
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
    /// Revision of the directory at its origin. If it is that of the known model, other weights
    /// than the published ones are refused.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Smaller lengths to which vectors may be cut, because the model was trained for them, such as
    /// 256,128 [default: the list in the directory, or the one of the published model].
    #[arg(long, value_name = "LENGTHS", value_delimiter = ',')]
    matryoshka_dimensions: Option<Vec<usize>>,
    /// Step that makes one vector of the vectors of the tokens [default: the step in modules.json,
    /// or the one of the known model]. The model card of the model states it.
    #[arg(long, value_enum)]
    pooling: Option<PoolingArgument>,
    /// Whether the vectors get length 1 [default: as in modules.json, or as for the known model, or
    /// true for a GGUF file].
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Longest text of the package in tokens, if it shall be less than that of the directory: a
    /// longer text is truncated. A smaller number limits the memory and the time of a request.
    #[arg(long, value_name = "TOKENS")]
    max_sequence_length: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArgument {
    F32,
    F16,
    Int8,
    Int4Table,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PoolingArgument {
    Mean,
    Cls,
    Max,
    MeanSqrtLen,
    #[value(name = "lasttoken")]
    LastToken,
}

impl PoolingArgument {
    /// Returns the name in manifests.
    fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLen => "mean_sqrt_len",
            Self::LastToken => "lasttoken",
        }
    }
}

/// Make a package.
#[derive(Debug, Args)]
pub(super) struct Pack {
    /// Directory of the model, in the layout of sentence-transformers or transformers, or a GGUF
    /// file. Without modules.json, --original or both of --pooling and --normalize state the
    /// missing steps.
    #[arg(long, value_name = "PATH")]
    source: PathBuf,
    #[command(flatten)]
    what: Source,
    /// Package to write. The file appears when it is complete.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl Pack {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let packed = self.what.pack(&self.source, &self.output)?;
        let mut out = terminal::out();
        writeln!(out, "{}  {}", packed.package_digest, self.output.display())?;
        Ok(())
    }
}

impl Source {
    /// Packs `directory` into `output`, which appears when it is complete.
    pub(super) fn pack(self, directory: &Path, output: &Path) -> anyhow::Result<PackResult> {
        let request = PackRequest {
            source: directory.to_owned(),
            id: self.model_id,
            original: self.original,
            version: self.model_version,
            precision: self.precision.map(|precision| match precision {
                PrecisionArgument::F32 => Precision::F32,
                PrecisionArgument::F16 => Precision::F16,
                PrecisionArgument::Int8 => Precision::Int8,
                PrecisionArgument::Int4Table => Precision::Int4Table,
            }),
            license: self.license,
            revision: self.revision,
            matryoshka_dimensions: self.matryoshka_dimensions,
            pooling: self.pooling.map(PoolingArgument::name),
            normalize: self.normalize,
            max_sequence_length: self.max_sequence_length,
        };
        let bar = progress::bytes(0, "packing");
        let done = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let mut file = OutputFile::create(output)?;
        let packed = pack(&request, &vector_of, &done, BufWriter::new(&mut file.temporary))?;
        bar.finish_and_clear();
        file.persist()?;
        report_origin(packed.origin);
        Ok(packed)
    }
}

/// Prints whether the weights are the published ones, if this is known.
fn report_origin(origin: WeightsOrigin) {
    match origin {
        WeightsOrigin::Published(known) => print_error(&format!(
            "caxton: the weights are the published ones of {}",
            known.repository
        )),
        WeightsOrigin::Changed(known) => print_error(&format!(
            "caxton: the weights differ from the published ones of {}, so the vectors may differ \
             too: the model was trained further or saved again, or the file is damaged",
            known.repository
        )),
        WeightsOrigin::Unknown => {}
    }
}

/// Computes the vector of the self-test with the contents that will be packed.
fn vector_of(manifest: &Manifest, contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
    // Every machine compares its own vector with this one, so it is computed in f32.
    let exact =
        EngineOptions { precision: engine::Precision::F32, ..options(&Settings::default()) };
    let model = load(manifest, contents.clone(), exact)?;
    Ok(self_test_vector(manifest, &model)?)
}
