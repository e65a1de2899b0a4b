//! Ranks documents by the words that they share with a query, for hybrid ranking and for times when
//! no model can answer.
//!
//! A word is a run of letters and digits by Unicode's rules, in lower case. Stems and stop words
//! are not used, because they require the language to be known. Scores are BM25's. The computation
//! takes up to a second of processor time and fifty times the memory of the documents. It must not
//! run on the runtime's threads, and only one computation may run at the same time.

use std::collections::BTreeSet;

use bm25::{EmbedderBuilder, Scorer, Tokenizer};
use unicode_segmentation::UnicodeSegmentation;

/// Most distinct words of a query that count. The cost is their number times the length of the
/// documents.
const MAX_QUERY_WORDS: usize = 64;

struct WordTokenizer;

impl Tokenizer for WordTokenizer {
    fn tokenize(&self, text: &str) -> Vec<String> {
        text.unicode_words().map(str::to_lowercase).collect()
    }
}

/// Computes how well each document matches `query`: BM25 with its usual constants, 0 without a
/// common word.
pub(super) fn scores(query: &str, documents: &[String]) -> Vec<f32> {
    let corpus: Vec<&str> = documents.iter().map(String::as_str).collect();
    let embedder = EmbedderBuilder::<u64, WordTokenizer>::with_tokenizer_and_fit_to_corpus(
        WordTokenizer,
        &corpus,
    )
    .build();
    let mut scorer = Scorer::<usize, u64>::new();
    for (index, document) in corpus.iter().enumerate() {
        scorer.upsert(&index, embedder.embed(document));
    }
    let query: BTreeSet<String> =
        WordTokenizer.tokenize(query).into_iter().take(MAX_QUERY_WORDS).collect();
    let query = embedder.embed(&Vec::from_iter(query).join(" "));
    let mut scores = vec![0.0; documents.len()];
    for matched in scorer.matches(&query) {
        if let Some(score) = scores.get_mut(matched.id) {
            *score = matched.score;
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rare_words_in_short_documents_count_most() {
        let documents = own(&[
            "The pump in hall three leaks oil",
            "oil oil oil",
            "nothing of the kind",
            "OIL, and a long text about something else that goes on and on for a while",
        ]);
        let scores = scores("oil leaks", &documents);
        assert!(scores[0] > scores[1] && scores[1] > scores[3] && scores[3] > 0.0, "{scores:?}");
        assert_eq!(scores[2], 0.0);
    }

    #[test]
    fn words_match_in_other_scripts() {
        let documents = own(&["Größe ändern", "größe", "изменить размер", "サイズ"]);
        assert!(scores("GRÖSSE größe", &documents)[1] > 0.0);
        assert!(scores("Размер", &documents)[2] > 0.0);
    }

    #[test]
    fn empty_query_or_list_scores_zero() {
        assert_eq!(scores("", &own(&["a", ""])), [0.0, 0.0]);
        assert_eq!(scores("a", &[]), [0.0; 0]);
    }

    #[test]
    fn very_long_query_is_scored() {
        let query: String = (0..200_000).map(|word| format!("w{word} ")).collect();
        let documents = vec![query.clone(); 4];
        assert!(scores(&query, &documents).iter().all(|score| *score > 0.0));
    }
}
