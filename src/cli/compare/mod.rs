//! `caxton model compare`: compares two models on texts of the operator.
//!
//! [`metrics`] has the measures, and [`source`] embeds the texts in this process or in the daemon.

pub(super) mod metrics;
mod source;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::store_access::StoreAccess;
use super::text_file::{MAX_TEXTS, Pair, read_few_texts, read_pairs};
use super::{Connection, print_json, print_table, terminal};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::Bytes;
use metrics::{MAX_PAIRS, NEAREST, UnitVectors, mean_ndcg, neighbor_overlap, pairs_of};
use source::{ComparedModel, EmbeddedTexts};

/// Compare two models on your texts.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// First model: a package file, or an installed model as `id`, `id@version` or `id@revision`.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Second model.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// File of texts, one in each line, as it is or as a JSON string; at most 5,000 texts of
    /// 64 KiB.
    #[arg(long, value_name = "FILE")]
    texts: PathBuf,
    /// File of queries with a relevant text in each line: QUERY, tab, TEXT, and optionally a tab
    /// and a grade from 0 to 100, or the same as a JSON list. Each query is searched among the texts
    /// of both files.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Print the report in JSON.
    #[arg(long)]
    json: bool,
}

/// Texts of a comparison.
struct ComparedTexts {
    texts: Vec<String>,
    search: Option<Search>,
}

/// Queries, the documents that they search, and the grades.
struct Search {
    queries: Vec<String>,
    documents: Vec<String>,
    /// Graded documents of each query, by index.
    grades: Vec<Vec<(usize, f64)>>,
}

/// Agreement of two models.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Agreement {
    /// Whether vectors of the two models may be compared.
    same_embedding_space: bool,
    /// Mean share of the ten nearest texts that are the same; `null` for one text.
    neighbor_overlap: Option<f64>,
    /// Spearman's rank correlation of the similarities of pairs of texts.
    rank_correlation: Option<f64>,
    /// Number of pairs: all, or a sample.
    similarity_pairs: usize,
}

/// Facts about one model, and its figures.
#[derive(Debug, Serialize)]
struct ModelReport {
    /// The model, as `id@version`.
    model: String,
    embedding_space: String,
    dimensions: usize,
    max_sequence_length: usize,
    texts_per_second: f64,
    /// Time of a load; `null` if the daemon has not loaded the model yet.
    load_ms: Option<f64>,
    /// Memory of the weights.
    memory_bytes: u64,
    /// Place of the measurement: `process` or `daemon`.
    measured_in: &'static str,
    /// Quality of the search, from 0 to 1; only with pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    ndcg_at_10: Option<f64>,
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct CompareReport {
    a: ModelReport,
    b: ModelReport,
    /// Number of different texts.
    texts: usize,
    /// Number of different queries.
    queries: usize,
    #[serde(flatten)]
    agreement: Agreement,
    verdict: String,
}

impl Compare {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let texts = read_few_texts(&self.texts)?;
        let search = match &self.pairs {
            Some(path) => Some(Search::new(&texts, read_pairs(path)?)?),
            None => None,
        };
        let input = ComparedTexts { texts, search };
        let is_installed = |path: &PathBuf| !path.is_file() && !path.is_dir();
        let daemon = match is_installed(&self.a) || is_installed(&self.b) {
            true => StoreAccess::daemon(connection).await?,
            false => None,
        };
        let settings = connection.settings()?;
        let models = [self.a.as_path(), self.b.as_path()];
        let [a, b] = ComparedModel::open(models, daemon, connection, &settings).await?;
        // One model is in this process at a time.
        let (a, in_a) = a.embed(&settings, &input).await?;
        let (b, in_b) = b.embed(&settings, &input).await?;
        let same_space = a.embedding_space == b.embedding_space;
        let agreement = Agreement::new(same_space, &in_a.texts, &in_b.texts);
        let report = CompareReport {
            verdict: verdict(&a, &b),
            texts: input.texts.len(),
            queries: input.search.as_ref().map_or(0, |search| search.queries.len()),
            agreement,
            a,
            b,
        };
        if self.json {
            print_json(&report)?;
        } else {
            report.print()?;
        }
        Ok(Exit::Ok)
    }
}

impl Search {
    /// Collects the different queries and documents. The documents are `texts` and the texts of the
    /// pairs. A query that grades a text twice keeps the higher grade.
    fn new(texts: &[String], pairs: Vec<Pair>) -> anyhow::Result<Self> {
        let mut documents = texts.to_vec();
        let mut by_text: BTreeMap<String, usize> = texts.iter().cloned().zip(0..).collect();
        let mut search = Self { queries: Vec::new(), documents: Vec::new(), grades: Vec::new() };
        let mut by_query: BTreeMap<String, usize> = BTreeMap::new();
        for Pair { query, text, grade } in pairs {
            let document = *by_text.entry(text.clone()).or_insert_with(|| {
                documents.push(text);
                documents.len() - 1
            });
            let query = *by_query.entry(query.clone()).or_insert_with(|| {
                search.queries.push(query);
                search.grades.push(Vec::new());
                search.queries.len() - 1
            });
            let grades = &mut search.grades[query];
            match grades.iter_mut().find(|(index, _)| *index == document) {
                Some((_, known)) => *known = grade.max(*known),
                None => grades.push((document, grade)),
            }
        }
        if documents.len() > MAX_TEXTS {
            anyhow::bail!(
                "the texts and the pairs have {} different texts together, and a comparison has at \
                 most {MAX_TEXTS}; take fewer texts",
                documents.len()
            );
        }
        search.documents = documents;
        Ok(search)
    }
}

impl EmbeddedTexts {
    /// Returns the mean nDCG of `search`.
    fn ndcg(&self, search: &Search) -> Option<f64> {
        let (queries, documents) = (self.queries.as_ref()?, self.documents.as_ref()?);
        mean_ndcg(queries, documents, &search.grades, NEAREST)
    }
}

impl Agreement {
    /// Compares the vectors of the same texts in two models.
    pub(super) fn new(same_embedding_space: bool, a: &UnitVectors, b: &UnitVectors) -> Self {
        let pairs = pairs_of(a.len().min(b.len()), MAX_PAIRS);
        Self {
            same_embedding_space,
            neighbor_overlap: neighbor_overlap(a, b, NEAREST),
            rank_correlation: metrics::rank_correlation(a, b, &pairs),
            similarity_pairs: pairs.len(),
        }
    }

    /// Prints the measures as a table.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let share = |value: Option<f64>| value.map_or_else(dash, |value| format!("{value:.4}"));
        let same = if self.same_embedding_space { "yes" } else { "no" };
        let rows = [
            ("same embedding space", same.to_owned()),
            ("nearest 10 in common", share(self.neighbor_overlap)),
            ("rank correlation", share(self.rank_correlation)),
            ("pairs of texts", self.similarity_pairs.to_string()),
        ];
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        Ok(print_table(&["AGREEMENT", "VALUE"], &rows)?)
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Returns the consequence for a change from `a` to `b`, in one line.
fn verdict(a: &ModelReport, b: &ModelReport) -> String {
    let mut verdict = match a.embedding_space == b.embedding_space {
        true => format!(
            "{} and {} have the same embedding space: their vectors may be mixed",
            a.model, b.model
        ),
        false => format!(
            "the vectors of {} and {} must not be mixed: embed all texts again",
            a.model, b.model
        ),
    };
    if let (Some(in_a), Some(in_b)) = (a.ndcg_at_10, b.ndcg_at_10) {
        let difference = in_b - in_a;
        verdict.push_str(&match difference.abs() < 0.005 {
            true => "; both find the relevant texts equally well".to_owned(),
            false => {
                let better = if difference > 0.0 { &b.model } else { &a.model };
                format!("; {better} finds the relevant texts better")
            }
        });
    }
    verdict
}

impl CompareReport {
    fn print(&self) -> anyhow::Result<()> {
        let models = [&self.a, &self.b];
        let mut rows = Vec::new();
        let mut row = |name: &str, value: &dyn Fn(&ModelReport) -> String| {
            let values = models.map(value);
            rows.push(Vec::from_iter(std::iter::once(name.to_owned()).chain(values)));
        };
        row("embedding space", &|model| model.embedding_space.clone());
        row("dimensions", &|model| model.dimensions.to_string());
        row("longest text, tokens", &|model| model.max_sequence_length.to_string());
        row("texts per second", &|model| format!("{:.1}", model.texts_per_second));
        row("load time", &|model| model.load_ms.map_or_else(dash, |load| format!("{load:.0} ms")));
        row("memory", &|model| Bytes(model.memory_bytes).to_string());
        row("measured in", &|model| model.measured_in.to_owned());
        if self.queries > 0 {
            row("nDCG@10", &|model| {
                model.ndcg_at_10.map_or_else(dash, |ndcg| format!("{ndcg:.4}"))
            });
        }
        print_table(&["MODEL", &self.a.model, &self.b.model], &rows)?;
        writeln!(terminal::out())?;
        self.agreement.print()?;
        let mut out = terminal::out();
        writeln!(out, "\n{}", printable::line(&self.verdict))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(query: &str, text: &str, grade: f64) -> Pair {
        Pair { query: query.to_owned(), text: text.to_owned(), grade }
    }

    #[test]
    fn pairs_become_a_search_among_all_texts() {
        let texts = ["a", "b"].map(str::to_owned);
        let pairs = [("q", "b", 1.0), ("q", "c", 2.0), ("r", "c", 1.0), ("q", "b", 3.0)];
        let pairs = pairs.map(|(query, text, grade)| pair(query, text, grade)).into();
        let search = Search::new(&texts, pairs).unwrap();
        assert_eq!(search.documents, ["a", "b", "c"]);
        assert_eq!(search.queries, ["q", "r"]);
        assert_eq!(search.grades, [vec![(1, 3.0), (2, 2.0)], vec![(2, 1.0)]]);
    }

    #[test]
    fn too_many_documents_are_refused() {
        let texts = Vec::from_iter((0..MAX_TEXTS).map(|index| index.to_string()));
        assert!(Search::new(&texts, vec![pair("q", "1", 1.0)]).is_ok());
        let error = Search::new(&texts, vec![pair("q", "other", 1.0)]).err().unwrap();
        assert!(error.to_string().contains("at most 5000"), "{error}");
    }

    #[test]
    fn verdict_names_space_and_better_model() {
        let report = |model: &str, space: &str, ndcg| ModelReport {
            model: model.to_owned(),
            embedding_space: space.to_owned(),
            dimensions: 2,
            max_sequence_length: 8,
            texts_per_second: 1.0,
            load_ms: None,
            memory_bytes: 1,
            measured_in: "process",
            ndcg_at_10: ndcg,
        };
        assert_eq!(
            verdict(&report("a@1", "x", Some(0.5)), &report("b@1", "y", Some(0.6))),
            "the vectors of a@1 and b@1 must not be mixed: embed all texts again; b@1 finds the \
             relevant texts better"
        );
        assert_eq!(
            verdict(&report("a@1", "x", None), &report("b@1", "x", None)),
            "a@1 and b@1 have the same embedding space: their vectors may be mixed"
        );
    }
}
