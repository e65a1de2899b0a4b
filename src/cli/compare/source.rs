//! The two models of a comparison: embeds texts with a model in this process, or in the daemon.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;

use super::super::client::{Client, segment};
use super::super::local_model::{LocalModel, MeasuredLoad};
use super::super::measure::{MeasureLength, Throughput, throughput};
use super::super::{Connection, progress};
use super::metrics::UnitVectors;
use super::{ComparedTexts, ModelReport};
use crate::api::wire::{EmbeddingsResponse, ModelStatsList, Package, Vector};
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::models::residency::load;
use crate::package::Manifest;

/// Most memory for the vectors of one model.
const MAX_VECTORS: Bytes = Bytes::mib(512);
/// Most texts of one request to the daemon.
const REQUEST_TEXTS: usize = 64;
/// Most bytes of texts in one request to the daemon, unless a single text is longer.
const REQUEST_BYTES: usize = 256 << 10;

/// Role of a text, which selects the prompt.
#[derive(Clone, Copy, Debug)]
enum Role {
    Text,
    Query,
    Document,
}

impl Role {
    /// Returns the value of `input_type` for the daemon.
    fn input_type(self) -> Option<&'static str> {
        match self {
            Self::Text => None,
            Self::Query => Some("query"),
            Self::Document => Some("passage"),
        }
    }

    /// Returns the prompt of a model. The daemon selects the same one.
    fn prompt(self, manifest: &Manifest) -> &str {
        let names: &[&str] = match self {
            Self::Text => &[],
            Self::Query => &["query"],
            Self::Document => &["passage", "document"],
        };
        let mut names = names.iter().copied().chain(manifest.default_prompt.as_deref());
        names.find_map(|name| manifest.prompts.get(name)).map_or("", String::as_str)
    }
}

/// A model to compare.
pub(super) enum ComparedModel {
    /// Model that this process loads.
    Local(LocalModel),
    /// Model of the running daemon.
    Served(Box<ServedModel>),
}

/// Model of the running daemon.
pub(super) struct ServedModel {
    client: Client,
    package: Package,
}

/// Vectors of the texts of a comparison.
pub(super) struct EmbeddedTexts {
    pub(super) texts: UnitVectors,
    pub(super) queries: Option<UnitVectors>,
    pub(super) documents: Option<UnitVectors>,
}

impl ComparedModel {
    /// Opens both models. An installed one is used through `daemon`, if there is one.
    pub(super) async fn open(
        models: [&Path; 2],
        daemon: Option<Client>,
        connection: &Connection,
        settings: &Settings,
    ) -> anyhow::Result<[Self; 2]> {
        let mut served = [None, None];
        if daemon.is_some() {
            for (model, served) in models.iter().zip(&mut served) {
                if !model.is_file() && !model.is_dir() {
                    let mut client = connection.connect().await?;
                    let path = format!("/api/packages/{}", segment(&model.to_string_lossy()));
                    let package = client.get(&path).await?;
                    *served = Some(Self::Served(Box::new(ServedModel { client, package })));
                }
            }
        }
        let here = models.iter().zip(&served).filter(|(_, served)| served.is_none());
        let here = Vec::from_iter(here.map(|(model, _)| *model));
        let mut here = LocalModel::open_all(&here, settings, true)?.into_iter().map(Self::Local);
        let mut next =
            |served: Option<Self>| served.or_else(|| here.next()).context("a model was not opened");
        let [a, b] = served;
        Ok([next(a)?, next(b)?])
    }

    /// Embeds all texts, and measures the model. A local model is freed afterwards.
    pub(super) async fn embed(
        self,
        settings: &Settings,
        input: &ComparedTexts,
    ) -> anyhow::Result<(ModelReport, EmbeddedTexts)> {
        let (mut report, vectors) = match self {
            Self::Local(model) => embed_here(&model, settings, input)?,
            Self::Served(model) => model.embed(input).await?,
        };
        report.ndcg_at_10 = input.search.as_ref().and_then(|search| vectors.ndcg(search));
        Ok((report, vectors))
    }
}

/// Returns an error if the vectors of the texts take too much memory.
fn check_memory(model: &str, dimensions: usize, input: &ComparedTexts) -> anyhow::Result<()> {
    let search = input.search.as_ref();
    let others = search.map_or(0, |search| search.queries.len() + search.documents.len());
    let texts = input.texts.len() + others;
    let needed = Bytes(texts.saturating_mul(dimensions).saturating_mul(4) as u64);
    if needed > MAX_VECTORS {
        bail!(
            "{texts} vectors of {model} take {needed}, and a comparison has at most {MAX_VECTORS} \
             for each model; take fewer texts"
        );
    }
    Ok(())
}

fn embed_here(
    local: &LocalModel,
    settings: &Settings,
    input: &ComparedTexts,
) -> anyhow::Result<(ModelReport, EmbeddedTexts)> {
    let options = load::options(settings);
    let (MeasuredLoad { manifest, model, time }, ()) = local.load(options, |_model| Ok(()))?;
    let dimensions = model.embedder.dimensions();
    check_memory(local.name(), dimensions, input)?;
    let embed = |role: Role, texts: &[String]| -> anyhow::Result<Throughput> {
        let prompt = role.prompt(&manifest);
        throughput(&model, prompt, texts, options.batch_tokens, MeasureLength::Rounds(1))
    };
    let vectors = |throughput: Throughput| UnitVectors::new(throughput.vectors, dimensions);
    let texts = embed(Role::Text, &input.texts)?;
    let texts_per_second = texts.per_second(texts.texts);
    let (mut queries, mut documents) = (None, None);
    if let Some(search) = &input.search {
        queries = Some(vectors(embed(Role::Query, &search.queries)?));
        documents = Some(vectors(embed(Role::Document, &search.documents)?));
    }
    let report = ModelReport {
        model: local.name().to_owned(),
        embedding_space: manifest.embedding_space(),
        dimensions,
        max_sequence_length: manifest.max_sequence_length,
        texts_per_second,
        load_ms: Some(time.as_secs_f64() * 1e3),
        memory_bytes: model.embedder.weight_bytes(),
        measured_in: "process",
        ndcg_at_10: None,
    };
    Ok((report, EmbeddedTexts { texts: vectors(texts), queries, documents }))
}

impl ServedModel {
    async fn embed(
        mut self,
        input: &ComparedTexts,
    ) -> anyhow::Result<(ModelReport, EmbeddedTexts)> {
        let name = format!("{}@{}", self.package.id, self.package.version);
        let dimensions = self.package.dimensions;
        check_memory(&name, dimensions, input)?;
        // The first request loads the model, so it is not measured.
        let first = input.texts.get(..1).unwrap_or_default();
        self.request(Role::Text, first, &mut Vec::new()).await?;
        let begun = Instant::now();
        let texts = self.vectors(Role::Text, &input.texts).await?;
        let texts_per_second = input.texts.len() as f64 / begun.elapsed().as_secs_f64();
        let (mut queries, mut documents) = (None, None);
        if let Some(search) = &input.search {
            queries = Some(self.vectors(Role::Query, &search.queries).await?);
            documents = Some(self.vectors(Role::Document, &search.documents).await?);
        }
        let package: Package =
            self.client.get(&format!("/api/packages/{}", segment(&self.exact_name()))).await?;
        let stats: ModelStatsList = self.client.get("/api/models/stats").await?;
        let is_this = |id: &str, revision: &str| id == package.id && revision == package.revision;
        let stats = stats.models.iter().find(|model| is_this(&model.id, &model.revision));
        let report = ModelReport {
            model: name,
            embedding_space: package.embedding_space,
            dimensions,
            max_sequence_length: package.max_sequence_length,
            texts_per_second,
            load_ms: stats.and_then(|stats| stats.load_ms),
            memory_bytes: package.resident_bytes,
            measured_in: "daemon",
            ndcg_at_10: None,
        };
        Ok((report, EmbeddedTexts { texts, queries, documents }))
    }

    /// Returns the name that means this content only.
    fn exact_name(&self) -> String {
        format!("{}@{}", self.package.id, self.package.revision)
    }

    async fn vectors(&mut self, role: Role, texts: &[String]) -> anyhow::Result<UnitVectors> {
        let bar = progress::texts(texts.len() as u64, "embedding");
        let mut values = Vec::with_capacity(texts.len() * self.package.dimensions);
        let mut rest = texts;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fitting = rest.iter().take(REQUEST_TEXTS).take_while(|text| {
                bytes += text.len();
                bytes <= REQUEST_BYTES
            });
            let (part, others) = rest.split_at(fitting.count().max(1));
            self.request(role, part, &mut values).await?;
            bar.inc(part.len() as u64);
            rest = others;
        }
        bar.finish_and_clear();
        Ok(UnitVectors::new(values, self.package.dimensions))
    }

    /// Embeds `texts` in one request and appends their vectors to `values`.
    async fn request(
        &mut self,
        role: Role,
        texts: &[String],
        values: &mut Vec<f32>,
    ) -> anyhow::Result<()> {
        let body = serde_json::json!({
            "input": texts,
            "model": self.exact_name(),
            "input_type": role.input_type(),
            "encoding_format": "base64",
            "allow_fallback": false,
        });
        let answer: EmbeddingsResponse =
            self.client.post_patiently("/v1/embeddings", &body).await?;
        let wanted = texts.len() * self.package.dimensions;
        let before = values.len();
        for embedding in &answer.data {
            match &embedding.embedding {
                Vector::Float(vector) => values.extend(vector),
                Vector::Base64(text) => {
                    let bytes = STANDARD.decode(text).context("a vector is not base64")?;
                    let words = bytes.as_chunks::<4>().0.iter();
                    values.extend(words.map(|word| f32::from_le_bytes(*word)));
                }
                Vector::Signed(_) | Vector::Unsigned(_) => {
                    bail!("the daemon answered in another format");
                }
            }
        }
        if values.len() - before != wanted {
            bail!("the daemon answered {} numbers in place of {wanted}", values.len() - before);
        }
        Ok(())
    }
}
